"""A ZIP archive of a folder, read where it lies: nothing of it is ever unpacked to the disk, and no name in it becomes a path.

What an archive says of itself is checked before a byte of its files is read, and no file is read for longer than it says that it is.
"""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from training.dataset_trees import Folder, Tree, text
from training.datasets import DatasetError

MAX_ENTRIES = 200_000
MAX_FILE_BYTES = 64 * 2**20  # of one file, unpacked: any picture that is read, as a bitmap
MAX_TOTAL_BYTES = 8 * 2**30
MAX_RATIO = 200  # unpacked to packed, of a file of a megabyte and more: less is no danger, however well it packs
MAX_NAME = 1000  # characters
_HARMLESS_BYTES = 2**20
_JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})  # beside what is hidden
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1 | 0x40  # bits of an entry's flags
_LOCAL_HEADER_BYTES = 30  # and behind it the name
_DAMAGE = (zipfile.BadZipFile, OSError, EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError, struct.error, zlib.error)


class ArchiveError(DatasetError):
    """The archive is none, is damaged, or holds what is not allowed in one."""


def tree_at(place: Path | Tree) -> Tree:
    """The folder, or the ZIP archive of one, that lies at a path.

    Raises:
        DatasetError: neither; ArchiveError: an archive that is not allowed.
    """
    if not isinstance(place, Path):
        return place
    if place.is_dir():
        return Folder(place)
    if not place.is_file():
        raise DatasetError(f"{place} is no folder and no ZIP archive: give one that holds pictures, or whose sub-folders do")
    return Archive(place)


class Archive:
    """A ZIP archive as a tree. Where all its pictures lie in one folder at its top, that folder is the tree."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.title = f"the archive {text(path.name)}"
        try:
            self._archive = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise ArchiveError(
                f"{path.name} is no ZIP archive, or is damaged or cut off ({str(error) or type(error).__name__}): make it again"
            ) from error
        entries = self._archive.infolist()
        _check_size(path, entries)
        _check_layout(path, entries, self._archive.start_dir)
        named = _named(path, entries)
        kept, self.left_out = _without_junk(named)
        top = _only_top(kept)
        self._entries: dict[PurePath, zipfile.ZipInfo] = {}
        for file, entry in sorted(kept.items()):
            if top is not None and file.parts[0] != top:
                self.left_out.append(f"{text(file)}: it lies beside the folder {text(top)}, which holds all the pictures")
            elif entry.file_size > MAX_FILE_BYTES:
                self.left_out.append(f"{text(file)}: it has {entry.file_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
            else:
                self._entries[file if top is None else file.relative_to(top)] = entry
        self.files = list(self._entries)

    def open(self, file: PurePath) -> BinaryIO:
        """The whole file, in memory."""
        entry = self._entries[file]
        try:
            with self._archive.open(entry) as packed:
                data = packed.read(entry.file_size)  # never more, whatever is there
                is_whole = len(data) == entry.file_size and not packed.read(1)  # the end is where the sum is checked
        except _DAMAGE as error:
            raise zipfile.BadZipFile(f"it is damaged in the archive ({type(error).__name__})") from error
        if not is_whole:
            raise zipfile.BadZipFile("it is damaged in the archive: it has another size than it says")
        return io.BytesIO(data)


# --- what is not allowed ------------------------------------------------------------------------------------------------------


def _check_size(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ArchiveError(f"{path.name} has {len(entries):,} entries; {MAX_ENTRIES:,} are allowed: make several archives")
    if (total := sum(entry.file_size for entry in entries)) > MAX_TOTAL_BYTES:
        raise ArchiveError(f"{path.name} unpacks to {total:,} bytes; {MAX_TOTAL_BYTES:,} are allowed: make several archives")


def _check_layout(path: Path, entries: Iterable[zipfile.ZipInfo], end: int) -> None:
    """Entries that share bytes are how a small archive unpacks to a huge one, whatever each of them says."""
    in_order = sorted(entries, key=lambda entry: entry.header_offset)
    starts = [*(entry.header_offset for entry in in_order), end]
    for entry, following in zip(in_order, starts[1:], strict=True):
        if entry.header_offset + _LOCAL_HEADER_BYTES + len(entry.orig_filename) + entry.compress_size > following:
            raise ArchiveError(f"{path.name} is refused, because its entry {_shown(entry)} overlaps with what lies behind it")


def _named(path: Path, entries: Iterable[zipfile.ZipInfo]) -> dict[PurePath, zipfile.ZipInfo]:
    """The files by their paths, as far as the archive is allowed to have them."""
    named: dict[PurePath, zipfile.ZipInfo] = {}
    for entry in entries:
        if reason := _wrong_path(entry) or _wrong_kind(entry):
            raise ArchiveError(f"{path.name} is refused, because its entry {_shown(entry)} {reason}")
        if entry.is_dir() or entry.filename.endswith("\\"):
            continue
        file = _path_of(entry)
        if file in named:
            raise ArchiveError(f"{path.name} is refused, because its entry {_shown(entry)} is there twice: make it again with one of them")
        named[file] = entry
    return named


def _path_of(entry: zipfile.ZipInfo) -> PurePosixPath:
    return PurePosixPath(entry.filename.replace("\\", "/"))  # as some archivers of Windows write it


def _wrong_path(entry: zipfile.ZipInfo) -> str | None:
    """What the entry's path is, where it is not allowed."""
    file = _path_of(entry)
    if len(entry.filename) > MAX_NAME:
        return f"has a name of {len(entry.filename):,} characters; {MAX_NAME:,} are allowed: rename it"
    if file.is_absolute() or entry.filename[1:2] == ":":
        return "has an absolute path: make it again of a folder, with paths within that"
    if not file.parts and not entry.filename.endswith(("/", "\\")):
        return "has a path without a name: make it again of a folder, with paths within that"
    if ".." in file.parts:
        return "has a path that leads out of the archive: make it again of a folder, with paths within that"
    return None


def _wrong_kind(entry: zipfile.ZipInfo) -> str | None:
    """What the entry is, where it is not allowed."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link: make it again with the files that links name"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is neither a file nor a folder: make it again without it"
    if entry.flag_bits & _ENCRYPTED:
        return "is encrypted: make it again without a password"
    if entry.compress_type not in _METHODS:
        return f"is packed by method {entry.compress_type}, which is not read: make it again, deflated or stored"
    if entry.file_size > max(_HARMLESS_BYTES, MAX_RATIO * entry.compress_size):
        return f"unpacks {entry.compress_size:,} bytes to {entry.file_size:,}; a ratio of {MAX_RATIO} is allowed: make it again without it"
    return None


def _shown(entry: zipfile.ZipInfo) -> str:
    return ascii(entry.filename)[:100]


# --- what is in it ------------------------------------------------------------------------------------------------------------


def _without_junk(named: dict[PurePath, zipfile.ZipInfo]) -> tuple[dict[PurePath, zipfile.ZipInfo], list[str]]:
    """What is neither hidden nor left behind by a system, and a sentence for each file or folder that is."""
    kept, num_left_out = {}, dict[PurePath, int]()
    for file, entry in named.items():
        depth = next((depth for depth, part in enumerate(file.parts, 1) if part.startswith(".") or part in _JUNK), None)
        if depth is None:
            kept[file] = entry
        else:
            junk = PurePosixPath(*file.parts[:depth])
            num_left_out[junk] = num_left_out.get(junk, 0) + 1
    return kept, [f"{text(junk)}: {_why_junk(junk, named, num)}" for junk, num in sorted(num_left_out.items())]


def _why_junk(junk: PurePath, named: dict[PurePath, zipfile.ZipInfo], num_files: int) -> str:
    why = "it is left behind by a system" if junk.name in _JUNK else "it is hidden"
    return why if junk in named else f"{why}, a folder of {num_files:,} file{'' if num_files == 1 else 's'}"


def _only_top(files: Iterable[PurePath]) -> str | None:
    """The folder at the top that holds all pictures, as `zip -r pets.zip pets` makes it; None where there is no such one."""
    pictures = [file for file in files if file.suffix.lower() in _PICTURES]
    tops = {file.parts[0] if len(file.parts) > 1 else None for file in pictures}
    described = any(file.parent == PurePosixPath() and file.stem == "metadata" for file in files)
    return tops.pop() if len(tops) == 1 and not described else None
