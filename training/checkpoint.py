"""Checkpoints: state dicts only, each an atomic directory with hashes; the last two are kept, and resume is the default."""

import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from training.contract import Document, FileSpec, UserError
from training.files.directories import STAGING, DamagedFileError, commit, describe, staging, verify, write_atomically
from training.files.runs import CHECKPOINT_CARD

KEPT = 2
_log = logging.getLogger(__name__)


class CheckpointCard(Document):
    """`checkpoint.json`: what lies beside it."""

    images: int
    state: FileSpec


def save(folder: Path, images: int, state: dict[str, Any]) -> None:
    """Write `folder/<images>/`, durable and whole or not at all. What is there already stays."""
    target = folder / f"{images:012d}"
    if target.exists():
        return
    with staging(folder) as staged:
        torch.save(state, staged / "state.pt")
        card = CheckpointCard(images=images, state=describe(staged / "state.pt"))
        write_atomically(staged / CHECKPOINT_CARD, card.model_dump_json(indent=2).encode())
        commit(staged, target)


def drop_all_but_newest(folder: Path) -> None:
    """Keep the last two."""
    for old in _newest_first(folder)[KEPT:]:
        _drop(old)


def drop_all_but(folder: Path, images: Collection[int]) -> None:
    """Keep the states at these numbers of images alone, and nothing that a dead process has left half written."""
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for path in _newest_first(folder):
        if int(path.name) not in images:
            _drop(path)


class LostCheckpointsError(UserError):
    """There were checkpoints, and every one is damaged."""


def load_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole, or None where there never was one; a damaged one is named in the log and removed.

    Only the run's one worker may call it: what lies half written in the folder is taken for a dead process's, and removed.

    Raises:
        LostCheckpointsError: there were some, and all are damaged; to begin again in silence would lose more than it saves.
        OSError: a file cannot be read just now, which is no damage.
    """
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    found = _newest_first(folder)
    for path in found:
        try:
            card = CheckpointCard.model_validate_json((path / CHECKPOINT_CARD).read_bytes())
            state: dict[str, Any] = torch.load(verify(path, card.state), map_location=device, weights_only=True)
        except (DamagedFileError, FileNotFoundError, ValueError) as error:
            _log.warning("checkpoint %s is damaged and left out: %s", path.name, error)
            _drop(path)
            continue
        _log.info("going on from the checkpoint at %s images", f"{card.images:,}")
        return state
    if found:
        raise LostCheckpointsError(
            f"all {len(found)} checkpoints are damaged (the log says how) and removed; started again, it begins anew"
        )
    return None


def load(folder: Path, images: int, device: torch.device) -> dict[str, Any]:
    """The state at so many images.

    Raises:
        DamagedFileError: it is missing or not whole.
    """
    path = folder / f"{images:012d}"
    try:
        card = CheckpointCard.model_validate_json((path / CHECKPOINT_CARD).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"the checkpoint {path.name} is missing or damaged") from error
    state: dict[str, Any] = torch.load(verify(path, card.state), map_location=device, weights_only=True)
    return state


def damages(folder: Path) -> list[str]:
    """What is not as it was written, of every state below the folder: a sentence each."""
    found = []
    for path in _newest_first(folder):
        try:
            verify(path, CheckpointCard.model_validate_json((path / CHECKPOINT_CARD).read_bytes()).state)
        except (DamagedFileError, OSError, ValueError) as error:
            found.append(f"{folder.name}/{path.name} is damaged: {str(error).splitlines()[0]}")
    return found


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*") if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _drop(path: Path) -> None:
    """Out of sight by one rename, then removed: a half removed checkpoint is never seen."""
    with staging(path.parent) as staged:
        path.rename(staged / path.name)
