"""What data sets are made of: a folder of files, or what reads like one."""

import os
from pathlib import Path, PurePath
from typing import BinaryIO, Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tree(Protocol):
    """Files by their paths, sorted, and a sentence for each entry that is not looked at."""

    @property
    def path(self) -> Path:
        """Of the tree itself."""

    @property
    def title(self) -> str:
        """What a card calls it: the folder pets."""

    @property
    def files(self) -> list[PurePath]: ...

    @property
    def left_out(self) -> list[str]: ...

    def open(self, file: PurePath) -> BinaryIO:
        """One of the files, to be read from its beginning.

        Raises:
            OSError, zipfile.BadZipFile: it cannot be read.
        """


class Folder:
    """A folder, with all that lies in it and in its sub-folders; hidden entries and links to folders are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.title = f"the folder {text(path.resolve().name)}"
        self.files: list[PurePath] = []
        self.left_out: list[str] = []
        for here, folders, names in os.walk(path, onerror=lambda error: self.left_out.append(_unreadable(error))):
            inner = set(folders)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted([*inner, *names]):
                entry = Path(here, name)
                if reason := _why_left_out(entry, name in inner):
                    self.left_out.append(f"{text(entry.relative_to(path))}: {reason}")
                elif name not in inner:
                    self.files.append(entry.relative_to(path))
        self.files.sort()

    def open(self, file: PurePath) -> BinaryIO:
        return (self.path / file).open("rb")


def top_folders(tree: Tree) -> set[str]:
    """Names of the folders at the top that hold a file."""
    return {file.parts[0] for file in tree.files if len(file.parts) > 1}


def text(path: PurePath | str) -> str:
    """A path as text that can be written as UTF-8 and printed on one line, whatever bytes its name has, and whatever halves of letters."""
    return "".join(letter if letter.isprintable() else _REPLACEMENT for letter in str(path))  # no surrogate is printable


def _why_left_out(entry: Path, is_folder: bool) -> str | None:
    if entry.name.startswith("."):
        return "it is hidden"
    if is_folder:
        return "it is a link to a folder" if entry.is_symlink() else None
    return None if entry.is_file() else "it is neither a file nor a folder"


def _unreadable(error: OSError) -> str:
    return f"{text(error.filename)}: {error.strerror}"
