"""The console program for tests."""

import os
from pathlib import Path

import pytest
from consoles import Console


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Console:
    """Commands stand in an empty folder, with nothing set."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("GANSERVE_"):
            monkeypatch.delenv(name)
    return Console(capsys)
