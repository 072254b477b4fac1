"""A directory becomes visible by one rename, and never changes after it.

Stage beside the target (same file system), hash, fsync every file and directory, rename, fsync the parent. Whoever dies in between
leaves a directory in `.staging`, which nobody reads.
"""

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.contract import FileSpec

STAGING = ".staging"
RESERVED_BYTES = 64 * 2**20  # of the disk, which no archive and no data set may take: jobs keep their checkpoints there


class DamagedFileError(Exception):
    """A file is not what its document says; the message names the file and the difference."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> FileSpec:
    return FileSpec(file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)


def verify(folder: Path, spec: FileSpec) -> Path:
    """The path of the file that a document names.

    Raises:
        DamagedFileError: it is missing, a link, or differs in size or hash.
    """
    path = folder / spec.file
    if path.is_symlink() or not path.is_file():
        raise DamagedFileError(f"{spec.file} is missing")
    if path.stat().st_size != spec.size_bytes:
        raise DamagedFileError(f"{spec.file} has {path.stat().st_size} bytes; its document says {spec.size_bytes}")
    if sha256_of(path) != spec.sha256:
        raise DamagedFileError(f"{spec.file} does not have the sha256 that its document says")
    return path


def read_verified(folder: Path, spec: FileSpec) -> bytes:
    """The bytes of the file that a document names, read once: what is hashed is what whoever runs them gets, whatever the path is then.

    Raises:
        DamagedFileError: it is missing, a link, or differs in size or hash.
    """
    try:
        with open(folder / spec.file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DamagedFileError(f"{spec.file} is missing")
            if status.st_size != spec.size_bytes:  # before so much is read
                raise DamagedFileError(f"{spec.file} has {status.st_size} bytes; its document says {spec.size_bytes}")
            data = file.read(spec.size_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EISDIR):
            raise
        raise DamagedFileError(f"{spec.file} is missing") from error
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise DamagedFileError(f"{spec.file} does not have the sha256 that its document says")
    return data


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """Make a directory with its parents where it is missing, so that it is there after a power cut too."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)
    return folder


def rename(path: Path, target: Path) -> None:
    """Rename within a file system, durable at both ends."""
    path.rename(target)
    _fsync(target.parent)
    _fsync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file: a reader sees the old bytes or the new ones, also after a power cut."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


@contextmanager
def staging(parent: Path, *, must_exist: bool = False) -> Iterator[Path]:
    """An empty directory under `parent/.staging`, removed at the end unless `commit` has moved it away.

    Args:
        must_exist: whether the parent is not made where it is missing: whoever has taken it away does not want it back.
    """
    staged = parent / STAGING / uuid.uuid4().hex
    staged.parent.mkdir(parents=not must_exist, exist_ok=True)
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def commit(staged: Path, target: Path) -> None:
    """Make a staged directory durable, then visible as `target`.

    Raises:
        FileExistsError: the target is there already and is left as it was.
    """
    for path in sorted(staged.rglob("*"), reverse=True):  # what is deep first
        _fsync(path)
    _fsync(staged)
    try:
        staged.rename(target)  # onto a directory that has files, the kernel refuses
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, f"{target} is there already") from error
        raise
    _fsync(target.parent)


def hide(folder: Path) -> Path:
    """Take a directory out of sight, whole and by one rename; where it lies now, it can be deleted at leisure."""
    hidden = folder.parent / STAGING / uuid.uuid4().hex
    hidden.parent.mkdir(exist_ok=True)
    folder.rename(hidden)
    _fsync(folder.parent)
    return hidden
