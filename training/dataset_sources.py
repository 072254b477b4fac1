"""Where data sets come from: published sets by name, and folders of pictures. For the command line alone.

Downloads go through torchvision (imported when one is needed), which checks what it fetched. CIFAR-10 is published as pickles, and
unpickling runs what a file says: they are opened here, after torchvision's checksums, and nowhere else.
"""

import gzip
import http.client
import io
import socket
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from training.dataset_folders import PictureFile, Pictures, batch_size, check_size, open_file, read_all, resize
from training.datasets import About, Batch, DatasetError
from training.files.pictures import read_picture

PATIENCE_SECONDS = 30.0  # for a server that is silent

Split = Literal["train", "test", "all"]


class SourceError(DatasetError):
    """The files are not there, not whole, or not to be had; the message says which file to put where."""


@dataclass(frozen=True)
class Source:
    """A published set. `files` are what a user fetches by hand from `address`, with the place below --data-dir where each is looked for."""

    address: str
    licence: str
    files: str
    size: int  # pixels a side by default
    class_names: tuple[str, ...] | None = None


SOURCES = {
    "mnist": Source(
        address="https://ossci-datasets.s3.amazonaws.com/mnist/",
        licence="CC BY-SA 3.0 as commonly stated; Yann LeCun and Corinna Cortes, made from NIST Special Databases 1 and 3",
        files="MNIST/raw/{names}",
        size=28,
        class_names=tuple("0123456789"),
    ),
    "fashion-mnist": Source(
        address="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT; Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
        files="FashionMNIST/raw/{names}",
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
    ),
    "cifar10": Source(
        address="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        licence="no licence stated; cite Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        files="cifar-10-python.tar.gz",
        size=32,
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "celeba": Source(
        address="http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        licence="non-commercial research only; Liu, Luo, Wang and Tang, Deep Learning Face Attributes in the Wild, 2015",
        files="celeba/img_align_celeba.zip",
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
        return _celeba(source, root, size or source.size)
    if name == "cifar10":
        images, labels = _cifar10(source, root, split or "train")
    else:
        images, labels = _idx_set(name, source, root, split or "train")
    return _resized(source, images, labels, size or source.size)


def _resized(source: Source, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int) -> Pictures:
    about = About((images.shape[1], size, size), source.address, source.licence, source.class_names)
    step = batch_size(about.shape)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            if size != images.shape[-1]:
                chunk = np.stack([resize(image, size) for image in chunk])
            yield Batch(chunk, labels[start : start + step])

    return Pictures(about, len(images), batches())


# --- downloads ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _download(source: Source, root: Path, names: str) -> Iterator[None]:
    """Turn what torchvision raises without a network into one sentence that says which file to put where."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_SECONDS)
    try:
        yield
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        lines = str(error).split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), type(error).__name__)
        place = root / source.files.format(names=names)
        raise SourceError(
            f"the files are not at hand and cannot be downloaded ({reason}): "
            f"fetch {place.name} from {source.address}, put it at {place}, and give --data-dir {root}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


# --- MNIST and Fashion-MNIST: IDX files ---------------------------------------------------------------------------------------

_IDX_PARTS = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}


def _idx_set(name: str, source: Source, root: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    names = [f"{part}-{kind}-ubyte" for part in _IDX_PARTS[split] for kind in ("images-idx3", "labels-idx1")]
    raw = root / Path(source.files).parent
    if not all(_at_hand(raw, root, file) for file in names):
        _download_idx(name, source, root, names)
    arrays = []
    for file in names:
        path = _at_hand(raw, root, file)
        if path is None:
            raise SourceError(f"{file} is in neither {raw} nor {root}, though the download is complete; put it there")
        arrays.append(read_idx(path))
    images, labels = np.concatenate(arrays[0::2]), np.concatenate(arrays[1::2])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise SourceError(
            f"{' and '.join(names)} in {raw} or {root} do not hold as many images as labels; fetch both again from {source.address}"
        )
    return images[:, np.newaxis], labels.astype(np.int64)


def _at_hand(raw: Path, root: Path, file: str) -> Path | None:
    candidates = [folder / name for folder in (raw, root) for name in (f"{file}.gz", file)]
    return next((path for path in candidates if path.is_file()), None)


def _download_idx(name: str, source: Source, root: Path, names: list[str]) -> None:
    with _download(source, root, " and ".join(f"{file}.gz" for file in names)):
        from torchvision import datasets  # noqa: PLC0415  takes seconds, and only a download needs it

        kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
        kind(root, download=True)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, plain or gzipped.

    Raises:
        SourceError: cut off, or no such file.

    Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} is damaged or cut off ({error}): delete it and fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise SourceError(f"{path} is no IDX file of unsigned bytes: delete it and fetch it again")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    pixels = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
    if pixels.size != np.prod(shape, dtype=np.int64):
        raise SourceError(f"{path} holds {pixels.size} bytes where its head promises {shape}: delete it and fetch it again")
    return pixels.reshape(shape)


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------------------


def _cifar10(source: Source, root: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with _download(source, root, ""), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")  # the pickles are older than this rule of numpy
        from torchvision import datasets  # noqa: PLC0415  takes seconds, and only two sources need it

        parts = [
            datasets.CIFAR10(root, train=train, download=True) for train in (True, False) if split in ("all", "train" if train else "test")
        ]
    images = np.concatenate([np.asarray(part.data, np.uint8) for part in parts])  # (N, 32, 32, 3)
    labels = np.concatenate([np.asarray(part.targets, np.int64) for part in parts])
    return images.transpose(0, 3, 1, 2), labels


# --- CelebA -------------------------------------------------------------------------------------------------------------------

_CELEBA = (3, 218, 178)  # every aligned picture
_CELEBA_CROP = 148  # pixels a side at the centre: the face, without most of the background that DCGAN's crop leaves out too


def _celeba(source: Source, root: Path, size: int) -> Pictures:
    place = _celeba_at_hand(root)
    if place is None:
        with _download(source, root, ""):
            from torchvision import datasets  # noqa: PLC0415  takes seconds, and only a download needs it

            datasets.CelebA(root, split="all", download=True)
        place = _celeba_at_hand(root)
    if place is None:
        raise SourceError(f"img_align_celeba.zip is in neither {root / 'celeba'} nor {root}, though the download is complete; put it there")
    files = _celeba_files(place)
    about = About((3, size, size), source.address, source.licence)
    return Pictures(about, len(files), read_all(files, about, lambda file: _celeba_pixels(file, size)))


def _celeba_at_hand(root: Path) -> Path | None:
    names = ("img_align_celeba", "img_align_celeba.zip")
    candidates = [folder / name for folder in (root / "celeba", root) for name in names]
    return next((path for path in candidates if path.exists()), None)


def _celeba_files(place: Path) -> list[PictureFile]:
    if place.is_dir():
        return [PictureFile(path.name, partial(open_file, path)) for path in sorted(place.glob("*.jpg"))]
    try:
        archive = zipfile.ZipFile(place)
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{place} is damaged or cut off ({error}): delete it and fetch it again") from error
    names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
    return [PictureFile(name, partial(_unzipped, archive, name)) for name in names]


def _unzipped(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    return io.BytesIO(archive.read(name))


def _celeba_pixels(file: BinaryIO, size: int) -> NDArray[np.uint8]:
    whole = read_picture(file, _CELEBA)
    top, left = (whole.shape[1] - _CELEBA_CROP) // 2, (whole.shape[2] - _CELEBA_CROP) // 2
    return resize(whole[:, top : top + _CELEBA_CROP, left : left + _CELEBA_CROP], size)
