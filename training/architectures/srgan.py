"""Super-resolution: a picture of low resolution becomes one of two or four times the sides.

Source: Ledig et al. 2016, arXiv:1609.04802. Deviations:
- No batch norm in the generator: it makes blotches, and an output that depends on more than its neighbourhood (Lim et al. 2017,
  arXiv:1707.02921, section 3.1; Wang et al. 2018, arXiv:1809.00219, section 3.1).
- What the network makes is added to the bicubic enlargement, where it starts from (Kim et al. 2015, arXiv:1511.04587, section 3.1).
- The convolutions before a pixel shuffle start with equal sub-pixels (Aitken et al. 2017, arXiv:1707.02937, section 3.2).
- 8 blocks of 32 channels in place of 16 of 64, for a processor without a GPU; `num_blocks` 16 and `generator_width` 64 are the paper's.
- The discriminator averages over all places before its first linear layer, and so takes crops of any size.
- Content is compared in the features of EfficientNet-Lite0 unless another network is asked for, each place's features divided by their
  norm (Zhang et al. 2018, arXiv:1801.03924, equation 1); the pixel loss stays beside it, and the weights are for these scales.
- Low resolution is made by antialiased bicubic reduction, rounded to 8 bits as an uploaded picture is.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue, model_validator
from torch import Tensor, nn

from training.contract import TensorSpec
from training.features.efficientnet import EfficientNetLite0
from training.features.vgg import VGG19
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
from training.layers import norm2d

SMALLEST_SIDE = 16  # pixels; four halvings leave the discriminator one place
Maps = Callable[[Tensor], list[Tensor]]  # images (N, C, H, W) to maps of features
Weight = Annotated[float, Field(ge=0, le=1e6)]


# --- networks -----------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """x + convolution(PReLU(convolution(x))), (N, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = features + self.layers(features)
        return output


class Generator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> (N, C, scale * H, scale * W), in [-1, 1] when it is served.

    A fresh one is the bicubic enlargement. In training its output is not clamped: beyond the range no gradient would come back.
    """

    def __init__(self, channels: int, scale: int, num_blocks: int, width: int) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(channels, width, 9, padding=4), nn.PReLU())
        self.body = nn.Sequential(*(Block(width) for _ in range(num_blocks)), nn.Conv2d(width, width, 3, padding=1))
        stages: list[nn.Module] = []
        for _ in range(scale.bit_length() - 1):
            stages += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
            start_with_equal_subpixels(stages[-3])
        last = nn.Conv2d(width, channels, 9, padding=4)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has one
        self.tail = nn.Sequential(*stages, last)

    def forward(self, image: Tensor) -> Tensor:
        features = self.head(image)
        enlarged = F.interpolate(image, scale_factor=float(self.scale), mode="bicubic", antialias=True)
        output: Tensor = enlarged + self.tail(features + self.body(features))
        return output if self.training else output.clamp(-1, 1)


def start_with_equal_subpixels(convolution: nn.Module) -> None:
    """Give the 4 outputs that a pixel shuffle makes neighbours the same weights: no checkerboard to unlearn.

    Source: Aitken et al. 2017, arXiv:1707.02937, section 3.2.
    """
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        convolution.weight.copy_(convolution.weight[::4].repeat_interleave(4, 0))
        assert convolution.bias is not None
        convolution.bias.copy_(convolution.bias[::4].repeat_interleave(4, 0))


def halo(num_blocks: int) -> int:
    """Input pixels around a place that the generator's output there depends on, at either scale.

    9x9 at full resolution and one 3x3 a doubling reach 3, the body's last 3x3 one, a block two, the first 9x9 four.
    """
    return 3 + 1 + 2 * num_blocks + 4


class Discriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> score (N,): eight convolutions with LeakyReLU 0.2, norm in all but the first."""

    def __init__(self, channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index, factor in enumerate((1, 1, 2, 2, 4, 4, 8, 8)):
            normed = norm if index else "none"
            convolution = nn.Conv2d(channels, factor * width, 3, 1 + index % 2, 1, bias=normed == "none")
            channels = factor * width
            blocks.append(nn.Sequential(convolution, norm2d(normed, channels), nn.LeakyReLU(0.2)))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.Linear(channels, 2 * channels), nn.LeakyReLU(0.2), nn.Linear(2 * channels, 1))

    def forward(self, image: Tensor) -> Tensor:
        features = image
        for block in self.blocks:
            features = block(features)
        return torch.flatten(self.head(features.mean((2, 3))))  # (N, 1) -> (N,)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The features behind each convolution, the first to the last."""
        found = [image]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found[1:]


# --- data ---------------------------------------------------------------------------------------------------------------------


def reduce(image: Tensor, scale: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H / scale, W / scale), antialiased bicubic, with the values that 8 bits can hold."""
    size = [image.shape[2] // scale, image.shape[3] // scale]
    reduced = F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    return ((reduced + 1) * 127.5).round() / 127.5 - 1


def enlarge(image: Tensor, scale: int) -> Tensor:
    """(N, C, H, W) -> (N, C, scale * H, scale * W), bicubic: what a user would have without the model."""
    return F.interpolate(image, scale_factor=float(scale), mode="bicubic", antialias=True).clamp(-1, 1)


# --- losses -------------------------------------------------------------------------------------------------------------------


def pixel_distance(kind: str, generated: Tensor, target: Tensor) -> Tensor:
    """Mean over all values: absolute ("l1"), squared ("mse") or sqrt(difference^2 + 0.001^2) ("charbonnier").

    Charbonnier: Lai et al. 2017, arXiv:1704.03915, equation 2.
    """
    difference = generated - target
    if kind == "l1":
        return difference.abs().mean()
    return difference.square().mean() if kind == "mse" else (difference.square() + 1e-6).sqrt().mean()


def perceptual_distance(maps: Maps, generated: Tensor, target: Tensor) -> Tensor:
    """Mean over the maps of the squared distance of features of norm 1, summed over channels, averaged over places; 0 to 4.

    Source: Zhang et al. 2018, arXiv:1801.03924, equation 1, with all channels of one weight.
    """
    with torch.no_grad():
        wanted = [F.normalize(features) for features in maps(target)]
    pairs = zip(maps(generated), wanted, strict=True)
    return torch.stack([(F.normalize(features) - want).square().sum(1).mean() for features, want in pairs]).mean()


def matching_distance(maps: Maps, generated: Tensor, target: Tensor) -> Tensor:
    """Mean over the discriminator's maps of the mean absolute difference.

    Source: Wang et al. 2017, arXiv:1711.11585, equation 4.
    """
    with torch.no_grad():
        wanted = maps(target)
    pairs = zip(maps(generated), wanted, strict=True)
    return torch.stack([(features - want).abs().mean() for features, want in pairs]).mean()


def pretrained_maps(content: str, weights: Path) -> Maps:
    """The maps of a frozen network, which belongs to no player and follows its images to their device.

    Raises:
        UserError: its weights are not there.
    """
    network = VGG19.from_weights(weights) if content == "vgg19" else EfficientNetLite0.pretrained()

    def maps(images: Tensor) -> list[Tensor]:
        network.to(images.device)
        coloured = images.expand(-1, 3, -1, -1)  # grey has one channel
        return [network(coloured)] if isinstance(network, VGG19) else network.stages(coloured)

    return maps


# --- the architecture ---------------------------------------------------------------------------------------------------------


class Srgan(Architecture):
    """Residual generator that enlarges pictures of any size two or four times, and a convolutional discriminator."""

    key: ClassVar[str] = "srgan"
    source: ClassVar[str] = "Ledig et al. 2016, arXiv:1609.04802"
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    recipe: ClassVar[Mapping[str, JsonValue]] = {
        "batch_size": 4,
        "betas": [0.9, 0.999],
        "learning_rate": 4e-4,
        "learning_rate_schedule": "linear",
        "ema_halflife_images": 2000.0,
    }

    scale: Literal[2, 4] = Field(default=4, description="Output pixels a side to one input pixel.")
    num_blocks: Annotated[int, Field(ge=1, le=64)] = Field(default=8, description="Residual blocks of the generator; the paper has 16.")
    generator_width: Annotated[int, Field(ge=1, le=512)] = Field(default=32, description="Channels of the generator; the paper has 64.")
    discriminator_width: Annotated[int, Field(ge=1, le=512)] = Field(
        default=32, description="Channels of the discriminator's first layers, an eighth of those of its last; the paper has 64."
    )
    pixel_phase: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.75, description="Share of the run, at its start, in which the pixel loss alone counts; 1 trains no discriminator."
    )
    pixel_loss: Literal["l1", "mse", "charbonnier"] = Field(default="l1", description="Distance of pixels in [-1, 1].")
    pixel_weight: Weight = Field(default=0.1, description="Weight of the pixel loss after the pixel phase.")
    content: Literal["none", "discriminator", "vgg19", "efficientnet-lite0"] = Field(
        default="efficientnet-lite0",
        description="Whose features are compared after the pixel phase; vgg19 needs vgg19.pth in the folder of weights.",
    )
    content_weight: Weight = Field(default=0.02, description="Weight of the comparison of features.")
    adversarial_weight: Weight = Field(default=5e-3, description="Weight of the adversarial loss; the paper has 0.001.")

    @model_validator(mode="after")
    def _no_option_is_without_effect(self) -> Self:
        fields = type(self).model_fields
        after = ["pixel_weight", "content", "content_weight", "adversarial_weight"] if self.pixel_phase == 1 else []
        idle = after or (["content_weight"] if self.content == "none" else [])
        asked = [name for name in idle if getattr(self, name) != fields[name].default]
        if asked:
            where = "nothing comes after the pixel phase" if after else "content is none"
            raise ValueError(f"{' and '.join(asked)} would have no effect, as {where}; leave it out or change that")
        return self

    @property
    def is_adversarial(self) -> bool:
        return self.pixel_phase < 1

    @property
    def pretrained(self) -> Mapping[str, str]:
        return {"content": self.content} if self.is_adversarial else {}

    def check(self, data: DataSpec) -> None:
        channels, height, width = data.shape
        if height % self.scale or width % self.scale or min(height, width) < SMALLEST_SIDE:
            raise UnsuitableDataError(
                f"srgan learns from images whose sides are multiples of {self.scale}, at least {SMALLEST_SIDE} pixels,"
                f" and these are {width} x {height}; add the data set again with another --size"
            )
        if channels not in (1, 3):
            raise UnsuitableDataError(f"srgan enlarges images of 1 or 3 channels, and these have {channels}; add the data set again")

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        channels = data.shape[0]
        discriminator = Discriminator(channels, self.discriminator_width, terms.norm)
        game = Game(
            Generator(channels, self.scale, self.num_blocks, self.generator_width),
            discriminator,
            self._deal,
            reconstruction=self._reconstruction(discriminator, terms.weights),
            adversarial_weight=self.adversarial_weight,
            warmup=lambda generated, dealt: pixel_distance(self.pixel_loss, generated, dealt.target),
            warmup_share=self.pixel_phase,
        )
        return {"main": game}

    def _deal(self, batch: Tensors, random: torch.Generator) -> Round:
        del random
        return Round(inputs={"image": reduce(batch["image"], self.scale)}, target=batch["image"], condition={})

    def _reconstruction(self, discriminator: Discriminator, weights: Path) -> Callable[[Tensor, Round], Tensor]:
        content = self._content(discriminator, weights)

        def reconstruction(generated: Tensor, dealt: Round) -> Tensor:
            loss = self.pixel_weight * pixel_distance(self.pixel_loss, generated, dealt.target)
            return loss if content is None else loss + self.content_weight * content(generated, dealt.target)

        return reconstruction

    def _content(self, discriminator: Discriminator, weights: Path) -> Callable[[Tensor, Tensor], Tensor] | None:
        if self.content == "none" or self.pixel_phase == 1:
            return None
        if self.content == "discriminator":
            return lambda generated, target: matching_distance(discriminator.maps, generated, target)
        maps = pretrained_maps(self.content, weights)
        return lambda generated, target: perceptual_distance(maps, generated, target)

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        channels, game = data.shape[0], games["main"]
        low = TensorSpec(name="image", kind="image", shape=(channels, -1, -1), scale=self.scale, halo=halo(self.num_blocks))
        players = {"generator": Player(game.generator, (low,), TensorSpec(name="image", kind="image", shape=(channels, -1, -1)))}
        if self.is_adversarial:
            image = TensorSpec(name="image", kind="image", shape=data.shape)
            players["discriminator"] = Player(game.discriminator, (image,), score_spec(score))
        return players

    def given(self, batch: Tensors) -> Given:
        low = reduce(batch["image"], self.scale)
        return Given(inputs={"image": low}, baseline=enlarge(low, self.scale))
