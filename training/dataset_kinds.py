"""A folder or an archive becomes a data set of one kind or another, by the same options wherever they are given."""

from pathlib import Path

from training.dataset_archives import tree_at
from training.dataset_folders import Pictures, pictures_in
from training.dataset_pairs import SOURCE, TARGET, pairs_in
from training.dataset_trees import top_folders
from training.datasets import DatasetError
from training.files.imports import DatasetKind


def read_as(
    place: Path,
    kind: DatasetKind,
    *,
    size: int = 64,
    channels: int | None = None,
    source_channels: int | None = None,
    swap: bool = False,
    licence: str = "not stated",
    origin: str | None = None,
) -> Pictures:
    """What lies at a path as a set of that kind: `auto` is pairs where the folders `source` and `target` are at the top, else images.

    Raises:
        DatasetError: it cannot be, or an option has no effect.
    """
    tree = tree_at(place)
    if kind == "auto":
        kind = "pairs" if {SOURCE, TARGET} <= top_folders(tree) else "images"
    if kind == "pairs":
        return pairs_in(tree, size=size, channels=channels, source_channels=source_channels, swap=swap, licence=licence, origin=origin)
    if swap or source_channels is not None:
        raise DatasetError("swap and source_channels are for pairs: ask for those, or leave them out")
    return pictures_in(tree, size=size, channels=channels, tiles=kind == "tiles", licence=licence, origin=origin)
