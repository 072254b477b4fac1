"""`ganserve fsck` finds what is not as it was written, and `rebuild-index` makes the index of jobs anew."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from consoles import Console
from servers import ROOT

from training import checkpoint, datasets
from training.contract import TrainConfig
from training.files import runs
from training.files.locks import hold


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Console:
    monkeypatch.chdir(tmp_path)
    return Console(capsys)


@pytest.fixture
def jobs(tmp_path: Path, console: Console) -> list[Path]:
    """Three of them, known to the index, the first with a checkpoint, beside a model and a data set."""
    shutil.copytree(ROOT / "models" / "digits", tmp_path / "models" / "digits")
    about = datasets.About((1, 8, 8), "a test", "none")
    datasets.write("tiny", tmp_path / "state" / "datasets", about, [datasets.Batch(np.zeros((3, 1, 8, 8), np.uint8))])
    folders = []
    for _ in range(3):
        id = runs.new_id()
        folders.append(tmp_path / "state" / "jobs" / id)
        runs.create(folders[-1], TrainConfig(architecture="mlp"), id, place=len(folders))
    checkpoint.save(folders[0] / runs.CHECKPOINTS, 64, {"weights": torch.ones(8)})
    assert len(console.done("jobs", "list").splitlines()) == 3
    return folders


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_where_nothing_is_wrong_nothing_is_told(console: Console, jobs: list[Path]) -> None:
    lines = console.done("fsck").splitlines()
    assert lines[-1] == "nothing is wrong"
    assert "jobs and runs: 3 looked at, 0 wrong" in lines
    assert "index of jobs: 1 looked at, 0 wrong" in lines


def _damages(tmp_path: Path, job: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    version = next((tmp_path / "models" / "digits").iterdir())
    yield "generator.pt does not have the sha256", lambda: flip(version / "generator.pt")
    yield "manifest.json: ", lambda: (version / "manifest.json").write_text("{")
    yield "checkpoints/000000000064 is damaged: state.pt", lambda: flip(job / "checkpoints" / "000000000064" / "state.pt")
    yield "config.json cannot be read", lambda: (job / "config.json").write_text("{}x")
    yield "metrics.jsonl cannot be read", lambda: (job / "metrics.jsonl").write_text("{}\n")
    yield "events.jsonl cannot be read", lambda: (job / "events.jsonl").write_text("{}\n")
    yield "is in the index, and its directory is gone", lambda: shutil.rmtree(job)
    yield "images.npy does not have the sha256", lambda: flip(tmp_path / "state" / "datasets" / "tiny" / "images.npy")


def test_each_damage_is_found_and_named(console: Console, jobs: list[Path], tmp_path: Path) -> None:
    for words, damage in _damages(tmp_path, jobs[0]):
        before = tmp_path.with_name(f"{tmp_path.name}-before")
        shutil.copytree(tmp_path, before)
        damage()
        said = console("fsck")
        assert said.code == 1, words
        assert words in said.out
        assert said.out.splitlines()[-1].endswith(" wrong")
        for part in ("models", "state"):
            shutil.rmtree(tmp_path / part)
            shutil.copytree(before / part, tmp_path / part)
        shutil.rmtree(before)


def test_a_lost_or_damaged_index_is_made_anew(console: Console, jobs: list[Path], tmp_path: Path) -> None:
    before = console.done("jobs", "list")
    index = tmp_path / "state" / "index.sqlite"
    with sqlite3.connect(index, isolation_level=None) as database:
        database.execute("delete from jobs")
    assert f"job {jobs[0].name} is not in the index" in console("fsck").out
    assert console.done("rebuild-index") == "the index knows 3 jobs\n"
    assert console.done("fsck").endswith("nothing is wrong\n")
    index.write_bytes(index.read_bytes()[:5000] + b"x" * 5000)
    assert "the index of jobs is damaged: " in console("fsck").out
    said = console("rebuild-index")
    assert said.out == "the index knows 3 jobs\n"
    assert "the damaged index lies in " in said.err
    assert console.done("jobs", "list") == before


def test_an_index_is_not_made_anew_beside_a_server(console: Console, jobs: list[Path], tmp_path: Path) -> None:
    with hold(tmp_path / "state" / "jobs"):
        assert "another process works in" in console.refused("rebuild-index")
        assert "beside a server" not in console.done("fsck")
    assert "is no folder" in console.refused("rebuild-index", "--state", tmp_path / "nowhere")
