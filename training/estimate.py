"""What a run will take, before it is begun: its networks' sizes and its memory as computed, its steps and their time as measured.

The run is prepared as the worker prepares it and plays a few real steps; then all of it is thrown away. Nothing is written.
"""

import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.blueprint import Blueprint
from training.contract import DatasetCard, TrainConfig
from training.data import split
from training.datasets import Dataset
from training.evaluation import Evaluator
from training.export import generate
from training.game import DataSpec, Game, Tensors
from training.loop import Training
from training.phases import Phase, phases
from training.preparation import Places, Prepared, prepare
from training.tuning import set_up_torch, wait_for

MEASURED_SECONDS = 3.0  # of each phase, and FEWEST_STEPS at least
FEWEST_STEPS, WARMING_STEPS = 3, 2  # the first steps of a process are slow: memory is allocated, kernels are chosen
MOST_STEPS_AT_ONCE = 64  # of a run whose penalties come at every so many-th step only; a rarer one hardly counts
COUNTED_ROWS = 2  # batch norm refuses a single one
EVALUATED = (32, 96)  # images of two small evaluations, by which the time of a whole one is judged


@dataclass(frozen=True)
class NetworkSize:
    """One network of a game, `level-8/generator` where there are several games."""

    name: str
    num_parameters: int
    multiply_accumulates: int  # of convolutions and matrix products, forward, for one image


@dataclass(frozen=True)
class Memory:
    """Bytes. What comes between, above all the activations, is in the peak alone."""

    weights: int  # and the statistics of norms
    gradients: int
    moments: int  # Adam's two
    average: int  # the generator's moving average
    dataset: int  # of the images that are trained on, with labels and sources
    peak: int  # measured: of the device where it is a GPU by CUDA, else of this process, its libraries included


@dataclass(frozen=True)
class PhaseTime:
    """A stretch of the run in which every step is of one kind; `measured` are seconds of steps that were played, one at least."""

    name: str
    images_per_step: int
    num_steps: int
    measured: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Of the whole phase. By the mean: a penalty at every 16th step makes that one slow, and the median knows nothing of it."""
        return self.num_steps * mean(self.measured)


@dataclass(frozen=True)
class Estimate:
    """`num_checkpoints`, `num_samples` and `num_evaluations` count those at the end too."""

    num_trained_on: int
    num_held_out: int
    networks: tuple[NetworkSize, ...]
    memory: Memory
    phases: tuple[PhaseTime, ...]
    num_checkpoints: int
    num_samples: int
    num_evaluations: int
    evaluation_seconds: float  # of each; 0 where there is none

    @property
    def seconds(self) -> float:
        """Of all steps and evaluations; what checkpoints and samples take is not in it."""
        return sum(phase.seconds for phase in self.phases) + self.num_evaluations * self.evaluation_seconds


def estimate(config: TrainConfig, dataset: Dataset, places: Places, device: torch.device, num_threads: int) -> Estimate:
    """Measure a run for some seconds a phase.

    Args:
        config: resolved.
        num_threads: intra-op threads, as the run will have.

    Raises:
        UserError: the run cannot be prepared.
    """
    torch.set_num_threads(num_threads)
    set_up_torch()
    networks = network_sizes(config, dataset.card, places.weights)
    prepared = prepare(config, dataset, places, device)
    parts = split(dataset, config.num_held_out(dataset.card.num_images))
    schedule = Schedule.of(prepared.training.games, config)
    measured = _played(prepared.training, [stretch.phase for stretch in schedule.stretches], config, device)
    evaluation_seconds = _evaluation_seconds(config, prepared, places, device) if config.num_evaluated else 0.0
    return Estimate(
        len(parts.train),
        len(parts.held_out),
        networks,
        _memory(prepared, dataset, len(parts.train), device),
        tuple(
            PhaseTime(stretch.name, stretch.images_per_step, stretch.num_steps, seconds)
            for stretch, seconds in zip(schedule.stretches, measured, strict=True)
        ),
        schedule.num_checkpoints,
        schedule.num_samples,
        schedule.num_evaluations,
        evaluation_seconds,
    )


# --- the networks -------------------------------------------------------------------------------------------------------------


def network_sizes(config: TrainConfig, card: DatasetCard, weights: Path) -> tuple[NetworkSize, ...]:
    """Of every game's two networks, counted on shapes alone.

    Args:
        weights: the folder of weights files that were put there by hand.
    """
    games = Blueprint.of(config, card, weights).games
    sizes = []
    with torch.device("meta"), torch.no_grad():
        for key, game in games.items():
            dealt = game.deal(_batch(DataSpec.of(card)), torch.Generator("cpu"))
            given = {"generator": dealt.inputs, "discriminator": {"image": dealt.target, **dealt.condition}}
            for player, module in (("generator", game.generator), ("discriminator", game.discriminator)):
                name = f"{key}/{player}" if len(games) > 1 else player
                sizes.append(NetworkSize(name, _num_parameters(module), _multiply_accumulates(module, given[player])))
    return tuple(sizes)


def _batch(data: DataSpec) -> Tensors:
    batch = {"image": torch.empty(COUNTED_ROWS, *data.shape)}
    if data.class_names is not None:
        batch["label"] = torch.empty(COUNTED_ROWS, len(data.class_names))
    if data.source_shape is not None:
        batch["source"] = torch.empty(COUNTED_ROWS, *data.source_shape)
    return batch


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _multiply_accumulates(module: nn.Module, inputs: Tensors) -> int:
    with FlopCounterMode(display=False) as counter:
        module(**inputs)
    return int(counter.get_total_flops()) // (2 * COUNTED_ROWS)  # a multiplication and an addition each


# --- memory -------------------------------------------------------------------------------------------------------------------


def _memory(prepared: Prepared, dataset: Dataset, num_trained_on: int, device: torch.device) -> Memory:
    matches = prepared.training.matches.values()
    networks = [network for match in matches for network in (match.game.generator, match.game.discriminator)]
    parameters = sum(_bytes(network.parameters()) for network in networks)
    arrays = [array for array in (dataset.images, dataset.labels, dataset.sources) if array is not None]
    return Memory(
        weights=parameters + sum(_bytes(network.buffers()) for network in networks),
        gradients=parameters,
        moments=2 * parameters,
        average=sum(_bytes(chain(match.average.parameters(), match.average.buffers())) for match in matches),
        dataset=sum(array.nbytes for array in arrays) * num_trained_on // len(dataset.images),
        peak=_peak_bytes(device),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- steps --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """A phase as the loop will play it."""

    phase: Phase
    images_per_step: int
    num_steps: int

    @property
    def name(self) -> str:
        return f"{self.phase.key}, warm-up" if self.phase.warming_up else self.phase.key


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, and what is done between them; counts are with those at the end."""

    config: TrainConfig
    stretches: tuple[Stretch, ...]

    @classmethod
    def of(cls, games: Mapping[str, Game], config: TrainConfig) -> "Schedule":
        found, images = [], 0
        for phase in phases(games, config.total_images):
            size = config.batch_size * (1 if phase.warming_up else config.critic_steps)
            # a step may take what is left of one phase and the start of the next
            num_steps = max(0, -(-(phase.end - images) // size))
            images += num_steps * size
            found.append(Stretch(phase, size, num_steps))
        return cls(config, tuple(found))

    @property
    def num_checkpoints(self) -> int:
        return _num_at(self.stretches, self.config.checkpoint_images)

    @property
    def num_samples(self) -> int:
        return _num_at(self.stretches, self.config.sample_images)

    @property
    def num_evaluations(self) -> int:
        """In the last phase, at its end, and the thorough one of what is published."""
        if not self.config.num_evaluated:
            return 0
        every = self.config.evaluation_images
        return _num_at(self.stretches, every) - _num_crossed(self.stretches[:-1], every) + 1


def _num_crossed(stretches: Sequence[Stretch], every: int) -> int:
    """How many steps reach a multiple of `every`."""
    found, images = 0, 0
    for stretch in stretches:
        before, images = images, images + stretch.num_steps * stretch.images_per_step
        crossed = images // every - before // every
        found += crossed if stretch.images_per_step <= every else stretch.num_steps
    return found


def _num_at(stretches: Sequence[Stretch], every: int) -> int:
    """What is done at each multiple of `every`, and once at the end."""
    *begin, last = stretches
    return _num_crossed([*begin, replace(last, num_steps=last.num_steps - 1)], every) + 1


def _played(training: Training, stretches: Sequence[Phase], config: TrainConfig, device: torch.device) -> list[tuple[float, ...]]:
    """Seconds of some steps of each phase."""
    found = []
    for before, phase in pairwise([stretches[0], *stretches]):
        if before.key != phase.key:
            training.matches[before.key].end()
        at_once = 1 if phase.warming_up else min(config.penalty_interval, MOST_STEPS_AT_ONCE)
        found.append(_timed(training, phase.start, at_once, device))
    return found


def _timed(training: Training, images: int, at_once: int, device: torch.device) -> tuple[float, ...]:
    """Seconds of the steps after the first ones, at `images` of the run; a multiple of `at_once` of them."""
    seconds: list[float] = []
    while len(seconds) < WARMING_STEPS + FEWEST_STEPS or sum(seconds[WARMING_STEPS:]) < MEASURED_SECONDS:
        for _ in range(at_once if len(seconds) >= WARMING_STEPS else 1):
            training.images = images  # a phase may be shorter than what is measured of it
            begin = time.perf_counter()
            training.step()
            wait_for(device)
            seconds.append(time.perf_counter() - begin)
    return tuple(seconds[WARMING_STEPS:])


def _evaluation_seconds(config: TrainConfig, prepared: Prepared, places: Places, device: torch.device) -> float:
    """Of one evaluation: a part that grows with the number of images and one that does not, from two small ones."""
    num_evaluated = min(config.num_evaluated, len(prepared.held_out.images))
    few, more = (min(count, num_evaluated) for count in EVALUATED)
    seconds = [_seconds_of_evaluating(count, config, prepared, places, device) for count in (few, more)]
    each = max(0.0, seconds[1] - seconds[0]) / max(1, more - few)
    return seconds[1] + each * (num_evaluated - more)


def _seconds_of_evaluating(count: int, config: TrainConfig, prepared: Prepared, places: Places, device: torch.device) -> float:
    some = prepared.held_out.some(count)
    evaluator = Evaluator.of(config.model_copy(update={"num_evaluated": count}), some, places.weights, device, prepared.trained_on)
    generator = prepared.players["generator"]
    evaluator.quick(generate(generator, some))  # what is computed of the held-out images alone is computed once
    begin = time.perf_counter()
    evaluator.quick(generate(generator, some))
    return time.perf_counter() - begin
