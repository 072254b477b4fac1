"""The files of a data set while it is written, and what is counted and hashed as they grow."""

import hashlib
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from training.contract import OriginalSizes

if TYPE_CHECKING:
    from training.datasets import About, Batch, Part

CAPTIONS: Literal["captions"] = "captions"
MAX_NAMED = 1000  # left-out files that a card names; the others are counted


class Content:
    """Appends batches to the files of pixels and of captions, keeps the numbers (labels and groups), and counts and hashes what passes."""

    def __init__(self, about: "About", staged: Path, open_files: ExitStack) -> None:
        self.about = about
        self.num_images = self.num_skipped = 0
        self.skipped: list[str] = []  # the first MAX_NAMED
        self._seen: set[bytes] = set()
        self._num_duplicates = 0
        self._sizes: list[tuple[int, int]] = []
        self._captions = _Captions(open_files.enter_context((staged / f"{CAPTIONS}.jsonl").open("wb"))) if about.captioned else None
        self.numbers: dict[Part, NDArray[np.int64]] = {}
        self._pixels: dict[Part, _Pixels] = {}
        for part, (dtype, shape) in about.arrays(0).items():
            if dtype is np.uint8:
                self._pixels[part] = _Pixels(open_files.enter_context((staged / f"{part}.npy").open("wb")), shape[1:])
        self._numbers: dict[Part, list[NDArray[np.int64]]] = {part: [] for part in about.arrays(0) if part not in self._pixels}

    def add(self, batch: "Batch") -> None:
        arrays: dict[Part, NDArray[Any] | None] = {
            "images": batch.images,
            "labels": batch.labels,
            "sources": batch.sources,
            "groups": batch.groups,
        }
        given = {part: array for part, array in arrays.items() if array is not None}
        wanted = self.about.arrays(len(batch.images))
        if set(given) != set(wanted):
            raise ValueError(f"a batch has {sorted(given)} where the set has {sorted(wanted)}")
        for part, (dtype, shape) in wanted.items():
            if given[part].dtype != dtype or given[part].shape != shape:
                raise ValueError(f"{part} of {given[part].dtype} {given[part].shape} are not {np.dtype(dtype)} {shape}")
        num_classes = len(self.about.class_names or ())
        if batch.labels is not None and batch.labels.size and not 0 <= batch.labels.min() <= batch.labels.max() < num_classes:
            raise ValueError(f"labels from {batch.labels.min()} to {batch.labels.max()} are not indices of {num_classes} classes")
        captions = None if self._captions is None else len(batch.images)
        if captions != (None if batch.captions is None else len(batch.captions)):
            raise ValueError(f"a batch has the captions {ascii(batch.captions)[:80]} where the set has {captions or 'none'}")
        for part, pixels in self._pixels.items():
            pixels.append(given[part])
        for part, values in self._numbers.items():
            values.append(given[part].astype("<i8"))
        if self._captions is not None:
            self._captions.append(batch.captions or ())
        self._count(batch)

    def _count(self, batch: "Batch") -> None:
        for image in batch.images:
            digest = hashlib.sha256(image.tobytes()).digest()
            self._num_duplicates += digest in self._seen
            self._seen.add(digest)
        self.num_images += len(batch.images)
        self._sizes += batch.sizes
        self.num_skipped += len(batch.skipped)
        self.skipped += batch.skipped[: MAX_NAMED - len(self.skipped)]

    def finish(self) -> None:
        for pixels in self._pixels.values():
            pixels.write_header(self.num_images)
        if self.num_images:
            self.numbers = {part: np.concatenate(values) for part, values in self._numbers.items()}

    def figures(self) -> dict[str, object]:
        """What a card says of the content, by its fields."""
        classes = self.about.class_names
        return {
            "num_images": self.num_images,
            "class_counts": tuple(np.bincount(self.numbers["labels"], minlength=len(classes)).tolist()) if classes else None,
            "num_captions": None if self._captions is None else self._captions.num,
            "num_duplicates": self._num_duplicates,
            "original_sizes": _range(self._sizes),
            "content_sha256": self._sha256(),
            "skipped": tuple(self.skipped),
            "num_skipped": self.num_skipped if self.num_skipped > len(self.skipped) else None,
        }

    def _sha256(self) -> str:
        """Over image bytes, label bytes (little-endian int64) and the shape; then over the sources' shape and the hash of their bytes,
        over group bytes, and over the lines of captions. What a set has not is not in it."""
        total = self._pixels["images"].hash.copy()
        if "labels" in self.numbers:
            total.update(self.numbers["labels"].data)
        total.update(repr((self.num_images, *self.about.shape)).encode())
        if "sources" in self._pixels:
            total.update(repr(("sources", self.about.source_shape)).encode() + self._pixels["sources"].hash.digest())
        if "groups" in self.numbers:
            total.update(b"groups" + self.numbers["groups"].tobytes())
        if self._captions is not None:
            total.update(b"captions" + self._captions.hash.digest())
        return total.hexdigest()


def _range(sizes: list[tuple[int, int]]) -> OriginalSizes | None:
    if not sizes:
        return None
    in_order = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return OriginalSizes(smallest=in_order[0], median=in_order[(len(in_order) - 1) // 2], largest=in_order[-1])


class _Captions:
    """A file with a line of JSON for each image, and the hash of its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.num = 0  # images that have one
        self.hash = hashlib.sha256()
        self._file = file

    def append(self, captions: Sequence[str | None]) -> None:
        lines = b"".join(json.dumps(caption).encode() + b"\n" for caption in captions)
        self._file.write(lines)
        self.hash.update(lines)
        self.num += sum(caption is not None for caption in captions)


class _Pixels:
    """An .npy file of uint8 images of one shape that grows as they come, and the hash of their bytes."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...]) -> None:
        self.hash = hashlib.sha256()
        self._file, self._shape = file, shape
        self.write_header(0)

    def append(self, images: NDArray[np.uint8]) -> None:
        data = np.ascontiguousarray(images).data
        self._file.write(data)
        self.hash.update(data)

    def write_header(self, num_images: int) -> None:
        """Written again at the end, when the number is known. Always of one length: numpy pads it for a first axis of up to 21 digits."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (num_images, *self._shape)})
        self._file.seek(0)
        self._file.write(header.getvalue())
