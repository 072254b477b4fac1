"""`ganserve datasets`: add, list and show sets of images. Only here are data sets downloaded."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

if TYPE_CHECKING:
    from training.contract import DatasetCard
    from training.dataset_folders import Pictures
    from training.datasets import Dataset, Progress

datasets_app = cyclopts.App(name="datasets", help="Add, list and show the sets of images that models are trained on.")

Split = Literal["train", "test", "all"]
State = Annotated[
    Path,
    cyclopts.Parameter(name="--state", env_var="GANSERVE_STATE", help="Folder of the data sets, in `datasets` below it, and of the jobs."),
]
DEFAULT_STATE = Path("state")
_REPORTS = 10  # lines that tell of the progress where there is no terminal
_SHOWN = 5  # left-out files that are named; the card names all


@datasets_app.command
def add(
    name: Annotated[str, cyclopts.Parameter(help="mnist, fashion-mnist, cifar10 or celeba; with PATH, the name of your own set.")],
    path: Annotated[Path | None, cyclopts.Parameter(help="A folder of pictures of any size; two or more sub-folders are classes.")] = None,
    /,
    *,
    data_dir: Annotated[Path | None, cyclopts.Parameter(help="Folder with the published files at hand; else they are downloaded.")] = None,
    split: Annotated[Split | None, cyclopts.Parameter(help="Part of a published set; train by default, celeba is taken whole.")] = None,
    size: Annotated[
        int | None, cyclopts.Parameter(help="Pixels a side; a published set's own by default, 64 for celeba and folders.")
    ] = None,
    channels: Annotated[
        Literal[1, 3] | None,
        cyclopts.Parameter(help="1 (grey) or 3 (colour) for a folder; 1 by default where all pictures are grey files."),
    ] = None,
    tiles: Annotated[bool, cyclopts.Parameter(help="Cut each picture into squares of --size, unresized; for super-resolution.")] = False,
    pairs: Annotated[
        bool, cyclopts.Parameter(help="Source in the left half and target in the right; or two folders, source and target, of equal names.")
    ] = False,
    swap: Annotated[bool, cyclopts.Parameter(help="Of pairs, make the sources targets and the targets sources.")] = False,
    source_channels: Annotated[Literal[1, 3] | None, cyclopts.Parameter(help="Of pairs, the same as --channels, for the sources.")] = None,
    register_as: Annotated[str | None, cyclopts.Parameter(name="--as", help="Another name for a published set, mnist-32 say.")] = None,
    licence: Annotated[str | None, cyclopts.Parameter(help="Licence of a folder's pictures, kept on the card.")] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Register a published set, or a folder of pictures. A set never changes afterwards."""
    from training import datasets

    if path is None:
        _refuse(
            {"--channels": channels, "--licence": licence, "--tiles": tiles, "--pairs": pairs, "--swap": swap}
            | {"--source-channels": source_channels},
            "a folder of pictures; give its PATH after the name",
        )
        target = register_as or name
        datasets.check_free(target, state / "datasets")  # before anything is downloaded
        pictures = _published(name, data_dir, state, split, size)
    else:
        _refuse({"--data-dir": data_dir, "--split": split, "--as": register_as}, "published sets; leave it out with a PATH")
        target = name
        datasets.check_free(target, state / "datasets")
        _refuse_published(name, path)
        pictures = _folder(path, size, channels, licence, tiles=tiles, pairs=pairs, swap=swap, source_channels=source_channels)
    for note in pictures.notes:
        print(note, file=sys.stderr)
    with _progress(pictures.num_files) as progress:
        card = datasets.write(target, state / "datasets", pictures.about, pictures.batches, progress)
    print(f"registered {_line(card)}")
    _tell_skipped(card)


@datasets_app.command(name="list")
def list_(*, state: State = DEFAULT_STATE) -> None:
    """List the sets that a training run may name."""
    from training import datasets

    for card in datasets.known(state / "datasets").values():
        print(_line(card))
    for reason in datasets.broken(state / "datasets").values():
        print(reason, file=sys.stderr)


@datasets_app.command
def show(
    name: Annotated[str, cyclopts.Parameter(help="A registered or built-in set.")],
    /,
    *,
    sheet: Annotated[
        Path | None,
        cyclopts.Parameter(help="Write a PNG of 64 images, spread evenly over the set, to this file; sources lie on their left."),
    ] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Show a set's card."""
    from training import datasets

    card = datasets.card(name, state / "datasets")
    print(_line(card))
    print(f"source    {card.source}\nlicence   {card.licence}\ncontent   sha256 {card.content_sha256}\nadded     {card.created_at}")
    if card.class_names:
        print(f"classes   {', '.join(card.class_names)}")
    for sentence in card.skipped:
        print(f"left out  {sentence}")
    if sheet:
        _write_sheet(datasets.load(name, state / "datasets"), sheet)
        print(f"sheet     {sheet}")


def _refuse(flags: Mapping[str, object], what: str) -> None:
    """An option that would do nothing is refused."""
    from training.datasets import DatasetError

    for flag, value in flags.items():
        if value is not None and value is not False:
            raise DatasetError(f"{flag} is for {what}")


def _published(name: str, data_dir: Path | None, state: Path, split: Split | None, size: int | None) -> "Pictures":
    from training.dataset_sources import published
    from training.datasets import DatasetError

    if data_dir is not None and not data_dir.is_dir():
        raise DatasetError(f"--data-dir {data_dir} is no folder: give the one that holds the published files")
    return published(name, data_dir or state / "downloads", split=split, size=size)


def _refuse_published(name: str, path: Path) -> None:
    from training.dataset_sources import SOURCES
    from training.datasets import DatasetError

    if name in SOURCES:
        raise DatasetError(f"{name} names a published set: choose another name for {path}, or give its files with --data-dir {path}")


def _folder(
    path: Path,
    size: int | None,
    channels: int | None,
    licence: str | None,
    *,
    tiles: bool,
    pairs: bool,
    swap: bool,
    source_channels: int | None,
) -> "Pictures":
    from training.dataset_folders import pictures_in
    from training.dataset_pairs import pairs_in

    size, licence = 64 if size is None else size, licence or "not stated"
    if not pairs:
        _refuse({"--swap": swap, "--source-channels": source_channels}, "pairs; give --pairs too, or leave it out")
        return pictures_in(path, size=size, channels=channels, tiles=tiles, licence=licence)
    _refuse({"--tiles": tiles}, "pictures without sources, since a super-resolution model makes its own; leave it or --pairs out")
    return pairs_in(path, size=size, channels=channels, source_channels=source_channels, swap=swap, licence=licence)


@contextmanager
def _progress(num_files: int) -> "Iterator[Progress]":
    """Tell how many images are done: a bar on a terminal, at most ten lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(num_files)
        return
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("images", total=num_files)
        yield lambda done: bar.update(task, completed=done)


class _Lines:
    def __init__(self, num_files: int) -> None:
        self.num_files = num_files
        self.told = 0

    def __call__(self, done: int) -> None:
        tenth = done * _REPORTS // max(self.num_files, 1)
        if tenth > self.told:
            self.told = tenth
            print(f"{done:,} of {self.num_files:,} images", file=sys.stderr)


def _line(card: "DatasetCard") -> str:
    channels, height, width = card.shape
    classes = f", {len(card.class_names)} classes" if card.class_names else ""
    groups = f", {card.num_groups:,} groups" if card.num_groups else ""
    sources = f", paired with sources of {' x '.join(map(str, card.source_shape))}" if card.source_shape else ""
    return f"{card.name}: {card.num_images:,} images of {channels} x {height} x {width}{classes}{groups}{sources}"


def _tell_skipped(card: "DatasetCard") -> None:
    if not card.skipped:
        return
    print(f"left out {len(card.skipped):,} files; `ganserve datasets show {card.name}` names them:", file=sys.stderr)
    for sentence in card.skipped[:_SHOWN]:
        print(f"  {sentence}", file=sys.stderr)


def _write_sheet(dataset: "Dataset", path: Path) -> None:
    """Up to 64 images, spread evenly over the set, 8 in a row, each with its source on its left where there is one."""
    import numpy as np
    from PIL import Image

    from training.datasets import DatasetError

    chosen = np.linspace(0, dataset.card.num_images - 1, min(64, dataset.card.num_images)).astype(int)
    tiles = dataset.images[chosen].transpose(0, 2, 3, 1)  # (n, H, W, C)
    if dataset.sources is not None:
        sources = dataset.sources[chosen].transpose(0, 2, 3, 1)
        colour = (*tiles.shape[:3], max(tiles.shape[3], sources.shape[3]))
        tiles = np.concatenate([np.broadcast_to(sources, colour), np.broadcast_to(tiles, colour)], axis=2)
    _, height, width, channels = tiles.shape
    sheet = np.full((-(-len(tiles) // 8) * height, 8 * width, channels), 255, np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, 8)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    try:
        Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path, format="PNG")
    except OSError as error:
        raise DatasetError(f"the sheet cannot be written to {path}: {error.strerror}") from error
