"""On discriminators whose gradients are known: a.x has the gradient a everywhere, and c/2 |x|^2 has c x."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from training import catalog
from training.penalties import R1, R1R2, R2, Dragan, GradientPenalty, Penalty, gradients

PENALTIES = list(catalog.penalties().values())
every_penalty = pytest.mark.parametrize("kind", PENALTIES, ids=lambda kind: kind.key)
to_a_norm = pytest.mark.parametrize("kind", [GradientPenalty, Dragan], ids=lambda kind: kind.key)
SHAPE = (2, 3, 2)
SIZE = math.prod(SHAPE)
WEIGHT = 3.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=seeded(seed), dtype=torch.float64) * 2 - 1


REAL, FAKE = images(5, 1), images(5, 2)


class Recorded:
    """c/2 |x|^2 of each image, which remembers what it was shown."""

    def __init__(self, curvature: Tensor) -> None:
        self.curvature, self.seen = curvature, list[Tensor]()

    def __call__(self, image: Tensor) -> Tensor:
        self.seen.append(image.detach())
        return self.curvature / 2 * image.flatten(1).square().sum(1)


def a_slope() -> Tensor:
    return (torch.arange(1.0, SIZE + 1, dtype=torch.float64) / SIZE).requires_grad_()


def a_curvature() -> Tensor:
    return torch.tensor(0.7, dtype=torch.float64, requires_grad=True)


def a_network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 4, 2), nn.Softplus(), nn.Flatten(0), nn.Unflatten(0, (-1, 8)), nn.Linear(8, 1), nn.Flatten(0))
    return layers.double()


# --- values and gradients by hand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "halves"), [(R1, 1), (R2, 1), (R1R2, 2)])
def test_on_a_straight_slope_each_costs_half_the_weight_of_its_square(kind: type[R1] | type[R2] | type[R1R2], halves: int) -> None:
    slope = a_slope()
    penalty = kind(weight=WEIGHT)(lambda image: image.flatten(1) @ slope, REAL, FAKE, seeded())
    assert penalty.item() == pytest.approx(halves * WEIGHT / 2 * float(slope.detach().square().sum()), rel=1e-12)
    (to_slope,) = torch.autograd.grad(penalty, [slope])
    assert torch.allclose(to_slope, halves * WEIGHT * slope.detach(), rtol=1e-12)


@pytest.mark.parametrize(("kind", "where"), [(R1, [REAL]), (R2, [FAKE]), (R1R2, [REAL, FAKE])])
def test_on_a_bowl_each_costs_what_the_slope_is_at_its_own_images(kind: type[R1] | type[R2] | type[R1R2], where: list[Tensor]) -> None:
    bowl = Recorded(a_curvature())
    penalty = kind(weight=WEIGHT)(bowl, REAL, FAKE, seeded())
    squares = sum(float(batch.square().sum() / len(batch)) for batch in where)
    assert penalty.item() == pytest.approx(WEIGHT / 2 * 0.7**2 * squares, rel=1e-12)
    assert float(torch.autograd.grad(penalty, [bowl.curvature])[0]) == pytest.approx(WEIGHT * 0.7 * squares, rel=1e-12)
    assert all(torch.equal(seen, batch) for seen, batch in zip(bowl.seen, where, strict=True))


@to_a_norm
@pytest.mark.parametrize("target_norm", [1.0, 4.0])
def test_on_a_straight_slope_the_distance_of_its_norm_from_the_target_is_squared(
    kind: type[GradientPenalty] | type[Dragan], target_norm: float
) -> None:
    slope = a_slope()
    penalty = kind(weight=WEIGHT, target_norm=target_norm)(lambda image: image.flatten(1) @ slope, REAL, FAKE, seeded())
    norm = float(slope.detach().norm())
    assert penalty.item() == pytest.approx(WEIGHT * (norm - target_norm) ** 2, rel=1e-9)
    (to_slope,) = torch.autograd.grad(penalty, [slope])
    assert torch.allclose(to_slope, 2 * WEIGHT * (norm - target_norm) * slope.detach() / norm, rtol=1e-9)


@to_a_norm
def test_on_a_bowl_the_norm_is_taken_where_the_images_are_mixed(kind: type[GradientPenalty] | type[Dragan]) -> None:
    bowl = Recorded(a_curvature())
    penalty = kind(weight=WEIGHT, target_norm=1.5)(bowl, REAL, FAKE, seeded())
    (mixed,) = bowl.seen
    distances = mixed.flatten(1).norm(dim=1)
    assert penalty.item() == pytest.approx(WEIGHT * float((0.7 * distances - 1.5).square().mean()), rel=1e-9)
    expected = 2 * WEIGHT * float(((0.7 * distances - 1.5) * distances).mean())
    assert float(torch.autograd.grad(penalty, [bowl.curvature])[0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("target_norm", [0.5, 2.0])
def test_a_slope_of_the_target_norm_costs_nothing(target_norm: float) -> None:
    slope = a_slope().detach()
    slope *= target_norm / slope.norm()
    penalty = GradientPenalty(target_norm=target_norm)(lambda image: image.flatten(1) @ slope, REAL, FAKE, seeded())
    assert penalty.item() == pytest.approx(0, abs=1e-12)


def test_every_penalty_is_worked_out_by_hand() -> None:
    assert set(PENALTIES) == {R1, R2, R1R2, GradientPenalty, Dragan}


# --- where it is measured -----------------------------------------------------------------------------------------------------


def test_the_gradient_penalty_looks_anywhere_between_a_real_and_a_generated_image() -> None:
    real, fake = images(400, 3), images(400, 4)
    bowl = Recorded(a_curvature())
    GradientPenalty()(bowl, real, fake, seeded())
    shares = (bowl.seen[0] - fake).flatten(1) / (real - fake).flatten(1)
    assert torch.allclose(shares, shares[:, :1].expand_as(shares), atol=1e-6), "one share for all pixels of an image"
    assert shares.min() > -1e-6
    assert shares.max() < 1 + 1e-6
    assert torch.histc(shares[:, 0], bins=4, min=0, max=1).min() > 60, "all the way between them alike"


def test_dragan_looks_around_real_images_up_to_half_their_deviation() -> None:
    real = images(400, 3)
    bowl = Recorded(a_curvature())
    Dragan()(bowl, real, torch.full_like(real, 100.0), seeded())
    noise = (bowl.seen[0] - real).flatten(1) / (0.5 * real.std())
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert noise.std(1).min() > 0.0, "every pixel has its own"
    reach = noise.max(1).values
    assert torch.histc(reach, bins=4, min=0, max=1).min() > 40, "some images are moved little, some far"


# --- maps, batches, and what it leaves alone ----------------------------------------------------------------------------------


def test_a_map_of_patches_counts_as_its_mean() -> None:
    slopes = torch.rand(SIZE, 4, generator=seeded(), dtype=torch.float64)

    def patches(image: Tensor) -> Tensor:
        return (image.flatten(1) @ slopes).reshape(-1, 1, 2, 2)

    (gradient,) = gradients(patches, REAL)
    assert torch.allclose(gradient, slopes.mean(1).expand(len(REAL), -1))
    for kind in PENALTIES:
        of_map, of_mean = (kind()(score, REAL, FAKE, seeded()) for score in (patches, lambda image: patches(image).mean((1, 2, 3))))
        assert of_map.item() == pytest.approx(of_mean.item(), rel=1e-12)


def test_every_image_has_a_gradient_of_its_own() -> None:
    network = a_network()
    (together,) = gradients(network, REAL)
    for row in range(len(REAL)):
        (alone,) = gradients(network, REAL[row : row + 1])
        assert torch.allclose(together[row], alone[0], rtol=1e-12)


def test_one_pass_backward_gives_the_gradients_of_two() -> None:
    network = a_network()
    together = R1R2(weight=WEIGHT)(network, REAL, FAKE, seeded())
    apart = R1(weight=WEIGHT)(network, REAL, FAKE, seeded()) + R2(weight=WEIGHT)(network, REAL, FAKE, seeded())
    assert together.item() == pytest.approx(apart.item(), rel=1e-12)
    weights = [network.get_parameter(name) for name in ("0.weight", "0.bias", "4.weight")]
    for one, two in zip(torch.autograd.grad(together, weights), torch.autograd.grad(apart, weights), strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, two, rtol=1e-12)


@every_penalty
def test_the_weights_gradient_is_the_slope_of_the_penalty(kind: type[Penalty]) -> None:
    """Against a difference quotient, through softplus, whose second derivative is not zero."""
    network = a_network()
    weight = network.get_parameter("0.weight")
    penalty = kind()(network, REAL, FAKE, seeded())
    (to_weight,) = torch.autograd.grad(penalty, [weight])
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight += step * to_weight
        values.append(kind()(network, REAL, FAKE, seeded()).item())
        with torch.no_grad():
            weight -= step * to_weight
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(to_weight.square().sum()), rel=1e-4)


@every_penalty
def test_a_penalty_is_a_mean_over_the_batch(kind: type[Penalty]) -> None:
    slope = a_slope()
    one, two = (
        kind()(lambda image: image.flatten(1) @ slope, REAL.repeat(count, 1, 1, 1), FAKE.repeat(count, 1, 1, 1), seeded())
        for count in (1, 2)
    )
    assert one.item() == pytest.approx(two.item(), rel=1e-12)


@every_penalty
def test_nothing_reaches_the_generator_and_the_images_stay_as_they_are(kind: type[Penalty]) -> None:
    maker = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    network, real = a_network(), REAL.clone()
    kind()(network, real, FAKE * maker, seeded()).backward()
    assert maker.grad is None
    assert not real.requires_grad
    assert torch.equal(real, REAL)
    assert network.get_parameter("0.weight").grad is not None


@every_penalty
def test_a_dead_discriminator_has_a_penalty_without_a_slope(kind: type[Penalty]) -> None:
    slope = torch.zeros(SIZE, dtype=torch.float32, requires_grad=True)
    penalty = kind()(lambda image: image.flatten(1) @ slope, REAL.float(), FAKE.float(), seeded())
    assert penalty.item() == pytest.approx(10 if "target_norm" in kind.model_fields else 0, rel=1e-4)
    assert torch.autograd.grad(penalty, [slope])[0].tolist() == [0.0] * SIZE


@every_penalty
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_steep_and_flat_discriminators_give_finite_penalties(kind: type[Penalty], scale: float) -> None:
    slope = (scale * torch.ones(SIZE)).requires_grad_()
    penalty = kind()(lambda image: image.flatten(1) @ slope, REAL.float(), FAKE.float(), seeded())
    assert penalty.isfinite()
    assert penalty >= 0
    assert torch.autograd.grad(penalty, [slope])[0].isfinite().all()


@every_penalty
def test_the_random_generator_given_decides_all(kind: type[Penalty]) -> None:
    def value(seed: int) -> float:
        return kind()(a_network(), REAL, FAKE, seeded(seed)).item()

    assert value(0) == value(0)
    assert (value(0) != value(1)) == (kind in (GradientPenalty, Dragan))


@every_penalty
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, 1e7, True, "1"])
def test_a_weight_out_of_range_is_refused(kind: type[Penalty], wrong: object) -> None:
    with pytest.raises(ValidationError, match="weight"):
        kind.model_validate({"weight": wrong})
