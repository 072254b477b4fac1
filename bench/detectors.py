"""Runs built to fail, and healthy ones: which detector fires in which. Each is trained as a user would, with clothes and digits.

    .venv/bin/python bench/detectors.py
    .venv/bin/python bench/detectors.py --only "50 images" --jobs 1

Needs nothing beside the project: the images are of the built-in set fashion-mnist-10k. Runs and models lie in a folder that is thrown
away, or in `--keep`. About ten minutes on two idle cores.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import GANSERVE

from training import datasets
from training.contract import TrainConfig, train_command
from training.datasets import About, Batch
from training.files import runs

BUILT_IN, FIFTY, NUM_HELD_OUT = "fashion-mnist-10k", "fifty-images", 64
SMALL = {"generator_width": 16, "discriminator_width": 16}  # of convolutional networks: a core trains them in minutes
EVERY = {"num_evaluated": 500, "sample_images": 10**9}


@dataclass(frozen=True)
class Row:
    """A run, and the kinds of findings of which it must have one; none for a healthy run, which must have none at all."""

    name: str
    config: Mapping[str, object]
    wanted: frozenset[str] = field(default_factory=frozenset)


SURE_OR_BROKEN = frozenset({"discriminator-saturated", "not-finite", "generator-collapsed"})
ROWS = (
    Row(
        "learning rate 1",
        {"architecture": "mlp", "learning_rate": 1.0, "total_images": 60_000, "evaluation_images": 15_000},
        SURE_OR_BROKEN,
    ),
    Row(
        "discriminator far too strong",
        {
            "architecture": "mlp",
            "discriminator": {"learning_rate": 0.01},
            "generator": {"learning_rate": 1e-6},
            "total_images": 60_000,
            "evaluation_images": 15_000,
        },
        frozenset({"discriminator-saturated"}),
    ),
    Row(
        "50 images",
        {
            "architecture": "mlp",
            "dataset": FIFTY,
            "batch_size": 10,
            "learning_rate": 5e-4,
            "ema_halflife_images": 1000.0,
            "total_images": 100_000,
            "evaluation_images": 12_500,
        },
        frozenset({"memorising"}),
    ),
    Row("mlp", {"architecture": "mlp", "total_images": 200_000, "evaluation_images": 20_000}),
    Row("dcgan", {"architecture": "dcgan", "options": SMALL, "total_images": 130_000, "evaluation_images": 13_000}),
    Row(
        "cgan",
        {
            "architecture": "cgan",
            "options": SMALL,
            "extractor": "fashion-classifier",
            "total_images": 130_000,
            "evaluation_images": 13_000,
        },
    ),
)


def add_fifty(state: Path) -> None:
    """A set of which 50 images are left to train on."""
    images = datasets.load(BUILT_IN, state / "datasets").images
    some = np.array(images[:: len(images) // (50 + NUM_HELD_OUT)][: 50 + NUM_HELD_OUT])
    datasets.write(FIFTY, state / "datasets", About((1, 28, 28), "Fashion-MNIST", "MIT"), [Batch(some)])


def train(row: Row, state: Path) -> tuple[Row, list[str]]:
    """What was found in a run, each with the images at which it was."""
    name = row.name.replace(" ", "-")
    config = TrainConfig.model_validate({"name": name, "dataset": BUILT_IN, **EVERY, **row.config})
    words = [
        *shlex.split(train_command(config))[1:],
        "--state",
        str(state),
        "--models",
        str(state / "models"),
        "--run-dir",
        str(state / name),
    ]
    command = [GANSERVE, *words, "--device", "cpu", "--threads", "1"]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    status = runs.read_status(state / name)
    print(f"{row.name}: {status.state}, {status.message}", file=sys.stderr, flush=True)
    for finding in status.findings:
        print(f"  at {finding.images:,} images: {finding.message}", file=sys.stderr, flush=True)
    return row, [f"{finding.kind} at {finding.images:,}" for finding in status.findings]


def is_right(row: Row, found: list[str]) -> bool:
    kinds = {each.split()[0] for each in found}
    return bool(kinds & row.wanted) if row.wanted else not kinds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a row's name; may be given again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--keep", type=Path, help="folder for the runs; thrown away when left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        state = given.keep or Path(temporary)
        add_fifty(state)
        with ThreadPoolExecutor(given.jobs) as pool:
            rows = [row for row in ROWS if not given.only or row.name in given.only]
            results = list(pool.map(lambda row: train(row, state), rows))
    print("| run | built to | found | as it should |")
    print("|---|---|---|---|")
    for row, found in results:
        cells = [row.name, "fail" if row.wanted else "succeed", ", ".join(found) or "nothing", "yes" if is_right(row, found) else "NO"]
        print(f"| {' | '.join(cells)} |")
    return 0 if all(is_right(row, found) for row, found in results) else 1


if __name__ == "__main__":
    sys.exit(main())
