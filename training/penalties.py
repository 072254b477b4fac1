"""Penalties on the gradient of the discriminator's score with respect to the image, one class each.

A discriminator that is penalised looks at one image at a time: the gradient of the sum of all scores is then each image's own.
A map of patches counts as its mean, which is also the score that is served.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Weight = Annotated[float, Field(gt=0, le=1e6)]


class Penalty(BaseModel):
    """A term of the discriminator's loss. Its fields are its options."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    key: ClassVar[str]
    source: ClassVar[str]

    def points(self, real: Tensor, fake: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        """The batches of images (N, C, H, W) at which the gradient is looked at."""
        raise NotImplementedError

    def cost(self, gradient: Tensor) -> Tensor:
        """What the gradients (N, C*H*W) of one batch cost: a scalar, >= 0."""
        raise NotImplementedError

    def __call__(self, discriminate: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, random: torch.Generator) -> Tensor:
        """The penalty's value.

        Args:
            discriminate: images (N, C, H, W) to scores, each row by itself. It may remember what it was asked: points that are
                `real` or `fake` themselves, leaves that need grad, are handed to it as they are.
            real, fake: (N, C, H, W), same shape, in [-1, 1]; none reaches the generator.
            random: on their device.

        Returns:
            Scalar, >= 0, differentiable with respect to the discriminator's weights.
        """
        costs = [self.cost(gradient) for gradient in gradients(discriminate, *self.points(real, fake, random))]
        return torch.stack(costs).sum()


def gradients(discriminate: Callable[[Tensor], Tensor], *images: Tensor) -> list[Tensor]:
    """For each batch of images (N, C, H, W), the gradient of every image's score, (N, C*H*W); one pass backward for all."""
    leaves = [batch if batch.requires_grad and batch.is_leaf else batch.detach().requires_grad_() for batch in images]
    scores = [discriminate(leaf).reshape(len(leaf), -1).mean(1) for leaf in leaves]
    return [gradient.flatten(1) for gradient in torch.autograd.grad(torch.cat(scores).sum(), leaves, create_graph=True)]


class _ToZero(Penalty):
    """weight / 2 * E |grad D(x)|^2."""

    weight: Weight = Field(default=1.0, description="gamma; larger images want more, about in proportion to their pixels.")

    def cost(self, gradient: Tensor) -> Tensor:
        return self.weight / 2 * gradient.square().sum(1).mean()


class R1(_ToZero):
    """weight / 2 * E |grad D(x)|^2 on real images: the discriminator lies flat on the data.

    Source: Mescheder, Geiger and Nowozin 2018, arXiv:1801.04406, equation 9.
    """

    key: ClassVar[str] = "r1"
    source: ClassVar[str] = "Mescheder, Geiger and Nowozin 2018, arXiv:1801.04406, equation 9"

    def points(self, real: Tensor, fake: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        return (real,)


class R2(_ToZero):
    """weight / 2 * E |grad D(x)|^2 on generated images.

    Source: Mescheder, Geiger and Nowozin 2018, arXiv:1801.04406, equation 10.
    """

    key: ClassVar[str] = "r2"
    source: ClassVar[str] = "Mescheder, Geiger and Nowozin 2018, arXiv:1801.04406, equation 10"

    def points(self, real: Tensor, fake: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        return (fake,)


class R1R2(_ToZero):
    """R1 and R2 with one weight, in one pass backward.

    Source: Huang et al. 2024, arXiv:2501.05441, section 2.
    """

    key: ClassVar[str] = "r1-r2"
    source: ClassVar[str] = "Huang et al. 2024, arXiv:2501.05441, section 2"

    def points(self, real: Tensor, fake: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        return real, fake


class _ToNorm(Penalty):
    """weight * E (|grad D(x)| - target_norm)^2."""

    weight: Weight = Field(default=10.0, description="lambda.")
    target_norm: Weight = Field(default=1.0, description="The gradient's norm that costs nothing, k.")

    def cost(self, gradient: Tensor) -> Tensor:
        # the root has no slope at 0, where a fresh or dead discriminator may be
        norms = (gradient.square().sum(1) + 1e-12).sqrt()
        return self.weight * (norms - self.target_norm).square().mean()


class GradientPenalty(_ToNorm):
    """weight * E (|grad D(x)| - target_norm)^2 at random points between a real image and a generated one.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, equation 3.
    """

    key: ClassVar[str] = "gradient-penalty"
    source: ClassVar[str] = "Gulrajani et al. 2017, arXiv:1704.00028, equation 3"

    def points(self, real: Tensor, fake: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.lerp(fake, real, _shares(real, random)),)


class Dragan(_ToNorm):
    """weight * E (|grad D(x)| - target_norm)^2 around real images.

    Source: Kodali et al. 2017, arXiv:1705.07215, with the noise of the authors' code: uniform up to half the batch's deviation, and at
    a random point on the way there.
    """

    key: ClassVar[str] = "dragan"
    source: ClassVar[str] = "Kodali et al. 2017, arXiv:1705.07215"

    def points(self, real: Tensor, fake: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        noise = torch.rand(real.shape, generator=random, dtype=real.dtype, device=real.device)
        return (real + _shares(real, random) * 0.5 * real.std() * noise,)


def _shares(images: Tensor, random: torch.Generator) -> Tensor:
    """(N, 1, 1, 1), uniform from 0 to 1."""
    return torch.rand(len(images), 1, 1, 1, generator=random, dtype=images.dtype, device=images.device)
