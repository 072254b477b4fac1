"""Upsampling GAN for small colour pictures: nearest-neighbour upsampling and 3 x 3 convolutions in place of transposed ones.

Source: Radford, Metz and Chintala 2015, arXiv:1511.06434, with the upsampling of Odena, Dumoulin and Olah 2016,
doi:10.23915/distill.00003, which leaves no checkerboard. Batch norm keeps torch's momentum of 0.1: the 0.78 and 0.8 that circulate with
this network are another library's share of the old statistics, and here would weigh the newest batch almost alone. Deviations: normal
in place of uniform latents; weights from N(0, 0.02). The recipe's R1 puts a norm of each image by itself in the place of the
discriminator's batch norm, and learns more from as many images; with penalty none the batch norm stays.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from training.game import (
    Architecture,
    DataSpec,
    Game,
    Norm,
    Player,
    ScoreKind,
    Terms,
    UnsuitableDataError,
    latent_game,
    latent_players,
)
from training.layers import DoublingConv2d, Dropout, initialise_normal, norm2d

SMALLEST, LARGEST, STEP = 16, 64, 4  # pixels a side: two doublings begin from a quarter of it


class Generator(nn.Module):
    """latent (N, latent_size) -> image (N, C, H, W) in [-1, 1]: a linear layer to a quarter of the size, two doublings, tanh."""

    def __init__(self, latent_size: int, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        first = (2 * width, height // 4, width_pixels // 4)
        self.layers = nn.Sequential(
            nn.Linear(latent_size, first[0] * first[1] * first[2]),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, first),
            *_doubling(2 * width, 2 * width),
            *_doubling(2 * width, width),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
        )
        self.apply(initialise_normal)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


def _doubling(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [DoublingConv2d(channels_in, channels_out, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


class Discriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> logit (N,): 3 x 3 convolutions, three of stride 2 and one of 1; norm in all but the first."""

    def __init__(self, width: int, dropout: float, shape: tuple[int, int, int], norm: Norm) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2, inplace=True), Dropout(dropout)]
        for stride in (2, 2, 1):
            convolution = nn.Conv2d(width, 2 * width, 3, stride, 1, bias=norm == "none")
            layers += [convolution, norm2d(norm, 2 * width), nn.LeakyReLU(0.2, inplace=True), Dropout(dropout)]
            width *= 2
        places = -(-height // 8) * -(-width_pixels // 8)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * places, 1))
        self.apply(initialise_normal)

    def forward(self, image: Tensor) -> Tensor:
        return torch.flatten(self.layers(image))  # (N, 1) -> (N,)


class Cifar(Architecture):
    """Upsampling generator and strided discriminator with dropout; images of 16 to 64 pixels a side, made for 32 x 32 in colour."""

    key: ClassVar[str] = "cifar"
    source: ClassVar[str] = "Radford, Metz and Chintala 2015, arXiv:1511.06434; Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003"
    recipe: ClassVar[Mapping[str, JsonValue]] = {
        "penalty": "r1",
        "penalty_options": {"weight": 0.05},  # as for CIFAR-10 in Huang et al. 2024; 1.0 keeps this small discriminator from learning
        "learning_rate": 1e-3,
        "betas": [0.0, 0.9],
        "batch_size": 32,
    }

    latent_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=100, description="Values in a latent.")
    generator_width: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=64, description="Channels of the generator's last hidden layer; those before it have twice as many."
    )
    discriminator_width: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=32, description="Channels of the discriminator's first layer; they double three times towards the logit."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.25, description="Dropout after each convolution of the discriminator.")

    def check(self, data: DataSpec) -> None:
        _, height, width = data.shape
        if any(side % STEP or not SMALLEST <= side <= LARGEST for side in (height, width)):
            raise UnsuitableDataError(
                f"cifar makes images whose sides are multiples of {STEP} from {SMALLEST} to {LARGEST} pixels, and these are"
                f" {width} x {height}; add the data set again at size 32"
            )

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        generator = Generator(self.latent_size, self.generator_width, data.shape)
        discriminator = Discriminator(self.discriminator_width, self.dropout, data.shape, terms.norm)
        return {"main": latent_game(generator, discriminator, self.latent_size)}

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        return latent_players(games["main"], self.latent_size, data.shape, score)
