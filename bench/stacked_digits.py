"""Stacked digits: three digits as the three colours of an image, a thousand kinds in all; how many of them a generator makes.

    .venv/bin/python bench/stacked_digits.py                     100 minutes of r3gan, 30 of the plain dcgan, on 2 idle cores
    .venv/bin/python bench/stacked_digits.py --side r3gan --minutes 10

Cut at any time, it goes on where it was: the runs stay in the state folder, and minutes are those of training. The data set mnist is
registered there before (`ganserve datasets add mnist`). Of 26,000 samples the digits-classifier names the three digits, as in Lin et al.
2018, arXiv:1712.04086; the divergence is that of the kinds from the data's, where all are as frequent.
"""

import argparse
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from samplers import at_checkpoint
from torch import Tensor

from training import datasets
from training.classifier import load_classifier
from training.datasets import About, Batch
from training.export import draw_inputs
from training.files import runs

ROOT = Path(__file__).parent.parent
NAME, NUM_IMAGES, NUM_SAMPLES, NUM_KINDS = "stacked-digits", 60_000, 26_000, 1000


@dataclass(frozen=True)
class Side:
    """A run, by the words of its command line, and for how long."""

    words: tuple[str, ...]
    minutes: float


SIDES = {
    # its recipe is the relativistic loss with R1 + R2 on networks without norms; the penalty is heavier than there, for more kinds early
    "r3gan": Side(("--architecture", "r3gan", "--penalty-options.weight", "5", "--total-images", "700000"), 100.0),
    "dcgan, plain": Side(("--architecture", "dcgan", "--recipe=false", "--total-images", "3000000", "--ema-halflife-images", "0"), 30.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / "state", help="folder of the registered data sets; the runs go there too")
    parser.add_argument("--side", action="append", choices=list(SIDES))
    parser.add_argument("--minutes", type=float, help="of training, in place of each side's own")
    given = parser.parse_args()
    register(given.state / "datasets")
    print("| side | minutes | images seen | kinds of 1000 | divergence |")
    print("|---|---|---|---|---|")
    for name in given.side or SIDES:
        side = SIDES[name]
        run = given.state / "runs" / f"stacked-digits-{name.split(',', maxsplit=1)[0]}"
        train(side, run, given.state, 60 * (given.minutes or side.minutes))
        seconds = runs.read_metrics(run)[-1].seconds
        images = runs.checkpoint_images(run)
        kinds, divergence = judged(run, given.state)
        print(f"| {name} | {seconds / 60:.0f} | {images:,} | {kinds} | {divergence:.3f} |", flush=True)


def register(folder: Path) -> None:
    """Triples of MNIST's digits, drawn with a fixed seed."""
    if NAME in datasets.known(folder):
        return
    digits = datasets.load("mnist", folder)
    rows = np.random.default_rng(0).integers(0, len(digits.images), (NUM_IMAGES, 3))
    about = About((3, *digits.card.shape[1:]), "triples of MNIST's digits", digits.card.licence)
    batches = [Batch(digits.images[part, 0]) for part in np.array_split(rows, 20)]
    datasets.write(NAME, folder, about, batches)


def train(side: Side, run: Path, state: Path, seconds: float) -> None:
    """Until it has trained for so long, over all attempts."""
    if seconds_of(run) >= seconds:
        return
    fresh = [*side.words, "--dataset", NAME, "--num-evaluated", "0", "--run-dir", str(run)]
    words = ["--resume", str(run)] if run.exists() else fresh
    places = ["--state", str(state), "--models", str(state / "stacked-models"), "--device", "cpu"]
    process = subprocess.Popen([str(Path(sys.executable).parent / "ganserve"), "train", *words, *places], stderr=subprocess.DEVNULL)
    while process.poll() is None and seconds_of(run) < seconds:
        time.sleep(1)
    if process.poll() is None:
        runs.ask_to_stop(run)
    process.wait()


def seconds_of(run: Path) -> float:
    lines = runs.read_metrics(run) if run.exists() else []
    return lines[-1].seconds if lines else 0.0


def judged(run: Path, state: Path) -> tuple[int, float]:
    """How many kinds there are, and their divergence from even shares, in nats."""
    prepared = at_checkpoint(run, state)
    assert prepared is not None, "it was stopped with a checkpoint"
    generator, classifier = prepared.players["generator"], load_classifier("digits-classifier")
    named = []
    with torch.inference_mode():
        for start in range(0, NUM_SAMPLES, 500):
            inputs = draw_inputs(generator.inputs, range(start, start + 500), {})
            images: Tensor = generator.module.eval()(**inputs).clamp(-1, 1)
            digits = classifier.probabilities(images.flatten(0, 1).unsqueeze(1)).argmax(1).view(-1, 3)
            named.append(digits @ torch.tensor([100, 10, 1]))
    counts = torch.bincount(torch.cat(named), minlength=NUM_KINDS).double()
    shares = counts[counts > 0] / counts.sum()
    return int((counts > 0).sum()), float((shares * shares.log()).sum()) + math.log(NUM_KINDS)


if __name__ == "__main__":
    main()
