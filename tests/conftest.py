"""What all tests share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-everything", action="store_true", help="fail where a test would be skipped because a program is not installed"
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--require-everything"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and everything is required here: {report.longrepr}"


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's top folder."""
    return ROOT
