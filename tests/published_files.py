"""Files in the published format of MNIST and Fashion-MNIST, and the checksums that make them the published ones."""

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.dataset_sources import SOURCES


def idx(array: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx_files(folder: Path, part: str, images: np.ndarray, labels: np.ndarray, *, zipped: bool = True) -> None:
    """part: train or t10k."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(idx(array), compresslevel=1) if zipped else idx(array))


def publish(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, what lies zipped in the folder is what was published under the name."""
    content = {path.stem: hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() for path in folder.glob("*.gz")}
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], content_sha256=content))
