"""The modern baseline: residual networks without any norm, for a relativistic loss under two gradient penalties.

Source: Huang, Gokaslan, Kuleshov and Tompkin 2024, arXiv:2501.05441, section 3 (config E), sizes and penalty weights as in the authors'
training script. Deviations: images of 28 pixels, which grow 7-14-28; grey images; a preset for a processor; single precision; the
penalty's weight and Adam's second decay rate stay as they are through the run, and nothing is augmented unless it is asked for.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from training.game import (
    Architecture,
    DataSpec,
    Game,
    Given,
    Player,
    ScoreKind,
    Tensors,
    Terms,
    UnsuitableDataError,
    labelled_game,
    labelled_players,
    latent_game,
    latent_players,
)
from training.layers import STAGES, check_square

# The paper's are named after what they were made for; `small` is ours, for two cores of a processor.
PRESETS: dict[str, dict[str, int]] = {
    "small": {"group_width": 16, "width": 16, "max_width": 128, "blocks": 1},
    "cifar10": {"group_width": 16, "width": 768, "max_width": 768, "blocks": 2},
    "ffhq64": {"group_width": 16, "width": 384, "max_width": 768, "blocks": 2},
    "ffhq256": {"group_width": 16, "width": 96, "max_width": 768, "blocks": 2},
    "imagenet32": {"group_width": 32, "width": 1536, "max_width": 1536, "blocks": 2},
    "imagenet64": {"group_width": 32, "width": 1536, "max_width": 1536, "blocks": 2},
}
SLOPE = 0.2  # of the leaky rectifiers where they are negative
Width = Annotated[int, Field(ge=1, le=4096)]


class Block(nn.Module):
    """A bottleneck turned inside out, on top of what it is given: twice the channels between two 1x1 convolutions, 3x3 in groups there.

    It begins as the identity, and its first two layers the smaller the more blocks there are, so that no norm is needed
    (Zhang, Dauphin and Ma 2019, arXiv:1901.09321, section 3).
    """

    def __init__(self, width: int, group_width: int, num_blocks: int) -> None:
        super().__init__()
        wide = 2 * width
        expand, mix = nn.Conv2d(width, wide, 1), nn.Conv2d(wide, wide, 3, padding=1, groups=wide // group_width)
        contract = nn.Conv2d(wide, width, 1, bias=False)
        gain = nn.init.calculate_gain("leaky_relu", SLOPE) * num_blocks**-0.25  # 1 / (2 m - 2) for m = 3 layers
        for layer in (expand, mix):
            initialise(layer, gain)
        initialise(contract, 0.0)
        self.layers = nn.Sequential(expand, nn.LeakyReLU(SLOPE, inplace=True), mix, nn.LeakyReLU(SLOPE, inplace=True), contract)

    def forward(self, hidden: Tensor) -> Tensor:
        branch: Tensor = self.layers(hidden)
        return hidden + branch


class Upsample(nn.Module):
    """(N, C, H, W) -> (N, C, 2 H, 2 W), bilinear, with zeros around."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", 4 * bilinear(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.conv_transpose2d(hidden, self.kernel, stride=2, padding=1, groups=self.channels)


class Downsample(nn.Module):
    """(N, C, 2 H, 2 W) -> (N, C, H, W), the transpose of `Upsample` at a quarter of its size."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", bilinear(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.conv2d(hidden, self.kernel, stride=2, padding=1, groups=self.channels)


class Basis(nn.Module):
    """(N, num_values) -> (N, C, S, S): a learned picture a channel, each as strong as the values say."""

    def __init__(self, num_values: int, channels: int, size: int) -> None:
        super().__init__()
        self.pictures = nn.Parameter(torch.randn(channels, size, size))
        self.strengths = initialise(nn.Linear(num_values, channels, bias=False))

    def forward(self, values: Tensor) -> Tensor:
        strengths: Tensor = self.strengths(values)
        return self.pictures * strengths[:, :, None, None]


class Clamp(nn.Module):
    """Served images keep to [-1, 1]; in training the discriminator sees, and mends, what lies beyond."""

    def forward(self, image: Tensor) -> Tensor:
        return image if self.training else image.clamp(-1, 1)


class Generator(nn.Module):
    """latent (N, latent_size) -> image (N, C, S, S)."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class Discriminator(nn.Module):
    """image (N, C, S, S) -> score (N,)."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, image: Tensor) -> Tensor:
        return torch.flatten(self.layers(image))  # (N, 1) -> (N,)


class LabelledGenerator(nn.Module):
    """latent (N, latent_size), label (N, K) -> image (N, C, S, S); the label's embedding joins the latent."""

    def __init__(self, layers: nn.Sequential, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.layers = layers
        self.embedding = initialise(nn.Linear(num_classes, embedding_size, bias=False))

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        image: Tensor = self.layers(torch.cat([latent, self.embedding(label)], 1))
        return image


class LabelledDiscriminator(nn.Module):
    """image (N, C, S, S), label (N, K) -> score (N,): the inner product of the image's features and the label's embedding."""

    def __init__(self, layers: nn.Sequential, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.layers = layers
        self.embedding = initialise(nn.Linear(num_classes, embedding_size, bias=False), embedding_size**-0.5)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        score: Tensor = (self.layers(image) * self.embedding(label)).sum(1)
        return score


def initialise(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> nn.Linear | nn.Conv2d:
    """Weights N(0, gain^2 / number of inputs to an output), biases 0 (He et al. 2015, arXiv:1502.01852, equation 10)."""
    nn.init.normal_(layer.weight, 0.0, gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def bilinear(channels: int) -> Tensor:
    """(channels, 1, 4, 4), sum 1 a channel: [1, 3, 3, 1] = [1, 2, 1] * [1, 1] along each axis."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(line, line).repeat(channels, 1, 1, 1)


def change_width(width_in: int, width_out: int) -> list[nn.Module]:
    return [] if width_in == width_out else [initialise(nn.Conv2d(width_in, width_out, 1, bias=False))]


class R3gan(Architecture):
    """Residual networks without norms under a relativistic loss, for square images of 16, 28, 32, 64, 128 or 256 pixels.

    The recipe is for the preset that is the default: so small a network takes five times the paper's learning rate.
    """

    key: ClassVar[str] = "r3gan"
    source: ClassVar[str] = "Huang, Gokaslan, Kuleshov and Tompkin 2024, arXiv:2501.05441"
    recipe: ClassVar[Mapping[str, JsonValue]] = {
        "loss": "relativistic",
        "penalty": "r1-r2",
        "penalty_options": {"weight": 1.0},
        "learning_rate": 1e-3,
        "batch_size": 32,
        "betas": [0.0, 0.99],
        "learning_rate_schedule": "cosine",
    }
    refused: ClassVar[Mapping[str, str]] = {
        "spectral_norm": "its residual branches begin at zero, and a weight of zero has no singular value to be divided by"
    }

    latent_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=64, description="Values in a latent.")
    preset: Literal["small", "cifar10", "ffhq64", "ffhq256", "imagenet32", "imagenet64"] = Field(
        default="small",
        description="Sets the options below where they are left out: small for a processor; the others are the paper's, for a GPU, large"
        " batches and a learning_rate of 2e-4.",
    )
    group_width: Width = Field(
        default=16, description="Channels of a group in a 3x3 convolution, which has two channels to one of its stage."
    )
    width: Width = Field(default=16, description="Channels at the image's own size; they double at each halving.")
    max_width: Width = Field(default=128, description="The most channels that a stage has.")
    blocks: Annotated[int, Field(ge=1, le=16)] = Field(default=1, description="Residual blocks of a stage.")

    @model_validator(mode="before")
    @classmethod
    def _follow_preset(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return PRESETS.get(str(given.get("preset", "small")), {}) | given

    @field_validator("width", "max_width")
    @classmethod
    def _fits_groups(cls, width: int, given: ValidationInfo) -> int:
        group_width = given.data.get("group_width", 1)
        if 2 * width % group_width:
            raise ValueError(f"twice {width} channels do not part into groups of {group_width}; give another width or group_width")
        return width

    @field_validator("max_width")
    @classmethod
    def _at_least_width(cls, max_width: int, given: ValidationInfo) -> int:
        if max_width < (width := given.data.get("width", 1)):
            raise ValueError(f"the image's own size has {width} channels already, and {max_width} is less; give at least width")
        return max_width

    def check(self, data: DataSpec) -> None:
        check_square(self.key, data, largest=256)

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        generator = Generator(self.growing(self.latent_size, data.shape))
        discriminator = Discriminator(self.shrinking(data.shape, 1))
        return {"main": latent_game(generator, discriminator, self.latent_size)}

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        return latent_players(games["main"], self.latent_size, data.shape, score)

    def widths(self, size: int) -> list[int]:
        """Channels of each stage, from the coarsest on."""
        return [min(self.max_width, self.width * 2**halvings) for halvings in reversed(range(STAGES[size][1] + 1))]

    def growing(self, num_values: int, shape: tuple[int, int, int]) -> nn.Sequential:
        """(N, num_values) -> (N, C, S, S)."""
        channels, size, _ = shape
        widths = self.widths(size)
        layers = [Basis(num_values, widths[0], STAGES[size][0]), *self._stage(widths[0], len(widths))]
        for width_in, width_out in pairwise(widths):
            layers += [*change_width(width_in, width_out), Upsample(width_out), *self._stage(width_out, len(widths))]
        return nn.Sequential(*layers, initialise(nn.Conv2d(widths[-1], channels, 1, bias=False)), Clamp())

    def shrinking(self, shape: tuple[int, int, int], num_features: int) -> nn.Sequential:
        """(N, C, S, S) -> (N, num_features), the mirror of `growing`."""
        channels, size, _ = shape
        first_size, widths = STAGES[size][0], self.widths(size)[::-1]
        last = widths[-1]
        layers: list[nn.Module] = [initialise(nn.Conv2d(channels, widths[0], 1, bias=False))]
        for width_in, width_out in pairwise(widths):
            layers += [*self._stage(width_in, len(widths)), Downsample(width_in), *change_width(width_in, width_out)]
        pictures = initialise(nn.Conv2d(last, last, first_size, groups=last, bias=False))
        head = initialise(nn.Linear(last, num_features, bias=False))
        return nn.Sequential(*layers, *self._stage(last, len(widths)), pictures, nn.Flatten(), head)

    def _stage(self, width: int, num_stages: int) -> list[nn.Module]:
        return [Block(width, self.group_width, num_stages * self.blocks) for _ in range(self.blocks)]


class ConditionalR3gan(R3gan):
    """Class-conditional `r3gan`, for labelled square images of 16, 28, 32, 64, 128 or 256 pixels."""

    key: ClassVar[str] = "r3gan-conditional"
    inputs: ClassVar[tuple[str, ...]] = ("latent", "label")
    conditions: ClassVar[tuple[str, ...]] = ("label",)

    def check(self, data: DataSpec) -> None:
        if data.class_names is None:
            raise UnsuitableDataError(
                f"{self.key} needs the class of every image, and this data set has none; add a set with classes, a folder with one"
                f" sub-folder a class say, or choose {R3gan.key}, which takes no labels"
            )
        super().check(data)

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        assert data.class_names is not None, "checked by `check`"
        num_classes, num_features = len(data.class_names), self.widths(data.shape[1])[0]
        # embeddings are as long as what they meet: the latent, and the features of the coarsest stage
        generator = LabelledGenerator(self.growing(2 * self.latent_size, data.shape), num_classes, self.latent_size)
        discriminator = LabelledDiscriminator(self.shrinking(data.shape, num_features), num_classes, num_features)
        return {"main": labelled_game(generator, discriminator, self.latent_size)}

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        return labelled_players(games["main"], self.latent_size, data, score)

    def given(self, batch: Tensors) -> Given:
        return Given(inputs={"label": batch["label"]}, condition={"label": batch["label"]})
