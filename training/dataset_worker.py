"""Makes the data set of one import, in a process of its own: python -m training.dataset_worker state/imports/pets --datasets state/datasets

What strangers send is decoded here and nowhere else, in a bounded memory; the service looks at the import's status alone. A worker that
died is followed by another, which begins anew, or finds that the set is made.
"""

import argparse
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from training.contract import UserError
from training.dataset_kinds import read_as
from training.datasets import DatasetError, card, write
from training.files import imports
from training.files.directories import STAGING
from training.files.imports import ImportRequest, ImportState, ImportStatus
from training.files.locks import LOCK, hold

MEMORY_BYTES = 4 * 2**30  # of addresses; the largest picture that is read takes a quarter of it
_TOLD_SECONDS = 0.5  # between two words on how far it is


def work(folder: Path, datasets: Path) -> int:
    """Run an import to its end; 0 where a set came of it.

    Raises:
        LockedError: another process works in the directory.
    """
    with hold(folder):
        request, said = imports.read_request(folder), _Said(folder)
        if said.status().state != "importing":
            return 0
        shutil.rmtree(folder / STAGING, ignore_errors=True)  # of a worker that died
        try:
            if not _is_made(request, datasets):
                _make(folder, request, datasets, said)
        except UserError as error:
            return said.end("failed", str(error))
        except MemoryError:
            return said.end("failed", "it takes more memory than an import may have; send fewer or smaller pictures")
        return said.end("ready", "")


class _Said:
    """The status of the import that is worked on, for as long as nobody has taken that away: another may have its name then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = (folder / LOCK).stat().st_ino  # which is ours while we hold it
        self._last = time.monotonic() - _TOLD_SECONDS

    def status(self) -> ImportStatus:
        """Raises FileNotFoundError where the import is taken away."""
        if (self._folder / LOCK).stat().st_ino != self._lock:
            raise FileNotFoundError(f"{self._folder} is another import now")
        return imports.read_status(self._folder)

    def progress(self, num_files: int, num_done: int) -> None:
        if (now := time.monotonic()) - self._last >= _TOLD_SECONDS:
            self._last = now
            imports.write_status(self._folder, self.status().model_copy(update={"num_files": num_files, "num_done": num_done}))

    def end(self, state: ImportState, message: str) -> int:
        with suppress(FileNotFoundError):
            imports.write_status(self._folder, self.status().model_copy(update={"state": state, "message": message}))
            imports.archive(self._folder).unlink()
        return 0 if state == "ready" else 1


def _is_made(request: ImportRequest, datasets: Path) -> bool:
    """Whether a worker died after it had made the set, and before it could say so."""
    try:
        return request.archive_sha256 in card(request.options.name, datasets).source
    except DatasetError:
        return False


def _make(folder: Path, request: ImportRequest, datasets: Path, said: _Said) -> None:
    options = request.options
    pictures = read_as(
        imports.archive(folder),
        options.kind,
        size=options.size,
        channels=options.channels,
        swap=options.swap,
        licence=options.licence,
        origin=f"an archive that was sent, sha256 {request.archive_sha256}",
    )
    said.progress(pictures.num_files, 0)
    tell = partial(said.progress, pictures.num_files)
    write(options.name, datasets, pictures.about, pictures.batches, tell, workplace=folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.dataset_worker", description=__doc__)
    parser.add_argument("folder", type=Path, help="the directory of the import")
    parser.add_argument("--datasets", type=Path, required=True, help="the folder of registered data sets")
    parser.add_argument("--nice", type=int, default=0, help="added to the process's niceness")
    given = parser.parse_args(arguments)
    os.nice(given.nice)
    if sys.platform == "linux":
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return work(given.folder, given.datasets)


if __name__ == "__main__":
    sys.exit(main())
