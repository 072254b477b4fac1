"""A folder of picture files, or a ZIP archive of one, as a data set: of any size and mode, read in batches."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.dataset_archives import tree_at
from training.dataset_metadata import MAX_CLASSES, TABLES, Metadata, class_names, metadata_of
from training.dataset_trees import Tree, text
from training.datasets import About, Batch, DatasetError
from training.files.pictures import FORMATS, PictureError, read_picture, upright_size

SIZES = range(4, 1025)  # pixels a side
_NAMED = 3  # files or folders that a note names


@dataclass(frozen=True)
class Pictures:
    """What `training.datasets.write` takes.

    `num_files` is how many images and left-out files the batches will hold, as far as the heads of the files tell.
    """

    about: About
    num_files: int
    batches: Iterator[Batch]


def pictures_in(
    place: Path | Tree,
    *,
    size: int = 64,
    channels: int | None = None,
    tiles: bool = False,
    licence: str = "not stated",
    origin: str | None = None,
) -> Pictures:
    """Every picture below a folder or in a ZIP archive, in the order of their paths, cropped at the centre to a square.

    What a table beside them says (training.dataset_metadata) are their labels and captions. Else sub-folders are the classes where there
    are two or more and no picture lies beside them. What is hidden, a link to a folder, or no picture is left out, with a sentence each.

    Args:
        size: pixels a side.
        channels: 1 or 3; where None, 1 if every picture is stored in grey.
        tiles: cut each picture at its own size into all the squares that lie in it side by side; those of one picture are one group.
            A picture that is smaller than a tile is left out.
        origin: where the pictures are from, as the card says it; what they are read from where None.

    Raises:
        DatasetError: neither a folder nor an archive, or a table, a size or a number of channels that is not allowed.
    """
    check_size(size)
    tree = tree_at(place)
    heads = heads_of(tree)
    shape = (choose_channels(channels, heads.values()), size, size)
    told = _told(tree, heads)
    origin = f"{origin or tree.title}{', cut into tiles' if tiles else ''}"
    about = About(shape, origin, licence, told.class_names, grouped=tiles, captioned=told.captions is not None, notes=told.notes)

    def read(file: PurePath, group: int) -> Batch:
        with tree.open(file) as opened:
            images = _tiles(read_picture(opened, (shape[0], -1, -1)), size) if tiles else read_picture(opened, shape)[np.newaxis]
        num = len(images)
        return Batch(
            images,
            np.full(num, told.labels[file], np.int64) if told.class_names else None,
            groups=np.full(num, group, np.int64) if tiles else None,
            captions=None if told.captions is None else (told.captions.get(file),) * num,
            sizes=(heads[file].size,),
        )

    opened = [PictureFile(text(file), partial(read, file, group)) for group, file in enumerate(told.files)]
    num_images = sum(max(1, heads[file].num_tiles(size)) if tiles and file in heads else 1 for file in told.files)
    return Pictures(about, num_images + len(told.left_out), read_all(opened, about, told.left_out))


def _tiles(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A picture (C, H, W) -> the tiles (n, C, size, size) of the largest grid at its centre, row by row."""
    channels, height, width = pixels.shape
    rows, columns = height // size, width // size
    if not rows * columns:
        raise PictureError(f"this picture has {width} x {height} pixels, which is less than a tile of {size} x {size}")
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    grid = pixels[:, top : top + rows * size, left : left + columns * size].reshape(channels, rows, size, columns, size)
    return grid.transpose(1, 3, 0, 2, 4).reshape(rows * columns, channels, size, size)


# --- labels and captions ------------------------------------------------------------------------------------------------------


class _Told(NamedTuple):
    """What is to be read, and what its place or a table tells of it. `class_names` is None where there are no classes."""

    files: list[PurePath]
    left_out: list[str]
    class_names: tuple[str, ...] | None
    labels: Mapping[PurePath, int]
    captions: Mapping[PurePath, str] | None
    notes: tuple[str, ...]


def _told(tree: Tree, heads: Mapping[PurePath, "Head"]) -> _Told:
    metadata = metadata_of(tree)
    if metadata is None:
        return _told_by_folders(tree.files, heads, tree.left_out)
    left_out = [*tree.left_out, *metadata.left_out]
    files = [file for file in tree.files if file.parts not in [table.parts for table in TABLES]]
    if metadata.labels is None:
        told = _told_by_folders(files, heads, left_out)
        return told._replace(captions=metadata.captions, notes=metadata.notes + told.notes)
    return _told_by_labels(files, heads, left_out, metadata, metadata.labels)


def _told_by_labels(
    files: list[PurePath], heads: Mapping[PurePath, "Head"], left_out: list[str], metadata: Metadata, labels: Mapping[PurePath, str]
) -> _Told:
    unlabelled = [file for file in files if file in heads and file not in labels]
    left_out += [f"{text(file)}: {metadata.table} gives no label for it" for file in unlabelled]
    labels = {file: label for file, label in labels.items() if file in heads}
    names = class_names(labels)
    indices = {name: index for index, name in enumerate(names)}
    notes = metadata.notes
    if len(names) < 2:
        notes += (f"the set has no classes, because {metadata.table} gives {f'each picture the label {names[0]}' if names else 'none'}",)
    kept = [file for file in files if file not in set(unlabelled)]
    numbers = {file: indices[label] for file, label in labels.items()}
    return _Told(kept, left_out, tuple(names) if len(names) > 1 else None, numbers, metadata.captions, notes)


def _told_by_folders(files: list[PurePath], heads: Mapping[PurePath, "Head"], left_out: list[str]) -> _Told:
    """Sub-folders are classes; a note where they would be but for pictures that lie beside them."""
    names = sorted({file.parts[0] for file in heads if len(file.parts) > 1})
    beside = [text(file) for file in heads if len(file.parts) == 1]
    if len(names) < 2 or beside:
        notes: tuple[str, ...] = ()
        if len(names) > 1:
            told = f"{_some(beside)} {'lies' if len(beside) == 1 else 'lie'} beside the sub-folders {_some([text(name) for name in names])}"
            notes = (f"the set has no classes, because {told}: move every picture into a sub-folder for classes",)
        return _Told(files, left_out, None, {}, None, notes)
    if len(names) > MAX_CLASSES:
        raise DatasetError(f"there are {len(names):,} sub-folders with pictures; {MAX_CLASSES:,} classes are allowed")
    indices = {name: index for index, name in enumerate(names)}
    return _Told(files, left_out, tuple(text(name) for name in names), {file: indices[file.parts[0]] for file in heads}, None, ())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# --- what the files say of themselves -----------------------------------------------------------------------------------------


class Head(NamedTuple):
    """What the first bytes of a picture file tell: Pillow's colour mode, and its size once it is upright."""

    mode: str
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def is_grey(self) -> bool:
        return self.mode in ("1", "L", "LA") or self.mode.startswith("I")

    def num_tiles(self, size: int) -> int:
        return (self.width // size) * (self.height // size)


def heads_of(tree: Tree) -> dict[PurePath, Head]:
    """Of the files that are pictures, as far as their heads tell."""
    return {file: found for file in tree.files if (found := _head(tree, file)) is not None}


def _head(tree: Tree, file: PurePath) -> Head | None:
    """None where it is no picture, which reading it whole will say."""
    try:
        with tree.open(file) as opened, Image.open(opened, formats=FORMATS) as image:
            return Head(image.mode, *upright_size(image))
    except (OSError, ValueError, EOFError, KeyError, OverflowError, zlib.error, zipfile.BadZipFile):
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
    captions = tuple(caption for batch in batches for caption in batch.captions or ()) if about.captioned else None
    sizes = tuple(size for batch in batches for size in batch.sizes)
    return Batch(parts["images"], parts.get("labels"), tuple(skipped), parts.get("sources"), parts.get("groups"), captions, sizes)


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
