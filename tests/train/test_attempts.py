"""Attempts of a service: which one's worker may write, how deaths are counted, and what a worker may take of the machine."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.contract import JobStatus, TrainConfig
from training.files import events, runs
from training.preparation import Places
from training.run import Listener
from training.worker import STOPPED, work

pytestmark = pytest.mark.usefixtures("torch_as_before")
CPU = torch.device("cpu")
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def run(tmp_path: Path, make_config: MakeConfig) -> Path:
    runs.create(tmp_path / "run", make_config(name="mine", total_images=100_000), runs.new_id())
    return tmp_path / "run"


@pytest.fixture
def places(tmp_path: Path, datasets_folder: Path) -> Places:
    return Places(datasets_folder, (tmp_path / "models",), tmp_path / "weights")


def contents(run: Path) -> dict[str, bytes]:
    """All that a run has written, but what it says of itself in its log."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != runs.LOG}


class Rival(Listener):
    """Grants another attempt once this one is at work."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.seen: dict[str, bytes] = {}

    def progressed(self, status: JobStatus) -> None:
        if not self.seen:
            runs.grant(self._run, 2)
            self.seen = contents(self._run)


def test_a_worker_ends_without_another_word_once_another_attempt_is_granted(run: Path, places: Places) -> None:
    runs.grant(run, 1)
    rival = Rival(run)
    assert work(run, places, CPU, rival, num_threads=1, attempt=1) == STOPPED
    assert rival.seen
    assert contents(run) == rival.seen
    assert "another attempt works on the run" in (run / runs.LOG).read_text()
    assert not (places.repositories[0]).exists()


def test_a_worker_whose_attempt_is_not_granted_does_not_begin(run: Path, places: Places) -> None:
    runs.grant(run, 2)
    before = contents(run)
    assert work(run, places, CPU, attempt=1) == STOPPED
    assert contents(run) == {**before, "lock": b""}


def test_deaths_are_counted_from_the_last_checkpoint_on(run: Path) -> None:
    assert [runs.count_death(run) for _ in range(3)] == [1, 2, 3]
    (run / runs.CHECKPOINTS / f"{40:012d}").mkdir()
    assert [runs.count_death(run) for _ in range(2)] == [1, 2]
    runs.forget_deaths(run)
    assert runs.count_death(run) == 1


def test_a_run_that_goes_on_from_a_checkpoint_takes_back_what_it_had_told(tmp_path: Path, make_config: MakeConfig, places: Places) -> None:
    run = tmp_path / "again"
    runs.create(run, make_config(name="mine"), runs.new_id())
    work(run, places, CPU, num_threads=1)
    status = runs.read_status(run)
    runs.write_status(run, status.model_copy(update={"state": "running", "model": None, "version": None}))
    work(run, places, CPU, num_threads=1)
    kinds = [(event.event, event.data.get("images"), event.data.get("state")) for _, event in events.Reader(run).read()]
    assert ("rewound", 240, None) in kinds
    assert [state for kind, _, state in kinds if kind == "state"] == ["queued", "running", "succeeded", "running", "succeeded"]


def test_a_worker_that_wants_more_memory_than_it_may_have_says_so(run: Path, places: Places, make_config: MakeConfig) -> None:
    wide = make_config(name="mine", options={"latent_size": 4, "generator_widths": [16_384, 16_384], "discriminator_widths": [8]})
    (run / runs.CONFIG).write_text(wide.model_dump_json())
    runs.grant(run, 1)
    command = [
        sys.executable,
        "-m",
        "training.worker",
        str(run),
        "--datasets",
        str(places.datasets),
        "--repository",
        str(run.parent / "models"),
    ]
    command += [
        "--digests",
        str(run.parent / "digests"),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--attempt",
        "1",
        "--memory-megabytes",
        "1500",
    ]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    status = runs.read_status(run)
    assert status.state == "failed"
    assert status.message.startswith("out of memory with a batch_size of 20: give a smaller one, or narrower networks")
