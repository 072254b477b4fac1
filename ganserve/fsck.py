"""`ganserve fsck` and `ganserve rebuild-index`: whether everything on the disk is what its documents say."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ganserve.places import Repositories, State, settings
from training.contract import UserError

if TYPE_CHECKING:
    from app.settings import Settings

Finding = tuple[str, str | None]  # what was looked at, and what is wrong with it


def fsck(*, models: Repositories = (), state: State = None) -> int:
    """Read everything that is kept, and verify every hash: models, data sets, jobs, runs, checkpoints, and the index of jobs.

    Changes nothing. Ends with 1 where something is wrong. It may run beside a server.
    """
    found = settings(models, state)
    num_wrong = 0
    for kind, findings in (
        ("versions", _versions(found)),
        ("data sets", _datasets(found.datasets)),
        ("jobs and runs", _runs(found)),
        ("index of jobs", _index(found)),
    ):
        looked_at = list(findings)
        wrong = [f"{what}: {reason}" for what, reason in looked_at if reason is not None]
        num_wrong += len(wrong)
        print(f"{kind}: {len(looked_at):,} looked at, {len(wrong):,} wrong")
        for sentence in wrong:
            print(f"  {sentence}")
    for path, num_bytes in _left_over(found):
        print(f"left over: {path}, {num_bytes:,} bytes that nobody reads; delete it while nothing is being written")
    print("nothing is wrong" if not num_wrong else f"{num_wrong:,} wrong")
    return 1 if num_wrong else 0


def rebuild_index(*, state: State = None) -> None:
    """Make the index of jobs anew of the jobs' directories, while no server works on them."""
    from app.errors import IndexDamaged, IndexUnavailable
    from app.index import Index
    from app.reconciliation import rebuild
    from training.files.locks import hold

    found = settings((), state)
    if not found.jobs.is_dir():
        raise UserError(f"{found.jobs} is no folder: there are no jobs in {found.state}")
    if nodes := _working(found.jobs):
        raise UserError(f"the servers {', '.join(nodes)} work on {found.jobs}: end them first")
    with hold(found.jobs):
        index = Index(found.index_url, found.node)
        try:
            index.open()
        except IndexUnavailable as error:
            if index.is_shared or not isinstance(error, IndexDamaged):
                raise UserError(str(error)) from error
            print(f"the damaged index lies in {index.put_aside()}", file=sys.stderr)
            index.open()
        num_jobs, left_out = rebuild(found.jobs, index)
        index.close()
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    print(f"the index knows {num_jobs:,} jobs")


def _working(jobs: Path) -> list[str]:
    """The nodes of servers that share the folder and are alive."""
    from training.files.locks import is_held

    return [path.name for path in sorted(jobs.glob(".servers/*")) if is_held(path)]


# --- what is looked at --------------------------------------------------------------------------------------------------------


def _versions(found: "Settings") -> Iterator[Finding]:
    from app.repository import Inventory, scan
    from training.files.directories import DamagedFileError, verify

    try:
        inventory = scan(found.models, Inventory(), found.digests)
    except OSError as error:
        yield str(error.filename), f"cannot be read: {error.strerror}"
        return
    for obstacle in inventory.obstacles:
        yield f"{obstacle.name}/{obstacle.version or ''}", obstacle.reason
    for entries in inventory.entries.values():
        for entry in entries.values():
            reasons = [entry.reason] if entry.manifest is None else []
            for spec in entry.manifest.all_files.values() if entry.manifest else ():
                try:
                    verify(entry.folder, spec)
                except (DamagedFileError, OSError) as error:
                    reasons.append(str(error))
            yield f"{entry.name}/{entry.number}", "; ".join(reasons) or None


def _datasets(folder: Path) -> Iterator[Finding]:
    from training import datasets

    for name, reason in datasets.broken(folder).items():
        yield name, reason
    for name in datasets.known(folder):
        try:
            datasets.load(name, folder)
            yield name, None
        except datasets.DatasetError as error:
            yield name, str(error)


def _runs(found: "Settings") -> Iterator[Finding]:
    from training import checkpoint
    from training.files import events, runs

    for home in (found.jobs, found.state / "runs"):
        for path in sorted(home.iterdir()) if home.is_dir() else ():
            if path.name.startswith(".") or not path.is_dir():
                continue
            reasons = []
            for name, read in (
                (runs.STATUS, runs.read_status),
                (runs.CONFIG, runs.read_config),
                (runs.METRICS, runs.read_metrics),
                (events.EVENTS, lambda folder: events.Reader(folder).read()),
            ):
                try:
                    read(path)
                except (OSError, ValueError) as error:
                    reasons.append(f"{name} cannot be read: {str(error).splitlines()[0]}")
            reasons += [reason for kind in (runs.CHECKPOINTS, runs.BEST) for reason in checkpoint.damages(path / kind)]
            yield f"{home.name}/{path.name}", "; ".join(reasons) or None


def _index(found: "Settings") -> Iterator[Finding]:
    from app.errors import IndexUnavailable
    from app.index import Index
    from app.reconciliation import differences
    from training.files.locks import is_held

    if not found.jobs.is_dir():
        return
    index = Index(found.index_url, found.node)
    try:
        index.open()
        if is_held(found.jobs) or _working(found.jobs):
            yield f"{index}, beside a server, whose jobs are under way", None
            return
        yield str(index), "; ".join(differences(found.jobs, index)) or None
    except IndexUnavailable as error:
        yield str(index), str(error)
    finally:
        index.close()


def _left_over(found: "Settings") -> Iterator[tuple[str, int]]:
    """What dead processes have left half made, and its bytes; it is in nobody's way, and takes room."""
    from training.files.directories import STAGING

    for home in (*found.models, found.datasets, found.jobs):
        for path in sorted(home.glob(f"**/{STAGING}/*")) if home.is_dir() else ():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            if size:
                yield json.dumps(str(path)), size
