"""What the README tells a stranger to type is typed here, exactly, against the real server."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from servers import ROOT, Server

from ganserve.cli import app
from training import catalog
from training.contract import Finding

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
AUGMENTATION = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
YOUR_OWN_PICTURES = (ROOT / "docs" / "your-own-pictures.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def typed(program: str, page: str = README) -> list[str]:
    """Lines after a `$` in a console block that begin with the program."""
    blocks = re.findall(r"```console\n(.*?)```", page, flags=re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines if line.startswith(program)]


def test_every_curl_line_is_answered_as_it_is_printed(start: Callable[..., Server], tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    server = start()
    here = tmp_path / "here"
    here.mkdir()
    lines = typed("curl")
    assert len(lines) >= 16
    for line in lines:
        assert ADDRESS in line, line
        command = line.replace(ADDRESS, server.url).replace("curl ", "curl --silent --show-error --fail-with-body ")
        ran = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=False, cwd=here, timeout=60)
        assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
        if line.startswith("curl -o "):
            with Image.open(here / line.split(" -o ")[1].split()[0]) as picture:
                picture.load()


def test_every_route_is_in_the_table_and_has_its_curl_line() -> None:
    curls = "\n".join(typed("curl"))
    paths = "/generate /interpolate /discriminate /files /train /jobs /cancel /models /architectures /healthz /readyz"
    for path in paths.split():
        assert path in curls, path
        assert f"{path}" in README.split("| route |")[1], path


def test_every_console_line_can_be_parsed() -> None:
    (in_a_team,) = [line.split(" -m ", maxsplit=1)[1] for line in typed("torchrun ", TRAINING)]
    for line in (
        *typed("ganserve "),
        *typed("ganserve ", TRAINING),
        *typed("ganserve ", AUGMENTATION),
        *typed("ganserve ", MODELS),
        *typed("ganserve ", YOUR_OWN_PICTURES),
        in_a_team,
    ):
        app.parse_args(line.removeprefix("ganserve "), exit_on_error=False, print_error=False)


def test_the_page_on_training_knows_every_finding_preset_and_bench() -> None:
    kinds = get_args(Finding.model_fields["kind"].annotation)
    for name in (*kinds, *catalog.presets()):
        assert f"`{name}`" in TRAINING or f"--preset {name}" in TRAINING
    benches = re.findall(r"`(bench/\w+\.py)", TRAINING)
    assert {"bench/resume.py", "bench/endings.py"} <= set(benches)
    for name in benches:
        assert (ROOT / name).is_file(), name


def test_the_table_of_architectures_is_the_catalogue() -> None:
    table = README.split("| architecture |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, flags=re.MULTILINE)) == set(catalog.architectures())
    for name in (*catalog.losses(), *catalog.penalties(), *catalog.extractors()):
        assert f"`{name}`" in README or name == "efficientnet-lite0"
