"""Whether generated images help a small classifier that has few real ones: beside nothing, and beside flips and shifts.

    .venv/bin/python bench/augmentation.py                         about 30 minutes on one idle core
    .venv/bin/python bench/augmentation.py --few 10 --seeds 1 --sheet few.png

Of the built-in set, every other image of a class is put aside for the test, and the few are drawn from the rest. The GAN, `cgan` with
DiffAugment, is trained on the same few images as the classifier and on nothing else, all of them, and is taken as it stands at the end:
no other image has chosen anything. Every classifier takes the same number of steps of the same size; with generated images, half of
each batch is generated. A row of the table is the mean over the seeds, each with its own few images, its own GAN and its own classifiers;
the standard error is that of this mean, and the gain is taken seed by seed, on the same few images.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from app.pixels import grid, to_uint8
from training import catalog, datasets
from training.classifier import LEARNING_RATE, Classifier, shifted
from training.contract import TrainConfig
from training.data import Batches, rows_of, to_images
from training.datasets import About, Batch, Dataset
from training.export import as_served, draw_inputs
from training.game import DataSpec, Terms
from training.loop import Training
from training.match import Match, Rules

SET = "fashion-mnist-10k"
CPU = torch.device("cpu")
GAN = {
    "architecture": "cgan",
    "diff_augment": ["color", "translation", "cutout"],
    "batch_size": 32,
    "penalty_interval": 4,
    "total_images": 64_000,
    "num_evaluated": 0,
}
NUM_GENERATED = 1000  # a class
NUM_STEPS, BATCH_SIZE = 250, 64


@dataclass(frozen=True)
class Arm:
    """A way to train the classifier. moved: real images are flipped and shifted; generated: half of each batch is."""

    name: str
    moved: bool
    generated: bool


ARMS = (
    Arm("real images alone", moved=False, generated=False),
    Arm("flips and shifts", moved=True, generated=False),
    Arm("generated images", moved=False, generated=True),
    Arm("flips, shifts and generated images", moved=True, generated=True),
)


@dataclass(frozen=True)
class Labelled:
    """images: (N, C, H, W) in [-1, 1]; labels: (N,)."""

    images: Tensor
    labels: Tensor

    def take(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.labels), (count,), generator=random)
        return self.images[rows], self.labels[rows]


# --- data ---------------------------------------------------------------------------------------------------------------------


def divided(dataset: Dataset) -> tuple[list[np.ndarray], Labelled]:
    """Rows of each class that the few are drawn from, and the test: every other image of each class."""
    assert dataset.labels is not None
    of_class = [np.flatnonzero(dataset.labels == label) for label in range(len(dataset.card.class_names or ()))]
    rows = np.sort(np.concatenate([each[1::2] for each in of_class]))
    return [each[::2] for each in of_class], _labelled(dataset, rows)


def draw_few(dataset: Dataset, of_class: Sequence[np.ndarray], count: int, seed: int, folder: Path) -> Dataset:
    """A registered set of so many images a class, as a user would have."""
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.permutation(each)[:count] for each in of_class])
    assert dataset.labels is not None
    about = About((1, 28, 28), dataset.card.source, dataset.card.licence, dataset.card.class_names)
    name = f"few-{count}-{seed}"
    datasets.write(name, folder, about, [Batch(np.array(dataset.images[rows]), np.array(dataset.labels[rows]))])
    return datasets.load(name, folder)


def _labelled(dataset: Dataset, rows: np.ndarray) -> Labelled:
    assert dataset.labels is not None
    return Labelled(to_images(torch.from_numpy(dataset.images[rows])), torch.from_numpy(dataset.labels[rows]))


# --- the two networks ---------------------------------------------------------------------------------------------------------


def generated(few: Dataset, seed: int, folder: Path) -> Labelled:
    """What a GAN makes that has seen these images, all of them, and no other."""
    asked = TrainConfig.model_validate(GAN | {"dataset": few.card.name, "seed": seed})
    config = catalog.resolve(asked, folder, ())
    combination, data, rows = catalog.build(config), DataSpec.of(few.card), torch.arange(few.card.num_images)
    torch.manual_seed(seed)
    games = combination.architecture.games(data, Terms(combination.norm))
    combination.architecture.fit(games, rows_of(few, rows)["image"])
    matches = {key: Match.of(game, config, CPU) for key, game in games.items()}
    batches = Batches(few, rows, config.batch_size, torch.Generator().manual_seed(seed + 1), CPU)
    training = Training(matches, Rules.of(config, combination), batches, config, torch.Generator().manual_seed(seed + 2))
    while training.images < config.total_images:
        training.step()
    training.check_finite()
    averaged = {key: match.averaged_game for key, match in matches.items()}
    player = combination.architecture.players(averaged, data=data, score=combination.loss.score)["generator"]
    num_classes = len(data.class_names or ())
    labels = torch.arange(NUM_GENERATED * num_classes) % num_classes
    inputs = draw_inputs(player.inputs, range(len(labels)), {"label": F.one_hot(labels, num_classes).float()})
    module = as_served(player)
    with torch.inference_mode():
        parts = [module(**{name: rows[at : at + 500] for name, rows in inputs.items()}) for at in range(0, len(labels), 500)]
    return Labelled(torch.cat(parts).clone(), labels)


def accuracy(arm: Arm, real: Labelled, made: Labelled, test: Labelled, seed: int) -> float:
    """Of a classifier trained in this way, on the test, in percent."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    classifier = Classifier(int(test.labels.max()) + 1)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=NUM_STEPS)
    for _ in range(NUM_STEPS):
        images, labels = real.take(BATCH_SIZE // 2 if arm.generated else BATCH_SIZE, random)
        if arm.generated:
            more = made.take(BATCH_SIZE // 2, random)
            images, labels = torch.cat([images, more[0]]), torch.cat([labels, more[1]])
        if arm.moved:
            images = shifted(flipped(images, random), random)
        loss = F.cross_entropy(classifier(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    named = classifier.requires_grad_(False).eval().probabilities(test.images).argmax(1)
    return 100 * float((named == test.labels).double().mean())


def flipped(images: Tensor, random: torch.Generator) -> Tensor:
    """Half of them, left to right."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=random) < 0.5
    return torch.where(chosen, images.flip(3), images)


# --- the table ----------------------------------------------------------------------------------------------------------------


def table(few: int, figures: dict[str, list[float]]) -> list[str]:
    alone = figures[ARMS[0].name]
    rows = []
    for arm in ARMS:
        gains = [accuracy - before for accuracy, before in zip(figures[arm.name], alone, strict=True)]
        gain = "" if arm is ARMS[0] else _mean(gains, sign="+")
        rows.append(f"| {few} | {arm.name} | {_mean(figures[arm.name])} | {gain} |")
    return rows


def _mean(values: Sequence[float], sign: str = "") -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, action="append", help="real images a class; 10, 30 and 100 when left out")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--sheet", type=Path, help="write a PNG of the first GAN's images, a row a class, beside the few real ones")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dataset = datasets.load(SET, Path())
    of_class, test = divided(dataset)
    print("| real images a class | training | test accuracy % | gain over real images alone |", "|---|---|---|---|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for few in given.few or (10, 30, 100):
            figures: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
            for seed in range(given.seeds):
                begun = time.perf_counter()
                drawn = draw_few(dataset, of_class, few, seed, Path(folder))
                real, made = _labelled(drawn, np.arange(drawn.card.num_images)), generated(drawn, seed, Path(folder))
                trained = time.perf_counter()
                if given.sheet and seed == 0:
                    write_sheet(given.sheet.with_stem(f"{given.sheet.stem}-{few}"), real, made)
                for arm in ARMS:
                    figures[arm.name].append(accuracy(arm, real, made, test, seed))
                took = f"{trained - begun:.0f} s for the GAN, {time.perf_counter() - trained:.0f} s for the classifiers"
                print(
                    f"{few} a class, seed {seed}: {took}", {name: round(values[-1], 1) for name, values in figures.items()}, file=sys.stderr
                )
            print(*table(few, figures), sep="\n", flush=True)


def write_sheet(path: Path, real: Labelled, made: Labelled) -> None:
    """A row a class: eight real images, then sixteen generated ones."""
    rows = [part.images[part.labels == label][:count] for label in range(10) for part, count in ((real, 8), (made, 16))]
    sheet = grid(to_uint8(torch.cat(rows)), columns=24)
    Image.fromarray(sheet[..., 0]).save(path)


if __name__ == "__main__":
    main()
