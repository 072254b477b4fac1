import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from training import catalog
from training.losses import AdversarialLoss, Minimax, NonSaturating

REAL = [0.5, -2.0, 3.0]
FAKE = [-1.0, 0.25, 2.0]
LOSSES = catalog.losses().values()


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def scores(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kind", [Minimax, NonSaturating])
def test_the_discriminator_minimises_its_cross_entropy(kind: type[AdversarialLoss]) -> None:
    real, fake = scores(REAL), scores(FAKE)
    loss = kind().discriminator(real, fake)
    by_hand = -mean([math.log(sigmoid(score)) for score in REAL]) - mean([math.log(1 - sigmoid(score)) for score in FAKE])
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    loss.backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == pytest.approx([(sigmoid(score) - 1) / 3 for score in REAL], rel=1e-12)
    assert fake.grad.tolist() == pytest.approx([sigmoid(score) / 3 for score in FAKE], rel=1e-12)


def test_the_minimax_generator_minimises_the_log_of_being_caught() -> None:
    fake = scores(FAKE)
    loss = Minimax().generator(fake)
    assert loss.item() == pytest.approx(mean([math.log(1 - sigmoid(score)) for score in FAKE]), rel=1e-12)
    loss.backward()
    assert fake.grad is not None
    assert fake.grad.tolist() == pytest.approx([-sigmoid(score) / 3 for score in FAKE], rel=1e-12)


def test_the_non_saturating_generator_maximises_the_log_of_passing() -> None:
    fake = scores(FAKE)
    loss = NonSaturating().generator(fake)
    assert loss.item() == pytest.approx(-mean([math.log(sigmoid(score)) for score in FAKE]), rel=1e-12)
    loss.backward()
    assert fake.grad is not None
    assert fake.grad.tolist() == pytest.approx([(sigmoid(score) - 1) / 3 for score in FAKE], rel=1e-12)


def test_where_the_discriminator_is_sure_only_minimax_saturates() -> None:
    gradients = {}
    for kind in (Minimax, NonSaturating):
        fake = torch.tensor([-20.0], requires_grad=True)
        kind().generator(fake).backward()
        assert fake.grad is not None
        gradients[kind] = float(fake.grad)
    assert gradients[Minimax] == pytest.approx(0, abs=1e-8)
    assert gradients[NonSaturating] == pytest.approx(-1, abs=1e-8)


@pytest.mark.parametrize("kind", [Minimax, NonSaturating])
def test_label_smoothing_lowers_the_target_of_real_images_alone(kind: type[Minimax]) -> None:
    real, fake = scores(REAL), scores(FAKE)
    loss = kind(label_smoothing=0.1).discriminator(real, fake)
    real_part = -mean([0.9 * math.log(sigmoid(score)) + 0.1 * math.log(1 - sigmoid(score)) for score in REAL])
    fake_part = -mean([math.log(1 - sigmoid(score)) for score in FAKE])
    assert loss.item() == pytest.approx(real_part + fake_part, rel=1e-12)
    loss.backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == pytest.approx([(sigmoid(score) - 0.9) / 3 for score in REAL], rel=1e-12)
    assert fake.grad.tolist() == pytest.approx([sigmoid(score) / 3 for score in FAKE], rel=1e-12)


@pytest.mark.parametrize("kind", [Minimax, NonSaturating])
def test_label_smoothing_leaves_the_generator_alone(kind: type[Minimax]) -> None:
    assert kind(label_smoothing=0.3).generator(scores(FAKE)).item() == kind().generator(scores(FAKE)).item()


@pytest.mark.parametrize("kind", [Minimax, NonSaturating])
def test_a_smoothed_discriminator_is_content_at_its_target(kind: type[Minimax]) -> None:
    real = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)  # sigmoid gives 0.9
    kind(label_smoothing=0.1).discriminator(real, torch.zeros(1, dtype=torch.float64)).backward()
    assert real.grad is not None
    assert float(real.grad) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("wrong", [-0.1, 0.5, math.nan])
def test_label_smoothing_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValidationError, match="label_smoothing"):
        NonSaturating(label_smoothing=wrong)


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.key)
@pytest.mark.parametrize("extreme", [1000.0, -1000.0])
def test_extreme_scores_give_finite_losses_and_gradients(kind: type[AdversarialLoss], extreme: float) -> None:
    real = torch.tensor([extreme, -extreme, 0.0], requires_grad=True)
    fake = torch.tensor([-extreme, extreme, extreme], requires_grad=True)
    total = kind().discriminator(real, fake) + kind().generator(fake)
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, [real, fake]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.key)
def test_every_loss_is_a_mean_so_that_it_does_not_depend_on_the_batch_size(kind: type[AdversarialLoss]) -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    twice = real.repeat(2), fake.repeat(2)
    assert kind().discriminator(*twice).item() == pytest.approx(kind().discriminator(real, fake).item(), rel=1e-6)
    assert kind().generator(twice[1]).item() == pytest.approx(kind().generator(fake).item(), rel=1e-6)


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.key)
def test_a_patch_map_of_scores_is_as_good_as_one_score_an_image(kind: type[AdversarialLoss]) -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    patches = real.reshape(1, 1, 1, 3), fake.reshape(1, 1, 1, 3)
    assert kind().discriminator(*patches).item() == pytest.approx(kind().discriminator(real, fake).item(), rel=1e-6)
    assert kind().generator(patches[1]).shape == ()


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.key)
def test_every_loss_pulls_the_two_players_apart(kind: type[AdversarialLoss]) -> None:
    real, fake = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    to_real, to_fake = torch.autograd.grad(kind().discriminator(real, fake), [real, fake])
    (to_generated,) = torch.autograd.grad(kind().generator(fake), [fake])
    assert to_real < 0 < to_fake, "the discriminator raises what is real and lowers what is generated"
    assert to_generated < 0, "the generator raises its own"
