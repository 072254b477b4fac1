"""What all tests share: the real console program, and a real server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from servers import ROOT, Server


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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one server with the demo models, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("server")
    running = Server(folder / "state", [folder / "models", ROOT / "models"])
    yield running.url
    running.stop()


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client
