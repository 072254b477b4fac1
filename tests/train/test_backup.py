"""A backup is consistent whatever goes on while it is made, and is restored whole or not at all."""

import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_versions
import torch

from training import checkpoint
from training.contract import TrainConfig
from training.files import backup, digests, numbers, runs, versions
from training.files.backup import BackupError, back_up, restore
from training.files.directories import staging, verify
from training.preparation import Places
from training.worker import work

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def _denormals_as_before() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)  # a worker turns it on, in a process of its own


def publish(repository: Path, run: str) -> int:
    """A version whose two files say the same, and what that was."""
    number = versions.reserve([repository], "mine", run)
    with staging(repository) as staged:
        for name in (versions.MANIFEST, "generator.pt"):
            (staged / name).write_text(f"{run} {number}" * 1000)
        digests.remember(
            repository.parent / "state" / digests.FOLDER, digests.digest_of((staged / versions.MANIFEST).read_bytes()), run, ""
        )
        versions.publish(staged, [repository], "mine", number)
    return number


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_points_at_something_finds_it_in_every_backup_made_while_versions_come_and_go(tmp_path: Path) -> None:
    repository, state, stop = tmp_path / "models", tmp_path / "state", threading.Event()
    publish(repository, "first")
    versions.write_alias([repository], "mine", "production", 1)

    def churn() -> None:
        for at in range(10_000):
            if stop.is_set():
                return
            number = publish(repository, f"run-{at}")
            versions.write_alias([repository], "mine", "production", number)
            versions.prune([repository], "mine", 2)

    others = threading.Thread(target=churn)
    others.start()
    try:
        for at in range(12):
            back_up(tmp_path / f"{at}.tar", repository, state)
            while versions.next_number([repository], "mine") < at + 3:
                time.sleep(0.001)
    finally:
        stop.set()
        others.join()
    last = 0
    for at in range(12):
        here = tmp_path / str(at)
        restore(tmp_path / f"{at}.tar", here / "models", here / "state")
        found = versions.versions([here / "models"], "mine")
        aliases = versions.read_aliases([here / "models"], "mine")
        assert set(aliases.values()) <= found.keys(), (at, aliases, found)
        trusted = digests.known(here / "state" / digests.FOLDER)
        for path in found.values():
            assert (path / versions.MANIFEST).read_bytes() == (path / "generator.pt").read_bytes()
            assert digests.digest_of((path / versions.MANIFEST).read_bytes()) in trusted
        assert set(range(1, max(found) + 1)) <= numbers.reserved(here / "models/mine")
        assert last <= aliases["production"] < versions.next_number([here / "models"], "mine")
        last = aliases["production"]
    assert last > 8


def test_a_run_goes_on_from_a_backup_that_was_made_while_it_trained_and_ends_with_the_same_bits(
    make_config: MakeConfig, datasets_folder: Path, tmp_path: Path
) -> None:
    state, repository = tmp_path / "state", tmp_path / "models"
    shutil.copytree(datasets_folder, state / "datasets")
    changes = {"total_images": 2_000, "checkpoint_images": 100, "evaluation_images": 1_000, "num_evaluated": 6, "learning_rate": 0.001}
    run = state / "jobs" / "a-run"
    runs.create(run, make_config(name="mine", **changes), "a-run")

    def train(state: Path, repository: Path) -> None:
        places = Places(state / "datasets", (repository,), state / "weights", state / digests.FOLDER)
        assert work(state / "jobs/a-run", places, torch.device("cpu"), num_threads=1, memory_layout="contiguous") == 0

    def back_up_meanwhile() -> None:
        while (made := len(list(tmp_path.glob("*.tar")))) < 8:
            if runs.checkpoint_images(run) > 0:
                report = back_up(tmp_path / f"{made}.tar", repository, state)
                assert (report.num_runs, report.num_datasets) == (1, 1)

    with ThreadPoolExecutor(1) as pool:
        backups = pool.submit(back_up_meanwhile)
        train(state, repository)
        backups.result()
    for number in range(8):
        restore(tmp_path / f"{number}.tar", tmp_path / str(number) / "models", tmp_path / str(number) / "state")
    begun = [number for number in range(8) if runs.read_status(tmp_path / str(number) / "state/jobs/a-run").state == "running"]
    assert begun
    here = tmp_path / str(begun[len(begun) // 2])
    again = here / "state/jobs/a-run"
    assert 0 < runs.checkpoint_images(again) <= 2_000
    train(here / "state", here / "models")
    assert runs.read_status(again).message == runs.read_status(run).message
    found, wanted = (checkpoint.load_newest(each / runs.CHECKPOINTS, torch.device("cpu")) for each in (again, run))
    assert found is not None
    assert wanted is not None
    assert str(found["matches"]) == str(wanted["matches"])
    lines = [[(line.images, line.losses, line.evaluation) for line in runs.read_metrics(each)] for each in (again, run)]
    assert lines[0] == lines[1]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A backup of a repository with one version and a removed one, a set, and what else lies in a state folder."""
    repository, state = tmp_path / "models", tmp_path / "state"
    for number in (1, 2):
        assert publish(repository, f"run-{number}") == number
    numbers.remove(repository / "mine", 1)
    (state / "datasets/pets").mkdir(parents=True)
    (state / "datasets/pets/card.json").write_text("{}")
    (state / "weights").mkdir()
    (state / "weights/vgg19.pth").write_text("weights")
    (state / "serving.json").write_text("{}")
    (state / "server.log").write_text("lines")
    (state / "jobs").mkdir()
    (state / "jobs/lock").touch()
    report = back_up(tmp_path / "whole.tar", repository, state)
    assert (report.num_models, report.num_versions, report.num_datasets, report.num_runs) == (1, 1, 1, 0)
    assert report.remarks == [
        "models/mine/2 has no manifest that can be read, and is copied as it is",
        f"left out of {state}: server.log",
    ]
    return tmp_path / "whole.tar"


def test_all_comes_back_as_it_was_but_for_locks_and_what_is_no_part_of_it(whole: Path, tmp_path: Path) -> None:
    restore(whole, tmp_path / "new/models", tmp_path / "new/state")
    assert files(tmp_path / "new/models") == files(tmp_path / "models")
    was = files(tmp_path / "state")
    assert files(tmp_path / "new/state") == {name: data for name, data in was.items() if name not in ("server.log", "jobs/lock")}
    assert versions.next_number([tmp_path / "new/models"], "mine") == 3
    assert numbers.removed(tmp_path / "new/models/mine") == {1}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["models", "state"]


def test_nothing_that_is_there_is_written_over(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"whole\.tar is there already: choose another name"):
        back_up(whole, tmp_path / "models", tmp_path / "state")
    for models, state in (("models", "new"), ("new", "state")):
        with pytest.raises(BackupError, match="is there already, and is not written over: choose other --models and --state"):
            restore(whole, tmp_path / models, tmp_path / state)
    assert not (tmp_path / "new").exists()


def rewritten(whole: Path, changed: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """The backup with its files changed, the index as it was."""
    written = io.BytesIO()
    with tarfile.open(whole) as read, tarfile.open(fileobj=written, mode="w") as tar:
        for member in read.getmembers():
            file = read.extractfile(member)
            if file is not None and (new := changed(member.name, file.read())) is not None:
                info = tarfile.TarInfo(new[0])
                info.size = len(new[1])
                tar.addfile(info, io.BytesIO(new[1]))
    return written.getvalue()


def test_a_backup_that_is_cut_changed_or_no_backup_restores_nothing(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    generator = "models/mine/2/generator.pt"
    wrong = f"{generator} is not what its backup.json says"
    for bad, reason in (
        (b"nonsense", "is no backup, or a damaged one"),
        (data[: len(data) // 2], "is no backup, or a damaged one"),
        (rewritten(whole, lambda name, data: None if name == backup.INDEX else (name, data)), "it was cut off"),
        (rewritten(whole, lambda name, data: None if name == generator else (name, data)), wrong),
        (rewritten(whole, lambda name, data: (name, data[:-1] + b"?") if name == generator else (name, data)), wrong),
        (rewritten(whole, lambda name, data: (name.replace("generator.pt", "../../../evil"), data)), "does not belong there"),
        (rewritten(whole, lambda name, data: (name.replace("models/", "/evil/"), data)), "does not belong there"),
    ):
        path = tmp_path / "bad.tar"
        path.write_bytes(bad)
        with pytest.raises(BackupError, match=r"bad\.tar is no backup, or a damaged one: .") as caught:
            restore(path, tmp_path / "new/models", tmp_path / "new/state")
        assert reason in str(caught.value)
        assert not (tmp_path / "new/models").exists()
        assert not (tmp_path / "new/state").exists()


def test_a_damaged_checkpoint_is_left_out_for_the_one_before_it(make_config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "state/runs/mine"
    runs.create(run, make_config(), "a-run")
    for images in (100, 200):
        checkpoint.save(run / runs.CHECKPOINTS, images, {"weights": torch.ones(3)})
    (run / runs.CHECKPOINTS / f"{200:012d}" / "state.pt").write_bytes(b"nonsense")
    assert back_up(tmp_path / "b.tar", tmp_path / "models", tmp_path / "state").num_runs == 1
    restore(tmp_path / "b.tar", tmp_path / "new/models", tmp_path / "new/state")
    restored = tmp_path / "new/state/runs/mine"
    assert runs.checkpoint_images(restored) == 100
    card = checkpoint.CheckpointCard.model_validate_json((restored / runs.CHECKPOINTS / f"{100:012d}" / runs.CHECKPOINT_CARD).read_bytes())
    verify(restored / runs.CHECKPOINTS / f"{100:012d}", card.state)
    assert runs.read_config(restored) == runs.read_config(run)
    assert json.loads((restored / runs.STATUS).read_text())["state"] == "queued"


def test_a_version_that_misses_a_file_is_copied_as_it_is_and_said_to_whether_an_alias_names_it_or_not(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for number in (1, 2):
        tiny_versions.publish(repository, "tiny", tiny_versions.single(), version=number)
        (repository / f"tiny/{number}/generator.pt").unlink()
    (repository / "tiny/2/generator.pt").symlink_to("nowhere")
    versions.write_alias([repository], "tiny", "production", 2)
    (tmp_path / "state/datasets").mkdir(parents=True)
    (tmp_path / "state/datasets/pets").symlink_to("nowhere")
    report = back_up(tmp_path / "b.tar", repository, tmp_path / "state")
    assert (report.num_versions, report.num_datasets) == (2, 0)
    assert report.remarks == [
        "state/datasets/pets is a link that leads nowhere, and is left out",
        "models/tiny/1 is damaged (generator.pt), and is copied as it is",
        "models/tiny/2 is damaged (missing: generator.pt), and is copied as it is",
        "models/tiny/2 is damaged (generator.pt), and is copied as it is",
    ]
    restore(tmp_path / "b.tar", tmp_path / "new/models", tmp_path / "new/state")
    assert files(tmp_path / "new/models") == files(repository)


def test_a_run_that_misses_a_file_is_copied_as_it_is_and_said_to(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "state/runs"
    for name in ("first", "second"):
        runs.create(folder / name, make_config(), name)
    (folder / "first" / runs.STATUS).unlink()
    for images in (100, 200):
        checkpoint.save(folder / "second" / runs.CHECKPOINTS, images, {"weights": torch.ones(3)})
    (folder / "second" / runs.CHECKPOINTS / f"{200:012d}" / "state.pt").unlink()
    report = back_up(tmp_path / "b.tar", tmp_path / "models", tmp_path / "state")
    assert report.num_runs == 2
    assert report.remarks == [
        "state/runs/first is damaged (missing: status.json), and is copied as it is",
        "state/runs/second is damaged (missing: checkpoints/000000000200/state.pt), and is copied as it is",
    ]
    restore(tmp_path / "b.tar", tmp_path / "new/models", tmp_path / "new/state")
    assert runs.read_config(tmp_path / "new/state/runs/first") == runs.read_config(folder / "first")
    assert runs.checkpoint_images(tmp_path / "new/state/runs/second") == 100
