"""A set on one picture: some of its images side by side, small enough to be looked at together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets import Dataset, DatasetError

MAX_IMAGES = 256
LARGEST = 128  # pixels a side of an image on a sheet; larger ones are reduced
GAP = 2  # white pixels between images
_COLUMNS = 8


class UnknownClassError(DatasetError):
    """The set has no class of this name, which the message lists, or no image of it."""


def sheet(dataset: Dataset, num_images: int = 64, label: str | None = None) -> NDArray[np.uint8]:
    """Images spread evenly over the set, eight in a row; of a set of classes, each class begins a row. Sources lie on their images' left.

    Args:
        num_images: at most so many, whole rows of an equal share for each class.
        label: of one class alone.

    Returns:
        (H, W, C).

    Raises:
        UnknownClassError: no such class, or no image of it.
    """
    names = dataset.card.class_names
    if label is None and dataset.labels is not None and names is not None and len(names) <= num_images:
        share = num_images // len(names)
        columns = min(_COLUMNS, share)
        classes = [np.flatnonzero(dataset.labels == index) for index in range(len(names))]
        chosen = [row for rows in classes for row in _in_rows(_spread(rows, share - share % columns), columns)]
    else:
        rows = np.arange(dataset.card.num_images) if label is None else _rows_of(dataset, label)
        chosen, columns = _in_rows(_spread(rows, num_images), _COLUMNS), _COLUMNS
    return _laid_out(dataset, chosen, columns)


def _rows_of(dataset: Dataset, label: str) -> NDArray[np.int64]:
    names = dataset.card.class_names or ()
    if label not in names or dataset.labels is None:
        known = f"its classes: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}" if names else "it has no classes"
        raise UnknownClassError(f"data set {dataset.card.name} has no class {ascii(label)[:80]}; {known}")
    index = names.index(label)
    if not (rows := np.flatnonzero(dataset.labels == index)).size:  # all its pictures were damaged
        raise UnknownClassError(f"data set {dataset.card.name} has no image of its class {ascii(label)[:80]}; choose another class")
    return rows


def _spread(rows: NDArray[np.int64], num: int) -> list[int]:
    places = np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int)
    return [int(row) for row in rows[places]]


def _in_rows(chosen: Sequence[int], columns: int) -> list[int | None]:
    """With so many places left empty that the last row is whole."""
    return [*chosen, *[None] * (-len(chosen) % columns)]


def _laid_out(dataset: Dataset, chosen: Sequence[int | None], columns: int) -> NDArray[np.uint8]:
    """The images of these rows of the set, in their order; white where there is None."""
    cells = [(place, _cell(dataset, row)) for place, row in enumerate(chosen) if row is not None]
    height, width, channels = cells[0][1].shape
    shape = (len(chosen) // columns * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels)
    laid = np.full(shape, 255, np.uint8)
    for place, cell in cells:
        top, left = (place // columns) * (height + GAP), (place % columns) * (width + GAP)
        laid[top : top + height, left : left + width] = cell
    return laid


def _cell(dataset: Dataset, row: int) -> NDArray[np.uint8]:
    """An image (H, W, C), with its source on its left where it has one."""
    image = _reduced(dataset.images[row])
    if dataset.sources is None:
        return image
    source = _reduced(dataset.sources[row])
    colour = max(image.shape[2], source.shape[2])
    return np.concatenate([np.broadcast_to(side, (*side.shape[:2], colour)) for side in (source, image)], axis=1)


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(C, H, W) -> (H, W, C), at most LARGEST a side."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    height, width, channels = image.shape
    if max(height, width) <= LARGEST:
        return image
    scale = LARGEST / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = Image.fromarray(image[:, :, 0] if channels == 1 else image).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(reduced).reshape(size[1], size[0], channels)
