"""Deep convolutional GAN.

Source: Radford, Metz and Chintala 2015, arXiv:1511.06434. Deviations: image sizes besides 64 (28 grows 7-14-28, the others from 4);
normal in place of uniform latents; the discriminator's head is a convolution to one logit, as in the authors' own code.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.game import (
    Architecture,
    DataSpec,
    Game,
    Norm,
    Player,
    ScoreKind,
    Terms,
    latent_game,
    latent_players,
)
from training.layers import STAGES, check_square, growing, initialise_normal, shrinking


class Generator(nn.Module):
    """latent (N, latent_size) -> image (N, C, S, S) in [-1, 1]: transposed convolutions with batch norm and ReLU, tanh at the end."""

    def __init__(self, latent_size: int, width: int, channels: int, size: int) -> None:
        super().__init__()
        first, *others = growing(latent_size, width, channels, size)
        layers: list[nn.Module] = [nn.Unflatten(1, (latent_size, 1, 1)), first]
        for layer in others:
            layers += [nn.BatchNorm2d(layer.in_channels), nn.ReLU(inplace=True), layer]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(initialise_normal)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class Discriminator(nn.Module):
    """image (N, C, S, S) in [-1, 1] -> logit (N,): strided convolutions with LeakyReLU 0.2, norm in all but the first and the last."""

    def __init__(self, width: int, channels: int, size: int, norm: Norm) -> None:
        super().__init__()
        layers, num_channels = shrinking(channels, width, size, norm)
        self.layers = nn.Sequential(*layers, nn.Conv2d(num_channels, 1, STAGES[size][0]))
        self.apply(initialise_normal)

    def forward(self, image: Tensor) -> Tensor:
        return torch.flatten(self.layers(image))  # (N, 1, 1, 1) -> (N,)


class Dcgan(Architecture):
    """Convolutional generator and discriminator for square images of 16, 28, 32, 64 or 128 pixels."""

    key: ClassVar[str] = "dcgan"
    source: ClassVar[str] = "Radford, Metz and Chintala 2015, arXiv:1511.06434"

    latent_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=100, description="Values in a latent.")
    generator_width: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=64, description="Channels of the generator's last hidden layer; they double towards the latent."
    )
    discriminator_width: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=64, description="Channels of the discriminator's first layer; they double towards the logit."
    )

    def check(self, data: DataSpec) -> None:
        check_square(self.key, data, largest=128)

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        channels, size, _ = data.shape
        generator = Generator(self.latent_size, self.generator_width, channels, size)
        discriminator = Discriminator(self.discriminator_width, channels, size, terms.norm)
        return {"main": latent_game(generator, discriminator, self.latent_size)}

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        return latent_players(games["main"], self.latent_size, data.shape, score)
