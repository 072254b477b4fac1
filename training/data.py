"""Images as the loop wants them: one uint8 tensor, split once, dealt in random order with no per-image Python."""

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.datasets import Dataset, DatasetError
from training.game import Tensors

# A set is copied onto the device where it takes less than this share of its memory, and read from its file otherwise.
RESIDENT_SHARE = 0.5


def to_images(pixels: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1]."""
    return pixels.to(torch.float32).mul_(1 / 127.5).sub_(1)


@dataclass(frozen=True)
class Split:
    """Row numbers, ascending. An image that equals a held-out one is held out too."""

    train: Tensor
    held_out: Tensor


def split(dataset: Dataset, num_held_out: int) -> Split:
    """Hold out the images whose content hashes come first: the same ones in every run, in whatever order they were added.

    Raises:
        DatasetError: nothing is left to train on.
    """
    hashes = np.array([hashlib.sha256(image.data).digest()[:8] for image in dataset.images], dtype="S8").view(">u8")
    threshold = np.partition(hashes, num_held_out - 1)[num_held_out - 1]
    held_out = hashes <= threshold
    if held_out.all():
        raise DatasetError(
            f"data set {dataset.card.name!r} has {len(hashes)} images and all of them are held out, because they are copies"
            " of held-out ones; give more different images"
        )
    return Split(torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out)))


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spaced from the first to the last: sets often lie sorted by class."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()]


class Batches:
    """Endless batches in random order: each image once, then all again in another order.

    The pixels lie on the device where they fit, so that a batch is one indexing and one scaling.
    """

    def __init__(self, dataset: Dataset, rows: Tensor, batch_size: int, random: torch.Generator, device: torch.device) -> None:
        """random: a CPU generator that decides the order."""
        self._resident: Tensor | None = None
        if dataset.images.nbytes < RESIDENT_SHARE * _memory_bytes(device):
            self._resident = torch.from_numpy(dataset.images[rows.numpy()]).to(device)
        self._mapped = dataset.images  # the kernel reads what a batch touches
        self._rows, self._batch_size, self._random, self._device = rows, batch_size, random, device
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def next(self) -> Tensors:
        """`image`: (batch_size, C, H, W) float32 in [-1, 1]."""
        taken = self._take(self._batch_size)
        if self._resident is not None:
            pixels = self._resident[taken.to(self._device)]
        else:
            pixels = torch.from_numpy(self._mapped[self._rows[taken].numpy()]).to(self._device)
        return {"image": to_images(pixels)}

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

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "position": self._position, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._position = state["order"].cpu(), state["position"]
        self._random.set_state(state["random"].cpu())


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
