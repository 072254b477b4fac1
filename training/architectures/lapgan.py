"""Laplacian pyramid of GANs: a small image first, then one GAN a level that adds the detail of twice the size.

Source: Denton, Chintala, Szlam and Fergus 2015, arXiv:1506.05751, sized as in section 3.1. Deviations:
- Halving is the mean of 2 x 2 pixels, and doubling keeps those means. So the detail of a level has no mean, and the generator takes
  away what its own has: the coarse image of a generated image is, as of a real one, the image halved, and the discriminator finds it there.
- The discriminator sees the image, as in the paper, and beside it the detail in units of its deviation: it is small next to the image.
- The generators of detail work on the coarse image's grid, with kernels of 5 x 5, at a sixth of the cost of 7 x 7 on the image's own.
- A share of the coarse images is generated in training, as all of them are when sampling.
- Batch norm in the first generator (the paper has it in its larger models), without which it forgets its latent.
- Normal in place of uniform noise, LeakyReLU in the discriminators, Adam; tanh, then clamping, keep images within their range.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue
from torch import Tensor, nn

from training.contract import TensorSpec
from training.game import (
    Architecture,
    DataSpec,
    Game,
    Player,
    Round,
    ScoreKind,
    Tensors,
    Terms,
    UnsuitableDataError,
    draw_latent,
    latent_spec,
    score_spec,
)
from training.layers import Dropout

LEAST_DEVIATION = 1 / 127.5  # one of 256 steps: the detail of flat images must not be divided by nothing
Shape = tuple[int, int, int]


# --- the pyramid --------------------------------------------------------------------------------------------------------------


def halve(image: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H/2, W/2), the means of 2 x 2 pixels."""
    return F.avg_pool2d(image, 2)


def double(coarse: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W), smooth, and such that `halve` gives the coarse image back."""
    smooth = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
    return smooth + F.interpolate(coarse - halve(smooth), scale_factor=2.0, mode="nearest")


def detail(image: Tensor) -> Tensor:
    """(N, C, H, W) -> same shape: what halving loses, so that image = double(halve(image)) + detail(image); section 2.2, equation 3."""
    return image - double(halve(image))


def pyramid(image: Tensor, num_levels: int) -> list[Tensor]:
    """The image at every size, from the smallest to its own."""
    images = [image]
    for _ in range(num_levels - 1):
        images.insert(0, halve(images[0]))
    return images


# --- the networks -------------------------------------------------------------------------------------------------------------


class FirstGenerator(nn.Module):
    """latent (N, latent_size) -> image (N, C, H, W) in [-1, 1], of the smallest size."""

    def __init__(self, latent_size: int, width: int, shape: Shape) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.layers = nn.Sequential(
            *(nn.Linear(latent_size, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            *(nn.Linear(width, shape[0] * shape[1] * shape[2]), nn.Tanh(), nn.Unflatten(1, shape)),
        )

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class FirstDiscriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1], of the smallest size -> logit (N,)."""

    def __init__(self, width: int, dropout: float, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(shape[0] * shape[1] * shape[2], width), nn.LeakyReLU(0.2, inplace=True), Dropout(dropout)),
            *(nn.Linear(width, width), nn.LeakyReLU(0.2, inplace=True), Dropout(dropout)),
            nn.Linear(width, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        return torch.flatten(self.layers(image))  # (N, 1) -> (N,)


class DetailGenerator(nn.Module):
    """noise (N, H*W) and coarse image (N, C, H/2, W/2) in [-1, 1] -> image (N, C, H, W) in [-1, 1]: the coarse one with detail.

    Works on the coarse image's grid: 2 x 2 values of noise, and of detail, lie in the channels of one coarse pixel.
    """

    deviation: Tensor  # of the detail of real images

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        self.latent_size = height * width_pixels
        self.register_buffer("deviation", torch.ones(()))
        self.noise = nn.Sequential(nn.Unflatten(1, (1, height, width_pixels)), nn.PixelUnshuffle(2))
        self.layers = nn.Sequential(
            *(nn.Conv2d(4 + channels, width, 5, padding=2), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 5, padding=2), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, 4 * channels, 5, padding=2), nn.PixelShuffle(2)),
        )

    def forward(self, latent: Tensor, coarse: Tensor) -> Tensor:
        drawn = self.layers(torch.cat([self.noise(latent), coarse], dim=1))
        # clamped in training too: what leaves the range is not to be seen there, as it is not when it is served
        return (double(coarse) + self.deviation * detail(drawn)).clamp(-1, 1)


class DetailDiscriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> logit (N,): of the image and of its detail."""

    deviation: Tensor  # of the detail of real images

    def __init__(self, width: int, dropout: float, shape: Shape) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        self.register_buffer("deviation", torch.ones(()))
        self.layers = nn.Sequential(
            *(nn.Conv2d(2 * channels, width, 5, padding=2), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Conv2d(width, width, 5, stride=2, padding=2), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Flatten(), Dropout(dropout), nn.Linear(width * (height // 2) * (width_pixels // 2), 1)),
        )

    def forward(self, image: Tensor) -> Tensor:
        return torch.flatten(self.layers(torch.cat([image, detail(image) / self.deviation], dim=1)))  # (N, 1) -> (N,)


# --- as they are served -------------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """latent (N, latent_size + the pixels of every further level) -> image (N, C, H, W) in [-1, 1]."""

    def __init__(self, first: FirstGenerator, further: Sequence[DetailGenerator]) -> None:
        super().__init__()
        self.first, self.further = first, nn.ModuleList(further)
        self.latent_sizes = [first.latent_size, *(level.latent_size for level in further)]
        self.latent_size = sum(self.latent_sizes)

    @classmethod
    def of(cls, games: Mapping[str, Game]) -> "Generator":
        first, *further = (game.generator for game in games.values())
        assert isinstance(first, FirstGenerator)
        return cls(first, [level for level in further if isinstance(level, DetailGenerator)])

    def forward(self, latent: Tensor) -> Tensor:
        return self.images(latent)[-1]

    def images(self, latent: Tensor) -> list[Tensor]:
        """The image of every level, from the smallest to the largest; the latent holds the levels' own in this order."""
        latents = torch.split(latent, self.latent_sizes, dim=1)
        images: list[Tensor] = [self.first(latents[0])]
        for index, level in enumerate(self.further, start=1):
            images.append(level(latents[index], images[-1]))
        return images


class Stages(nn.Module):
    """latent, as of `Generator` -> image (N, C, H, levels*W) in [-1, 1]: the image of every level side by side, all in one size."""

    def __init__(self, generator: Generator, height: int, width: int) -> None:
        super().__init__()
        self.generator, self.height, self.width = generator, height, width

    def forward(self, latent: Tensor) -> Tensor:
        size = [self.height, self.width]
        return torch.cat([F.interpolate(image, size, mode="nearest") for image in self.generator.images(latent)], dim=3)


class Discriminator(nn.Module):
    """image (N, C, H, W) in [-1, 1] -> score (N, levels), one of the image at every size, from the smallest to the largest."""

    def __init__(self, levels: Iterable[nn.Module]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor) -> Tensor:
        images = pyramid(image, len(self.levels))
        scores: list[Tensor] = []
        for index, level in enumerate(self.levels):
            scores.append(level(images[index]))
        return torch.stack(scores, dim=1)


# --- the architecture ---------------------------------------------------------------------------------------------------------

Width = Annotated[int, Field(ge=1, le=4096)]


class Lapgan(Architecture):
    """A GAN for the small image and one for the detail of each doubling of it, trained one after the other."""

    key: ClassVar[str] = "lapgan"
    source: ClassVar[str] = "Denton, Chintala, Szlam and Fergus 2015, arXiv:1506.05751"
    recipe: ClassVar[Mapping[str, JsonValue]] = {"batch_size": 32}  # its networks are small: what they need is many steps

    coarsest_size: Annotated[int, Field(ge=2, le=32)] = Field(
        default=8, description="Images are halved until no side has more pixels than this; the first GAN makes that size."
    )
    latent_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=100, description="Values in the first GAN's latent; every further level has one more for each of its pixels."
    )
    first_generator_width: Width = Field(default=1200, description="Values in each of the two hidden layers of the first generator.")
    first_discriminator_width: Width = Field(default=600, description="Values in each of the two hidden layers of the first discriminator.")
    generator_width: Width = Field(default=64, description="Channels of the two hidden layers of each further generator.")
    discriminator_width: Width = Field(default=64, description="Channels of the two hidden layers of each further discriminator.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="Dropout in the discriminators: after both hidden layers of the first, after the last of the others."
    )
    generated_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Share of the coarse images that are generated in training, in place of halved real ones."
    )

    def check(self, data: DataSpec) -> None:
        _, height, width = data.shape
        advice = f"add the data set again at size {4 * self.coarsest_size}, say, or set coarsest_size otherwise"
        given = f"coarsest_size is {self.coarsest_size}, and these are {width} x {height}"
        if max(height, width) <= self.coarsest_size:
            raise UnsuitableDataError(f"lapgan makes images with a side above its coarsest_size: {given}; {advice}")
        while max(height, width) > self.coarsest_size:
            if height % 2 or width % 2:
                halved = "" if (height, width) == data.shape[1:] else f", which halve to {width} x {height}"
                raise UnsuitableDataError(
                    f"lapgan halves images until no side is above its coarsest_size: {given}{halved}, where a side is odd; {advice}"
                )
            height, width = height // 2, width // 2

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        del terms  # the paper's discriminators hold no norm
        shapes = self._shapes(data)
        games = {_key(shapes[0]): self._first_game(shapes)}
        for level, shape in enumerate(shapes[1:], start=1):
            games[_key(shape)] = self._detail_game(shapes, level, Generator.of(games))
        return games

    def _shapes(self, data: DataSpec) -> list[Shape]:
        """Of the images of every level, from the smallest to the data's own."""
        channels, height, width = data.shape
        shapes = [data.shape]
        while max(height, width) > self.coarsest_size:
            height, width = height // 2, width // 2
            shapes.insert(0, (channels, height, width))
        return shapes

    def _first_game(self, shapes: list[Shape]) -> Game:
        def deal(batch: Tensors, random: torch.Generator) -> Round:
            target = pyramid(batch["image"], len(shapes))[0]
            return Round({"latent": draw_latent(batch, self.latent_size, random)}, target, {})

        generator = FirstGenerator(self.latent_size, self.first_generator_width, shapes[0])
        discriminator = FirstDiscriminator(self.first_discriminator_width, self.dropout, shapes[0])
        return Game(generator, discriminator, deal, share=_share(shapes, 0))

    def _detail_game(self, shapes: list[Shape], level: int, before: "Generator") -> Game:
        """before: the levels before this one, whose generators are finished when it is played."""
        generator = DetailGenerator(self.generator_width, shapes[level])
        discriminator = DetailDiscriminator(self.discriminator_width, self.dropout, shapes[level])

        def deal(batch: Tensors, random: torch.Generator) -> Round:
            images = pyramid(batch["image"], len(shapes))
            coarse = images[level - 1]
            with torch.no_grad():
                generated = before(draw_latent(batch, before.latent_size, random))
            chosen = torch.rand(len(coarse), 1, 1, 1, generator=random, device=coarse.device) < self.generated_share
            inputs = {"latent": draw_latent(batch, generator.latent_size, random), "coarse": torch.where(chosen, generated, coarse)}
            return Round(inputs, images[level], {})

        return Game(generator, discriminator, deal, share=_share(shapes, level))

    def fit(self, games: Mapping[str, Game], images: Tensor) -> None:
        """Every level's detail is made and judged in units of its deviation."""
        _, *further = zip(games.values(), pyramid(images, len(games)), strict=True)
        for game, image in further:
            deviation = detail(image).std().clamp_min(LEAST_DEVIATION)
            for network in (game.generator, game.discriminator):
                network.get_buffer("deviation").copy_(deviation)

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        generator, (channels, height, width) = Generator.of(games), data.shape
        latent, image = latent_spec(generator.latent_size), _image("image", data.shape)
        return {
            "generator": Player(generator, (latent,), image),
            "discriminator": Player(
                Discriminator(game.discriminator for game in games.values()), (image,), score_spec(score, (len(games),))
            ),
            "stages": Player(Stages(generator, height, width), (latent,), _image("image", (channels, height, len(games) * width))),
            **self._levels(games, data),
        }

    def _levels(self, games: Mapping[str, Game], data: DataSpec) -> dict[str, Player]:
        """Each level's generator by itself: what is chained in the whole one."""
        shapes = self._shapes(data)
        first = _key(shapes[0])
        players = {first: Player(games[first].generator, (latent_spec(self.latent_size),), _image("image", shapes[0]))}
        for coarse, shape in pairwise(shapes):
            inputs = (latent_spec(shape[1] * shape[2]), _image("coarse", coarse))
            players[_key(shape)] = Player(games[_key(shape)].generator, inputs, _image("image", shape))
        return players


def _key(shape: Shape) -> str:
    return f"level-{shape[1]}"


def _share(shapes: Sequence[Shape], level: int) -> float:
    """Half as many images as the level before: each costs four times as much there, and detail is learned sooner than shape."""
    return 2.0 ** (len(shapes) - 1 - level)


def _image(name: str, shape: Shape) -> TensorSpec:
    return TensorSpec(name=name, kind="image", shape=shape)
