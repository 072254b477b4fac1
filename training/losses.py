"""Adversarial losses, one class each, usable with every architecture. Scores are logits: nothing here takes the log of a sigmoid."""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class AdversarialLoss(BaseModel):
    """A loss for both networks. Its fields are its options.

    `score` says what the trained discriminator's output means: a logit of "real", or a critic's value without scale.
    `samplewise_critic` is True where a batch norm in the discriminator would be wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    key: ClassVar[str]
    source: ClassVar[str]
    score: ClassVar[Literal["logit", "critic"]] = "logit"
    samplewise_critic: ClassVar[bool] = False

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar to minimise by the discriminator; real, fake: its scores, same shape."""
        raise NotImplementedError

    def generator(self, fake: Tensor) -> Tensor:
        """Scalar to minimise by the generator; fake: the discriminator's scores of its images."""
        raise NotImplementedError


class Minimax(AdversarialLoss):
    """The game as first written: the generator minimises log(1 - D(G(z))), which saturates where the discriminator is sure.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, equation 1. Label smoothing: Salimans et al. 2016, arXiv:1606.03498, section 3.4.
    """

    key: ClassVar[str] = "minimax"
    source: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1406.2661, equation 1"

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="One-sided: real images are to score 1 - label_smoothing; generated ones stay at 0."
    )

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        # -t log sigmoid(r) - (1 - t) log(1 - sigmoid(r)), with t = 1 - label_smoothing, is softplus(-r) + (1 - t) r
        real_term = F.softplus(-real) + self.label_smoothing * real
        return real_term.mean() + F.softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


class NonSaturating(Minimax):
    """The generator maximises log D(G(z)) instead: the same fixed point, a gradient that stays.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, section 3.
    """

    key: ClassVar[str] = "non-saturating"
    source: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1406.2661, section 3"

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()
