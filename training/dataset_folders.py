"""A folder of picture files as a data set: of any size and mode, read in batches."""

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets import About, Batch, DatasetError
from training.files.pictures import FORMATS, PictureError, read_picture

SIZES = range(4, 1025)  # pixels a side
_NAMED = 3  # files or folders that a note names


@dataclass(frozen=True)
class Pictures:
    """What `training.datasets.write` takes.

    `num_files` is how many images and left-out files the batches will hold, as far as the heads of the files tell; `notes` are sentences
    about the whole set, for whoever adds it.
    """

    about: About
    num_files: int
    batches: Iterator[Batch]
    notes: tuple[str, ...] = ()


def pictures_in(path: Path, *, size: int = 64, channels: int | None = None, tiles: bool = False, licence: str = "not stated") -> Pictures:
    """Every picture below a folder, in the order of their paths, cropped at the centre to a square.

    Sub-folders are the classes where there are two or more and no picture lies beside them. What is hidden, a link to a folder, or no
    picture is left out, with a sentence each.

    Args:
        size: pixels a side.
        channels: 1 or 3; where None, 1 if every picture is stored in grey.
        tiles: cut each picture at its own size into all the squares that lie in it side by side; those of one picture are one group.
            A picture that is smaller than a tile is left out.

    Raises:
        DatasetError: no folder, or a size or a number of channels that is not allowed.
    """
    check_size(size)
    files, left_out = walk(path)
    heads = {file: found for file in files if (found := head(path / file)) is not None}
    shape = (choose_channels(channels, heads.values()), size, size)
    classes, notes = _classes(list(heads))
    source = f"the folder {text(path.resolve().name)}{', cut into tiles' if tiles else ''}"
    about = About(shape, source, licence, tuple(text(name) for name in classes) or None, grouped=tiles)

    def read(file: PurePath, group: int) -> Batch:
        with (path / file).open("rb") as opened:
            images = _tiles(read_picture(opened, (shape[0], -1, -1)), size) if tiles else read_picture(opened, shape)[np.newaxis]
        labels = np.full(len(images), classes[file.parts[0]], np.int64) if classes else None
        return Batch(images, labels, groups=np.full(len(images), group, np.int64) if tiles else None)

    opened = [PictureFile(text(file), partial(read, file, group)) for group, file in enumerate(files)]
    num_images = sum(max(1, heads[file].num_tiles(size)) if tiles and file in heads else 1 for file in files)
    return Pictures(about, num_images + len(left_out), read_all(opened, about, left_out), notes)


def _tiles(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A picture (C, H, W) -> the tiles (n, C, size, size) of the largest grid at its centre, row by row."""
    channels, height, width = pixels.shape
    rows, columns = height // size, width // size
    if not rows * columns:
        raise PictureError(f"this picture has {width} x {height} pixels, which is less than a tile of {size} x {size}")
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    grid = pixels[:, top : top + rows * size, left : left + columns * size].reshape(channels, rows, size, columns, size)
    return grid.transpose(1, 3, 0, 2, 4).reshape(rows * columns, channels, size, size)


def _classes(pictures: list[PurePath]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Index by name of sub-folder, and a note where there would be classes but for pictures that lie beside them."""
    names = sorted({picture.parts[0] for picture in pictures if len(picture.parts) > 1})
    beside = [text(picture) for picture in pictures if len(picture.parts) == 1]
    if len(names) < 2:
        return {}, ()
    if beside:
        told = f"{_some(beside)} {'lies' if len(beside) == 1 else 'lie'} beside the sub-folders {_some([text(name) for name in names])}"
        return {}, (f"the set has no classes, because {told}: move every picture into a sub-folder for classes",)
    return {name: index for index, name in enumerate(names)}, ()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# --- what lies in a folder ----------------------------------------------------------------------------------------------------


class Head(NamedTuple):
    """What the first bytes of a picture file tell: Pillow's colour mode, and the size before it is turned upright."""

    mode: str
    width: int
    height: int

    @property
    def is_grey(self) -> bool:
        return self.mode in ("1", "L", "LA") or self.mode.startswith("I")

    def num_tiles(self, size: int) -> int:
        return (self.width // size) * (self.height // size)


def head(path: Path) -> Head | None:
    """None where it is no picture, which reading it whole will say."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return Head(image.mode, image.width, image.height)
    except (OSError, ValueError, EOFError, KeyError, OverflowError, zlib.error):
        return None


def choose_channels(channels: int | None, heads: Iterable[Head]) -> int:
    """What is asked for; else 1 where every picture is stored in grey, and 3 otherwise.

    Raises:
        DatasetError: neither 1 nor 3 is asked for.
    """
    if channels not in (None, 1, 3):
        raise DatasetError(f"{channels} channels are not allowed: give 1 (grey) or 3 (colour)")
    grey = {found.is_grey for found in heads}
    return channels or (1 if grey == {True} else 3)


def walk(path: Path) -> tuple[list[PurePath], list[str]]:
    """Files below a folder, by path, and a sentence for each entry that is not looked at.

    Raises:
        DatasetError: no folder.
    """
    if not path.is_dir():
        raise DatasetError(f"{path} is no folder: give one that holds pictures, or whose sub-folders do")
    files: list[PurePath] = []
    left_out: list[str] = []
    for here, folders, names in os.walk(path, onerror=lambda error: left_out.append(_unreadable(error))):
        inner = set(folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*inner, *names]):
            entry = Path(here, name)
            if reason := _why_left_out(entry, name in inner):
                left_out.append(f"{text(entry.relative_to(path))}: {reason}")
            elif name not in inner:
                files.append(entry.relative_to(path))
    return sorted(files), left_out


def _why_left_out(entry: Path, is_folder: bool) -> str | None:
    if entry.name.startswith("."):
        return "it is hidden"
    if is_folder:
        return "it is a link to a folder" if entry.is_symlink() else None
    return None if entry.is_file() else "it is neither a file nor a folder"


def _unreadable(error: OSError) -> str:
    return f"{text(error.filename)}: {error.strerror}"


def text(path: PurePath | str) -> str:
    """A path as text that can be written as UTF-8, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


# --- picture files, one batch in memory at a time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PictureFile:
    """A file, or a pair of files, that may hold pictures. `read` makes a batch of one or more images of it, whole or not at all."""

    name: str
    read: Callable[[], Batch]


def read_all(files: Sequence[PictureFile], about: About, left_out: Sequence[str] = ()) -> Iterator[Batch]:
    """Batches of what the files hold; a file that cannot be read becomes a sentence after those of `left_out`."""
    step = batch_size(about)
    read: list[Batch] = []
    skipped = list(left_out)
    for file in files:
        try:
            read.append(file.read())
        except (PictureError, OSError, zipfile.BadZipFile, zlib.error) as error:
            skipped.append(f"{file.name}: {getattr(error, 'strerror', None) or error}")
        if sum(len(batch.images) for batch in read) + len(skipped) >= step:
            yield _joined(read, about, skipped)
            read, skipped = [], []
    if read or skipped:
        yield _joined(read, about, skipped)


def _joined(batches: list[Batch], about: About, skipped: list[str]) -> Batch:
    parts = {
        part: np.concatenate([np.empty(shape, dtype), *(getattr(batch, part) for batch in batches)])
        for part, (dtype, shape) in about.arrays(0).items()
    }
    return Batch(parts["images"], parts.get("labels"), tuple(skipped), parts.get("sources"), parts.get("groups"))


def batch_size(about: About) -> int:
    """Images that make 64 MiB with what belongs to them, at most 256, so that progress is seen often."""
    num_bytes = sum(math.prod(shape) for _, shape in about.arrays(1).values())
    return max(1, min(256, 2**26 // num_bytes))


def check_size(size: int | None) -> None:
    if size is not None and size not in SIZES:
        raise DatasetError(f"size {size} is not allowed: give {SIZES.start} to {SIZES.stop - 1} pixels a side")


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A square picture (C, H, H) as (C, size, size), by the same Lanczos filter as any other picture."""
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS) for plane in pixels]
    return np.stack([np.asarray(plane) for plane in planes])
