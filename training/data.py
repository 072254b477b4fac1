"""Images, labels and sources as the loop wants them: resident tensors, split once, dealt in random order with no per-image Python."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.datasets import Dataset, DatasetError
from training.game import Tensors

# A set is copied onto the device where it takes less than this share of its memory, and read from its file otherwise.
RESIDENT_SHARE = 0.5


def to_images(pixels: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1]."""
    return pixels.to(torch.float32).mul_(1 / 127.5).sub_(1)


@dataclass(frozen=True)
class Split:
    """Row numbers, ascending. An image that equals a held-out one, or is of its group, is held out too, and so on from that one."""

    train: Tensor
    held_out: Tensor


def split(dataset: Dataset, num_held_out: int) -> Split:
    """Hold out the images whose content hashes come first: the same ones in every run, in whatever order they were added.

    Groups that share an image are one, rank by their first hash, and are held out whole until at least `num_held_out` images are.

    Raises:
        DatasetError: nothing is left to train on.
    """
    ranks = np.array([hashlib.sha256(image.data).digest()[:8] for image in dataset.images], dtype="S8").view(">u8")
    if dataset.groups is not None:
        ranks = _joint_ranks(ranks, dataset.groups)
    threshold = np.partition(ranks, num_held_out - 1)[num_held_out - 1]
    held_out = ranks <= threshold
    if held_out.all():
        grouped = "groups are held out whole, and those that share an image together"
        reason = "they are copies of held-out ones" if dataset.groups is None else grouped
        raise DatasetError(
            f"data set {dataset.card.name!r} has {len(ranks)} images and all of them are held out, because {reason};"
            " give more different images"
        )
    return Split(torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out)))


def _joint_ranks(hashes: NDArray[np.uint64], groups: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The lowest hash of all images that are linked to each by a chain of equal images and equal groups."""
    links = [np.unique(keys, return_inverse=True)[1] for keys in (groups, hashes)]
    ranks = hashes.astype(np.uint64)
    while True:
        before = ranks
        for link in links:
            lowest = np.full(link.max() + 1, np.iinfo(np.uint64).max, np.uint64)
            np.minimum.at(lowest, link, ranks)
            ranks = lowest[link]
        if np.array_equal(ranks, before):
            return ranks


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spaced from the first to the last: sets often lie sorted by class."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()]


def rows_of(dataset: Dataset, rows: Tensor) -> Tensors:
    """A batch, as `Batches.next` gives it, of these rows in their order, on the CPU."""
    return _to_batch({name: torch.from_numpy(array[rows.numpy()]) for name, array in _arrays(dataset).items()}, dataset)


def _arrays(dataset: Dataset) -> dict[str, NDArray[np.uint8 | np.int64]]:
    """What a batch is made of, by the names that it has there."""
    arrays = {"image": dataset.images, "label": dataset.labels, "source": dataset.sources}
    return {name: array for name, array in arrays.items() if array is not None}


def _to_batch(stored: Tensors, dataset: Dataset) -> Tensors:
    batch = {name: to_images(pixels) for name, pixels in stored.items() if name != "label"}
    if "label" in stored:
        batch["label"] = F.one_hot(stored["label"], len(dataset.card.class_names or ())).to(torch.float32)
    return batch


class Batches:
    """Endless batches in random order: each image once, then all again in another order.

    What they are made of lies on the device where it fits, so that a batch is one indexing and one scaling. Where it does not, the
    next batch is read from the file, and copied to a GPU, while this one is trained on.
    """

    def __init__(
        self, dataset: Dataset, rows: Tensor, batch_size: int, random: torch.Generator, device: torch.device, num_sharing: int = 1
    ) -> None:
        """random: a CPU generator that decides the order. num_sharing: processes that keep such a copy in the same memory."""
        arrays = _arrays(dataset)
        sharing = num_sharing if device.type == "cpu" else 1
        fits = sharing * sum(array.nbytes for array in arrays.values()) < RESIDENT_SHARE * _memory_bytes(device)
        self._resident = {name: torch.from_numpy(array[rows.numpy()]).to(device) for name, array in arrays.items()} if fits else None
        self._ahead = None if fits else _Ahead(arrays, rows, device)
        self._dataset, self._rows, self._batch_size, self._random, self._device = dataset, rows, batch_size, random, device
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def next(self) -> Tensors:
        """A batch of real data.

        Returns:
            image: (batch_size, C, H, W) float32 in [-1, 1].
            label: (batch_size, classes) float32, one-hot; only where the set has classes.
            source: (batch_size, C, H, W) float32 in [-1, 1]; only where the set is paired.
        """
        if self._resident is not None:
            taken = self._take(self._batch_size).to(self._device)
            stored = {name: tensor[taken] for name, tensor in self._resident.items()}
        else:
            assert self._ahead is not None
            stored = self._ahead.take(self._take(self._batch_size), then=self._following())
        return _to_batch(stored, self._dataset)

    def _take(self, count: int) -> Tensor:
        taken = []
        while count:
            if self._position == len(self._order):
                self._order, self._position = torch.randperm(len(self._rows), generator=self._random), 0
            part = self._order[self._position : self._position + count]
            self._position += len(part)
            count -= len(part)
            taken.append(part)
        return taken[0] if len(taken) == 1 else torch.cat(taken)

    def _following(self) -> Tensor | None:
        """What the next batch will be made of, where that is decided already: not across the end of an order."""
        following = self._order[self._position : self._position + self._batch_size]
        return following if len(following) == self._batch_size else None

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "position": self._position, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._position = state["order"].cpu(), state["position"]
        self._random.set_state(state["random"].cpu())


class _Ahead:
    """Reads rows of a set that stays in its file, one batch ahead, in a thread of its own."""

    def __init__(self, arrays: Mapping[str, NDArray[np.uint8 | np.int64]], rows: Tensor, device: torch.device) -> None:
        self._arrays, self._rows, self._device = arrays, rows, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._expected: tuple[Tensor, Future[Tensors]] | None = None

    def take(self, positions: Tensor, then: Tensor | None) -> Tensors:
        """What lies at these positions of the rows, on the device; and begin to read `then`."""
        expected, self._expected = self._expected, None
        if expected is not None and torch.equal(expected[0], positions):
            stored = expected[1].result()
        else:  # the first, the first of an order, or the state was loaded meanwhile
            stored = self._thread.submit(self._read, positions).result()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            for tensor in stored.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
        if then is not None:
            self._expected = (then, self._thread.submit(self._read, then))
        return stored

    def _read(self, positions: Tensor) -> Tensors:
        rows = self._rows[positions].numpy()
        read = {name: torch.from_numpy(array[rows]) for name, array in self._arrays.items()}
        if self._stream is None:
            return {name: tensor.to(self._device) for name, tensor in read.items()}
        with torch.cuda.stream(self._stream):  # from pinned memory, beside what is computed
            return {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in read.items()}


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
