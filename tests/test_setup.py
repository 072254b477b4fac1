"""The two commands, the locks behind them, and the image that is built of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package; a package may have several, for different Pythons."""
    versions: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), flags=re.MULTILINE):
        versions.setdefault(package, set()).add(version)
    return versions


def test_every_locked_package_has_a_hash_and_the_torch_pair_is_the_one_that_is_named() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        entries = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text().strip())
        assert all("--hash=sha256:" in entry for entry in entries)
        assert not re.search(r"https?://", "".join(entries)), "a lock names packages, not the place they came from"
        assert (locked(name)["torch"], locked(name)["torchvision"]) == ({"2.14.1"}, {"0.29.1"})


def test_the_development_lock_is_the_serving_lock_and_more() -> None:
    serving, development = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {package: development[package] for package in serving} == serving
    assert {"pytest", "ruff", "mypy", "playwright"} <= development.keys() - serving.keys()


def test_what_is_installed_is_what_is_locked() -> None:
    frozen = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    development = locked("requirements-dev.lock")
    for package, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", frozen, flags=re.MULTILINE):
        name = re.sub(r"[-_.]+", "-", package).lower()
        assert name not in development or version in development[name], package


def test_a_second_make_serve_installs_nothing() -> None:
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("these tests run outside the environment that make makes")
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # not a part of `make test`
    command = ["/usr/bin/env", "make", "--dry-run", "serve"]
    dry = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    assert dry.strip() == ".venv/bin/ganserve serve --host 127.0.0.1 --port 8000"


def test_make_says_which_python_it_needs_where_there_is_none(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    command = ["/usr/bin/env", "make", "PYTHON=", f"VENV={tmp_path / 'venv'}", str(python)]
    refused = subprocess.run(command, cwd=ROOT, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "ganserve needs Python 3.11, 3.12 or 3.13 (with its venv module) and found none on the PATH" in refused.stderr
    assert not python.exists()


def test_the_image_installs_the_same_lock_and_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text()
    assert "pip install --require-hashes --requirement requirements.lock" in lines
    assert re.search(r"^USER ganserve$", lines, flags=re.MULTILINE)
    assert "HEALTHCHECK" in lines
    assert lines.index("USER ganserve") < lines.index("ENTRYPOINT")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", lines, flags=re.MULTILINE) for word in line.split()}
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
