"""A GAN is a game: one generator against one discriminator, and how a round is dealt from a batch.

The training loop knows games only; an architecture deals them, and hands over the players that are served.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from training.contract import DatasetCard, TensorSpec, UserError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class DataSpec:
    """What an architecture may know of the data before it sees any: image shape (channels, height, width) and class names."""

    shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, card: DatasetCard) -> "DataSpec":
        channels, height, width = card.shape
        return cls((channels, height, width), card.class_names)


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
    """`deal(batch, random)` makes a round of a batch of data; `random` lives on the batch's device."""

    generator: nn.Module
    discriminator: nn.Module
    deal: Callable[[Tensors, torch.Generator], Round]


@dataclass(frozen=True)
class Player:
    """A module as it will be served: `forward(**inputs) -> output`, without randomness, each row independent of the others."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec


class UnsuitableDataError(UserError):
    """The architecture cannot be built for these data; the message says what it needs."""


class Architecture(BaseModel):
    """A recipe of networks. Its fields are its options, and their defaults are the paper's.

    `key` is its name in configs; `source` the paper; `inputs` the kinds that its generator takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    key: ClassVar[str]
    source: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("latent",)

    def check(self, data: DataSpec) -> None:
        """Raise UnsuitableDataError where `games` could not build networks for the data."""

    def games(self, data: DataSpec, *, samplewise_critic: bool) -> dict[str, Game]:
        """Fresh networks, initialised from torch's global generator.

        Args:
            samplewise_critic: the loss looks at the discriminator one image at a time, so it may hold no batch statistics.
        """
        raise NotImplementedError

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: Literal["logit", "critic"]) -> dict[str, Player]:
        """What is served of trained games; "generator" is required, "discriminator" is usual.

        Args:
            score: the kind of the discriminator's output under the loss that trained it.
        """
        raise NotImplementedError


def latent_game(generator: nn.Module, discriminator: nn.Module, latent_size: int) -> Game:
    """The plain game: standard normal latents against the images as they are."""

    def deal(batch: Tensors, random: torch.Generator) -> Round:
        image = batch["image"]
        latent = torch.randn(image.shape[0], latent_size, generator=random, device=image.device)
        return Round(inputs={"latent": latent}, target=image, condition={})

    return Game(generator, discriminator, deal)


def latent_players(game: Game, latent_size: int, shape: tuple[int, int, int], score: Literal["logit", "critic"]) -> dict[str, Player]:
    """The players of the plain game, served as they were trained."""
    image = TensorSpec(name="image", kind="image", shape=shape)
    latent = TensorSpec(name="latent", kind="latent", shape=(latent_size,), distribution="normal")
    return {
        "generator": Player(game.generator, (latent,), image),
        "discriminator": Player(game.discriminator, (image,), TensorSpec(name="score", kind=score, shape=())),
    }
