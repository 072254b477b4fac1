"""A folder of pairs, or a ZIP archive of one, as a data set: what a model is given (source), and what it is to make of it (target)."""

from collections.abc import Container, Iterable
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.dataset_archives import tree_at
from training.dataset_folders import PictureFile, Pictures, check_size, choose_channels, heads_of, read_all
from training.dataset_trees import Tree, text, top_folders
from training.datasets import About, Batch, DatasetError
from training.files.pictures import PictureError, read_picture

SOURCE, TARGET = "source", "target"  # the sub-folders of aligned pictures

_Sides = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # pixels of source and target, each (C, H, W) of its picture's own size


class _Channels(NamedTuple):
    source: int
    target: int


def pairs_in(
    place: Path | Tree,
    *,
    size: int = 64,
    channels: int | None = None,
    source_channels: int | None = None,
    swap: bool = False,
    licence: str = "not stated",
    origin: str | None = None,
) -> Pictures:
    """Every pair below a folder or in a ZIP archive, both sides cropped at their centres to squares.

    Where the folder holds the sub-folders `source` and `target`, a pair is a picture in each with the same path but for the suffix. Else
    it is one picture, with the source in its left half and the target in its right. What makes no pair is left out, with a sentence each.

    Args:
        size: pixels a side, of sources and targets.
        channels: 1 or 3, of the targets; where None, 1 if every one of their pictures is stored in grey.
        source_channels: the same of the sources.
        swap: make sources of the targets and targets of the sources.
        origin: where the pictures are from, as the card says it; what they are read from where None.

    Raises:
        DatasetError: neither a folder nor an archive, one of the two sub-folders without the other, or a size or a number of channels
            that is not allowed.
    """
    check_size(size)
    tree = tree_at(place)
    files, left_out, heads = tree.files, list(tree.left_out), heads_of(tree)
    folders = top_folders(tree) & {SOURCE, TARGET}
    if len(folders) == 1:
        raise DatasetError(
            f"{tree.path.name} holds the folder {min(folders)} alone: give one that holds both {SOURCE} and {TARGET}, or pictures whose"
            " halves are pairs"
        )
    pairs = [(file, file) for file in files]
    if folders:
        pairs, unpaired = _partners(files, heads)
        left_out += unpaired
    if swap:
        pairs = [(target, source) for source, target in pairs]
    wanted = _Channels(
        choose_channels(source_channels, [heads[source] for source, _ in pairs if source in heads]),
        choose_channels(channels, [heads[target] for _, target in pairs if target in heads]),
    )
    origin = f"{origin or tree.title}, in pairs{', source and target swapped' if swap else ''}"
    about = About((wanted.target, size, size), origin, licence, source_shape=(wanted.source, size, size))

    def read(source: PurePath, target: PurePath) -> Batch:
        sides = _two(tree, source, target, wanted) if folders else _halves(tree, source, wanted, swap)
        pixels = _square(sides[1], wanted.target, size)
        return Batch(pixels, sources=_square(sides[0], wanted.source, size), sizes=((sides[1].shape[2], sides[1].shape[1]),))

    opened = [PictureFile(_name(pair), partial(read, *pair)) for pair in pairs]
    return Pictures(about, len(pairs) + len(left_out), read_all(opened, about, left_out))


def _name(pair: Iterable[PurePath]) -> str:
    return " and ".join(dict.fromkeys(text(file) for file in pair))


def _partners(files: list[PurePath], pictures: Container[PurePath]) -> tuple[list[tuple[PurePath, PurePath]], list[str]]:
    """Files of `source` and of `target` with the same path but for the suffix, and a sentence for each that has no partner."""
    sides: dict[str, dict[PurePath, PurePath]] = {SOURCE: {}, TARGET: {}}
    left_out = []
    for file in files:
        folder = file.parts[0]
        if len(file.parts) == 1 or folder not in sides:
            left_out.append(f"{text(file)}: it lies beside the folders {SOURCE} and {TARGET}")
            continue
        if file not in pictures:
            left_out.append(f"{text(file)}: it is no picture that can be read")
            continue
        key = file.relative_to(folder).with_suffix("")
        first = sides[folder].setdefault(key, file)
        if first != file:
            left_out.append(f"{text(file)}: it has the name of {text(first)}, which is taken")
    for folder, other in ((SOURCE, TARGET), (TARGET, SOURCE)):
        alone = [file for key, file in sides[folder].items() if key not in sides[other]]
        left_out += [f"{text(file)}: there is no picture of its name in {other}" for file in alone]
    both = [key for key in sides[SOURCE] if key in sides[TARGET]]
    return [(sides[SOURCE][key], sides[TARGET][key]) for key in both], left_out


def _two(tree: Tree, source: PurePath, target: PurePath, channels: _Channels) -> _Sides:
    given, made = _whole(tree, source, channels.source), _whole(tree, target, channels.target)
    (_, source_height, source_width), (_, target_height, target_width) = given.shape, made.shape
    if source_width * target_height != target_width * source_height:
        raise PictureError(
            f"they have different proportions, {source_width} x {source_height} and {target_width} x {target_height} pixels, so they"
            " would not be cropped alike"
        )
    return given, made


def _whole(tree: Tree, file: PurePath, channels: int) -> NDArray[np.uint8]:
    with tree.open(file) as opened:
        try:
            return read_picture(opened, (channels, -1, -1))
        except PictureError as error:
            raise PictureError(f"of {text(file)}, {error}") from error  # which of the two it is


def _halves(tree: Tree, file: PurePath, channels: _Channels, swap: bool) -> _Sides:
    with tree.open(file) as opened:
        whole = read_picture(opened, (max(channels), -1, -1))
    width = whole.shape[2]
    if width % 2:
        raise PictureError(f"its width of {width} pixels is odd, so it has no equal halves")
    left, right = whole[:, :, : width // 2], whole[:, :, width // 2 :]
    return (right, left) if swap else (left, right)


def _square(pixels: NDArray[np.uint8], channels: int, size: int) -> NDArray[np.uint8]:
    """A picture (C, H, W) -> (1, channels, size, size), cropped and resized as any other picture."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.LANCZOS)
    square = np.asarray(image)
    return square[np.newaxis, np.newaxis] if channels == 1 else square.transpose(2, 0, 1)[np.newaxis]
