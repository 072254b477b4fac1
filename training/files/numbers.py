"""Which numbers of a model are taken, and by whom: for ever, also where a version was removed, or was never finished.

    <name>/.numbers/<n>/run        who reserved the number
    <name>/.runs/<run>/version     the one number that a run publishes under
    <name>/.removed/<n>/           a version that was removed: out of sight by one rename, emptied at leisure

What is reserved becomes visible by one rename, which only one of all who try can do, in this process, on this machine or on another one
that shares the disk. A model without these folders has the numbers of its version directories alone.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from training.files.directories import commit, make_folder, rename, staging

NUMBERS, RUNS, REMOVED = ".numbers", ".runs", ".removed"


def reserve(folder: Path, run: str, next_number: Callable[[], int]) -> int:
    """The number that a run publishes under: the same whenever it is asked for, by whichever attempt of the run, and no other run's.

    Args:
        folder: of the model, in the repository that is written to.
        run: what names the run; letters, digits, `.`, `_`, `-`.
        next_number: a number that was free a moment ago.

    Raises:
        ValueError: not a name for a run.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run):
        raise ValueError(f"{run!r} cannot name a run: letters, digits, '.', '_' and '-' are allowed")
    if (decided := number_of(folder, run)) is not None:
        return decided
    number = _reserved_by(folder, run)
    while number is None:
        number = next_number()
        if not _decide(folder / NUMBERS / str(number), "run", run):
            number = None  # another run was faster: the next one
    _decide(folder / RUNS / run, "version", str(number))  # where another attempt was faster, its number stands
    decided = number_of(folder, run)
    assert decided is not None
    return decided


def take(folder: Path, number: int, who: str) -> bool:
    """Whether the number is reserved by whoever it is, now or before."""
    return _decide(folder / NUMBERS / str(number), "run", who) or reserver(folder, number) == who


def reserver(folder: Path, number: int) -> str | None:
    """Who has reserved a number; None where nobody has."""
    path = folder / NUMBERS / str(number) / "run"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def number_of(folder: Path, run: str) -> int | None:
    """The number that was decided on for a run."""
    path = folder / RUNS / run / "version"
    return int(path.read_text(encoding="utf-8")) if path.is_file() else None


def reserved(folder: Path) -> set[int]:
    return _numbered(folder / NUMBERS)


def removed(folder: Path) -> set[int]:
    return _numbered(folder / REMOVED)


def remove(folder: Path, number: int) -> None:
    """Take a version out of sight for ever, by one rename, then delete what is out of sight."""
    make_folder(folder / REMOVED)
    rename(folder / str(number), folder / REMOVED / str(number))
    for gone in removed(folder):  # also what a process that died here has left
        for path in (folder / REMOVED / str(gone)).iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _reserved_by(folder: Path, run: str) -> int | None:
    """The number that an attempt reserved before it died."""
    return min((number for number in reserved(folder) if reserver(folder, number) == run), default=None)


def _decide(target: Path, file: str, text: str) -> bool:
    """Whether this call made the directory; its one file is whole and durable before anybody sees it."""
    make_folder(target.parent)
    with staging(target.parent.parent) as staged:
        (staged / file).write_text(text, encoding="utf-8")
        try:
            commit(staged, target)
        except FileExistsError:
            return False
    return True


def _numbered(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()} if folder.is_dir() else set()
