"""A version as one ZIP, out and in, and any other way in: what comes is copied file by file, as its manifest says, and hashed on the way.

A version that comes from elsewhere is made visible only after its digest was confirmed, which is for others to ask.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from training.contract import FileSpec, Manifest
from training.files import digests, numbers, versions
from training.files.directories import DamagedFileError, staging

CHUNK_BYTES = 2**20
MAX_MANIFEST_BYTES = 2**24
MAX_ENTRIES = 1000
ENCRYPTED = 1  # a flag of an entry


class ArchiveError(Exception):
    """It cannot be taken in; the message says what is wrong with it."""


class TakenError(Exception):
    """Its number is taken here."""


class Source(Protocol):
    """Where a version comes from."""

    def manifest(self) -> bytes:
        """Raises ArchiveError: there is none, or it is far too large."""

    def open(self, file: str) -> IO[bytes]:
        """Raises ArchiveError: there is no such file."""


# --- out ----------------------------------------------------------------------------------------------------------------------


def zipped(folder: Path, digest: str) -> Iterator[bytes]:
    """One ZIP of a version, piece by piece, its entries stored: `<name>/<version>/<file>`. The same version gives the same bytes.

    Every file is open and verified before the first piece, so that what was begun is whole, also where the version is removed meanwhile.

    Args:
        digest: of its manifest.

    Raises:
        DamagedFileError: a file is not what the manifest says; before the first piece.
    """
    content = (folder / versions.MANIFEST).read_bytes()
    if digests.digest_of(content) != digest:
        raise DamagedFileError(f"{versions.MANIFEST} has changed")
    manifest = Manifest.model_validate_json(content)
    with ExitStack() as stack:
        files = [(spec, stack.enter_context(_verified(folder, spec))) for spec in manifest.all_files.values()]
        return _pieces(manifest, content, files, stack.pop_all())


def _verified(folder: Path, spec: FileSpec) -> IO[bytes]:
    """The open file, at its beginning."""
    try:
        file = (folder / spec.file).open("rb")
    except OSError as error:
        raise DamagedFileError(f"{spec.file} is missing") from error
    if hashlib.file_digest(file, "sha256").hexdigest() != spec.sha256:
        file.close()
        raise DamagedFileError(f"{spec.file} does not have the sha256 that its manifest says")
    file.seek(0)
    return file


def _pieces(manifest: Manifest, content: bytes, files: Sequence[tuple[FileSpec, IO[bytes]]], opened: ExitStack) -> Iterator[bytes]:
    made, _, time = manifest.created_at.rstrip("Z").partition("T")
    year, month, day, hour, minute, second = (int(part) for part in f"{made}-{time}".replace(":", "-").split("-"))

    def entry(file: str, size: int) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(f"{manifest.name}/{manifest.version}/{file}", (year, month, day, hour, minute, second))
        info.file_size = size
        return info

    pipe = _Pipe()
    with opened, zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        archive.writestr(entry(versions.MANIFEST, len(content)), content)
        for spec, file in files:
            with archive.open(entry(spec.file, spec.size_bytes), "w") as written:
                while chunk := file.read(CHUNK_BYTES):
                    written.write(chunk)
                    yield pipe.take()
    yield pipe.take()


class _Pipe:
    """What is written is taken out again; nobody can go back in it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nothing behind it."""

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


# --- in -----------------------------------------------------------------------------------------------------------------------


class ZipSource:
    """A version's files in one ZIP, in a folder of it or in none. Nothing is unpacked by the archive's own names."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        """Raises ArchiveError: it holds no version, or more than that."""
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        manifests = [entry.filename for entry in entries if entry.filename.rpartition("/")[2] == versions.MANIFEST]
        if len(entries) > MAX_ENTRIES or len(manifests) != 1:
            counted = f"{len(entries)} files, {len(manifests)} of them a {versions.MANIFEST}"
            raise ArchiveError(f"it has {counted}: it is no archive of one version")
        self._archive, prefix = archive, manifests[0].removesuffix(versions.MANIFEST)
        self._entries = {entry.filename.removeprefix(prefix): entry for entry in entries}
        if len(self._entries) < len(entries):
            raise ArchiveError("it has two files of one name")
        if more := self._entries.keys() - described(self)[1].all_files.keys() - {versions.MANIFEST}:
            raise ArchiveError(f"it has {ascii(min(more))[:80]}, which its manifest does not name")

    def manifest(self) -> bytes:
        with self.open(versions.MANIFEST) as file:
            return limited(file)

    def open(self, file: str) -> IO[bytes]:
        if file not in self._entries:
            raise ArchiveError(f"{file} is missing")
        if self._entries[file].flag_bits & ENCRYPTED:
            raise ArchiveError(f"{file} is encrypted")
        return self._archive.open(self._entries[file])


@contextmanager
def opened_zip(path: Path) -> Iterator[ZipSource]:
    """A ZIP that somebody made somehow.

    Raises:
        ArchiveError: it cannot be read, or is no archive of one version; also of what is read of it in the block.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield ZipSource(archive)
    except OSError as error:
        raise ArchiveError(error.strerror or str(error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"it is no ZIP, or a damaged one: {str(error) or 'it ends early'}") from error


def described(source: Source) -> tuple[bytes, Manifest]:
    """A manifest's bytes, and what they say; raises ArchiveError where they are none."""
    content = source.manifest()
    try:
        return content, Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ArchiveError(f"its {versions.MANIFEST} is none of this program's: {error.errors()[0]['msg']}") from error


def limited(file: IO[bytes]) -> bytes:
    """A manifest's bytes; raises ArchiveError where there are far too many."""
    content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ArchiveError(f"its {versions.MANIFEST} is larger than {MAX_MANIFEST_BYTES:,} bytes")
    return content


def check_free(manifest: Manifest, digest: str, repositories: Sequence[Path]) -> None:
    """Raise TakenError where a version cannot be taken in under its own name and number."""
    folder = repositories[0] / manifest.name
    reserved = numbers.reserver(folder, manifest.version)
    if manifest.version in versions.versions(repositories, manifest.name) or reserved not in (None, _who(digest)):
        raise TakenError(f"{manifest.name} version {manifest.version} is taken here")
    if manifest.version in numbers.removed(folder):
        raise TakenError(f"{manifest.name} version {manifest.version} was removed here, and its number is not used again")


def admit(source: Source, content: bytes, repositories: Sequence[Path], trusted: Path, how: str, name: str | None = None) -> str:
    """Take in a version whose digest was confirmed: copied, verified, trusted, then visible in the first repository.

    Args:
        content: of the manifest, as it was confirmed.
        trusted: the folder of digests.
        how: it came, for people.
        name: another one for it, which it gets the next number of; its own, and its own number, when None.

    Returns:
        `name/number`.

    Raises:
        ArchiveError: a file is not what the manifest says, or cannot be had.
        TakenError: the number is taken, as `check_free` says.
    """
    manifest, digest = Manifest.model_validate_json(content), digests.digest_of(content)
    with staging(repositories[0]) as staged:
        for spec in manifest.all_files.values():
            with source.open(spec.file) as file:
                _copy(file, staged / spec.file, spec)
        if name is None:
            check_free(manifest, digest, repositories)
            if not numbers.take(repositories[0] / manifest.name, manifest.version, _who(digest)):
                raise TakenError(f"{manifest.name} version {manifest.version} is taken here")
        else:
            manifest, content = _renamed(manifest, digest, repositories, name)
        version = f"{manifest.name}/{manifest.version}"
        (staged / versions.MANIFEST).write_bytes(content)
        digests.remember(trusted, digests.digest_of(content), version, how)
        try:
            versions.publish(staged, repositories, manifest.name, manifest.version)
        except (FileExistsError, versions.RemovedError) as error:
            raise TakenError(f"{version.replace('/', ' version ')} is or was here already") from error
    return version


def _renamed(manifest: Manifest, digest: str, repositories: Sequence[Path], name: str) -> tuple[Manifest, bytes]:
    """The manifest under another name and a number of that: the one that an attempt before this has reserved, unless that was removed
    or went to something else.

    Raises:
        TakenError: the version is there already.
    """
    for attempt in count(1):
        number = versions.reserve(repositories, name, f"{_who(digest)}-as-{attempt}")
        renamed = manifest.model_copy(update={"name": name, "version": number})
        content = renamed.model_dump_json(indent=2).encode() + b"\n"
        there = versions.versions(repositories, name).get(number)
        if there is None and number not in numbers.removed(repositories[0] / name):
            return renamed, content
        if there is not None and (there / versions.MANIFEST).is_file() and (there / versions.MANIFEST).read_bytes() == content:
            raise TakenError(f"{name} version {number} is or was here already")
    raise AssertionError("it counts for ever")


def _who(digest: str) -> str:
    return f"import-{digest}"


def _copy(file: IO[bytes], path: Path, spec: FileSpec) -> None:
    """As many bytes as the manifest says and no more, hashed on the way."""
    digest, left = hashlib.sha256(), spec.size_bytes
    with path.open("xb") as written:
        while chunk := file.read(min(CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            written.write(chunk)
    if left != 0 or digest.hexdigest() != spec.sha256:
        raise ArchiveError(f"{spec.file} is not what its manifest says: {spec.size_bytes:,} bytes of sha256 {spec.sha256}")
