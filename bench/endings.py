"""Whether a run ends with the best that it saw: published generators, judged anew, against the best evaluation and the last weights.

    .venv/bin/python bench/endings.py                        every row with three seeds, about an hour on 2 cores
    .venv/bin/python bench/endings.py --only "mlp on digits" --seeds 1

The data sets are registered in the state folder before: docs/quality.md says how each is had. New are the latents; the held-out images
are those of the run. What is asked for: within two standard errors of the best figure that the run saw.
"""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from samplers import CPU, at_checkpoint

from training import checkpoint
from training.evaluation import Evaluator
from training.export import generate
from training.files import runs
from training.preparation import Prepared

ROOT = Path(__file__).parent.parent
FRESH_SEED = 3_000_000  # far from those by which the run chose, and from those by which it reported
EVALUATIONS = 12


@dataclass(frozen=True)
class Row:
    """A short run, by the words of its command line."""

    name: str
    words: tuple[str, ...]
    total_images: int


ROWS = (
    Row("mlp on digits", ("--architecture", "mlp", "--dataset", "mnist", "--extractor", "digits-classifier"), 150_000),
    # a rate at which it falls apart in the end: what a run without evaluations would publish
    Row("mlp on digits, too fast", ("--architecture", "mlp", "--dataset", "mnist", "--learning-rate", "0.002"), 150_000),
    Row("dcgan on fashion", ("--architecture", "dcgan", "--dataset", "fashion-mnist", "--extractor", "fashion-classifier"), 50_000),
    Row("cgan on digits", ("--architecture", "cgan", "--dataset", "mnist", "--extractor", "digits-classifier"), 50_000),
    Row("cifar on avatars", ("--architecture", "cifar", "--dataset", "avatars-32"), 24_000),
    Row("pix2pix on emoji", ("--architecture", "pix2pix", "--dataset", "emoji-pairs-64"), 6_000),
    Row("srgan on photographs", ("--architecture", "srgan", "--dataset", "photographs-96"), 4_000),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / "state", help="folder of the registered data sets; the runs go there too")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one line, in a process of its own
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(line(next(row for row in ROWS if row.name == given.row), given.seed, given.state))
        return
    chosen = [(row, seed) for row in ROWS if not given.only or row.name in given.only for seed in range(given.seeds)]
    print("| row | seed | best seen | of images | published, judged anew | within two errors | the last weights |")
    print("|---|---|---|---|---|---|---|")
    with ThreadPoolExecutor(given.jobs) as pool:
        for cells in pool.map(lambda item: in_a_process(*item, given.state), chosen):
            print(cells, flush=True)


def in_a_process(row: Row, seed: int, state: Path) -> str:
    """One line; torch's threads are a process's."""
    command = [sys.executable, __file__, "--state", str(state), "--row", row.name, "--seed", str(seed)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def line(row: Row, seed: int, state: Path) -> str:
    torch.set_num_threads(1)
    run = state / "runs" / f"ending-{row.name.replace(' ', '-').replace(',', '')}-{seed}"
    train(row, seed, run, state)
    prepared = at_checkpoint(run, state)
    assert prepared is not None, "a run ends with a checkpoint"
    config = runs.read_config(run)
    evaluator = Evaluator.of(config, prepared.held_out, state / "weights", CPU)
    seen = [each for each in runs.read_metrics(run) if each.evaluation]
    values = [evaluator.chosen_by(each.evaluation) for each in seen]
    best = seen[best_of(values, evaluator)]
    last, _ = judged(prepared, evaluator)
    prepared.training.load_state_dict(checkpoint.load(run / runs.BEST, best.images, CPU))
    anew, error = judged(prepared, evaluator)
    reached = evaluator.chosen_by(best.evaluation)
    worse = anew - reached if evaluator.is_better(0, 1) else reached - anew
    within = "yes" if worse <= 2 * error else f"no, {worse / error:.1f} errors"
    return f"| {row.name} | {seed} | {reached:.4g} | {best.images:,} | {anew:.4g} | {within} | {last:.4g} |"


def train(row: Row, seed: int, run: Path, state: Path) -> None:
    if run.exists() and runs.read_status(run).state == "succeeded":
        return
    every = str(row.total_images // EVALUATIONS)
    fresh = [*row.words, "--seed", str(seed), "--total-images", str(row.total_images), "--evaluation-images", every, "--run-dir", str(run)]
    words = ["--resume", str(run)] if run.exists() else fresh
    places = ["--state", str(state), "--models", str(state / "ending-models"), "--device", "cpu", "--threads", "1"]
    subprocess.run([str(Path(sys.executable).parent / "ganserve"), "train", *words, *places], check=True, capture_output=True)


def best_of(values: Sequence[float], evaluator: Evaluator) -> int:
    best = 0
    for row, value in enumerate(values):
        if evaluator.is_better(value, values[best]):
            best = row
    return best


def judged(prepared: Prepared, evaluator: Evaluator) -> tuple[float, float]:
    """The figure that chooses, of fresh latents, and its standard error: KID's own, or PSNR's over the images."""
    generated = generate(prepared.players["generator"], evaluator.held_out, FRESH_SEED)
    values = evaluator.quick(generated)
    value = evaluator.chosen_by(values)
    suffix = f"kid_{evaluator.extractor.suffix}"
    if f"{suffix}_low" in values:
        return value, (values[f"{suffix}_high"] - values[f"{suffix}_low"]) / (2 * 1.96)
    targets = evaluator.held_out.images
    squares = (generated.clamp(-1, 1) - targets).square().flatten(1).mean(1)
    decibels = 10 * torch.log10(4 / squares)  # of each image, in [-1, 1]
    return value, float(decibels.std()) / math.sqrt(len(decibels))


if __name__ == "__main__":
    main()
