"""A folder of pictures becomes a ZIP on its way out: a piece of a file is in memory at a time, and nothing is written to disk."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from app.archives import Archive

PIECE_BYTES = 2**20


def stream_of(source: Path) -> Callable[[], Iterator[bytes]]:
    """What begins the stream of a ZIP, or of a folder as one.

    Raises:
        ValueError: the source is neither.
    """
    if source.is_dir():
        return lambda: zipped(source)
    if source.is_file() and zipfile.is_zipfile(source):
        return lambda: _pieces(source)
    raise ValueError(f"{source} is neither a folder nor a ZIP file: give one of pictures, of which sub-folders are classes")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def zipped(folder: Path) -> Iterator[bytes]:
    """Every file below the folder, in the order of their names. The same files give the same bytes."""
    archive = Archive()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield from archive.add(path.relative_to(folder).as_posix(), _pieces(path), path.stat().st_size)
    yield archive.end()
