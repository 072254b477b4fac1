"""Published sets, by name. For the command line alone.

Downloads go through torchvision (imported when one is needed), which checks what it fetched. The files of MNIST and of Fashion-MNIST have
the same names, and are told apart by their content wherever they come from. CIFAR-10 is published as pickles, and unpickling runs what a
file says: they are opened here, after torchvision's checksums, and nowhere else.
"""

import gzip
import hashlib
import http.client
import io
import socket
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from training.dataset_folders import PictureFile, Pictures, batch_size, check_size, read_all, resize
from training.datasets import About, Batch, DatasetError
from training.files.pictures import read_picture

PATIENCE_SECONDS = 30.0  # for a server that is silent

Split = Literal["train", "test", "all"]


class SourceError(DatasetError):
    """The files are not there, not whole, or not to be had; the message says which file to put where."""


@dataclass(frozen=True)
class Source:
    """A published set. Files fetched by hand from `address` are looked for in `folder` below the data directory, as torchvision does.

    `content_sha256` is of each file's content, unpacked: it is the same however the file was packed.
    """

    address: str
    licence: str
    folder: str
    size: int  # pixels a side by default
    class_names: tuple[str, ...] | None = None
    content_sha256: Mapping[str, str] = field(default_factory=dict)


SOURCES = {
    "mnist": Source(
        address="https://ossci-datasets.s3.amazonaws.com/mnist/",
        licence="CC BY-SA 3.0 as commonly stated; Yann LeCun and Corinna Cortes, made from NIST Special Databases 1 and 3",
        folder="MNIST/raw",
        size=28,
        class_names=tuple("0123456789"),
        content_sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": Source(
        address="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT; Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
        folder="FashionMNIST/raw",
        size=28,
        class_names=(
            "t-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        content_sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "cifar10": Source(
        address="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        licence="no licence stated; cite Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        folder=".",
        size=32,
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "celeba": Source(
        address="http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        licence="non-commercial research only; Liu, Luo, Wang and Tang, Deep Learning Face Attributes in the Wild, 2015",
        folder="celeba",
        size=64,
    ),
}


def published(name: str, root: Path, *, split: Split | None = None, size: int | None = None) -> Pictures:
    """A published set, from files at hand below `root`, else downloaded to there.

    Args:
        split: `train` where None; CelebA is taken whole.
        size: pixels a side; the set's own (CelebA: 64) where None.

    Raises:
        SourceError: the files are not at hand and cannot be downloaded, or they are damaged.
        DatasetError: an unknown name, or a split or size that is not allowed.
    """
    if name not in SOURCES:
        raise DatasetError(f"there is no published set {ascii(name)[:80]}; known: {', '.join(SOURCES)}; a folder of images needs its path")
    check_size(size)
    source = SOURCES[name]
    if name == "celeba":
        if split not in (None, "all"):
            raise DatasetError(f"celeba is taken whole; leave out the split {split!r}")
        return _celeba(root, size or source.size)
    if name == "cifar10":
        images, labels = _cifar10(root, split or "train")
    else:
        images, labels = _idx_set(name, root, split or "train")
    return _resized(source, images, labels, size or source.size)


def _resized(source: Source, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int) -> Pictures:
    about = About((images.shape[1], size, size), source.address, source.licence, source.class_names)
    step = batch_size(about)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            if size != images.shape[-1]:
                chunk = np.stack([resize(image, size) for image in chunk])
            yield Batch(chunk, labels[start : start + step], sizes=((images.shape[3], images.shape[2]),) * len(chunk))

    return Pictures(about, len(images), batches())


# --- downloads ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _download(name: str, root: Path, *files: str) -> Iterator[None]:
    """Turn what torchvision raises without a network into one sentence that says which files to put where."""
    from gdown.exceptions import DownloadError  # noqa: PLC0415  what Google Drive says when it will not

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_SECONDS)
    try:
        yield
    except (RuntimeError, OSError, http.client.HTTPException, DownloadError) as error:
        if (place := root / SOURCES[name].folder) != root:
            with suppress(OSError):
                place.rmdir()  # what a failed download has made, if nothing is in it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SourceError(
            f"{name} cannot be downloaded ({lines[-1] if lines else type(error).__name__}): put {' and '.join(files)}, "
            f"to be had from {SOURCES[name].address}, into {root / SOURCES[name].folder}, and add it again with --data-dir {root}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _torchvision() -> ModuleType:
    from torchvision import datasets  # noqa: PLC0415  takes seconds, and few sources need it

    module: ModuleType = datasets
    return module


# --- MNIST and Fashion-MNIST: IDX files ---------------------------------------------------------------------------------------

_IDX_PARTS = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}


def _idx_set(name: str, root: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    source = SOURCES[name]
    files = [f"{part}-{kind}-ubyte.gz" for part in _IDX_PARTS[split] for kind in ("images-idx3", "labels-idx1")]
    if not all(_at_hand(source, root, file) for file in files):
        _download_idx(name, root, files)
    arrays = [read_idx(path, name) for file in files if (path := _at_hand(source, root, file))]
    images, labels = np.concatenate(arrays[0::2]), np.concatenate(arrays[1::2])
    return images[:, np.newaxis], labels.astype(np.int64)


def _at_hand(source: Source, root: Path, file: str) -> Path | None:
    candidates = [folder / spelt for folder in (root / source.folder, root) for spelt in (file, file.removesuffix(".gz"))]
    return next((path for path in candidates if path.is_file()), None)


def _download_idx(name: str, root: Path, files: list[str]) -> None:
    """Fetch all four files, and show them in their place when they are whole: a download that is cut off leaves nothing behind."""
    place = root / SOURCES[name].folder
    with _download(name, root, *files):
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=root) as staged:
            kinds = {"mnist": _torchvision().MNIST, "fashion-mnist": _torchvision().FashionMNIST}
            kinds[name](staged, download=True)
            place.mkdir(parents=True, exist_ok=True)
            for path in Path(staged, SOURCES[name].folder).glob("*.gz"):
                path.replace(place / path.name)


def read_idx(path: Path, name: str) -> NDArray[np.uint8]:
    """The array of a published IDX file of unsigned bytes, plain or gzipped.

    Raises:
        SourceError: it cannot be read, is cut off, or is not what was published.

    Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} is damaged or cut off ({error}): fetch it again") from error
    source, file = SOURCES[name], path.name.removesuffix(".gz")
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.content_sha256[file]:
        of = [other for other, its in SOURCES.items() if its.content_sha256.get(file) == digest]
        raise SourceError(
            f"{path} is not {file} of {name}{f' but of {of[0]}' if of else ''}: unpacked, it has the sha256 {digest}, and"
            f" {source.content_sha256[file]} was published; fetch it from {source.address}"
        )
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------------------


def _cifar10(root: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    wanted = {"train": (True,), "test": (False,), "all": (True, False)}[split]
    with _download("cifar10", root, "cifar-10-python.tar.gz"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")  # the pickles are older than this rule of numpy
        parts = [_torchvision().CIFAR10(root, train=train, download=True) for train in wanted]
    images = np.concatenate([np.asarray(part.data, np.uint8) for part in parts])  # (N, 32, 32, 3)
    labels = np.concatenate([np.asarray(part.targets, np.int64) for part in parts])
    return images.transpose(0, 3, 1, 2), labels


# --- CelebA -------------------------------------------------------------------------------------------------------------------

_CELEBA = (3, 218, 178)  # every aligned picture
_CELEBA_CROP = 148  # pixels a side at the centre, which is the face


def _celeba(root: Path, size: int) -> Pictures:
    place = _celeba_at_hand(root)
    if place is None:
        with _download("celeba", root, "img_align_celeba.zip"):
            _torchvision().CelebA(root, split="all", download=True)
            place = _celeba_at_hand(root)
            if place is None:
                raise RuntimeError("the download did not bring it")
    files = _celeba_files(place, size)
    about = About((3, size, size), SOURCES["celeba"].address, SOURCES["celeba"].licence)
    return Pictures(about, len(files), read_all(files, about))


def _celeba_at_hand(root: Path) -> Path | None:
    """The archive before the folder, which may have been unpacked in part."""
    candidates = [folder / name for name in ("img_align_celeba.zip", "img_align_celeba") for folder in (root / "celeba", root)]
    return next((path for path in candidates if path.exists()), None)


def _celeba_files(place: Path, size: int) -> list[PictureFile]:
    if place.is_dir():
        return [PictureFile(path.name, partial(_face, partial(_opened, path), size)) for path in sorted(place.glob("*.jpg"))]
    try:
        archive = zipfile.ZipFile(place)
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{place} is damaged or cut off ({error}): fetch it again") from error
    names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
    return [PictureFile(name, partial(_face, partial(_unzipped, archive, name), size)) for name in names]


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _unzipped(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    return io.BytesIO(archive.read(name))


def _face(open_file: Callable[[], BinaryIO], size: int) -> Batch:
    with open_file() as file:
        whole = read_picture(file, _CELEBA)
    top, left = (whole.shape[1] - _CELEBA_CROP) // 2, (whole.shape[2] - _CELEBA_CROP) // 2
    return Batch(resize(whole[:, top : top + _CELEBA_CROP, left : left + _CELEBA_CROP], size)[np.newaxis])
