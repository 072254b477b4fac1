"""Named sets of images: built in, or registered in a folder. Imports no torch.

A set is a directory `<name>/` that is written once and never changes:

    card.json    DatasetCard
    images.npy   uint8, (N, C, H, W), 0 is black
    labels.npy   int64, (N,), indices into the card's class names; only where there are classes
    sources.npy  uint8, (N, C, H, W), the image that each image is made from; only in a paired set
    groups.npy   int64, (N,), equal for images that are held out together; only where there are groups
    captions.jsonl  a line of JSON for each image, its caption or null; only where there are captions
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from training.contract import DatasetCard, UserError, is_name, now
from training.dataset_content import CAPTIONS, Content
from training.files.directories import RESERVED_BYTES, DamagedFileError, commit, describe, hide, staging, verify

BUILTIN = Path(__file__).parent / "builtin"

Part = Literal["images", "labels", "sources", "groups"]  # of a set: a file, a field of Batch and of Dataset
Progress = Callable[[int], None]  # called with the number of images and left-out files so far


class DatasetError(UserError):
    """A mistake in naming, reading or making a data set; the message is one sentence for the user."""


class UnknownDatasetError(DatasetError):
    """No set has this name; the message lists the known ones."""


class DamagedDatasetError(DatasetError):
    """The set's files are not what its card says."""


class OtherDatasetError(DatasetError):
    """The set under a name has not the content that is wanted."""


class DatasetNameError(DatasetError):
    """The name is taken or is no name."""


class EmptyDatasetError(DatasetError):
    """Not one image was left to write."""


@dataclass(frozen=True)
class Dataset:
    """`images` (N, C, H, W), `labels` (N,), `sources` (N, C, H, W) and `groups` (N,) are read-only views of the files."""

    card: DatasetCard
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    sources: NDArray[np.uint8] | None = None
    groups: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class About:
    """What is known of a set before its images are read; `shape` and `source_shape` are (channels, height, width); `notes` are sentences
    about the whole set."""

    shape: tuple[int, int, int]
    source: str
    licence: str
    class_names: tuple[str, ...] | None = None
    source_shape: tuple[int, int, int] | None = None
    grouped: bool = False
    captioned: bool = False
    notes: tuple[str, ...] = ()

    def arrays(self, num_images: int) -> dict[Part, tuple[type[np.generic], tuple[int, ...]]]:
        """What such a set has of so many images: dtype and shape."""
        arrays: dict[Part, tuple[type[np.generic], tuple[int, ...]]] = {"images": (np.uint8, (num_images, *self.shape))}
        if self.class_names:
            arrays["labels"] = (np.int64, (num_images,))
        if self.source_shape:
            arrays["sources"] = (np.uint8, (num_images, *self.source_shape))
        if self.grouped:
            arrays["groups"] = (np.int64, (num_images,))
        return arrays


@dataclass(frozen=True)
class Batch:
    """Images (n, C, H, W), what else the set has of each of them, and a sentence for each file that was left out.

    Groups are any numbers; they count over all batches of a set. A caption is None where an image has none; `sizes` are (width, height) of
    the pictures that the images were made of, where that is known.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    skipped: tuple[str, ...] = ()
    sources: NDArray[np.uint8] | None = None
    groups: NDArray[np.int64] | None = None
    captions: tuple[str | None, ...] | None = None
    sizes: tuple[tuple[int, int], ...] = ()


# --- reading ------------------------------------------------------------------------------------------------------------------


def known(folder: Path) -> dict[str, DatasetCard]:
    """Cards of the sets that are built in or registered in the folder, sorted by name. Sizes are checked here, hashes by `load`."""
    return {name: found for name, found in _scan(folder) if isinstance(found, DatasetCard)}


def broken(folder: Path) -> dict[str, str]:
    """Why each damaged set is not among the known ones, sorted by name."""
    return {name: str(found) for name, found in _scan(folder) if isinstance(found, DamagedDatasetError)}


def card(name: str, folder: Path) -> DatasetCard:
    """The card of a set that is built in or registered in the folder.

    Raises:
        UnknownDatasetError: no set has this name.
        DamagedDatasetError: the card cannot be read, or a file is missing or has another size.
    """
    return _read_card(_find(name, folder))


def load(name: str, folder: Path, content_sha256: str | None = None) -> Dataset:
    """A set whose every byte is verified; the images stay on disk until they are touched.

    Args:
        content_sha256: of the set that is wanted, where it must be a certain one.

    Raises:
        UnknownDatasetError: no set has this name.
        DamagedDatasetError: a file is not what the card says.
        OtherDatasetError: the set under this name is another one now.
    """
    path = _find(name, folder)
    found = _read_card(path)
    if content_sha256 not in (None, found.content_sha256):
        raise OtherDatasetError(
            f"data set {name!r} has the content {found.content_sha256}, and {content_sha256} is wanted: it was removed and another was"
            " added by its name; add the first one again, or begin a new run"
        )
    try:
        for spec in found.files.values():
            verify(path, spec)
    except DamagedFileError as error:
        raise _damaged(path, str(error)) from error
    return _opened(path, found)


def look(name: str, folder: Path) -> Dataset:
    """A set as it lies there: its bytes are not verified. Raises as `load` does."""
    path = _find(name, folder)
    return _opened(path, _read_card(path))


def _opened(path: Path, found: DatasetCard) -> Dataset:
    arrays = {}
    for part, (dtype, shape) in _about(found).arrays(found.num_images).items():
        try:
            array = np.load(path / found.files[part].file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from error
        if array.dtype != dtype or array.shape != shape:
            raise _damaged(path, f"{part}.npy holds {array.dtype} {array.shape}, unlike its card")
        arrays[part] = array
    return Dataset(found, arrays["images"], arrays.get("labels"), arrays.get("sources"), arrays.get("groups"))


def is_built_in(name: str) -> bool:
    return is_name(name) and (BUILTIN / name).is_dir()


def _about(card: DatasetCard) -> About:
    """Raises ValueError for a shape that has not three axes."""
    (channels, height, width), source_shape = card.shape, None
    if card.source_shape is not None:
        source_channels, source_height, source_width = card.source_shape
        source_shape = (source_channels, source_height, source_width)
    grouped, captioned = card.num_groups is not None, card.num_captions is not None
    return About((channels, height, width), card.source, card.licence, card.class_names, source_shape, grouped, captioned, card.notes)


def _scan(folder: Path) -> Iterator[tuple[str, DatasetCard | DamagedDatasetError]]:
    paths = {path.name: path for path in [*_directories(folder), *_directories(BUILTIN)]}
    for name in sorted(paths):
        try:
            yield name, _read_card(paths[name])
        except DamagedDatasetError as error:
            yield name, error


def _directories(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _find(name: str, folder: Path) -> Path:
    if is_name(name):  # before a path is made of it
        for home in (BUILTIN, folder):
            if (home / name).is_dir():
                return home / name
    names = ", ".join(known(folder))
    more = "`ganserve datasets add` and POST /datasets register more"
    raise UnknownDatasetError(f"there is no data set {ascii(name)[:80]}; known: {names}; {more}")


def _read_card(path: Path) -> DatasetCard:
    try:
        found = DatasetCard.model_validate_json((path / "card.json").read_bytes())
    except OSError as error:
        raise _damaged(path, f"card.json cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"card.json is no card that this version reads: {where}: {first['msg']}") from error
    if found.name != path.name:
        raise _damaged(path, f"its card names it {found.name!r}")
    try:
        about = _about(found)
        expected = {*about.arrays(found.num_images), *([CAPTIONS] if about.captioned else [])}
    except ValueError as error:
        raise _damaged(path, "a shape on its card is not (channels, height, width)") from error
    if set(found.files) != expected:
        raise _damaged(path, f"its card lists the files {sorted(found.files)}; expected {sorted(expected)}")
    for spec in found.files.values():
        if not (path / spec.file).is_file():
            raise _damaged(path, f"{spec.file} is missing")
        if (size := (path / spec.file).stat().st_size) != spec.size_bytes:
            raise _damaged(path, f"{spec.file} has {size} bytes; its card says {spec.size_bytes}")
    return found


def _damaged(path: Path, reason: str) -> DamagedDatasetError:
    remedy = "it is built in: install ganserve again" if path.parent == BUILTIN else f"delete {path} and add the set again"
    return DamagedDatasetError(f"data set {path.name!r} is damaged: {reason}; {remedy}")


# --- writing ------------------------------------------------------------------------------------------------------------------


def check_free(name: str, folder: Path) -> None:
    """Refuse a name that cannot be given to a new set.

    Raises:
        DatasetNameError: it is no name, is built in, or is registered already.
    """
    if not is_name(name):
        raise DatasetNameError(
            f"{ascii(name)[:80]} cannot name a data set: 1 to 63 small letters, digits, '.', '_' and '-' are allowed, "
            "a letter or digit at both ends"
        )
    for home, kind in ((BUILTIN, "built in"), (folder, "registered")):
        if (home / name).exists():
            raise DatasetNameError(f"data set {name!r} is {kind} already and sets never change: choose another name")


def write(
    name: str, folder: Path, about: About, batches: Iterable[Batch], progress: Progress | None = None, workplace: Path | None = None
) -> DatasetCard:
    """Register a set in the folder, one batch in memory at a time; it is seen whole or not at all.

    Args:
        workplace: a folder on the same file system where it is made, this one where None. Who takes that away ends the work, and no set
            will be there.

    Raises:
        DatasetNameError: see `check_free`.
        EmptyDatasetError: the batches hold no image.
        DatasetError: the folder cannot be written to, or the disk has no room.
        ValueError: a batch does not fit `about`.
    """
    check_free(name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging(workplace or folder, must_exist=True) as staged:
            written = _write_files(name, staged, about, batches, progress)
            commit(staged, folder / name)
    except FileExistsError as error:
        raise DatasetNameError(f"data set {name!r} was registered meanwhile and sets never change: choose another name") from error
    except OSError as error:
        raise DatasetError(f"data set {name!r} cannot be written into {folder}: {error.strerror or error}") from error
    return written


def _write_files(name: str, staged: Path, about: About, batches: Iterable[Batch], progress: Progress | None) -> DatasetCard:
    with ExitStack() as open_files:
        content = Content(about, staged, open_files)
        for batch in batches:
            _check_room(name, staged, batch)
            content.add(batch)
            if progress:
                progress(content.num_images + content.num_skipped)
        content.finish()
    if content.num_images == 0:
        raise EmptyDatasetError(f"data set {name!r} would be empty: {_why_empty(content.num_skipped, content.skipped)}")
    for part, values in content.numbers.items():
        np.save(staged / f"{part}.npy", values, allow_pickle=False)
    files = {path.stem: describe(path) for path in sorted(staged.iterdir())}
    written = DatasetCard.model_validate(
        {
            "name": name,
            "shape": about.shape,
            "source_shape": about.source_shape,
            "class_names": about.class_names,
            "num_groups": len(np.unique(content.numbers["groups"])) if about.grouped else None,
            **content.figures(),
            "source": about.source,
            "licence": about.licence,
            "notes": about.notes,
            "files": files,
            "created_at": now(),
        }
    )
    (staged / "card.json").write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return written


def _check_room(name: str, staged: Path, batch: Batch) -> None:
    """Refuse a batch that would take what is kept free of the disk: a picture of a few bytes may become an image of millions."""
    wanted = sum(array.nbytes for array in (batch.images, batch.sources, batch.labels, batch.groups) if array is not None)
    if (free := shutil.disk_usage(staged).free) < wanted + RESERVED_BYTES:
        raise DatasetError(
            f"data set {name!r} wants {wanted:,} more bytes, and the disk has {free:,}, of which {RESERVED_BYTES:,} are kept free;"
            " remove data sets or jobs, or take fewer or smaller images"
        )


def _why_empty(num_skipped: int, skipped: list[str]) -> str:
    return f"all {num_skipped:,} files were left out, the first because {skipped[0]}" if skipped else "there is no file in it"


def take_away(name: str, folder: Path) -> Path:
    """Take a registered set out of sight, damaged or not; where it lies then, for whoever deletes it. Who has it open keeps it.

    Raises:
        UnknownDatasetError: no set has this name.
        DatasetNameError: it is built in.
    """
    path = _find(name, folder)
    if path.parent == BUILTIN:
        raise DatasetNameError(f"data set {name!r} is built in and cannot be removed")
    return hide(path)
