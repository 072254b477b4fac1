"""Named sets of images: built in, or registered in a folder. Imports no torch.

A set is a directory `<name>/` that is written once and never changes:

    card.json    DatasetCard
    images.npy   uint8, (N, C, H, W), 0 is black
    labels.npy   int64, (N,), indices into the card's class names; only where there are classes
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from training.contract import DatasetCard, UserError, is_name, now
from training.files.directories import DamagedFileError, commit, describe, staging, verify

BUILTIN = Path(__file__).parent / "builtin"

Progress = Callable[[int], None]  # called with the number of images and left-out files so far


class DatasetError(UserError):
    """A mistake in naming, reading or making a data set; the message is one sentence for the user."""


class UnknownDatasetError(DatasetError):
    """No set has this name; the message lists the known ones."""


class DamagedDatasetError(DatasetError):
    """The set's files are not what its card says."""


class DatasetNameError(DatasetError):
    """The name is taken or is no name."""


class EmptyDatasetError(DatasetError):
    """Not one image was left to write."""


@dataclass(frozen=True)
class Dataset:
    """`images` (N, C, H, W) and `labels` (N,) are read-only views of the files."""

    card: DatasetCard
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class About:
    """What is known of a set before its images are read; `shape` is (channels, height, width)."""

    shape: tuple[int, int, int]
    source: str
    licence: str
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Batch:
    """Images (n, C, H, W), their labels (n,) where the set has classes, and a sentence for each file that was left out."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    skipped: tuple[str, ...] = ()


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


def load(name: str, folder: Path) -> Dataset:
    """A set whose every byte is verified; the images stay on disk until they are touched.

    Raises:
        UnknownDatasetError: no set has this name.
        DamagedDatasetError: a file is not what the card says.
    """
    path = _find(name, folder)
    found = _read_card(path)
    try:
        images = np.load(verify(path, found.files["images"]), mmap_mode="r", allow_pickle=False)
        labels = np.load(verify(path, found.files["labels"]), mmap_mode="r", allow_pickle=False) if found.class_names else None
    except (DamagedFileError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if images.dtype != np.uint8 or images.shape != (found.num_images, *found.shape):
        raise _damaged(path, f"images.npy holds {images.dtype} {images.shape}, unlike its card")
    if labels is not None and (labels.dtype != np.int64 or labels.shape != (found.num_images,)):
        raise _damaged(path, f"labels.npy holds {labels.dtype} {labels.shape}, unlike its card")
    return Dataset(found, images, labels)


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
    raise UnknownDatasetError(f"there is no data set {ascii(name)[:80]}; known: {names}; `ganserve datasets add` registers more")


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
    expected = {"images", "labels"} if found.class_names else {"images"}
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


def write(name: str, folder: Path, about: About, batches: Iterable[Batch], progress: Progress | None = None) -> DatasetCard:
    """Register a set in the folder, one batch in memory at a time; it is seen whole or not at all.

    Raises:
        DatasetNameError: see `check_free`.
        EmptyDatasetError: the batches hold no image.
        DatasetError: the folder cannot be written to.
        ValueError: a batch does not fit `about`.
    """
    check_free(name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as staged:
            written = _write_files(name, staged, about, batches, progress)
            commit(staged, folder / name)
    except FileExistsError as error:
        raise DatasetNameError(f"data set {name!r} was registered meanwhile and sets never change: choose another name") from error
    except OSError as error:
        raise DatasetError(f"data set {name!r} cannot be written into {folder}: {error.strerror or error}") from error
    return written


def _write_files(name: str, staged: Path, about: About, batches: Iterable[Batch], progress: Progress | None) -> DatasetCard:
    with (staged / "images.npy").open("wb") as file:
        content = _Content(about, file)
        for batch in batches:
            content.add(batch)
            if progress:
                progress(content.num_images + len(content.skipped))
        content.close()
    if content.num_images == 0:
        raise EmptyDatasetError(f"data set {name!r} would be empty: {_why_empty(content.skipped)}")
    if about.class_names:
        np.save(staged / "labels.npy", content.labels(), allow_pickle=False)
    files = {path.stem: describe(path) for path in sorted(staged.glob("*.npy"))}
    written = DatasetCard.model_validate(
        {
            "name": name,
            "num_images": content.num_images,
            "shape": about.shape,
            "class_names": about.class_names,
            "content_sha256": content.sha256(),
            "source": about.source,
            "licence": about.licence,
            "skipped": tuple(content.skipped),
            "files": files,
            "created_at": now(),
        }
    )
    (staged / "card.json").write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return written


def _why_empty(skipped: list[str]) -> str:
    return f"all {len(skipped)} files were left out, the first because {skipped[0]}" if skipped else "there is no file in it"


class _Content:
    """Appends batches to an .npy file, and hashes what passes: image bytes, then label bytes (little-endian int64), then the shape."""

    def __init__(self, about: About, file: BinaryIO) -> None:
        self.about = about
        self.num_images = 0
        self.skipped: list[str] = []
        self._file = file
        self._labels: list[NDArray[np.int64]] = []
        self._hash = hashlib.sha256()
        file.write(self._header())

    def add(self, batch: Batch) -> None:
        images, labels, classes = batch.images, batch.labels, self.about.class_names
        if images.dtype != np.uint8 or images.shape[1:] != self.about.shape:
            raise ValueError(f"images of {images.dtype} {images.shape} are not uint8 (n, {self.about.shape})")
        if (labels is None) is not (classes is None):
            raise ValueError("a set with class names has labels, and none without")
        if labels is not None and classes is not None:
            if labels.shape != images.shape[:1] or (labels.size and not 0 <= labels.min() <= labels.max() < len(classes)):
                raise ValueError(f"labels {labels.shape} are not one index of {len(classes)} classes an image")
            self._labels.append(labels.astype("<i8"))
        data = np.ascontiguousarray(images).data
        self._file.write(data)
        self._hash.update(data)
        self.num_images += len(images)
        self.skipped += batch.skipped

    def close(self) -> None:
        """Write the header again, now that the number of images is known."""
        self._file.seek(0)
        self._file.write(self._header())

    def labels(self) -> NDArray[np.int64]:
        return np.concatenate(self._labels)

    def sha256(self) -> str:
        total = self._hash.copy()
        if self._labels:
            total.update(self.labels().data)
        total.update(repr((self.num_images, *self.about.shape)).encode())
        return total.hexdigest()

    def _header(self) -> bytes:
        """Always of one length: numpy pads it for a first axis of up to 21 digits."""
        header = io.BytesIO()
        shape = (self.num_images, *self.about.shape)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return header.getvalue()
