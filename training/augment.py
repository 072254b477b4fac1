"""Differentiable augmentation: all that the discriminator sees, real and generated, is augmented alike, so nothing of it is learned.

Source: Zhao et al. 2020, arXiv:2006.10738, section 3 (color, translation by up to 1/8 of a side, cutout of half a side).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TRANSLATION = 1 / 8  # of a side, at most
CUTOUT = 1 / 2  # of a side


def augment(images: Tensor, kinds: Sequence[str], random: torch.Generator) -> Tensor:
    """Images (N, C, H, W) in about [-1, 1], each augmented by draws of its own; differentiable with respect to the images.

    Args:
        kinds: of "color", "translation", "cutout", in this order whatever order they are given in.
        random: on the images' device.
    """
    if "color" in kinds:
        images = _color(images, random)
    if "translation" in kinds:
        images = _translation(images, random)
    if "cutout" in kinds:
        images = _cutout(images, random)
    return images


def _color(images: Tensor, random: torch.Generator) -> Tensor:
    """Brightness by -0.5 to 0.5, saturation by 0 to 2 times, contrast by 0.5 to 1.5 times."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, generator=random, device=images.device).unbind()
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + (images - middle) * (contrast + 0.5)


def _translation(images: Tensor, random: torch.Generator) -> Tensor:
    """Moved by whole pixels; what comes in from outside is 0."""
    count, _, height, width = images.shape
    reach = [int(side * TRANSLATION + 0.5) for side in (height, width)]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows = _starts(count, 2 * reach[0] + 1, random, images.device) + torch.arange(height, device=images.device)  # (N, H)
    columns = _starts(count, 2 * reach[1] + 1, random, images.device) + torch.arange(width, device=images.device)  # (N, W)
    each = torch.arange(count, device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return moved.permute(0, 3, 1, 2)


def _cutout(images: Tensor, random: torch.Generator) -> Tensor:
    """A rectangle of half a side, which may stick out over the edge, becomes 0."""
    count, _, height, width = images.shape
    inside = []
    for side in (height, width):
        size = int(side * CUTOUT + 0.5)
        centre = _starts(count, side + (1 - size % 2), random, images.device)
        offset = torch.arange(side, device=images.device) - (centre - size // 2)  # (N, side)
        inside.append((offset >= 0) & (offset < size))
    mask = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return images * mask[:, None]


def _starts(count: int, end: int, random: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(end, (count, 1), generator=random, device=device)
