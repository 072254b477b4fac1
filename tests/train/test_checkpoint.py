import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.checkpoint import CheckpointCard, LostCheckpointsError
from training.files.directories import STAGING, DamagedFileError, verify

CPU = torch.device("cpu")
NEWEST, BEFORE = "000000000020", "000000000010"


def state_at(images: int) -> dict[str, object]:
    return {"images": images, "weights": torch.full((5000,), float(images))}


def loaded(folder: Path) -> int | None:
    """At how many images the checkpoint stands that is loaded, all of it checked."""
    state = checkpoint.load_newest(folder, CPU)
    if state is None:
        return None
    assert torch.equal(state["weights"], torch.full((5000,), float(state["images"])))
    return int(state["images"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != STAGING)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two whole checkpoints, at 10 and at 20 images."""
    for images in (10, 20):
        checkpoint.save(tmp_path, images, state_at(images))
    return tmp_path


def keep(folder: Path, images: int, state: dict[str, object]) -> None:
    """As a worker does."""
    checkpoint.save(folder, images, state)
    checkpoint.drop_all_but_newest(folder)


def test_states_that_are_not_named_are_dropped_and_what_was_left_half_written(folder: Path) -> None:
    checkpoint.save(folder, 30, state_at(30))
    (folder / STAGING / "half").mkdir(parents=True)
    checkpoint.drop_all_but(folder, [10, 30, 99])
    assert names(folder) == [BEFORE, "000000000030"]
    assert not (folder / STAGING / "half").exists()
    assert checkpoint.load(folder, 30, CPU)["images"] == 30
    with pytest.raises(DamagedFileError, match="checkpoint 000000000020 is missing or damaged"):
        checkpoint.load(folder, 20, CPU)


def test_where_there_is_none_there_is_no_state(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "missing", CPU) is None
    assert checkpoint.load_newest(tmp_path, CPU) is None


def test_the_newest_is_loaded_and_said_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert loaded(folder) == 20
    assert caplog.messages == ["going on from the checkpoint at 20 images"]


def test_the_last_two_are_kept(folder: Path) -> None:
    keep(folder, 30, state_at(30))
    assert names(folder) == [NEWEST, "000000000030"]
    assert list((folder / STAGING).iterdir()) == []


def test_the_newest_has_the_most_images_not_the_latest_time(tmp_path: Path) -> None:
    for images in (1_000_000, 999_999, 10**12, 10**12 - 1):
        keep(tmp_path, images, state_at(images % 1000))
    assert names(tmp_path) == ["1000000000000", "999999999999"]
    assert loaded(tmp_path) == 0


def test_what_is_saved_already_stays_as_it_was(folder: Path) -> None:
    checkpoint.save(folder, 20, state_at(99))
    assert loaded(folder) == 20


def test_an_old_one_goes_out_of_sight_in_one_piece(folder: Path) -> None:
    oldest = folder / BEFORE
    for number in range(2000):  # so that it takes a while to remove
        (oldest / f"more-{number}").touch()
    whole = set(oldest.iterdir())
    seen_in_pieces: list[int] = []

    def watch() -> None:
        with suppress(FileNotFoundError):
            while True:
                pieces = set(oldest.iterdir())
                if pieces != whole and oldest.exists():
                    seen_in_pieces.append(len(pieces))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        keep(folder, 30, state_at(30))
        watching.result()
    assert seen_in_pieces == []


# --- damage -------------------------------------------------------------------------------------------------------------------


def flip(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray((path / "state.pt").read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        (path / "state.pt").write_bytes(data)

    return damage


def truncate(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = (path / "state.pt").read_bytes()
        (path / "state.pt").write_bytes(data[: int(share * len(data))])

    return damage


def grow(path: Path) -> None:
    data = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(data + b"more")


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def link_state(path: Path) -> None:
    (path / "state.pt").rename(path / "elsewhere.pt")
    (path / "state.pt").symlink_to("elsewhere.pt")


def foreign_card(path: Path) -> None:
    card = CheckpointCard.model_validate_json((path / "checkpoint.json").read_bytes())
    (path / "checkpoint.json").write_text(card.model_dump_json().replace('"state.pt"', '"../000000000010/state.pt"'))


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"a bit flipped at {place:.0%}": flip(place) for place in (0, 0.01, 0.3, 0.5, 0.9, 0.99, 1)},
    "truncated to nothing": truncate(0),
    "truncated to half": truncate(0.5),
    "truncated by a little": truncate(0.999),
    "grown": grow,
    "without a state": lambda path: (path / "state.pt").unlink(),
    "a link in place of the state": link_state,
    "without a card": lambda path: (path / "checkpoint.json").unlink(),
    "an empty card": lambda path: (path / "checkpoint.json").write_bytes(b""),
    "a card that is no JSON": lambda path: (path / "checkpoint.json").write_bytes(b"{"),
    "a card that is no text": lambda path: (path / "checkpoint.json").write_bytes(b"\xff\xfe"),
    "a card that names another's file": foreign_card,
    "empty": empty,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before_and_is_named(
    damage: Callable[[Path], object], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / NEWEST)
    assert loaded(folder) == 10
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"checkpoint {NEWEST} is damaged and left out: ")
    assert names(folder) == [BEFORE]
    checkpoint.save(folder, 20, state_at(20))
    assert loaded(folder) == 20, "the run gets there again, and its number is free"


def test_where_all_are_damaged_nothing_begins_anew_in_silence(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(0.5)(folder / NEWEST)
    empty(folder / BEFORE)
    with pytest.raises(LostCheckpointsError, match="all 2 checkpoints are damaged"):
        loaded(folder)
    assert len(caplog.records) == 2
    assert loaded(folder) is None


def test_a_checkpoint_that_cannot_be_read_just_now_is_kept(folder: Path) -> None:
    card = folder / NEWEST / "checkpoint.json"
    whole = card.read_bytes()
    card.unlink()
    card.mkdir()  # reading it is an error of the system's, and no sign of damage
    with pytest.raises(IsADirectoryError):
        loaded(folder)
    card.rmdir()
    card.write_bytes(whole)
    assert loaded(folder) == 20


def test_a_foreign_file_is_no_checkpoint(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "best").mkdir()
    assert loaded(folder) == 20
    assert {"notes.txt", "best"} <= set(names(folder))


# --- a process that dies ------------------------------------------------------------------------------------------------------

# Each child saves without end, and is killed with its newest state half written; the next goes on from what is there.
SAVES_UNTIL_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from training import checkpoint

folder, cpu = Path(sys.argv[1]), torch.device("cpu")
for least in (1, 2, 4, 7):
    state = checkpoint.load_newest(folder, cpu)
    images = 0 if state is None else state["images"]
    child = os.fork()
    if child == 0:
        while True:
            images += 1
            state = {"images": images, "weights": torch.full((5000,), float(images)), "ballast": torch.zeros(500_000)}
            checkpoint.save(folder, images, state)
            checkpoint.drop_all_but_newest(folder)
    goal = f"{images + least:012d}"
    while max((path.name for path in folder.glob("0*")), default="") < goal or not any((folder / ".staging").glob("*/state.pt")):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(images)
"""


def test_a_process_killed_while_it_saves_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SAVES_UNTIL_KILLED, tmp_path], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    starts = [int(line) for line in done.stdout.split()]
    assert starts[0] == 0
    assert all(later > earlier for earlier, later in pairwise(starts))
    assert 1 <= len(names(tmp_path)) <= checkpoint.KEPT + 1, "it may die before the oldest is dropped"
    for name in names(tmp_path):
        card = CheckpointCard.model_validate_json((tmp_path / name / "checkpoint.json").read_bytes())
        verify(tmp_path / name, card.state)
        assert card.images == int(name)
    assert loaded(tmp_path) == int(names(tmp_path)[-1])
    assert not (tmp_path / STAGING).exists(), "what dead processes left half written takes no room"
