"""A folder of picture files as a data set: of any size and mode, read in batches."""

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets import About, Batch, DatasetError
from training.files.pictures import FORMATS, PictureError, read_picture

SIZES = range(4, 1025)  # pixels a side


@dataclass(frozen=True)
class Pictures:
    """What `training.datasets.write` takes. `num_files` is how many images and left-out files the batches will hold."""

    about: About
    num_files: int
    batches: Iterator[Batch]


def pictures_in(path: Path, *, size: int = 64, channels: int | None = None, licence: str = "not stated") -> Pictures:
    """Every picture below a folder, in the order of their paths, cropped at the centre to a square.

    Sub-folders are the classes where there are two or more and no picture lies beside them. What is hidden, a link to a folder, or no
    picture is left out, with a sentence each.

    Args:
        size: pixels a side.
        channels: 1 or 3; where None, 1 if every picture is stored in grey.

    Raises:
        DatasetError: no folder, or a size or a number of channels that is not allowed.
    """
    check_size(size)
    if channels not in (None, 1, 3):
        raise DatasetError(f"{channels} channels are not allowed: give 1 (grey) or 3 (colour)")
    if not path.is_dir():
        raise DatasetError(f"{path} is no folder: give one that holds pictures, or whose sub-folders do")
    files, left_out = _walk(path)
    modes = {file: mode for file in files if (mode := _mode(path / file)) is not None}
    channels = channels or (1 if modes and all(_is_grey(mode) for mode in modes.values()) else 3)
    classes = _classes(list(modes))
    shape = (channels, size, size)
    source = f"the folder {_text(path.resolve().name)}"
    about = About(shape, source, licence, tuple(_text(name) for name in classes) if classes else None)
    opened = [PictureFile(_text(file), partial(open_file, path / file), classes.get(file.parts[0], 0)) for file in files]
    return Pictures(about, len(files) + len(left_out), read_all(opened, about, lambda file: read_picture(file, shape), left_out))


def _walk(path: Path) -> tuple[list[PurePath], list[str]]:
    """Files below a folder, by path, and a sentence for each entry that is not looked at."""
    files: list[PurePath] = []
    left_out: list[str] = []
    for here, folders, names in os.walk(path, onerror=lambda error: left_out.append(_unreadable(error))):
        inner = set(folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*inner, *names]):
            entry = Path(here, name)
            if reason := _why_left_out(entry, name in inner):
                left_out.append(f"{_text(entry.relative_to(path))}: {reason}")
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
    return f"{_text(error.filename)}: {error.strerror}"


def _mode(path: Path) -> str | None:
    """Pillow's colour mode by the head of the file alone; None where it is no picture, which reading it whole will say."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.mode
    except (OSError, ValueError, EOFError, KeyError, OverflowError, zlib.error):
        return None


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA") or mode.startswith("I")


def _classes(pictures: list[PurePath]) -> dict[str, int]:
    names = sorted({picture.parts[0] for picture in pictures})
    if len(names) < 2 or any(len(picture.parts) < 2 for picture in pictures):
        return {}
    return {name: index for index, name in enumerate(names)}


def _text(path: PurePath | str) -> str:
    """A path as text that can be written as UTF-8, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


# --- picture files, one batch in memory at a time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PictureFile:
    """A file that may be a picture; `label` counts only where the set has classes."""

    name: str
    open: Callable[[], BinaryIO]
    label: int = 0


def open_file(path: Path) -> BinaryIO:
    return path.open("rb")


def read_all(
    files: list[PictureFile], about: About, read: Callable[[BinaryIO], NDArray[np.uint8]], left_out: Sequence[str] = ()
) -> Iterator[Batch]:
    """Batches of what `read` makes of each file; a file that it refuses becomes a sentence after those of `left_out`."""
    skipped = list(left_out)
    step = batch_size(about.shape)
    for start in range(0, max(len(files), 1), step):
        images, labels = [], []
        for file in files[start : start + step]:
            try:
                with file.open() as opened:
                    images.append(read(opened))
                labels.append(file.label)
            except (PictureError, OSError, zipfile.BadZipFile, zlib.error) as error:
                skipped.append(f"{file.name}: {getattr(error, 'strerror', None) or error}")
        stacked = np.stack(images) if images else np.empty((0, *about.shape), np.uint8)
        yield Batch(stacked, np.asarray(labels, np.int64) if about.class_names else None, tuple(skipped))
        skipped = []


def batch_size(shape: tuple[int, int, int]) -> int:
    """Images that make 64 MiB, at most 256, so that progress is seen often."""
    return max(1, min(256, 2**26 // math.prod(shape)))


def check_size(size: int | None) -> None:
    if size is not None and size not in SIZES:
        raise DatasetError(f"size {size} is not allowed: give {SIZES.start} to {SIZES.stop - 1} pixels a side")


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A square picture (C, H, H) as (C, size, size), by the same Lanczos filter as any other picture."""
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS) for plane in pixels]
    return np.stack([np.asarray(plane) for plane in planes])
