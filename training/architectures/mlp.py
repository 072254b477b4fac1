"""The fully connected GAN.

Source: Goodfellow et al. 2014, arXiv:1406.2661. Deviations: LeakyReLU in place of ReLU and maxout, tanh in place of a sigmoid,
normal in place of uniform latents, Adam in place of momentum, as the field has built it since.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.game import Architecture, DataSpec, Game, Player, ScoreKind, Terms, latent_game, latent_players
from training.layers import Dropout

Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=16384)], ...], Field(strict=False, min_length=1, max_length=8)]


class Generator(nn.Module):
    """latent (N, latent_size) -> image (N, C, H, W) in [-1, 1]."""

    def __init__(self, latent_size: int, widths: tuple[int, ...], shape: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in zip((latent_size, *widths), widths, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.LeakyReLU(0.2, inplace=True)]
        pixels = shape[0] * shape[1] * shape[2]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], pixels), nn.Tanh(), nn.Unflatten(1, shape))

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class Discriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> logit (N,)."""

    def __init__(self, widths: tuple[int, ...], dropout: float, shape: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in zip((shape[0] * shape[1] * shape[2], *widths), widths, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.LeakyReLU(0.2, inplace=True), Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.flatten(self.layers(image))  # (N, 1) -> (N,)


class Mlp(Architecture):
    """Fully connected generator and discriminator; any image size, best on small grey pictures."""

    key: ClassVar[str] = "mlp"
    source: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1406.2661"

    latent_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=128, description="Values in a latent.")
    generator_widths: Widths = Field(default=(256, 512, 1024), description="Hidden layers of the generator, from the latent on.")
    discriminator_widths: Widths = Field(default=(256, 128, 64), description="Hidden layers of the discriminator, from the pixels on.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.3, description="Dropout after each hidden layer of the discriminator.")

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        generator = Generator(self.latent_size, self.generator_widths, data.shape)
        discriminator = Discriminator(self.discriminator_widths, self.dropout, data.shape)
        return {"main": latent_game(generator, discriminator, self.latent_size)}

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        return latent_players(games["main"], self.latent_size, data.shape, score)
