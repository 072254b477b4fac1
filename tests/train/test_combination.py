"""What a config combines either plays together or is refused with a reason; and what is combined is really applied, step by step."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, batch_of
from torch import Tensor, nn
from torch.nn.utils import parametrize

from training import catalog, export
from training.catalog import ConfigError
from training.combination import Combination
from training.contract import TrainConfig
from training.game import Architecture, DataSpec, Terms
from training.losses import AdversarialLoss, NonSaturating, WassersteinClip, WassersteinGp
from training.match import Match, Rules
from training.penalties import R1, GradientPenalty, gradients

ARCHITECTURES, LOSSES, PENALTIES = catalog.architectures(), catalog.losses(), catalog.penalties()
TRICKS = ("spectral_norm", "diff_augment")


def combinations() -> Iterator[Combination]:
    for architecture, loss, penalty in product(ARCHITECTURES.values(), LOSSES.values(), (None, *PENALTIES.values())):
        for spectral_norm, diff_augment in product((False, True), repeat=2):
            yield Combination(architecture(), loss(), None if penalty is None else penalty(), spectral_norm, diff_augment)


def asked_of(combination: Combination) -> dict[str, str]:
    """Pointer to what is asked for there."""
    penalty = {} if combination.penalty is None else {"/penalty": combination.penalty.key}
    return {"/loss": combination.loss.key} | penalty | {f"/{trick}": trick for trick in TRICKS if getattr(combination, trick)}


# --- refusals -----------------------------------------------------------------------------------------------------------------


def test_a_combination_is_refused_exactly_where_a_part_refuses_another_and_with_its_reason() -> None:
    for combination in combinations():
        expected = [
            (pointer, f"{name} cannot be used with {by.key}: {by.refused[name]}")
            for by in (combination.architecture, combination.loss)
            for pointer, name in asked_of(combination).items()
            if name in by.refused
        ]
        assert combination.refusals() == expected


REFUSALS = [(by, name) for by in (*ARCHITECTURES.values(), *LOSSES.values()) for name in by.refused]


@pytest.mark.parametrize(("by", "name"), REFUSALS, ids=lambda value: getattr(value, "key", value))
def test_every_reason_is_told_before_anything_is_built(by: type[Architecture] | type[AdversarialLoss], name: str) -> None:
    asked: dict[str, object] = {"architecture" if issubclass(by, Architecture) else "loss": by.key}
    if name in TRICKS:
        asked[name] = True if name == "spectral_norm" else ("color",)
    else:
        asked["loss" if name in LOSSES else "penalty"] = name
    with pytest.raises(ConfigError) as caught:
        catalog.build(TrainConfig.model_validate(asked))
    ((pointer, message),) = caught.value.errors
    assert pointer == f"/{list(asked)[-1]}"
    assert message == f"{name} cannot be used with {by.key}: {by.refused[name]}"
    assert not message.endswith("."), "it stands in the middle of a sentence"


@pytest.mark.parametrize(("by", "name"), REFUSALS, ids=lambda value: getattr(value, "key", value))
def test_what_is_refused_exists(by: type[Architecture] | type[AdversarialLoss], name: str) -> None:
    del by
    assert name in {*LOSSES, *PENALTIES, *TRICKS}


def test_the_refusals_of_the_losses_are_these() -> None:
    refused = {(loss.key, name) for loss in LOSSES.values() for name in loss.refused}
    assert refused == {("wasserstein-clip", "spectral_norm"), ("wasserstein-gp", "gradient-penalty")}


# --- the norm of the discriminator --------------------------------------------------------------------------------------------


def test_a_penalty_wants_each_image_judged_by_itself_and_spectral_norm_wants_no_norm() -> None:
    mlp = ARCHITECTURES["mlp"]()
    assert Combination(mlp, NonSaturating()).norm == "batch"
    assert Combination(mlp, NonSaturating(), diff_augment=True).norm == "batch"
    assert Combination(mlp, WassersteinClip()).norm == "batch"
    assert Combination(mlp, NonSaturating(), R1()).norm == "sample"
    assert Combination(mlp, WassersteinGp()).norm == "sample"
    assert Combination(mlp, NonSaturating(), spectral_norm=True).norm == "none"
    assert Combination(mlp, WassersteinGp(), spectral_norm=True).norm == "none"


@pytest.mark.parametrize(("norm", "kinds"), [("batch", {nn.BatchNorm2d}), ("sample", {nn.GroupNorm}), ("none", set())])
def test_the_discriminator_is_built_with_it(norm: str, kinds: set[type[nn.Module]]) -> None:
    asked = {"batch": {}, "sample": {"penalty": "r1"}, "none": {"spectral_norm": True}}[norm]
    match, _ = a_match("dcgan", **asked)
    norms = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)
    assert {type(module) for module in match.game.discriminator.modules() if isinstance(module, norms)} == kinds


# --- what is combined is applied ----------------------------------------------------------------------------------------------

DATA = DataSpec((1, 16, 16), CLASSES)
OPTIONS = {
    "mlp": {"latent_size": 4, "generator_widths": [8, 8], "discriminator_widths": [8, 8], "dropout": 0.0},
    "dcgan": {"latent_size": 4, "generator_width": 4, "discriminator_width": 4},
    "cgan": {"latent_size": 4, "generator_width": 4, "discriminator_width": 4},
}


def a_match(architecture: str = "mlp", learning_rate: float = 0.002, **asked: object) -> tuple[Match, Rules]:
    torch.manual_seed(0)
    adam = {"learning_rate": learning_rate, "betas": [0.0, 0.9]}
    values = {"architecture": architecture, "options": OPTIONS[architecture], "generator": adam, "discriminator": adam}
    config = TrainConfig.model_validate(values | asked)
    built = catalog.build(config)
    match = Match.of(built.architecture.games(DATA, Terms(built.norm))["main"], config, torch.device("cpu"))
    return match, Rules.of(config, built)


def play(match: Match, rules: Rules, steps: int = 1, first: int = 0) -> dict[str, float]:
    """Terms of the last of some steps, each on the same random images."""
    random = torch.Generator().manual_seed(0)
    terms: dict[str, Tensor] = {}
    for step in range(first, first + steps):
        terms = match.play(rules, step, lambda: batch_of(DATA, 8), random)
    return {name: float(value) for name, value in terms.items()}


def mean_norm(match: Match) -> float:
    """Of the discriminator's gradient at the real images."""
    (gradient,) = gradients(match.game.discriminator.eval(), batch_of(DATA, 8)["image"])
    return float(gradient.detach().norm(dim=1).mean())


CLASSIFYING = {**OPTIONS["cgan"], "classification_weight": 2.0}
STILL = {"learning_rate": 1e-12, "betas": [0.0, 0.9]}  # of a side that is to stay as it is


def weights(network: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.parametrize("penalty", ["none", "r1"])
def test_the_classification_term_is_a_cross_entropy_that_both_sides_learn_by(penalty: str) -> None:
    fresh, _ = a_match("cgan", options=CLASSIFYING, penalty=penalty)
    assert fresh.game.class_scores is not None
    batch = batch_of(DATA, 8)
    expected = F.cross_entropy(fresh.game.class_scores(batch["image"]), batch["label"].argmax(1))
    match, rules = a_match("cgan", 0.01, options=CLASSIFYING, penalty=penalty)
    first = play(match, rules)
    assert first["classification_real"] == pytest.approx(expected.item(), rel=1e-5)
    last = play(match, rules, 60, first=1)
    assert last["classification_real"] < 0.7 * first["classification_real"]
    assert last["classification_generated"] < 0.7 * first["classification_generated"]


@pytest.mark.parametrize(("moving", "still"), [("generator", "discriminator"), ("discriminator", "generator")])
def test_each_side_is_moved_by_its_own_part_of_the_classification_term(moving: str, still: str) -> None:
    def after(options: dict[str, object]) -> Match:
        match, rules = a_match("cgan", options=options, **{still: STILL})
        play(match, rules)
        return match

    without, with_it = after(OPTIONS["cgan"]), after(CLASSIFYING)
    apart = {
        side: float((weights(getattr(without.game, side)) - weights(getattr(with_it.game, side))).abs().max()) for side in (moving, still)
    }
    assert apart[still] < 1e-9
    assert apart[moving] > 1e-3


def seen_by(discriminator: nn.Module) -> list[Tensor]:
    """The images of every later forward pass, in order."""
    seen: list[Tensor] = []
    discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    return seen


@pytest.mark.parametrize("key", PENALTIES)
def test_a_penalty_that_is_named_is_told_and_moves_the_weights(key: str) -> None:
    (plain, plain_rules), (match, rules) = a_match(), a_match(penalty=key)
    plain_terms, terms = play(plain, plain_rules), play(match, rules)
    assert "penalty" not in plain_terms
    assert terms["penalty"] > 0
    assert terms["discriminator_loss"] == plain_terms["discriminator_loss"], "the loss is told without it"
    weights = [dict(each.game.discriminator.named_parameters())["layers.1.weight"] for each in (plain, match)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("key", ["r1", "r2", "r1-r2"])
def test_a_penalty_on_the_slope_makes_the_discriminator_flat(key: str) -> None:
    plain, match = a_match(), a_match(penalty=key, penalty_options={"weight": 1000.0})
    for each in (plain, match):
        play(*each, steps=100)
    assert mean_norm(match[0]) < 0.25 * mean_norm(plain[0])


@pytest.mark.parametrize(
    "asked",
    [
        {"penalty": "gradient-penalty", "penalty_options": {"weight": 100.0, "target_norm": 2.0}},
        {"penalty": "dragan", "penalty_options": {"weight": 100.0, "target_norm": 2.0}},
        {"loss": "wasserstein-gp", "loss_options": {"penalty_weight": 100.0, "target_norm": 2.0}},
    ],
    ids=lambda asked: asked.get("penalty", asked.get("loss")),
)
def test_a_penalty_on_the_norm_brings_it_to_the_target(asked: dict[str, object]) -> None:
    match, rules = a_match(learning_rate=0.02, **asked)
    begin = play(match, rules)["penalty"]
    assert begin > 100, "the norm begins below 1"
    assert play(match, rules, steps=100)["penalty"] < 0.3 * begin


def test_a_lazy_penalty_weighs_as_much_more_as_it_is_rarer_and_is_told_as_nothing_between() -> None:
    every, lazy, plain = a_match(penalty="r1"), a_match(penalty="r1", penalty_interval=3), a_match(options=OPTIONS["mlp"])
    assert play(*lazy)["penalty"] == pytest.approx(3 * play(*every)["penalty"], rel=1e-6)
    for step in (1, 2):
        match, rules = a_match(penalty="r1", penalty_interval=3)
        assert play(match, rules, first=step)["penalty"] == 0
        play(*plain)
        weights = [each.game.discriminator.state_dict() for each in (match, plain[0])]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
        plain = a_match()
    match, rules = a_match(penalty="r1", penalty_interval=3, critic_steps=2)
    told = [play(match, rules, first=step)["penalty"] for step in range(3)]
    assert [value > 0 for value in told] == [True, True, False], "the mean of both critic steps: 0 and 3 of six are penalised"


@pytest.mark.parametrize("architecture", ["mlp", "cgan"])
@pytest.mark.parametrize("penalty", ["r1", "r1-r2", "gradient-penalty"])
def test_images_that_go_through_together_are_judged_as_those_that_go_apart(architecture: str, penalty: str) -> None:
    together, apart = a_match(architecture, penalty=penalty), a_match(architecture, penalty=penalty)
    found, wanted = (
        play(match, replace(rules, samplewise=samplewise), steps=2) for (match, rules), samplewise in ((together, True), (apart, False))
    )
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_penalty_at_the_images_of_the_loss_costs_no_further_pass() -> None:
    for penalty, passes in (("none", 3), ("r1", 2), ("r1-r2", 2), ("gradient-penalty", 3)):
        match, rules = a_match(penalty=penalty)
        seen = seen_by(match.game.discriminator)
        play(match, rules)
        assert len(seen) == passes, "real and generated ones apart or together, and the generator's step"


def test_a_losses_own_penalty_and_a_named_one_are_added() -> None:
    own, named, both = ({"loss": "wasserstein-gp"}, {"loss": "hinge", "penalty": "r1"}, {"loss": "wasserstein-gp", "penalty": "r1"})
    match, rules = a_match(**both)
    assert rules.penalties == (GradientPenalty(), R1())
    terms = [play(*a_match(**asked))["penalty"] for asked in (own, named)]
    assert play(match, rules)["penalty"] == pytest.approx(sum(terms), rel=1e-5)


def test_after_every_critic_step_every_weight_lies_in_the_cube() -> None:
    match, rules = a_match(learning_rate=0.5, loss="wasserstein-clip", loss_options={"weight_clip": 0.03}, critic_steps=3)
    critic, largest = match.game.discriminator, list[float]()
    critic.register_forward_pre_hook(lambda *_: largest.append(max(float(weight.detach().abs().max()) for weight in critic.parameters())))
    play(match, rules, steps=2)
    before_the_first_step, later = largest[:2], largest[2:]
    assert min(before_the_first_step) > 0.03
    assert len(later) == 12
    assert later == pytest.approx([0.03] * 12)


def test_under_spectral_norm_every_layer_keeps_a_singular_value_of_one_and_is_exported_plain() -> None:
    architecture = ARCHITECTURES["dcgan"].model_validate(OPTIONS["dcgan"])
    match, rules = a_match("dcgan", spectral_norm=True, learning_rate=0.01)
    play(match, rules, steps=30)
    critic = match.game.discriminator
    for _ in range(20):  # the estimate, which follows weights that move as fast as these, catches up
        critic(batch_of(DATA, 4)["image"])
    layers = [module for module in critic.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == 3
    for layer in layers:
        assert parametrize.is_parametrized(layer)
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.05)
    player = architecture.players({"main": match.averaged_game}, data=DATA, score="logit")["discriminator"]
    scripted = export.script("discriminator", player)
    plain = architecture.games(DATA, Terms("none"))["main"].discriminator
    assert set(scripted.state_dict()) == set(plain.state_dict())
    image = batch_of(DATA, 4)["image"]
    with torch.inference_mode():
        assert torch.allclose(scripted(image), critic.eval()(image), atol=1e-6)


def test_under_spectral_norm_the_discriminator_is_flatter() -> None:
    plain, match = a_match(learning_rate=0.01), a_match(learning_rate=0.01, spectral_norm=True)
    for each in (plain, match):
        play(*each, steps=60)
    assert mean_norm(match[0]) <= 1.05 < mean_norm(plain[0])


@pytest.mark.parametrize("kind", ["color", "translation", "cutout"])
def test_all_that_the_discriminator_sees_is_augmented_alike(kind: str) -> None:
    match, rules = a_match(diff_augment=(kind,), penalty="r1")
    seen = seen_by(match.game.discriminator)
    play(match, rules)
    real = batch_of(DATA, 8)["image"]
    assert [len(images) for images in seen] == [16, 8], "real and generated together, then the improved ones"
    assert not any(torch.equal(each, image) for images in seen for each, image in zip(images, real.repeat(2, 1, 1, 1), strict=False))
    if kind == "cutout":
        shares = [(images == 0).float().mean((1, 2, 3)) for images in seen]
        assert all(share.min() > 0.05 and share.max() <= 0.25 for share in shares)


def test_a_generator_learns_through_the_augmentation() -> None:
    match, rules = a_match(diff_augment=("color", "translation", "cutout"))
    before = [weight.detach().clone() for weight in match.game.generator.parameters()]
    play(match, rules)
    moved = [not torch.equal(weight, old) for weight, old in zip(match.game.generator.parameters(), before, strict=True)]
    assert all(moved)


def test_without_augmentation_the_discriminator_sees_the_images_themselves() -> None:
    match, rules = a_match()
    seen = seen_by(match.game.discriminator)
    play(match, rules)
    assert torch.equal(seen[0], batch_of(DATA, 8)["image"])
    assert torch.equal(seen[1], seen[2]), "the generated images are judged, then improved"


def test_bfloat16_is_used_in_layers_and_the_training_stays_near_that_of_float32() -> None:
    (full, full_rules), (half, half_rules) = a_match("dcgan", penalty="r1"), a_match("dcgan", penalty="r1", precision="bfloat16")
    seen: list[torch.dtype] = []
    half.game.discriminator.layers[0].register_forward_hook(lambda *given: seen.append(given[2].dtype))
    wanted, found = play(full, full_rules, steps=3), play(half, half_rules, steps=3)
    assert set(seen) == {torch.bfloat16}
    assert found != wanted
    assert found == pytest.approx(wanted, rel=0.1, abs=0.05)
    assert all(weight.dtype == torch.float32 for weight in half.game.discriminator.parameters())
