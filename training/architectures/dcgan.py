"""Deep convolutional GAN.

Source: Radford, Metz and Chintala 2015, arXiv:1511.06434. Deviations: image sizes besides 64 (28 grows 7-14-28, the others from 4);
normal in place of uniform latents; the discriminator's head is a convolution to one logit, as in the authors' own code.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.game import Architecture, DataSpec, Game, Player, UnsuitableDataError, latent_game, latent_players

# image size -> (first size, number of doublings)
STAGES = {16: (4, 2), 28: (7, 2), 32: (4, 3), 64: (4, 4), 128: (4, 5)}


class Generator(nn.Module):
    """latent (N, latent_size) -> image (N, C, S, S) in [-1, 1]: transposed convolutions with batch norm and ReLU, tanh at the end."""

    def __init__(self, latent_size: int, width: int, channels: int, size: int) -> None:
        super().__init__()
        first_size, num_doublings = STAGES[size]
        wide = width * 2 ** (num_doublings - 1)
        layers = [nn.Unflatten(1, (latent_size, 1, 1)), nn.ConvTranspose2d(latent_size, wide, first_size, bias=False)]
        for _ in range(num_doublings - 1):
            layers += [nn.BatchNorm2d(wide), nn.ReLU(inplace=True), nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=False)]
            wide //= 2
        layers += [nn.BatchNorm2d(wide), nn.ReLU(inplace=True), nn.ConvTranspose2d(wide, channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class Discriminator(nn.Module):
    """image (N, C, S, S) in [-1, 1] -> logit (N,): strided convolutions with LeakyReLU 0.2, norm in all but the first and the last."""

    def __init__(self, width: int, channels: int, size: int, *, batch_norm: bool) -> None:
        super().__init__()
        first_size, num_halvings = STAGES[size]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for _ in range(num_halvings - 1):
            # a group of all channels normalises each image by itself, which a samplewise critic may do
            norm = nn.BatchNorm2d(2 * width) if batch_norm else nn.GroupNorm(1, 2 * width)
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), norm, nn.LeakyReLU(0.2, inplace=True)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, first_size))
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        return torch.flatten(self.layers(image))  # (N, 1, 1, 1) -> (N,)


def initialise(module: nn.Module) -> None:
    """Convolutions N(0, 0.02), norms N(1, 0.02), biases 0 (section 4 of the paper; the norms as in the authors' code)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


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
        _, height, width = data.shape
        if height != width or height not in STAGES:
            raise UnsuitableDataError(
                f"dcgan makes square images of {', '.join(map(str, STAGES))} pixels, and these are {width} x {height};"
                " add the data set again with --size"
            )

    def games(self, data: DataSpec, *, samplewise_critic: bool) -> dict[str, Game]:
        channels, size, _ = data.shape
        generator = Generator(self.latent_size, self.generator_width, channels, size)
        discriminator = Discriminator(self.discriminator_width, channels, size, batch_norm=not samplewise_critic)
        return {"main": latent_game(generator, discriminator, self.latent_size)}

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: Literal["logit", "critic"]) -> dict[str, Player]:
        return latent_players(games["main"], self.latent_size, data.shape, score)
