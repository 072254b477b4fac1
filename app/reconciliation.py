"""What the index of jobs knows, out of what their directories say."""

import json
import logging
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from app.index import Entry, Index
from training.contract import FINISHED, JobState
from training.files import events, runs

_INDEX_ALONE = ("attempt",)  # a claim of a job whose worker is alive is granted nothing, and leaves no trace in the directory
_log = logging.getLogger(__name__)


def folders(folder: Path) -> dict[str, Path]:
    """The jobs' directories by id, oldest first."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / runs.STATUS).is_file()}


def asked(folder: Path) -> dict[str, JsonValue] | None:
    """The request that a job was made by, where it had a key."""
    try:
        request: dict[str, JsonValue] = json.loads((folder / runs.REQUEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read: %s", folder / runs.REQUEST, error)
        return None
    return request


def entry_of(folder: Path) -> Entry:
    """A job that nobody works on, as far as is known.

    Raises:
        OSError, ValueError: its status cannot be read.
    """
    status = runs.read_status(folder)
    request = asked(folder)
    key = None if request is None else cast(str, request["key"])
    try:
        config = runs.read_config(folder)
    except (OSError, ValueError):  # the job's worker, if it ever comes to that, will say so
        config = None
    return Entry(
        id=folder.name,
        state=status.state,
        priority=status.priority,
        place=status.place,
        model=config.model_name if config else None,
        architecture=config.architecture if config else None,
        dataset=config.dataset if config else None,
        key=key,
        attempt=runs.granted(folder),
    )


def reconcile(folder: Path, index: Index, *, forget: bool = False) -> None:
    """Bring the index to what the directories say, where whoever wrote both died in between. What a server works on is its own affair.

    Args:
        forget: jobs whose directories are gone. Nobody who dies leaves such a job behind, but somebody who deletes directories; for a
            server alone, since to another the folder may only look empty.
    """
    known, found = index.states(), folders(folder)
    for id in known.keys() - found.keys():
        _log.warning("job %s: its directory is gone%s", id, ", and it is forgotten" if forget else "")
        if forget:
            index.remove(id, (known[id],))
    new = []
    for id, path in found.items():
        try:
            if id not in known:
                new.append(entry_of(path))
            elif known[id] != "running":
                _correct(path, index, known[id])
        except (OSError, ValueError) as error:
            _log.warning("job %s cannot be read and is left out: %s", id, error)
    added = index.add_all(new)
    for entry in new:
        if (other := added[entry.id]) != entry.id:
            _log.warning("job %s was asked for by the same request as job %s, and was never told of: it is left out", entry.id, other)
        elif entry.state not in FINISHED:
            events.tell_state(found[entry.id], runs.read_status(found[entry.id]))


def _correct(path: Path, index: Index, known: JobState) -> None:
    state = json.loads((path / runs.STATUS).read_bytes())["state"]
    if state in FINISHED and state == known and not runs.is_cancel_asked(path):  # a wish that stayed: its fulfilment may not be told
        return
    status = runs.read_status(path)
    if status.state != known:
        index.change(path.name, (known,), status.state, status.place)
    events.tell_state(path, status)


def reconcile_one(path: Path, index: Index) -> None:
    """The same for one job, whose last change may have been cut; raises OSError and ValueError where it is damaged."""
    entry = index.entry(path.name)
    if entry is None:
        index.add(entry_of(path))
    elif entry.state != "running":
        _correct(path, index, entry.state)


def rebuild(folder: Path, index: Index) -> tuple[int, list[str]]:
    """Make the index anew of the directories, while no server works.

    Returns:
        How many jobs it knows now, and a sentence for each that is left out.
    """
    entries, left_out, keys = [], [], dict[str, str]()
    for id, path in folders(folder).items():
        try:
            entries.append(entry_of(path))
        except (OSError, ValueError) as error:
            left_out.append(f"job {id} cannot be read: {error}")
    # of two that one request has made, the one that was told of is the one that has begun, or the newer one
    entries.sort(key=lambda entry: (entry.attempt > 0, entry.id), reverse=True)
    for entry in entries.copy():
        if entry.key is not None and (other := keys.setdefault(entry.key, entry.id)) != entry.id:
            left_out.append(f"job {entry.id} was asked for by the same request as job {other}")
            entries.remove(entry)
    index.replace(entries)
    return len(entries), left_out


def differences(folder: Path, index: Index) -> list[str]:
    """A sentence for each job of which the index and the directories do not say the same."""
    known = {entry.id: entry for entry in index.entries()}
    found = folders(folder)
    told = [f"job {id} is in the index, and its directory is gone" for id in known.keys() - found.keys()]
    for id, path in found.items():
        try:
            entry = entry_of(path)
        except (OSError, ValueError) as error:
            told.append(f"job {id} cannot be read: {error}")
            continue
        if id not in known:
            told.append(f"job {id} is not in the index")
        elif known[id].state != "running":
            for name, ours in vars(known[id]).items():
                if name not in _INDEX_ALONE and ours != (its := getattr(entry, name)):
                    told.append(f"job {id} has the {name} {ours} in the index, and {its} in its directory")
    return sorted(told)
