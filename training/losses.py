"""Adversarial losses, one class each. Scores are logits: nothing here takes the log of a sigmoid.

Real and generated scores have one shape: (N,), or a map of patches.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from torch import Tensor, nn

from training.penalties import GradientPenalty, Penalty

Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class AdversarialLoss(BaseModel):
    """A loss for both networks. Its fields are its options.

    `score` says what the trained discriminator's output means: a logit of "real", or a critic's value without scale.
    `needs_real` is True where the generator's loss looks at the scores of real images too.
    `recipe` holds the fields of a TrainConfig that have another default with this loss.
    `refused` names parts of a config that it cannot be used with, each with the reason: `spectral_norm`, or a penalty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    key: ClassVar[str]
    source: ClassVar[str]
    score: ClassVar[Literal["logit", "critic"]] = "logit"
    needs_real: ClassVar[bool] = False
    recipe: ClassVar[Mapping[str, JsonValue]] = {}
    refused: ClassVar[Mapping[str, str]] = {}

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar to minimise by the discriminator."""
        raise NotImplementedError

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar to minimise by the generator; where not `needs_real`, real is not looked at."""
        raise NotImplementedError

    def penalty(self) -> Penalty | None:
        """The penalty without which the loss would not be itself."""
        return None

    def constrain(self, discriminator: nn.Module) -> None:
        """Bring the discriminator's weights back to where the loss allows them, after each of its steps."""


class Minimax(AdversarialLoss):
    """The game as first written: the generator minimises log(1 - D(G(z))), which saturates where the discriminator is sure.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, equation 1. Label smoothing: Salimans et al. 2016, arXiv:1606.03498, section 3.4.
    """

    key: ClassVar[str] = "minimax"
    source: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1406.2661, equation 1"

    label_smoothing: Smoothing = Field(
        default=0.0, description="One-sided: real images are to score 1 - label_smoothing; generated ones stay at 0."
    )

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        # -t log sigmoid(r) - (1 - t) log(1 - sigmoid(r)), with t = 1 - label_smoothing, is softplus(-r) + (1 - t) r
        real_term = F.softplus(-real) + self.label_smoothing * real
        return real_term.mean() + F.softplus(fake).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


class NonSaturating(Minimax):
    """The generator maximises log D(G(z)) instead: the same fixed point, a gradient that stays.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, section 3.
    """

    key: ClassVar[str] = "non-saturating"
    source: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1406.2661, section 3"

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


class LeastSquares(AdversarialLoss):
    """Real images are to score 1, generated ones 0, by the square of what is missing: the gradient grows with the distance.

    Source: Mao et al. 2016, arXiv:1611.04076, equations 2 and 9 (a = 0, b = c = 1).
    """

    key: ClassVar[str] = "least-squares"
    source: ClassVar[str] = "Mao et al. 2016, arXiv:1611.04076, equations 2 and 9"
    score: ClassVar[Literal["logit", "critic"]] = "critic"  # its optimum is a share between 0 and 1, which a sigmoid would bend

    label_smoothing: Smoothing = Field(
        default=0.0, description="One-sided: real images are to score 1 - label_smoothing; generated ones stay at 0."
    )

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * (real - (1 - self.label_smoothing)).square().mean() + 0.5 * fake.square().mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * (fake - 1).square().mean()


class Hinge(AdversarialLoss):
    """Images beyond a margin of 1 on their side teach the discriminator nothing more.

    Source: Lim and Ye 2017, arXiv:1705.02894; as used with spectral norm by Miyato et al. 2018, arXiv:1802.05957, equations 16 and 17.
    """

    key: ClassVar[str] = "hinge"
    source: ClassVar[str] = "Lim and Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957, equations 16 and 17"
    score: ClassVar[Literal["logit", "critic"]] = "critic"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake.mean()


class _Wasserstein(AdversarialLoss):
    """Equation 2 of Arjovsky et al. 2017: the difference of mean scores, under a critic whose slope is bounded somehow."""

    score: ClassVar[Literal["logit", "critic"]] = "critic"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake.mean()


class WassersteinClip(_Wasserstein):
    """Wasserstein distance under a critic whose weights are clipped into a small cube.

    Source: Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875, algorithm 1. Deviation: Adam without momentum in place of RMSProp.
    """

    key: ClassVar[str] = "wasserstein-clip"
    source: ClassVar[str] = "Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875, algorithm 1"
    recipe: ClassVar[Mapping[str, JsonValue]] = {"critic_steps": 5, "betas": [0.0, 0.9], "learning_rate": 5e-5}
    refused: ClassVar[Mapping[str, str]] = {"spectral_norm": "a weight that is divided by its norm is the same clipped or not"}

    weight_clip: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.01, description="Each weight of the critic stays between -weight_clip and weight_clip."
    )

    @torch.no_grad()
    def constrain(self, discriminator: nn.Module) -> None:
        torch._foreach_clamp_min_(list(discriminator.parameters()), -self.weight_clip)
        torch._foreach_clamp_max_(list(discriminator.parameters()), self.weight_clip)


class WassersteinGp(_Wasserstein):
    """Wasserstein distance under a critic whose gradient is held to one norm between real and generated images.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1.
    """

    key: ClassVar[str] = "wasserstein-gp"
    source: ClassVar[str] = "Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1"
    recipe: ClassVar[Mapping[str, JsonValue]] = {"critic_steps": 5, "betas": [0.0, 0.9], "learning_rate": 1e-4}
    refused: ClassVar[Mapping[str, str]] = {"gradient-penalty": "it has this penalty already: set its penalty_weight and target_norm"}

    penalty_weight: Annotated[float, Field(gt=0, le=1e6)] = Field(default=10.0, description="Weight of the penalty, lambda.")
    target_norm: Annotated[float, Field(gt=0, le=1e6)] = Field(default=1.0, description="The gradient's norm that costs nothing, k.")

    def penalty(self) -> Penalty:
        return GradientPenalty(weight=self.penalty_weight, target_norm=self.target_norm)


class Relativistic(AdversarialLoss):
    """Each real image is to score higher than the generated one beside it, and the other way round: no score is good by itself.

    Source: Jolicoeur-Martineau 2018, arXiv:1807.00734 (RSGAN); Huang et al. 2024, arXiv:2501.05441, equation 2, who use it
    together with R1 and R2 (the penalty r1-r2). Deviation: the generator is paired with the real images of the discriminator's step.
    """

    key: ClassVar[str] = "relativistic"
    source: ClassVar[str] = "Jolicoeur-Martineau 2018, arXiv:1807.00734; Huang et al. 2024, arXiv:2501.05441, equation 2"
    score: ClassVar[Literal["logit", "critic"]] = "critic"  # only differences mean something
    recipe: ClassVar[Mapping[str, JsonValue]] = {"penalty": "r1-r2"}
    needs_real: ClassVar[bool] = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake - real).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(real - fake).mean()
