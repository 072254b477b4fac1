"""Tensors in [-1, 1] become pixels and back, and many pictures become one sheet."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
BACKGROUND = 48  # a dark grey: the edges of black and of white pictures can be seen against it


def to_uint8(images: Tensor) -> Tensor:
    """Pixels of finite float images, any shape, on their device: -1 is 0, 1 is 255, rounded to the nearest and clamped."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(array: Pixels) -> Tensor:
    """Float32 in [-1, 1] on the CPU, the shape kept, to the bit as training scales them; `to_uint8` gives the same pixels back."""
    return torch.from_numpy(array.astype(np.float32)).mul_(1 / 127.5).sub_(1)


def grid(images: Tensor, columns: int | None = None, padding_pixels: int = 2) -> Pixels:
    """One picture of many, row by row, with padding between the cells and none around them: one image is its own grid.

    Args:
        images: (N, C, H, W) uint8, N >= 1, on any device.
        columns: at most N are used; None gives the most nearly square sheet, ceil(sqrt(N)).

    Returns:
        (rows * (H + padding) - padding, columns * (W + padding) - padding, C). Image i begins at row (i // columns) * (H + padding) and
        column (i % columns) * (W + padding). Padding and empty cells are BACKGROUND.
    """
    num, channels, height, width = images.shape
    columns = min(columns or math.isqrt(num - 1) + 1, num)
    rows = -(-num // columns)
    tall, wide = height + padding_pixels, width + padding_pixels
    cells = images.new_full((rows * columns, tall, wide, channels), BACKGROUND)
    cells[:num, :height, :width] = images.permute(0, 2, 3, 1)
    sheet = cells.view(rows, columns, tall, wide, channels).transpose(1, 2).reshape(rows * tall, columns * wide, channels)
    return sheet[: rows * tall - padding_pixels, : columns * wide - padding_pixels].contiguous().cpu().numpy()
