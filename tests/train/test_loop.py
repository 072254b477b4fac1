import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from training.contract import Metrics, TrainConfig
from training.game import Round, Tensors
from training.loop import EMA_RAMPUP, METRIC_LINES, NotFiniteError, Training, _Clock
from training.losses import NonSaturating
from training.match import Match, Rules, move_average
from training.phases import phases

MakeConfig = Callable[..., TrainConfig]
MakeTraining = Callable[[TrainConfig], Training]


class Notebook:
    """A watcher that writes everything down, with the bytes of a checkpoint."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.metrics: list[Metrics] = []
        self.sampled: list[int] = []
        self.evaluated: list[int] = []
        self.checkpoints: dict[int, bytes] = {}

    def beat(self, images: int, images_per_second: float) -> None:
        assert 0 < images == self.training.images
        assert images_per_second > 0

    def measured(self, metrics: Metrics) -> None:
        self.metrics.append(metrics)

    def sample(self, images: int) -> None:
        self.sampled.append(images)

    def evaluate(self, images: int) -> None:
        self.evaluated.append(images)

    def checkpoint(self, images: int) -> None:
        buffer = io.BytesIO()
        torch.save(self.training.state_dict(), buffer)
        self.checkpoints[images] = buffer.getvalue()


def run(training: Training) -> Notebook:
    notebook = Notebook(training)
    training.run(notebook)
    return notebook


def flat(state: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of a state dict with its path; a tensor as its type, shape and bytes."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from flat(value, f"{path}/{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from flat(value, f"{path}/{index}")
    elif isinstance(state, Tensor):
        yield path, (state.dtype, tuple(state.shape), state.contiguous().numpy().tobytes())
    else:
        yield path, state


def bits(training: Training) -> dict[str, object]:
    """All that a run has become, but for the seconds it took; the networks are asked themselves too."""
    networks = {key: [match.game.generator, match.game.discriminator, match.average] for key, match in training.matches.items()}
    become = {"state": training.state_dict(), "networks": {key: [each.state_dict() for each in them] for key, them in networks.items()}}
    return {path: leaf for path, leaf in flat(become) if path not in ("/state/seconds", "/state/window_start/2")}


# --- resume -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic_steps", [1, 2])
@pytest.mark.parametrize("architecture", ["mlp", "dcgan"])
def test_a_run_cut_anywhere_ends_with_the_bits_of_one_that_was_not(
    architecture: str, critic_steps: int, make_config: MakeConfig, make_training: MakeTraining
) -> None:
    config = make_config(architecture=architecture, critic_steps=critic_steps, checkpoint_images=1)
    whole = make_training(config)
    checkpoints = run(whole).checkpoints
    assert len(checkpoints) == 12 // critic_steps
    marks = list(checkpoints)
    for images in (marks[0], marks[3], marks[-2]):
        torch.manual_seed(images)  # another process, another seed: nothing may be left of it
        resumed = make_training(config.model_copy(update={"seed": 77}))
        torch.rand(images)
        resumed.load_state_dict(torch.load(io.BytesIO(checkpoints[images]), weights_only=True))
        assert resumed.images == images
        run(resumed)
        assert bits(resumed) == bits(whole)


def test_another_seed_is_another_run(make_config: MakeConfig, make_training: MakeTraining) -> None:
    ends = []
    for seed in (1, 1, 2):
        training = make_training(make_config(seed=seed, total_images=20))
        run(training)
        ends.append(bits(training))
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("architecture", ["mlp", "dcgan"])
def test_the_state_holds_every_weight_buffer_and_moment(architecture: str, make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(architecture=architecture))
    run(training)
    paths = [path for path, _ in flat(training.state_dict())]
    for network in ("generator", "discriminator", "average"):
        assert any(path.startswith(f"/matches/main/{network}/layers") for path in paths)
    for network in ("generator", "discriminator"):
        assert any(path.startswith(f"/matches/main/{network}_optimizer/state/0/exp_avg") for path in paths)
    assert any("/matches/main/average" in path and path.endswith("running_var") for path in paths) == (architecture == "dcgan")
    assert {"/images", "/random", "/global_random/0", "/batches/order", "/batches/position"} <= set(paths)


def test_metrics_of_a_resumed_run_are_those_of_the_uninterrupted_one(make_config: MakeConfig, make_training: MakeTraining) -> None:
    # two steps a line, and a checkpoint between them: its window is half full
    config = make_config(total_images=METRIC_LINES * 40, checkpoint_images=60)
    whole = run(make_training(config))
    resumed = make_training(config)
    resumed.load_state_dict(torch.load(io.BytesIO(whole.checkpoints[60]), weights_only=True))
    lines = run(resumed).metrics
    assert [(line.images, line.losses) for line in lines] == [(line.images, line.losses) for line in whole.metrics[1:]]


# --- a step -------------------------------------------------------------------------------------------------------------------


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [None if weight.grad is None else weight.grad.clone() for weight in module.parameters()]


def same(first: list[Tensor | None], second: list[Tensor | None]) -> bool:
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("critic_steps", [1, 3])
@pytest.mark.parametrize("architecture", ["mlp", "dcgan"])
def test_neither_network_gets_a_gradient_from_the_step_of_the_other(
    architecture: str, critic_steps: int, make_config: MakeConfig, make_training: MakeTraining
) -> None:
    training = make_training(make_config(architecture=architecture, critic_steps=critic_steps))
    match = training.matches["main"]
    generator, discriminator = match.game.generator, match.game.discriminator
    generator_before: list[list[Tensor | None]] = [gradients(generator)]
    discriminator_before: list[list[Tensor | None]] = [gradients(discriminator)]
    moves: list[str] = []

    def discriminator_moves(*_: object) -> None:
        assert same(gradients(generator), generator_before[0]), "the discriminator's loss reached the generator"
        assert all(gradient is not None for gradient in gradients(discriminator))
        discriminator_before[0] = gradients(discriminator)
        moves.append("discriminator")

    def generator_moves(*_: object) -> None:
        assert same(gradients(discriminator), discriminator_before[0]), "the generator's loss reached the discriminator"
        assert all(gradient is not None for gradient in gradients(generator))
        generator_before[0] = gradients(generator)
        moves.append("generator")

    match.discriminator_optimizer.register_step_pre_hook(discriminator_moves)
    match.generator_optimizer.register_step_pre_hook(generator_moves)
    for _ in range(2):
        training.step()
    assert moves == (["discriminator"] * critic_steps + ["generator"]) * 2
    assert all(weight.requires_grad for weight in discriminator.parameters())


@pytest.mark.parametrize("critic_steps", [1, 2, 5])
def test_the_generator_runs_once_for_each_discriminator_step_and_not_again_for_its_own(
    critic_steps: int, make_config: MakeConfig, make_training: MakeTraining
) -> None:
    training = make_training(make_config(architecture="dcgan", critic_steps=critic_steps))
    game = training.matches["main"].game
    generated: list[Tensor] = []
    judged: list[Tensor] = []
    game.generator.register_forward_hook(lambda _module, _inputs, output: generated.append(output))
    game.discriminator.register_forward_pre_hook(lambda _module, inputs: judged.append(inputs[0]))
    training.step()
    assert len(generated) == critic_steps
    assert len(judged) == 2 * critic_steps + 1, "real and generated apart at each step, and once for the generator"
    assert all(images.shape == (20, 1, 16, 16) for images in judged)
    assert torch.equal(judged[-1], judged[-2]), "the same images are judged, then improved"
    assert judged[-1].requires_grad
    assert not any(images.requires_grad for images in judged[:-1])
    assert all(images.requires_grad == (number == critic_steps) for number, images in enumerate(generated, start=1))


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_images_are_the_real_ones_that_were_shown(critic_steps: int, make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(critic_steps=critic_steps))
    shown = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal shown
        if module is not discriminator:  # the copy that scores after a step
            return
        shown += len(inputs[0]) if calls() % (2 * critic_steps + 1) in range(0, 2 * critic_steps, 2) else 0

    calls = itertools.count().__next__
    discriminator = training.matches["main"].game.discriminator
    discriminator.register_forward_pre_hook(count)
    run(training)
    assert training.images == shown == 240


def test_a_run_ends_at_the_first_step_that_reaches_its_total(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(total_images=41))
    run(training)
    assert training.images == 60


def test_both_networks_learn_at_their_own_rate(make_config: MakeConfig, make_training: MakeTraining) -> None:
    config = make_config(learning_rate=0.01, discriminator={"learning_rate": 0.001, "betas": [0.0, 0.9]})
    match = make_training(config).matches["main"]
    generator, discriminator = match.generator_optimizer.param_groups[0], match.discriminator_optimizer.param_groups[0]
    assert (generator["lr"], generator["betas"]) == (0.01, (0.5, 0.999))
    assert (discriminator["lr"], discriminator["betas"]) == (0.001, (0.0, 0.9))


def test_the_first_step_of_the_discriminator_is_adams(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(learning_rate=0.01))
    discriminator = training.matches["main"].game.discriminator
    before = [weight.detach().clone() for weight in discriminator.parameters()]
    training.step()
    for old, new in zip(before, discriminator.parameters(), strict=True):
        assert new.grad is not None
        felt = new.grad.abs() > 1e-5
        assert torch.allclose((old - new)[felt], 0.01 * new.grad.sign()[felt], atol=1e-4), "its first step is the sign of the gradient"


# --- the moving average -------------------------------------------------------------------------------------------------------


def a_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for _ in range(seed):
        network(torch.randn(5, 3))
    return network


def test_the_average_covers_weights_and_statistics_and_copies_counters() -> None:
    average, current = a_network(1), a_network(2)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    current_before = {name: value.clone() for name, value in current.state_dict().items()}
    move_average(average, current, 0.75)
    after = average.state_dict()
    assert after["1.num_batches_tracked"] == 2
    floats = [name for name, value in before.items() if value.is_floating_point()]
    assert {"0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"} <= set(floats)
    for name in floats:
        assert torch.allclose(after[name], 0.75 * before[name] + 0.25 * current_before[name], atol=1e-7), name
    assert all(torch.equal(value, current_before[name]) for name, value in current.state_dict().items())


def test_without_decay_the_average_is_the_network_itself() -> None:
    average, current = a_network(1), a_network(2)
    move_average(average, current, 0.0)
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in current.state_dict().items())


@pytest.mark.parametrize(
    ("halflife_images", "images_before", "kept"),
    [
        (0, 0, 0.0),
        (40, 100_000, 0.5),
        (20, 100_000, 0.25),
        (80, 100_000, 0.5**0.5),
        (1e9, 760, 0.5 ** (40 / (EMA_RAMPUP * 800))),  # of 800 images seen with this step, 5 % are the half-life
    ],
)
def test_the_average_halves_in_its_halflife_which_is_short_at_first(
    halflife_images: float, images_before: int, kept: float, make_config: MakeConfig, make_training: MakeTraining
) -> None:
    training = make_training(make_config(ema_halflife_images=halflife_images, critic_steps=2, learning_rate=0.01))
    training.images = images_before
    match = training.matches["main"]
    before = [weight.clone() for weight in match.average.parameters()]
    training.step()  # shows 2 x 20 images
    for old, new, average in zip(before, match.game.generator.parameters(), match.average.parameters(), strict=True):
        assert torch.allclose(average, kept * old + (1 - kept) * new, atol=1e-6)
        assert kept == 0 or not torch.equal(average, new)


def test_the_average_is_not_trained_and_stays_in_evaluation_mode(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(architecture="dcgan"))
    match = training.matches["main"]
    run(training)
    assert not match.average.training
    assert match.game.generator.training
    assert match.game.discriminator.training
    assert not any(weight.requires_grad for weight in match.average.parameters())
    assert match.averaged_game.generator is match.average


# --- what the run tells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batches", "lines"), [(1, 1), (12, 12), (METRIC_LINES, METRIC_LINES), (3 * METRIC_LINES, METRIC_LINES)])
def test_a_run_writes_a_line_a_step_up_to_the_limit(batches: int, lines: int, make_config: MakeConfig, make_training: MakeTraining) -> None:
    metrics = run(make_training(make_config(total_images=20 * batches))).metrics
    assert len(metrics) == lines
    images = [line.images for line in metrics]
    assert images == sorted(set(images))
    assert images[-1] == 20 * batches


def test_the_last_line_reaches_the_end_of_the_run(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(total_images=METRIC_LINES * 40 + 10))  # the last step is a half line
    assert run(training).metrics[-1].images == training.images == METRIC_LINES * 40 + 20


def test_a_line_holds_means_over_its_steps(make_config: MakeConfig, make_training: MakeTraining) -> None:
    config = make_config(total_images=METRIC_LINES * 60)
    training = make_training(config)
    losses: list[Tensor] = []
    line: list[Metrics] = []
    while not line:
        training.step()
        losses.append(training.state_dict()["window"][-1])
        if len(losses) == 3:
            line.append(training._measure(training.phase))
    wanted = torch.stack(losses).double().mean(dim=0).tolist()
    assert list(line[0].losses) == [
        "discriminator_loss",
        "score_real",
        "probability_real",
        "generator_loss",
        "score_generated",
        "probability_generated",
        "score_generated_after",
        "probability_generated_after",
    ]
    assert list(line[0].losses.values())[:6] == pytest.approx(wanted, rel=1e-12)
    assert line[0].images == 60
    assert training.state_dict()["window"] == []


def test_samples_and_checkpoints_come_at_the_first_step_past_their_mark(make_config: MakeConfig, make_training: MakeTraining) -> None:
    notebook = run(make_training(make_config(sample_images=50, checkpoint_images=90)))
    assert notebook.sampled == [60, 100, 160, 200]
    assert list(notebook.checkpoints) == [100, 180]


def test_whatever_a_watcher_raises_ends_the_run_between_two_steps(make_config: MakeConfig, make_training: MakeTraining) -> None:
    config = make_config(sample_images=100)
    whole = make_training(config)
    run(whole)
    stopped = make_training(config)

    class Stop(Exception):
        pass

    class Stopper(Notebook):
        def sample(self, images: int) -> None:
            raise Stop

    with pytest.raises(Stop):
        stopped.run(Stopper(stopped))
    assert stopped.images == 100
    run(stopped)
    assert bits(stopped) == bits(whole)


def test_the_clock_beats_twice_a_second_with_a_smoothed_rate() -> None:
    times = iter([0.0, 0.1, 0.3, 0.7, 1.4])
    clock = _Clock(times.__next__)
    beats = []
    for images in (10, 20, 60, 200):
        clock.lap()
        beats.append(clock.beat(images))
    first, second = 50 / 0.6, 140 / 0.7
    assert beats[:2] == [None, None]
    assert beats[2:] == pytest.approx([first, 0.8 * first + 0.2 * second])


# --- what is not finite -------------------------------------------------------------------------------------------------------


def poisoned(training: Training, at_step: int) -> Training:
    """The training, whose data hold a NaN at one step."""
    match = training.matches["main"]
    steps = itertools.count(1)

    def deal(batch: Tensors, random: torch.Generator) -> Round:
        dealt = match.game.deal(batch, random)
        return dealt._replace(target=dealt.target * torch.nan) if next(steps) == at_step else dealt

    training.matches["main"] = replace(match, game=replace(match.game, deal=deal))
    return training


@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_a_loss_that_is_not_finite_ends_the_run_naming_the_term_and_the_step(
    step: int, make_config: MakeConfig, make_training: MakeTraining
) -> None:
    training = poisoned(make_training(make_config(total_images=METRIC_LINES * 60)), step)  # three steps a line
    with pytest.raises(NotFiniteError, match=f"^discriminator_loss is not finite at step {step}; try a smaller learning_rate$"):
        run(training)


def test_the_step_is_counted_from_the_beginning_of_the_run_after_a_resume(make_config: MakeConfig, make_training: MakeTraining) -> None:
    config = make_config(total_images=METRIC_LINES * 60, checkpoint_images=80, critic_steps=1)
    state = run(make_training(config)).checkpoints[80]
    training = make_training(config)
    training.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
    with pytest.raises(NotFiniteError, match="at step 6;"):
        run(poisoned(training, 2))


def test_with_several_discriminator_steps_the_step_is_still_the_generators(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = poisoned(make_training(make_config(critic_steps=3)), 6)  # the last batch of the second step
    with pytest.raises(NotFiniteError, match="at step 2;"):
        run(training)


def test_the_generators_loss_is_named_where_it_is_the_one(make_config: MakeConfig, make_training: MakeTraining) -> None:
    class Broken(NonSaturating):
        def generator(self, real: Tensor, fake: Tensor) -> Tensor:
            return super().generator(real, fake) * torch.inf

    training = make_training(make_config())
    training.rules = Rules(Broken())
    with pytest.raises(NotFiniteError, match=r"^generator_loss is not finite at step 1;"):
        run(training)


def test_a_nan_in_the_very_last_step_does_not_slip_through(make_config: MakeConfig, make_training: MakeTraining) -> None:
    last = 2 * METRIC_LINES + 1
    training = poisoned(make_training(make_config(total_images=METRIC_LINES * 40 + 10)), last)
    with pytest.raises(NotFiniteError, match=f"at step {last};"):
        run(training)


def test_scores_that_overflow_are_caught(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config())
    with torch.no_grad():
        list(training.matches["main"].game.discriminator.parameters())[-2].fill_(3e38)
    with pytest.raises(NotFiniteError, match=r"^discriminator_loss is not finite at step 1;"):
        run(training)


# --- several games ------------------------------------------------------------------------------------------------------------


def test_games_are_played_one_after_the_other_and_told_apart(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training, played = two_games(make_config(total_images=240), make_training)
    notebook = run(training)
    assert played == ["coarse"] * 3 + ["fine"] * 9, "a quarter and three quarters of the images"
    assert {name.split("/")[0] for line in notebook.metrics[:3] for name in line.losses} == {"coarse"}
    assert {name.split("/")[0] for line in notebook.metrics[3:] for name in line.losses} == {"fine"}


def test_a_game_that_is_over_is_held_still_as_its_average(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training, _ = two_games(make_config(total_images=240, ema_halflife_images=1e9), make_training)
    run(training)
    coarse, fine = training.matches["coarse"], training.matches["fine"]
    for a, b in zip(coarse.game.generator.state_dict().values(), coarse.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not coarse.game.generator.training
    assert fine.game.generator.training
    assert not torch.equal(next(fine.game.generator.parameters()), next(fine.average.parameters()))


def test_a_run_of_several_games_and_warm_ups_resumes_bit_for_bit(make_config: MakeConfig, make_training: MakeTraining) -> None:
    config = make_config(total_images=240, checkpoint_images=1)
    whole, _ = two_games(config, make_training, warmup_share=0.5)
    checkpoints = run(whole).checkpoints
    for images in (40, 60, 80, 100, 140, 220):
        resumed, _ = two_games(config, make_training, warmup_share=0.5)
        resumed.load_state_dict(torch.load(io.BytesIO(checkpoints[images]), weights_only=True))
        run(resumed)
        assert bits(resumed) == bits(whole)


def test_phases_are_shares_of_the_run_each_game_with_its_warm_up_first(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training, _ = two_games(make_config(), make_training, warmup_share=0.5)
    found = [(phase.key, phase.warming_up, phase.start, phase.end) for phase in phases(training.games, 400)]
    assert found == [("coarse", True, 0, 50), ("coarse", False, 50, 100), ("fine", True, 100, 250), ("fine", False, 250, 400)]


def test_a_warm_up_moves_the_generator_alone(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training, _ = two_games(make_config(total_images=240), make_training, warmup_share=0.5)
    match = training.matches["coarse"]
    before = [[weight.clone() for weight in network.parameters()] for network in (match.game.generator, match.game.discriminator)]
    training.step()
    generator, discriminator = (list(network.parameters()) for network in (match.game.generator, match.game.discriminator))
    assert not any(torch.equal(a, b) for a, b in zip(before[0], generator, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], discriminator, strict=True))
    assert list(training._measure(training.phase).losses) == ["coarse/warmup_loss"]
    assert training.images == 20


def test_evaluations_are_of_the_last_phase_and_one_is_at_the_end(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training, _ = two_games(make_config(total_images=240, evaluation_images=50, num_evaluated=8), make_training, warmup_share=0.5)
    assert run(training).evaluated == [200, 240], "the step to 160 began before the last phase"


def two_games(config: TrainConfig, make_training: MakeTraining, warmup_share: float = 0.0) -> tuple[Training, list[str]]:
    """A training of two games, of a quarter and three quarters of the images, and the keys of those that were played, step by step."""
    training, other = make_training(config), make_training(config)
    played: list[str] = []

    def matched(key: str, match: Match, share: float) -> Match:
        def deal(batch: Tensors, random: torch.Generator) -> Round:
            played.append(key)
            return match.game.deal(batch, random)

        def distance(generated: Tensor, dealt: Round) -> Tensor:
            return (generated - dealt.target).abs().mean()

        warm = {"warmup_share": warmup_share, "warmup": distance, "reconstruction": distance} if warmup_share else {}
        return replace(match, game=replace(match.game, deal=deal, share=share, **warm))

    training.matches = {"coarse": matched("coarse", training.matches["main"], 1), "fine": matched("fine", other.matches["main"], 3)}
    training._phases = phases(training.games, config.total_images)
    return training, played


# --- rules --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_its_schedule(schedule: str, make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(learning_rate=0.01, learning_rate_schedule=schedule, total_images=160))
    optimizer = training.matches["main"].generator_optimizer
    rates = []
    while training.images < 160:
        training.step()
        rates.append(optimizer.param_groups[0]["lr"] / 0.01)
    wanted = {
        "constant": [1.0] * 8,
        "linear": [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25],
        "cosine": [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)],
    }
    assert rates == pytest.approx(wanted[schedule])


def test_the_scores_before_and_after_a_step_differ_and_measuring_changes_nothing(
    make_config: MakeConfig, make_training: MakeTraining
) -> None:
    training = make_training(make_config(architecture="dcgan", learning_rate=0.05, total_images=METRIC_LINES * 20))
    training.step()
    before = dict(flat(training.state_dict()))
    match = training.matches["main"]
    after = match.score_after(training.rules)
    assert dict(flat(training.state_dict())) == before
    line = training._measure(training.phase)
    assert line.losses["score_generated_after"] == after["score_generated_after"]
    assert line.losses["score_generated_after"] > line.losses["score_generated"], "the generator has moved to please"
    assert 0 < line.losses["probability_generated"] < line.losses["probability_generated_after"] < 1


def test_a_penalty_and_augmentation_are_part_of_the_step_and_of_the_resume(make_config: MakeConfig, make_training: MakeTraining) -> None:
    changes = {"penalty": "gradient-penalty", "diff_augment": ["color", "translation", "cutout"], "spectral_norm": True}
    config = make_config(architecture="dcgan", checkpoint_images=1, **changes)
    whole = make_training(config)
    notebook = run(whole)
    assert all(line.losses["penalty"] > 0 for line in notebook.metrics)
    for images in (60, 200):
        resumed = make_training(config)
        resumed.load_state_dict(torch.load(io.BytesIO(notebook.checkpoints[images]), weights_only=True))
        run(resumed)
        assert bits(resumed) == bits(whole)
    plain = make_training(make_config(architecture="dcgan"))
    run(plain)
    assert bits(plain) != bits(whole)


def test_all_that_the_discriminator_sees_is_augmented(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(diff_augment=["cutout"]))
    judged: list[Tensor] = []
    training.matches["main"].game.discriminator.register_forward_pre_hook(lambda _module, inputs: judged.append(inputs[0]))
    training.step()
    assert len(judged) == 3
    for images in judged:
        assert all((image == 0).sum() >= 16 for image in images), "a quarter of a rectangle of 8 x 8 at least is cut out"


def test_a_relativistic_generator_is_shown_the_real_images_too(make_config: MakeConfig, make_training: MakeTraining) -> None:
    training = make_training(make_config(loss="relativistic", penalty="none"))
    judged: list[Tensor] = []
    training.matches["main"].game.discriminator.register_forward_pre_hook(lambda _module, inputs: judged.append(inputs[0]))
    training.step()
    assert len(judged) == 4
    assert torch.equal(judged[3], judged[0])


def test_clipped_weights_stay_in_their_cube(make_config: MakeConfig, make_training: MakeTraining) -> None:
    config = make_config(loss="wasserstein-clip", loss_options={"weight_clip": 0.02}, learning_rate=0.1)
    training = make_training(config)
    training.step()
    largest = max(float(weight.detach().abs().max()) for weight in training.matches["main"].game.discriminator.parameters())
    assert largest == pytest.approx(0.02)
