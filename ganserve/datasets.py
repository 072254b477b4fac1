"""`ganserve datasets`: add, list, show and remove sets of images. Only here are data sets downloaded."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote

import cyclopts
import httpx

from ganserve.connection import Connection, check

if TYPE_CHECKING:
    from training.contract import DatasetCard
    from training.dataset_folders import Pictures
    from training.datasets import Progress

datasets_app = cyclopts.App(name="datasets", help="Add, list, show and remove the sets of images that models are trained on.")

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
    name: Annotated[
        str, cyclopts.Parameter(help="mnist, fashion-mnist, cifar10 or celeba; with PATH, the name of your own set, else PATH itself.")
    ],
    path: Annotated[
        Path | None,
        cyclopts.Parameter(
            help="A folder of pictures of any size, or a ZIP archive of one; two or more sub-folders are classes, source and target pairs."
        ),
    ] = None,
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
    """Register a published set, or a folder or ZIP archive of pictures. A set never changes afterwards."""
    from training import datasets

    name, path = _with_path(name, path)
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
    for note in pictures.about.notes:
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
    for word, told in _figures(card):
        print(f"{word:<10}{told}")
    for sentence in card.skipped:
        print(f"left out  {sentence}")
    if card.num_skipped is not None:
        print(f"left out  {card.num_skipped - len(card.skipped):,} more files")
    if sheet:
        _write_sheet(name, state, sheet, 64, None)
        print(f"sheet     {sheet}")


@datasets_app.command
def sheet(
    name: Annotated[str, cyclopts.Parameter(help="A registered or built-in set.")],
    /,
    *,
    output: Annotated[Path | None, cyclopts.Parameter(name=["--output", "-o"], help="`<name>.png` when left out.")] = None,
    num_images: Annotated[int, cyclopts.Parameter(help="At most so many, 1 to 256, spread evenly over the set.")] = 64,
    label: Annotated[str | None, cyclopts.Parameter(help="Of one class alone.")] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Write a PNG of some of a set's images: a new row for each class where there are classes, sources on the left of their images."""
    from training.dataset_sheets import MAX_IMAGES
    from training.datasets import DatasetError

    if not 1 <= num_images <= MAX_IMAGES:
        raise DatasetError(f"--num-images {num_images} is not allowed: give 1 to {MAX_IMAGES}")
    output = output or Path(f"{name}.png")
    _write_sheet(name, state, output, num_images, label)
    print(output)


@datasets_app.command
def remove(name: Annotated[str, cyclopts.Parameter(help="A registered set.")], /, *, connection: Connection = Connection()) -> None:
    """Take a set from the disk, for good, unless a job uses it. Models that were trained on it stay."""

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.delete(f"/datasets/{quote(name, safe='')}"))

    connection.ask(question)
    print(f"removed {name}")


def _with_path(name: str, path: Path | None) -> tuple[str, Path | None]:
    """A path alone names its set by its last part."""
    from training.contract import is_name
    from training.dataset_sources import SOURCES
    from training.datasets import DatasetError

    alone = Path(name)
    if path is not None or name in SOURCES or not (alone.is_dir() or alone.is_file()):
        return name, path
    stem = alone.resolve().name if alone.is_dir() else alone.stem
    made = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:63].rstrip("._-")
    if not is_name(made):
        raise DatasetError(f"{name} tells no name for its set: give one before it")
    return made, alone


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
    from training.dataset_kinds import read_as

    size, licence = 64 if size is None else size, licence or "not stated"
    if not pairs:
        _refuse({"--swap": swap, "--source-channels": source_channels}, "pairs; give --pairs too, or leave it out")
    else:
        _refuse({"--tiles": tiles}, "pictures without sources, since a super-resolution model makes its own; leave it or --pairs out")
    return read_as(
        path,
        "pairs" if pairs else "tiles" if tiles else "auto",
        size=size,
        channels=channels,
        source_channels=source_channels,
        swap=swap,
        licence=licence,
    )


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


def _figures(card: "DatasetCard") -> Iterator[tuple[str, str]]:
    if card.class_names:
        counts = [""] * len(card.class_names) if card.class_counts is None else [f" {count:,}" for count in card.class_counts]
        yield "classes", ", ".join(name + count for name, count in zip(card.class_names, counts, strict=True))
    if card.num_captions is not None:
        yield "captions", f"{card.num_captions:,}"
    if card.num_duplicates:
        yield "copies", f"{card.num_duplicates:,} of the images equal an earlier one"
    if sizes := card.original_sizes:
        smallest, median, largest = (f"{width} x {height}" for width, height in (sizes.smallest, sizes.median, sizes.largest))
        yield "pictures", f"of {smallest} to {largest} pixels, the median {median}" if smallest != largest else f"of {smallest} pixels"
    for note in card.notes:
        yield "note", note


def _tell_skipped(card: "DatasetCard") -> None:
    if not card.skipped:
        return
    num = card.num_skipped or len(card.skipped)
    print(f"left out {num:,} files; `ganserve datasets show {card.name}` names them:", file=sys.stderr)
    for sentence in card.skipped[:_SHOWN]:
        print(f"  {sentence}", file=sys.stderr)


def _write_sheet(name: str, state: Path, path: Path, num_images: int, label: str | None) -> None:
    from PIL import Image

    from training import dataset_sheets, datasets

    pixels = dataset_sheets.sheet(datasets.load(name, state / "datasets"), num_images, label)
    try:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, format="PNG")
    except OSError as error:
        raise datasets.DatasetError(f"the sheet cannot be written to {path}: {error.strerror}") from error
