import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from training import catalog
from training.losses import (
    AdversarialLoss,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Relativistic,
    WassersteinClip,
    WassersteinGp,
)
from training.penalties import GradientPenalty

REAL = [0.5, -2.0, 3.0]
FAKE = [-1.0, 0.25, 2.0]
LOSSES = catalog.losses().values()
OfPair = Callable[[float, float], float]  # of a real image's score and the generated one's beside it


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def softplus(score: float) -> float:
    return math.log(1 + math.exp(score))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def scores(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# --- values and gradients by hand ---------------------------------------------------------------------------------------------


class Worked(NamedTuple):
    """A loss of one pair of scores on paper: what each player minimises, and its slope in the scores that the player can move."""

    loss: AdversarialLoss
    discriminator: OfPair
    slope_of_real: OfPair
    slope_of_fake: OfPair
    generator: OfPair
    slope_of_generated: OfPair


CROSS_ENTROPY: tuple[OfPair, OfPair, OfPair] = (
    lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
    lambda r, f: sigmoid(r) - 1,
    lambda r, f: sigmoid(f),
)
SMOOTH_CROSS_ENTROPY: tuple[OfPair, OfPair, OfPair] = (
    lambda r, f: -0.9 * math.log(sigmoid(r)) - 0.1 * math.log(1 - sigmoid(r)) - math.log(1 - sigmoid(f)),
    lambda r, f: sigmoid(r) - 0.9,
    lambda r, f: sigmoid(f),
)
SATURATING: tuple[OfPair, OfPair] = (lambda r, f: math.log(1 - sigmoid(f)), lambda r, f: -sigmoid(f))
NOT_SATURATING: tuple[OfPair, OfPair] = (lambda r, f: -math.log(sigmoid(f)), lambda r, f: sigmoid(f) - 1)
SQUARE_TO_ONE: tuple[OfPair, OfPair] = (lambda r, f: 0.5 * (f - 1) ** 2, lambda r, f: f - 1)
SCORE: tuple[OfPair, OfPair] = (lambda r, f: -f, lambda r, f: -1.0)
DIFFERENCE: tuple[OfPair, OfPair, OfPair] = (lambda r, f: f - r, lambda r, f: -1.0, lambda r, f: 1.0)

WORKED = [
    Worked(Minimax(), *CROSS_ENTROPY, *SATURATING),
    Worked(Minimax(label_smoothing=0.1), *SMOOTH_CROSS_ENTROPY, *SATURATING),
    Worked(NonSaturating(), *CROSS_ENTROPY, *NOT_SATURATING),
    Worked(NonSaturating(label_smoothing=0.1), *SMOOTH_CROSS_ENTROPY, *NOT_SATURATING),
    Worked(LeastSquares(), lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2, lambda r, f: r - 1, lambda r, f: f, *SQUARE_TO_ONE),
    Worked(
        LeastSquares(label_smoothing=0.2),
        lambda r, f: 0.5 * (r - 0.8) ** 2 + 0.5 * f**2,
        lambda r, f: r - 0.8,
        lambda r, f: f,
        *SQUARE_TO_ONE,
    ),
    Worked(Hinge(), lambda r, f: max(0.0, 1 - r) + max(0.0, 1 + f), lambda r, f: -float(r < 1), lambda r, f: float(f > -1), *SCORE),
    Worked(WassersteinClip(), *DIFFERENCE, *SCORE),
    Worked(WassersteinGp(), *DIFFERENCE, *SCORE),
    Worked(
        Relativistic(),
        lambda r, f: softplus(f - r),
        lambda r, f: -sigmoid(f - r),
        lambda r, f: sigmoid(f - r),
        lambda r, f: softplus(r - f),
        lambda r, f: -sigmoid(r - f),
    ),
]


@pytest.mark.parametrize("worked", WORKED, ids=lambda worked: repr(worked.loss))
def test_values_and_gradients_are_those_worked_out_by_hand(worked: Worked) -> None:
    def each(of: OfPair) -> list[float]:
        return [of(r, f) for r, f in zip(REAL, FAKE, strict=True)]

    real, fake = scores(REAL), scores(FAKE)
    judged = worked.loss.discriminator(real, fake)
    assert judged.item() == pytest.approx(mean(each(worked.discriminator)), rel=1e-12)
    to_real, to_fake = torch.autograd.grad(judged, [real, fake])
    assert to_real.tolist() == pytest.approx([slope / 3 for slope in each(worked.slope_of_real)], rel=1e-12)
    assert to_fake.tolist() == pytest.approx([slope / 3 for slope in each(worked.slope_of_fake)], rel=1e-12)

    made = worked.loss.generator(real.detach(), fake)
    assert made.item() == pytest.approx(mean(each(worked.generator)), rel=1e-12)
    (to_generated,) = torch.autograd.grad(made, [fake])
    assert to_generated.tolist() == pytest.approx([slope / 3 for slope in each(worked.slope_of_generated)], rel=1e-12)


def test_every_loss_is_worked_out_by_hand() -> None:
    assert {type(worked.loss) for worked in WORKED} == set(LOSSES)


def test_where_the_discriminator_is_sure_only_minimax_saturates() -> None:
    gradients = {}
    for kind in (Minimax, NonSaturating):
        fake = torch.tensor([-20.0], requires_grad=True)
        kind().generator(fake, fake).backward()
        assert fake.grad is not None
        gradients[kind] = float(fake.grad)
    assert gradients[Minimax] == pytest.approx(0, abs=1e-8)
    assert gradients[NonSaturating] == pytest.approx(-1, abs=1e-8)


# --- options ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "target"), [(Minimax, math.log(0.9 / 0.1)), (NonSaturating, math.log(0.9 / 0.1)), (LeastSquares, 0.9)])
def test_a_smoothed_discriminator_is_content_at_its_target(kind: type[Minimax] | type[LeastSquares], target: float) -> None:
    real = torch.tensor([target], dtype=torch.float64, requires_grad=True)
    kind(label_smoothing=0.1).discriminator(real, torch.zeros(1, dtype=torch.float64)).backward()
    assert real.grad is not None
    assert float(real.grad) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", [Minimax, NonSaturating, LeastSquares])
def test_label_smoothing_leaves_the_generator_alone(kind: type[Minimax] | type[LeastSquares]) -> None:
    assert kind(label_smoothing=0.3).generator(scores(REAL), scores(FAKE)).item() == kind().generator(scores(REAL), scores(FAKE)).item()


@pytest.mark.parametrize("wrong", [-0.1, 0.5, math.nan])
@pytest.mark.parametrize("kind", [Minimax, NonSaturating, LeastSquares])
def test_label_smoothing_out_of_range_is_refused(kind: type[Minimax] | type[LeastSquares], wrong: float) -> None:
    with pytest.raises(ValidationError, match="label_smoothing"):
        kind(label_smoothing=wrong)


def test_wasserstein_gp_brings_its_penalty_with_its_own_weight_and_norm() -> None:
    assert WassersteinGp().penalty() == GradientPenalty(weight=10.0, target_norm=1.0)
    assert WassersteinGp(penalty_weight=3.0, target_norm=0.5).penalty() == GradientPenalty(weight=3.0, target_norm=0.5)
    assert [kind.key for kind in LOSSES if kind().penalty() is not None] == ["wasserstein-gp"]


def test_wasserstein_clip_brings_every_weight_into_its_cube_and_changes_none_inside() -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1, 1)), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in critic.named_parameters()}
    WassersteinClip(weight_clip=0.2).constrain(critic)
    assert before["2.weight"].tolist() == [1, 1, 1]
    for name, value in critic.named_parameters():
        assert torch.equal(value, before[name].clamp(-0.2, 0.2))
        assert value.requires_grad


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.key)
def test_no_other_loss_touches_the_weights(kind: type[AdversarialLoss]) -> None:
    critic = nn.Linear(4, 3)
    nn.init.constant_(critic.weight, 5.0)
    kind().constrain(critic)
    assert bool((critic.weight == 5.0).all()) == (kind is not WassersteinClip)


# --- what holds for every loss ------------------------------------------------------------------------------------------------

every_loss = pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.key)


@every_loss
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_scores_give_finite_losses_and_gradients(kind: type[AdversarialLoss], extreme: float) -> None:
    real = torch.tensor([extreme, -extreme, 0.0], requires_grad=True)
    fake = torch.tensor([-extreme, extreme, extreme], requires_grad=True)
    total = kind().discriminator(real, fake) + kind().generator(real, fake)
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, [real, fake]):
        assert gradient.isfinite().all()


@every_loss
def test_every_loss_is_a_mean_so_that_it_does_not_depend_on_the_batch_size(kind: type[AdversarialLoss]) -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    twice = real.repeat(2), fake.repeat(2)
    assert kind().discriminator(*twice).item() == pytest.approx(kind().discriminator(real, fake).item(), rel=1e-6)
    assert kind().generator(*twice).item() == pytest.approx(kind().generator(real, fake).item(), rel=1e-6)


@every_loss
def test_a_patch_map_of_scores_is_as_good_as_one_score_an_image(kind: type[AdversarialLoss]) -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    patches = real.reshape(1, 1, 1, 3), fake.reshape(1, 1, 1, 3)
    assert kind().discriminator(*patches).item() == pytest.approx(kind().discriminator(real, fake).item(), rel=1e-6)
    assert kind().generator(*patches).item() == pytest.approx(kind().generator(real, fake).item(), rel=1e-6)


@every_loss
def test_every_loss_pulls_the_two_players_apart(kind: type[AdversarialLoss]) -> None:
    real, fake = torch.full((1,), 0.1, requires_grad=True), torch.full((1,), 0.1, requires_grad=True)
    to_real, to_fake = torch.autograd.grad(kind().discriminator(real, fake), [real, fake])
    (to_generated,) = torch.autograd.grad(kind().generator(real, fake), [fake])
    assert to_real < 0 < to_fake, "the discriminator raises what is real and lowers what is generated"
    assert to_generated < 0, "the generator raises its own"


@every_loss
def test_a_loss_that_says_so_and_no_other_needs_real_scores_for_the_generator(kind: type[AdversarialLoss]) -> None:
    fake = torch.tensor(FAKE)
    values = {kind().generator(torch.tensor(real), fake).item() for real in (REAL, FAKE)}
    assert (len(values) == 2) == kind.needs_real


@every_loss
def test_a_score_is_called_a_logit_where_the_best_one_is_the_logit_of_the_share_of_real_images(kind: type[AdversarialLoss]) -> None:
    share = 0.75
    score = torch.tensor([math.log(share / (1 - share))], dtype=torch.float64, requires_grad=True)
    (to_real,) = torch.autograd.grad(kind().discriminator(score, score.detach()), [score])
    (to_fake,) = torch.autograd.grad(kind().discriminator(score.detach(), score), [score])
    slope = float(share * to_real + (1 - share) * to_fake)
    assert (slope == pytest.approx(0, abs=1e-12)) == (kind.score == "logit")
