"""Large pictures in pieces: a tile's core, and around it all the pixels that the core's output depends on.

A tile ends where its picture ends, so that the network pads there as it would pad the whole, and nowhere else.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from training.contract import TensorSpec

CORE_PIXELS = 128  # a side: a turn on the engine's thread; with smaller cores more of the work is done twice, in the halos


class Span(NamedTuple):
    """One axis of a tile: the core is `start` to `stop`, what the network sees is `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Tile:
    """A part of a picture, in input pixels."""

    rows: Span
    columns: Span

    def cut(self, image: Tensor) -> Tensor:
        """What the network sees of (..., H, W)."""
        return image[..., self.rows.first : self.rows.last, self.columns.first : self.columns.last]

    def core(self, output: Tensor, scale: int) -> Tensor:
        """The core of what the network made of `cut`, `scale` output pixels a side to one input pixel."""
        return output[..., _inner(self.rows, scale), _inner(self.columns, scale)]

    def place(self, result: Tensor, scale: int) -> Tensor:
        """Where the core belongs in the output of the whole picture."""
        return result[..., _outer(self.rows, scale), _outer(self.columns, scale)]


def plan(spec: TensorSpec, height: int, width: int) -> tuple[Tile, ...]:
    """The tiles of a picture, row by row; one alone where the network's input cannot be tiled.

    Args:
        height, width: multiples of the input's `size_multiple`, and so is every tile's side and place.
    """
    if spec.halo is None or -1 not in spec.shape:
        return (Tile(Span(0, height, 0, height), Span(0, width, 0, width)),)
    core, halo = rounded(CORE_PIXELS, spec), rounded(spec.halo, spec)
    return tuple(Tile(rows, columns) for rows in spans(height, core, halo) for columns in spans(width, core, halo))


def spans(length: int, core: int, halo: int) -> Iterator[Span]:
    """The axis cut into cores; the last one may be shorter."""
    for start in range(0, length, core):
        stop = min(length, start + core)
        yield Span(start, stop, max(0, start - halo), min(length, stop + halo))


def rounded(pixels: int, spec: TensorSpec) -> int:
    """The next multiple of the input's `size_multiple`."""
    return math.ceil(pixels / spec.size_multiple) * spec.size_multiple


def _inner(span: Span, scale: int) -> slice:
    return slice((span.start - span.first) * scale, (span.stop - span.first) * scale)


def _outer(span: Span, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)
