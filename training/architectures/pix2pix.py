"""Image to image: a picture becomes another one of the same size, learned from pairs.

Source: Isola et al. 2016, arXiv:1611.07004. Deviations:
- Instance norm in place of batch norm over a batch of one image, which is the same sum, and keeps images apart in larger batches.
- Dropout, the paper's noise, is off when the model is served: one picture has one answer.
- Nearest-neighbour enlargement and a 3x3 convolution in place of each transposed one, whose checkerboard takes long to unlearn
  (Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003).
- 5 halvings of 32 channels in place of 8 of 64, for small pictures and a processor without a GPU.
- Pairs are mirrored and not enlarged and cropped, which would blur drawings.
- The discriminator's loss is not halved, which Adam would not notice.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from training.contract import TensorSpec
from training.game import (
    Architecture,
    DataSpec,
    Game,
    Given,
    Norm,
    Player,
    Round,
    ScoreKind,
    Tensors,
    Terms,
    UnsuitableDataError,
    score_spec,
)
from training.layers import DoublingConv2d, Dropout, initialise_normal, norm2d

PATCHES = {70: 3, 34: 2, 16: 1}  # pixels a side that a score looks at -> halvings before it; section 6.2 of the paper
NUM_DROPPED = 3  # blocks behind the bottleneck that have dropout
LARGEST_FACTOR = 8  # channels grow to so many times the width
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


class Generator(nn.Module):
    """image (N, C', H, W) in [-1, 1] -> (N, C, H, W) in [-1, 1]: a U-Net, whose every level passes its features across to its mirror.

    H and W are multiples of 2^num_levels. The bottleneck has no norm: of a single place, nothing would be left.
    """

    def __init__(self, source_channels: int, channels: int, num_levels: int, width: int, dropout: float) -> None:
        super().__init__()
        widths = [width * min(LARGEST_FACTOR, 2**level) for level in range(num_levels)]
        down: list[nn.Module] = []
        for level, wide in enumerate(widths):
            normed = 0 < level < num_levels - 1
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            layers.append(nn.Conv2d(widths[level - 1] if level else source_channels, wide, 4, 2, 1, bias=not normed))
            down.append(nn.Sequential(*layers, *([nn.InstanceNorm2d(wide, affine=True)] if normed else [])))
        up: list[nn.Module] = []
        for level in reversed(range(1, num_levels)):
            behind = widths[level] if level == num_levels - 1 else 2 * widths[level]
            dropped = num_levels - 1 - level < NUM_DROPPED
            norm = nn.InstanceNorm2d(widths[level - 1], affine=True)
            up.append(nn.Sequential(*double(behind, widths[level - 1], bias=False), norm, Dropout(dropout if dropped else 0.0)))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.last = nn.Sequential(*double(2 * width, channels, bias=True), nn.Tanh())
        self.apply(initialise_normal)

    def forward(self, image: Tensor) -> Tensor:
        features = image
        across: list[Tensor] = []
        for layer in self.down:
            features = layer(features)
            across.append(features)
        across.pop()  # the bottleneck has nothing to pass by
        for layer in self.up:
            features = torch.cat([layer(features), across.pop()], 1)
        output: Tensor = self.last(features)
        return output


def double(channels: int, out_channels: int, *, bias: bool) -> tuple[nn.Module, ...]:
    """(N, channels, H, W) -> (N, out_channels, 2 H, 2 W), behind a ReLU."""
    return nn.ReLU(), DoublingConv2d(channels, out_channels, bias=bias)


class Discriminator(nn.Module):
    """image (N, C, H, W) and source (N, C', H, W) in [-1, 1] -> scores (N, h, w), each of one patch of both."""

    def __init__(self, channels: int, width: int, num_halvings: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        wide = width
        for level in range(1, num_halvings + 1):
            wider = width * min(LARGEST_FACTOR, 2**level)
            stride = 2 if level < num_halvings else 1
            layers += [nn.Conv2d(wide, wider, 4, stride, 1, bias=norm == "none"), norm2d(norm, wider), nn.LeakyReLU(0.2)]
            wide = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, 1, 4, 1, 1))
        self.apply(initialise_normal)

    def forward(self, image: Tensor, source: Tensor) -> Tensor:
        scores: Tensor = self.layers(torch.cat([image, source], 1)).squeeze(1)  # (N, 1, h, w) -> (N, h, w)
        return scores


def patch_size(height: int, width: int) -> int:
    """The largest of the paper's patches that an image holds."""
    return next(patch for patch in PATCHES if patch <= min(height, width))


def scores_shape(height: int, width: int) -> tuple[int, int]:
    """Of the discriminator's map for an image of that size."""
    halved = 2 ** PATCHES[patch_size(height, width)]
    return height // halved - 2, width // halved - 2  # two convolutions of 4 without stride, one pixel of padding


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """(N, C, H, W), with left and right of the chosen rows, (N,) of bool, exchanged."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Grey from colours or colours from grey, (N, 1 or 3, H, W), and unchanged where the count is right."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * torch.tensor(LUMA, device=images.device)[:, None, None]).sum(1, keepdim=True)


class Pix2pix(Architecture):
    """U-Net that turns one picture into another, and a discriminator of patches; needs a set of pairs."""

    key: ClassVar[str] = "pix2pix"
    source: ClassVar[str] = "Isola et al. 2016, arXiv:1611.07004"
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    conditions: ClassVar[tuple[str, ...]] = ("image",)
    recipe: ClassVar[Mapping[str, JsonValue]] = {"batch_size": 4, "learning_rate_schedule": "linear"}
    refused: ClassVar[Mapping[str, str]] = {"diff_augment": "it would move an image away from the source that it is judged beside"}

    num_levels: Annotated[int, Field(ge=2, le=8)] = Field(
        default=5, description="Halvings to the bottleneck; sides are multiples of 2^num_levels; the paper has 8 for 256 pixels."
    )
    generator_width: Annotated[int, Field(ge=1, le=512)] = Field(
        default=32, description="Channels of the generator's first level, at most eight times as many in the others; the paper has 64."
    )
    discriminator_width: Annotated[int, Field(ge=1, le=512)] = Field(
        default=32, description="Channels of the discriminator's first layer; the paper has 64."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="Dropout of the three blocks behind the bottleneck, in training only."
    )
    l1_weight: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=100.0, description="Weight of the mean absolute difference from the target."
    )
    mirrored: bool = Field(default=True, description="Exchange left and right of half the pairs.")

    def check(self, data: DataSpec) -> None:
        if data.source_shape is None:
            raise UnsuitableDataError("pix2pix learns from pairs of images, and this set has none; add one with --pairs")
        (source_channels, *source_size), (channels, height, width) = data.source_shape, data.shape
        these = f"these images are {width} x {height}"
        if source_size != [height, width]:
            raise UnsuitableDataError(
                f"pix2pix keeps a picture's size, and {these}, their sources {source_size[1]} x {source_size[0]};"
                " add the set again with one --size"
            )
        multiple = 2**self.num_levels
        if height % multiple or width % multiple:
            divisor = math.gcd(height, width)
            reachable = (divisor & -divisor).bit_length() - 1
            fitting = f", or train with num_levels {min(8, reachable)}" if reachable >= 2 else ""
            raise UnsuitableDataError(
                f"pix2pix of {self.num_levels} levels wants sides that are multiples of {multiple}, and {these};"
                f" add the set again with another --size{fitting}"
            )
        if min(height, width) < min(PATCHES):
            raise UnsuitableDataError(
                f"pix2pix judges patches of {min(PATCHES)} pixels, and {these}; add the set again with a larger --size"
            )
        if {source_channels, channels} - {1, 3}:
            raise UnsuitableDataError(
                f"pix2pix takes and makes images of 1 or 3 channels, and these images have {channels}, their sources {source_channels};"
                " add the set again"
            )

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        assert data.source_shape is not None, "checked by `check`"
        channels, height, width = data.shape
        source_channels = data.source_shape[0]
        generator = Generator(source_channels, channels, self.num_levels, self.generator_width, self.dropout)
        num_halvings = PATCHES[patch_size(height, width)]
        discriminator = Discriminator(channels + source_channels, self.discriminator_width, num_halvings, terms.norm)
        return {"main": Game(generator, discriminator, self._deal, reconstruction=self._reconstruction)}

    def _deal(self, batch: Tensors, random: torch.Generator) -> Round:
        image, source = batch["image"], batch["source"]
        if self.mirrored:
            chosen = torch.rand(len(image), generator=random, device=image.device) < 0.5
            image, source = mirror(image, chosen), mirror(source, chosen)
        return Round(inputs={"image": source}, target=image, condition={"source": source})

    def _reconstruction(self, generated: Tensor, dealt: Round) -> Tensor:
        return self.l1_weight * (generated - dealt.target).abs().mean()

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        assert data.source_shape is not None, "checked by `check`"
        game = games["main"]
        free = TensorSpec(name="image", kind="image", shape=(data.source_shape[0], -1, -1), size_multiple=2**self.num_levels)
        made = TensorSpec(name="image", kind="image", shape=(data.shape[0], -1, -1))
        image = TensorSpec(name="image", kind="image", shape=data.shape)
        source = TensorSpec(name="source", kind="image", shape=data.source_shape)
        scores = score_spec(score, scores_shape(*data.shape[1:]))
        return {"generator": Player(game.generator, (free,), made), "discriminator": Player(game.discriminator, (image, source), scores)}

    def given(self, batch: Tensors) -> Given:
        source = batch["source"]
        return Given(inputs={"image": source}, condition={"source": source}, baseline=with_channels(source, batch["image"].shape[1]))
