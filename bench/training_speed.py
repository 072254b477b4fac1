"""How fast a step of training is: against the loop of the tutorials, with penalties against without, and for every architecture.

    .venv/bin/python bench/training_speed.py                          all three tables, about 20 minutes on 2 idle cores
    .venv/bin/python bench/training_speed.py --only textbook --rounds 9

Sides take turns in one process, so that a busy moment hurts them alike; medians, and the range over the rounds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from textbook import loop, unfused

from training import catalog, datasets, tuning
from training.contract import TrainConfig
from training.data import Batches, split
from training.datasets import About, Batch
from training.files.machine import num_cores
from training.game import DataSpec, Norm, Terms
from training.loop import Training
from training.match import Match, Rules

CPU = torch.device("cpu")
NUM_IMAGES = 5000
SECONDS = 1.5  # of a side's turn, at least one step


@dataclass(frozen=True)
class Case:
    """An architecture with its own options on images of a size, and what the comparison is asked to reach."""

    name: str
    shape: tuple[int, int, int]
    batch_size: int
    wanted: float


TEXTBOOK = (Case("mlp", (1, 28, 28), 128, 2.2), Case("cifar", (3, 32, 32), 32, 1.35), Case("dcgan", (3, 64, 64), 128, 1.3))
PENALISED = (Case("mlp", (1, 28, 28), 128, 1.5), Case("cifar", (3, 32, 32), 32, 1.35), Case("dcgan", (3, 64, 64), 32, 2.0))
LAZY = 1.3
NORM_FREE = ("dcgan",)
SHAPES = {"mlp": (1, 28, 28), "dcgan": (3, 64, 64), "pix2pix": (3, 64, 64), "srgan": (3, 96, 96)}  # 3 x 32 x 32 for all others
STEPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["textbook", "penalties", "architectures"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--architecture", help=argparse.SUPPRESS)  # one row of the third table, in a process of its own
    given = parser.parse_args()
    if given.architecture:
        print(one_architecture(given.architecture))
        return
    for name, table in (("textbook", textbook), ("penalties", penalties), ("architectures", architectures)):
        if given.only in (None, name):
            for line in table(given.rounds):
                print(line, flush=True)
            print()


# --- against the textbook -----------------------------------------------------------------------------------------------------


def textbook(rounds: int) -> Iterator[str]:
    heads = ["network", "size", "batch", "textbook images/s", "ours, same networks", "times (wanted)"]
    heads += ["doubling folded in", "times", "and in bfloat16", "times"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for case in TEXTBOOK:
        with tempfile.TemporaryDirectory() as folder:
            sides = {f"textbook {workers}": tutorial(case, workers) for workers in (0, num_cores())}
            sides["same"], sides["folded"] = ours(case, Path(folder), fold=False), ours(case, Path(folder))
            sides["half"] = ours(case, Path(folder), precision="bfloat16")
            rates = take_turns(sides, rounds, case.batch_size)
        best = max(("textbook 0", f"textbook {num_cores()}"), key=lambda side: statistics.median(rates[side]))
        same, folded, half = (times(rates[side], rates[best]) for side in ("same", "folded", "half"))
        size = "x".join(map(str, case.shape))
        folded_cells = f"{span(rates['folded'])} | {folded}" if case.name == "cifar" else "- | -"
        cells = f"{span(rates[best])} ({best.split()[1]} workers) | {span(rates['same'])} | {same} ({case.wanted})"
        yield f"| {case.name} | {size} | {case.batch_size} | {cells} | {folded_cells} | {span(rates['half'])} | {half} |"


def tutorial(case: Case, num_workers: int) -> Callable[[], None]:
    """A step of the textbook's loop, with torch's own number of threads."""
    architecture = catalog.architectures()[case.name]()
    torch.manual_seed(0)
    game = architecture.games(DataSpec(case.shape), Terms("batch"))["main"]
    latent_size = architecture.latent_size  # type: ignore[attr-defined]
    steps = loop(unfused(game.generator), game.discriminator, pixels(case.shape), latent_size, case.batch_size, num_workers)

    def step() -> None:
        torch.set_num_threads(num_cores())
        next(steps)

    return step


def ours(case: Case, folder: Path, *, fold: bool = True, norm: Norm = "batch", **asked: object) -> Callable[[], None]:
    """A step of our loop as `ganserve train` plays it, with the threads and the layout that it would choose."""
    training = a_training(case, folder, norm, fold=fold, **asked)
    chosen = tuning.fastest(training, tuning.candidates(CPU, None, None))

    def step() -> None:
        torch.set_num_threads(chosen.num_threads)
        training.step()

    tuning.apply(training, chosen)
    return step


def a_training(case: Case, folder: Path, norm: Norm, *, fold: bool = True, **asked: object) -> Training:
    """A fresh one on random pixels, which have classes and sources for who wants them."""
    torch.manual_seed(0)
    name = f"random-{'x'.join(map(str, case.shape))}"
    if not (folder / name).exists():
        register(name, folder, case.shape)
    values = {"architecture": case.name, "dataset": name, "total_images": 10**9, "num_evaluated": 0, "batch_size": case.batch_size}
    config = catalog.resolve(TrainConfig.model_validate({"recipe": False} | values | asked), folder, ())
    combination = catalog.build(config)
    dataset = datasets.load(name, folder)
    games = combination.architecture.games(DataSpec.of(dataset.card), Terms(norm))
    if not fold:
        games = {key: replace(game, generator=unfused(game.generator)) for key, game in games.items()}
    rules = replace(Rules.of(config, combination), samplewise=norm != "batch")
    batches = Batches(dataset, split(dataset, 500).train, config.batch_size, torch.Generator().manual_seed(1), CPU)
    matches = {key: Match.of(game, config, CPU) for key, game in games.items()}
    return Training(matches, rules, batches, config, torch.Generator().manual_seed(2))


def pixels(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, *shape), dtype=np.uint8)


def register(name: str, folder: Path, shape: tuple[int, int, int]) -> None:
    about = About(shape, "random numbers", "CC0", class_names=tuple("abcdefghij"), source_shape=shape)
    images = pixels(shape)
    datasets.write(name, folder, about, [Batch(images, labels=np.arange(NUM_IMAGES) % 10, sources=images[::-1].copy())])


# --- penalties ----------------------------------------------------------------------------------------------------------------


def penalties(rounds: int) -> Iterator[str]:
    """R1 + R2 against no penalty at all; where there is a norm, a penalty wants it over each image by itself."""
    yield "| network | size | batch | plain images/s | R1 + R2, cost of a step (at most) | at every 4th step (at most) |"
    yield "|---|---|---|---|---|---|"
    for case in PENALISED:
        plain, penalised = ("none", "none") if case.name in NORM_FREE else ("batch", "sample")
        with tempfile.TemporaryDirectory() as folder:
            both = {"penalty": "r1-r2"}
            sides = {
                "plain": ours(case, Path(folder), norm=plain),  # type: ignore[arg-type]
                "penalised": ours(case, Path(folder), norm=penalised, **both),  # type: ignore[arg-type]
                "lazy": repeated(4, ours(case, Path(folder), norm=penalised, penalty_interval=4, **both)),  # type: ignore[arg-type]
            }
            rates = take_turns(sides, rounds, case.batch_size)
        rates["lazy"] = [4 * rate for rate in rates["lazy"]]
        costs = [times(rates["plain"], rates[side]) for side in ("penalised", "lazy")]
        name = f"{case.name}{', no norm' if case.name in NORM_FREE else ''}"
        size = "x".join(map(str, case.shape))
        yield f"| {name} | {size} | {case.batch_size} | {span(rates['plain'])} | {costs[0]} ({case.wanted}) | {costs[1]} ({LAZY}) |"


def repeated(count: int, step: Callable[[], None]) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(count):
            step()

    return steps


# --- every architecture -------------------------------------------------------------------------------------------------------


def architectures(_rounds: int) -> Iterator[str]:
    """Each at its own recipe, in a process of its own, so that the memory is its own too."""
    yield "| architecture | size | batch | images/s | s/kimg | peak memory, MB | chosen |"
    yield "|---|---|---|---|---|---|---|"
    for key in catalog.architectures():
        command = [sys.executable, __file__, "--architecture", key]
        yield subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def one_architecture(key: str) -> str:
    case = Case(key, SHAPES.get(key, (3, 32, 32)), 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        register("some", Path(folder), case.shape)
        asked = TrainConfig(architecture=key, dataset="some", total_images=10**9, num_evaluated=0)
        config = catalog.resolve(asked, Path(folder), ())
        case = replace(case, batch_size=config.batch_size)
        training = a_training(case, Path(folder), catalog.build(config).norm, **recipe_of(config))
        chosen = tuning.fastest(training, tuning.candidates(CPU, None, None))
        tuning.apply(training, chosen)
        taken = []
        for _ in range(STEPS):
            begin, before = time.perf_counter(), training.images
            training.rehearse()
            taken.append((training.images - before) / (time.perf_counter() - begin))
    memory = peak_memory_mb()
    rate = statistics.median(taken)
    words = f"{chosen.num_threads} threads, {chosen.memory_layout}"
    size = "x".join(map(str, case.shape))
    return f"| {key} | {size} | {config.batch_size} | {span(taken)} | {1000 / rate:.1f} | {memory:,.0f} | {words} |"


def peak_memory_mb() -> float:
    """Of this program alone: `getrusage` counts what the process was before it became it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def recipe_of(config: TrainConfig) -> dict[str, object]:
    """What the architecture's recipe has made of the config, beside what a case says itself."""
    said = {"architecture", "dataset", "total_images", "num_evaluated", "batch_size", "recipe", "name"}
    return config.model_dump(exclude=said)


# --- the clock ----------------------------------------------------------------------------------------------------------------


def take_turns(sides: dict[str, Callable[[], None]], rounds: int, batch_size: int) -> dict[str, list[float]]:
    """Images a second of each side in each round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step()  # what is done once is not counted
    for _ in range(rounds):
        for name, step in sides.items():
            step()
            steps, begin = 0, time.perf_counter()
            while steps == 0 or time.perf_counter() - begin < SECONDS:
                step()
                steps += 1
            rates[name].append(steps * batch_size / (time.perf_counter() - begin))
    return rates


def times(rates: Sequence[float], base: Sequence[float]) -> str:
    """How many times the other: the median and the range over the rounds."""
    ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def span(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


if __name__ == "__main__":
    main()
