"""Where models are pushed to and pulled from: directories, and stores by the protocol of S3, through fsspec.

A store holds `<name>/<version>/` as a repository does. The manifest is written last, so that whoever pulls finds a version whole, or none.
"""

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ganserve.confirming import Offered
from training.contract import UserError
from training.files import numbers
from training.files.archives import MAX_MANIFEST_BYTES, ArchiveError, limited
from training.files.directories import commit, make_folder, staging
from training.files.versions import MANIFEST

# obstore's threads hold on to an answer for a moment after they have given it; a process that ends in that moment is aborted by them
SETTLE_SECONDS = 0.2


@dataclass(frozen=True)
class Place:
    """A folder of a store."""

    url: str
    system: fsspec.AbstractFileSystem
    path: str
    error: type[Exception] = OSError  # what the store raises

    def __truediv__(self, part: str) -> "Place":
        return replace(self, url=f"{self.url.rstrip('/')}/{part}", path=f"{self.path.rstrip('/')}/{part}")

    def manifest(self) -> bytes:
        try:  # a range: asking whether it is there would make some stores list their contents
            content: bytes = self.system.cat_file(f"{self.path}/{MANIFEST}", start=0, end=MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError as error:
            raise ArchiveError(f"{MANIFEST} is missing") from error
        return limited(io.BytesIO(content))

    def open(self, file: str) -> IO[bytes]:
        try:
            opened: IO[bytes] = self.system.open(f"{self.path}/{file}", "rb")
        except FileNotFoundError as error:
            raise ArchiveError(f"{file} is missing") from error
        return opened


def reach(url: str) -> Place:
    """A place by its URL: a path, file:, s3: (with the extra of that name; keys and endpoint from AWS's environment variables), memory:.

    Raises:
        UserError: another protocol, or the extra is not installed.
    """
    protocol, separator, path = url.partition("://")
    if not separator:
        protocol, path = "file", url
    if "::" in url or protocol not in ("file", "memory", "s3"):
        raise UserError(f"{url} cannot be reached: a directory and s3:// are allowed")
    if protocol == "s3":
        return _s3(url, path.rstrip("/"))
    if protocol == "file":
        path = str(Path(path).resolve())
    return Place(url, fsspec.filesystem(protocol), path.rstrip("/") or "/")


def _s3(url: str, path: str) -> Place:
    try:
        from obstore.exceptions import BaseError
        from obstore.fsspec import FsspecStore
    except ImportError as error:
        raise UserError("s3:// needs the extra s3, which is not installed: pip install 'ganserve[s3]'") from error
    if not path.strip("/"):
        raise UserError(f"{url} names no bucket: write s3://bucket/folder")
    return Place(url, FsspecStore("s3"), path, BaseError)


@contextmanager
def told(place: Place) -> Iterator[None]:
    """Raises UserError for what a store refuses."""
    try:
        yield
    except ArchiveError as error:
        raise UserError(f"{place.url} cannot be taken in: {error}") from error
    except (OSError, place.error) as error:
        raise UserError(f"{place.url} does not answer as it should: {str(error).splitlines()[0]}") from error
    finally:
        if place.error is not OSError:
            time.sleep(SETTLE_SECONDS)


def push(folder: Path, offered: Offered, target: Place) -> bool:
    """Whether the version was not there yet.

    Raises:
        UserError: another one lies there, it was removed there, or the store refuses.
    """
    if isinstance(target.system, LocalFileSystem) and offered.manifest.version in numbers.removed(Path(target.path).parent):
        raise UserError(f"{offered.version} was removed from {target.url}, and its number is not used again: push it elsewhere")
    with told(target):
        try:
            there = target.manifest()
        except ArchiveError:
            there = None
        if there is not None and there != offered.content:
            raise UserError(f"{target.url} holds another {offered.version}: push it elsewhere, or remove that")
        if there is not None:
            return False
        _write(folder, offered, target)
    return True


def _write(folder: Path, offered: Offered, target: Place) -> None:
    if isinstance(target.system, LocalFileSystem):
        path = Path(target.path)
        with staging(make_folder(path.parent.parent)) as staged:
            for file in offered.files:
                shutil.copyfile(folder / file.file, staged / file.file)
            (staged / MANIFEST).write_bytes(offered.content)
            make_folder(path.parent)
            commit(staged, path)
        return
    for file in offered.files:
        target.system.put_file(str(folder / file.file), f"{target.path}/{file.file}")
    target.system.pipe_file(f"{target.path}/{MANIFEST}", offered.content)
