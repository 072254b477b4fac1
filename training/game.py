"""A GAN is a game: one generator against one discriminator, and how a round is dealt from a batch.

The training loop knows games only; an architecture deals them, and hands over the players that are served.

A batch of real data is `image` (N, C, H, W) in [-1, 1]; `label` (N, K), one-hot, where the set has classes; and `source`
(N, C', H', W') in [-1, 1] where it is paired.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor, nn

from training.contract import DatasetCard, TensorSpec, UserError

Tensors = dict[str, Tensor]
Norm = Literal["batch", "sample", "none"]
ScoreKind = Literal["logit", "critic"]


@dataclass(frozen=True)
class DataSpec:
    """What an architecture may know of the data before it sees any: shapes (channels, height, width) and class names."""

    shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None = None
    source_shape: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, card: DatasetCard) -> "DataSpec":
        return cls(_chw(card.shape), card.class_names, _chw(card.source_shape) if card.source_shape else None)


def _chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


@dataclass(frozen=True)
class Terms:
    """What the loss, the penalty and the place of a run ask of its networks.

    norm: the strongest normalisation that a discriminator may hold: over the batch, over each image by itself, or none.
    weights: a folder of weights files that were put there by hand, for content losses.
    """

    norm: Norm = "batch"
    weights: Path = Path("weights")


class Round(NamedTuple):
    """What one step plays with.

    inputs: keyword arguments of the generator.
    target: (N, C, H, W), what the discriminator should call real.
    condition: keyword arguments of the discriminator, after `image`.
    """

    inputs: Tensors
    target: Tensor
    condition: Tensors


@dataclass(frozen=True)
class Game:
    """`deal(batch, random)` makes a round of a batch of data; `random` lives on the batch's device.

    reconstruction: of the generated images and their round, a scalar that is added to the generator's loss.
    adversarial_weight: of the adversarial term beside it.
    class_scores: of images, the discriminator's score of each as every class, (N, K); its score with the label is the label's mean of them.
        Where there is one, the cross-entropy of these with the label is added to the loss of both sides, `classification_weight` times:
        the discriminator's of real images, the generator's of generated ones (Odena et al. 2017, arXiv:1610.09585).
    warmup: for the first `warmup_share` of the game's images the generator learns by this alone, and is judged by nobody; of the
        generated images and their round, a scalar.
    share: of the run's images, in proportion to the other games'. Games are played one after the other; when one ends, its
        generator becomes its moving average, in evaluation mode, so that later games can build on it.
    """

    generator: nn.Module
    discriminator: nn.Module
    deal: Callable[[Tensors, torch.Generator], Round]
    reconstruction: Callable[[Tensor, Round], Tensor] | None = None
    adversarial_weight: float = 1.0
    class_scores: Callable[[Tensor], Tensor] | None = None
    classification_weight: float = 1.0
    warmup: Callable[[Tensor, Round], Tensor] | None = None
    warmup_share: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class Player:
    """A module as it will be served: `forward(**inputs) -> output`, without randomness, each row independent of the others."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec


@dataclass(frozen=True)
class Given:
    """What a batch of real data gives to the served players.

    inputs: keyword arguments of the generator, beside its latents.
    condition: keyword arguments of the discriminator, after `image`.
    baseline: (N, C, H, W), what a user would have without the model, where its task has a right answer.
    """

    inputs: Tensors = field(default_factory=dict)
    condition: Tensors = field(default_factory=dict)
    baseline: Tensor | None = None


class UnsuitableDataError(UserError):
    """The architecture cannot be built for these data; the message says what it needs."""


class Architecture(BaseModel):
    """A recipe of networks. Its fields are its options, and their defaults are the paper's.

    `key` is its name in configs; `source` the paper; `inputs` the kinds that its generator takes, and `conditions` those that its
    discriminator takes beside the image. `recipe` holds the fields of a TrainConfig that have another default here. `refused` names
    parts of a config that it cannot be trained with, each with the reason: `spectral_norm`, a loss or a penalty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    key: ClassVar[str]
    source: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("latent",)
    conditions: ClassVar[tuple[str, ...]] = ()
    recipe: ClassVar[Mapping[str, JsonValue]] = {}
    refused: ClassVar[Mapping[str, str]] = {}

    @property
    def is_adversarial(self) -> bool:
        """Whether a discriminator is trained at all."""
        return True

    @property
    def pretrained(self) -> Mapping[str, str]:
        """Options that name a pretrained network which training will look at, and the network."""
        return {}

    def check(self, data: DataSpec) -> None:
        """Raise UnsuitableDataError where `games` could not build networks for the data."""

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        """Fresh networks, initialised from torch's global generator; played in this order.

        Raises:
            UserError: a file of weights that an option asks for is missing or damaged.
        """
        raise NotImplementedError

    def fit(self, games: Mapping[str, Game], images: Tensor) -> None:
        """Set what is measured of the data and not learned; images: (N, C, H, W) in [-1, 1], some of those trained on."""

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        """What is served of trained games; "generator" is required, "discriminator" is usual, all others are parts.

        Args:
            score: the kind of the discriminator's output under the loss that trained it.
        """
        raise NotImplementedError

    def given(self, batch: Tensors) -> Given:
        """What a batch of real data gives to the served players."""
        del batch
        return Given()


def draw_latent(batch: Tensors, latent_size: int, random: torch.Generator) -> Tensor:
    """(N, latent_size) standard normal, one for each image of the batch."""
    image = batch["image"]
    return torch.randn(image.shape[0], latent_size, generator=random, device=image.device)


def latent_game(generator: nn.Module, discriminator: nn.Module, latent_size: int) -> Game:
    """The plain game: standard normal latents against the images as they are."""

    def deal(batch: Tensors, random: torch.Generator) -> Round:
        return Round(inputs={"latent": draw_latent(batch, latent_size, random)}, target=batch["image"], condition={})

    return Game(generator, discriminator, deal)


def latent_players(game: Game, latent_size: int, shape: tuple[int, int, int], score: ScoreKind) -> dict[str, Player]:
    """The players of the plain game, served as they were trained."""
    image = TensorSpec(name="image", kind="image", shape=shape)
    return {
        "generator": Player(game.generator, (latent_spec(latent_size),), image),
        "discriminator": Player(game.discriminator, (image,), score_spec(score)),
    }


def labelled_game(generator: nn.Module, discriminator: nn.Module, latent_size: int) -> Game:
    """The class-conditional game: generated images have the labels of the batch, and so the classes' own frequencies."""

    def deal(batch: Tensors, random: torch.Generator) -> Round:
        label = batch["label"]
        inputs = {"latent": draw_latent(batch, latent_size, random), "label": label}
        return Round(inputs=inputs, target=batch["image"], condition={"label": label})

    return Game(generator, discriminator, deal)


def labelled_players(game: Game, latent_size: int, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
    """The players of the class-conditional game; a label is weights over the classes, so that classes can be mixed."""
    image, label = TensorSpec(name="image", kind="image", shape=data.shape), label_spec(data)
    return {
        "generator": Player(game.generator, (latent_spec(latent_size), label), image),
        "discriminator": Player(game.discriminator, (image, label), score_spec(score)),
    }


def latent_spec(latent_size: int) -> TensorSpec:
    return TensorSpec(name="latent", kind="latent", shape=(latent_size,), distribution="normal")


def label_spec(data: DataSpec) -> TensorSpec:
    assert data.class_names is not None, "checked by `check`"
    return TensorSpec(name="label", kind="label", shape=(len(data.class_names),), classes=data.class_names)


def score_spec(score: ScoreKind, shape: tuple[int, ...] = ()) -> TensorSpec:
    return TensorSpec(name="score", kind=score, shape=shape)
