"""What all tests share: the real console program, and a real server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
from servers import ROOT, Server

# Two tests run at a time, and start processes of their own: an operation has one thread, as torch is told before it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A machine that is busy is slow: no test asserts a time.
hypothesis.settings.register_profile("any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any-machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-everything", action="store_true", help="fail where a test would be skipped because a program is not installed"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--require-everything"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and everything is required here: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's top folder."""
    return ROOT


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """For what trains in this process: a worker sets torch up as in a process of its own."""
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that are ended with the test."""
    started: list[Server] = []

    def start_server(
        state: Path | None = None, models: list[Path] | None = None, *arguments: str, environment: dict[str, str] | None = None
    ) -> Server:
        server = Server(state or tmp_path / "state", models or [tmp_path / "models", ROOT / "models"], *arguments, environment=environment)
        started.append(server)
        return server

    yield start_server
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the demo models, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("server")
    running = Server(folder / "state", [folder / "models", ROOT / "models"])
    yield running
    running.stop()


@pytest.fixture(scope="session")
def server(shared_server: Server) -> str:
    """Its address."""
    return shared_server.url


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client
