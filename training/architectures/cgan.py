"""Class-conditional GAN: the label is asked of the generator, and judged by the discriminator.

Sources: Mirza and Osindero 2014, arXiv:1411.1784, the conditional game; Miyato and Koyama 2018, arXiv:1802.05637, equation 4, the
projection discriminator and the generator's conditional batch norm (de Vries et al. 2017, arXiv:1707.00683, equation 5); Odena et al.
2017, arXiv:1610.09585, equation 2, the classification term. The convolutions are DCGAN's (arXiv:1511.06434). Deviations: the projection
meets the last features in their places, not summed over them, since a small network's are local; the classification term, off unless it
is asked for, is of the projection's own scores and not of a second head; a concatenated label is planes beside the image's own, so that
no layer is blind to it; the recipe adds R1. A label is weights over the classes and enters by matrix products alone, so that classes can
be mixed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor, nn

from training.game import (
    Architecture,
    DataSpec,
    Game,
    Given,
    Norm,
    Player,
    ScoreKind,
    Tensors,
    Terms,
    UnsuitableDataError,
    labelled_game,
    labelled_players,
)
from training.layers import STAGES, check_square, growing, initialise_normal, shrinking

EMBEDDING_SIZE = 32  # values of a label's embedding beside the latent


class ConditionalNorm(nn.Module):
    """Batch norm whose gain and bias follow from the label: (1 + W label) * normalised + V label.

    Source: de Vries et al. 2017, arXiv:1707.00683, equation 5, without its hidden layer.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = embedding(num_classes, channels)
        self.bias = embedding(num_classes, channels)

    def forward(self, hidden: Tensor, label: Tensor) -> Tensor:
        gain, bias = 1 + self.gain(label), self.bias(label)
        return torch.addcmul(bias[:, :, None, None], gain[:, :, None, None], self.norm(hidden))


class NormGenerator(nn.Module):
    """latent (N, latent_size), label (N, K) -> image (N, C, S, S) in [-1, 1]; the label sets every norm's gain and bias."""

    def __init__(self, latent_size: int, num_classes: int, width: int, channels: int, size: int) -> None:
        super().__init__()
        first, *grow = growing(latent_size, width, channels, size)
        self.first = nn.Sequential(nn.Unflatten(1, (latent_size, 1, 1)), first)
        self.grow = nn.ModuleList(grow)
        self.apply(initialise_normal)
        self.norms = nn.ModuleList([ConditionalNorm(layer.in_channels, num_classes) for layer in grow])

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        hidden: Tensor = self.first(latent)
        # TorchScript knows no `strict`
        for norm, grow in zip(self.norms, self.grow):  # noqa: B905
            hidden = grow(torch.relu(norm(hidden, label)))
        return torch.tanh(hidden)


class EmbeddingGenerator(nn.Module):
    """latent (N, latent_size), label (N, K) -> image (N, C, S, S) in [-1, 1]; the label's embedding joins the latent."""

    def __init__(self, latent_size: int, num_classes: int, width: int, channels: int, size: int) -> None:
        super().__init__()
        values = latent_size + EMBEDDING_SIZE
        first, *grow = growing(values, width, channels, size)
        layers: list[nn.Module] = [nn.Unflatten(1, (values, 1, 1)), first]
        for layer in grow:
            layers += [nn.BatchNorm2d(layer.in_channels), nn.ReLU(inplace=True), layer]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(initialise_normal)
        self.embedding = embedding(num_classes, EMBEDDING_SIZE)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        image: Tensor = self.layers(torch.cat([latent, self.embedding(label)], 1))
        return image


class ProjectionDiscriminator(nn.Module):
    """image (N, C, S, S) in [-1, 1], label (N, K) -> logit (N,): how real the image is, and how far its features point along the label."""

    def __init__(self, num_classes: int, width: int, channels: int, size: int, norm: Norm) -> None:
        super().__init__()
        layers, num_channels = shrinking(channels, width, size, norm)
        self.features, num_features = nn.Sequential(*layers, nn.Flatten()), num_channels * STAGES[size][0] ** 2
        self.unconditional = nn.Linear(num_features, 1)
        self.embedding = nn.Linear(num_classes, num_features, bias=False)
        self.apply(initialise_normal)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        features = self.features(image)
        logit = self.unconditional(features) + (self.embedding(label) * features).sum(1, keepdim=True)
        return torch.flatten(logit)  # (N, 1) -> (N,)

    def class_scores(self, image: Tensor) -> Tensor:
        """(N, K): `forward` with each of the labels, in one pass."""
        features: Tensor = self.features(image)
        scores: Tensor = self.unconditional(features) + features @ self.embedding.weight
        return scores


class ConcatenationDiscriminator(nn.Module):
    """image (N, C, S, S) in [-1, 1], label (N, K) -> logit (N,): each class is one more plane, all of its weight."""

    def __init__(self, num_classes: int, width: int, channels: int, size: int, norm: Norm) -> None:
        super().__init__()
        layers, num_channels = shrinking(channels + num_classes, width, size, norm)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(num_channels * STAGES[size][0] ** 2, 1))
        self.apply(initialise_normal)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        planes = label[:, :, None, None].expand(-1, -1, image.shape[2], image.shape[3])
        return torch.flatten(self.layers(torch.cat([image, planes], 1)))  # (N, 1) -> (N,)


def embedding(num_classes: int, size: int) -> nn.Linear:
    """label (N, K) -> (N, size), each class's values from N(0, 1): from DCGAN's 0.02 the classes take long to part."""
    layer = nn.Linear(num_classes, size, bias=False)
    nn.init.normal_(layer.weight)
    return layer


class Cgan(Architecture):
    """Class-conditional convolutional GAN for labelled square images of 16, 28, 32, 64 or 128 pixels."""

    key: ClassVar[str] = "cgan"
    source: ClassVar[str] = "Mirza and Osindero 2014, arXiv:1411.1784; Miyato and Koyama 2018, arXiv:1802.05637"
    inputs: ClassVar[tuple[str, ...]] = ("latent", "label")
    conditions: ClassVar[tuple[str, ...]] = ("label",)
    recipe: ClassVar[Mapping[str, JsonValue]] = {"penalty": "r1", "learning_rate": 1e-3, "betas": [0.0, 0.9]}

    latent_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=100, description="Values in a latent.")
    conditioning: Literal["norm", "embedding"] = Field(
        default="norm",
        description="How the label enters the generator: as the gain and bias of every batch norm, or as an embedding beside the latent.",
    )
    discriminator: Literal["projection", "concatenation"] = Field(
        default="projection",
        description="How the label meets the discriminator: in an inner product with the last features, or as planes beside the image.",
    )
    generator_width: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=32, description="Channels of the generator's last hidden layer; they double towards the latent."
    )
    discriminator_width: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=32, description="Channels of the discriminator's first layer; they double towards the logit."
    )

    classification_weight: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0,
        description="How much both sides are moved by whether the discriminator names the label among all (AC-GAN); 0 is not at all."
        " Images become easier to name, sooner, and less varied.",
    )

    @model_validator(mode="after")
    def _check_classification(self) -> Self:
        if self.classification_weight and self.discriminator != "projection":
            raise ValueError(
                "classification_weight needs the projection discriminator, which scores every class in one pass; give it, or 0"
            )
        return self

    def check(self, data: DataSpec) -> None:
        if data.class_names is None:
            raise UnsuitableDataError(
                "cgan needs the class of every image, and this data set has none; add a set with classes, a folder with one sub-folder"
                " a class say, or choose an architecture that takes no labels"
            )
        check_square(self.key, data, largest=128)

    def games(self, data: DataSpec, terms: Terms) -> dict[str, Game]:
        assert data.class_names is not None, "checked by `check`"
        num_classes, (channels, size, _) = len(data.class_names), data.shape
        generator: nn.Module
        if self.conditioning == "norm":
            generator = NormGenerator(self.latent_size, num_classes, self.generator_width, channels, size)
        else:
            generator = EmbeddingGenerator(self.latent_size, num_classes, self.generator_width, channels, size)
        kind = ProjectionDiscriminator if self.discriminator == "projection" else ConcatenationDiscriminator
        discriminator = kind(num_classes, self.discriminator_width, channels, size, terms.norm)
        game = labelled_game(generator, discriminator, self.latent_size)
        if self.classification_weight and isinstance(discriminator, ProjectionDiscriminator):
            game = replace(game, class_scores=discriminator.class_scores, classification_weight=self.classification_weight)
        return {"main": game}

    def players(self, games: Mapping[str, Game], *, data: DataSpec, score: ScoreKind) -> dict[str, Player]:
        return labelled_players(games["main"], self.latent_size, data, score)

    def given(self, batch: Tensors) -> Given:
        return Given(inputs={"label": batch["label"]}, condition={"label": batch["label"]})
