"""Every architecture at a small budget on real data, with this project's recipe and with the plain one, measured on held-out images.

    .venv/bin/python bench/quality.py                     trains what docs/quality.jsonl does not have yet, and writes docs/quality.md
    .venv/bin/python bench/quality.py --only "mlp on digits" --again
    .venv/bin/python bench/quality.py --table             writes docs/quality.md alone

The data sets are registered in the state folder before: docs/quality.md says how each is had. A run takes one thread, and as many run
side by side as there are cores; seconds are therefore those of a busy machine.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch
from quality_rows import ROWS, SETS, Row

from app.engine import Engine
from app.pixels import from_uint8
from app.signature import Fields, encode
from training.classifier import load_classifier
from training.contract import Manifest, TrainConfig, train_command
from training.files import versions

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "docs" / "quality.jsonl", ROOT / "docs" / "quality.md"
GANSERVE = str(Path(sys.executable).parent / "ganserve")
CLASSIFIED = 10_000  # images, of every class as many
NUM_EVALUATED = 2000


@dataclass(frozen=True)
class Run:
    """One training of the table."""

    row: Row
    recipe: str  # "ours" or "plain"
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.row.name, self.recipe, self.seed

    @property
    def config(self) -> TrainConfig:
        row = self.row
        name = f"{row.name.replace(' ', '-')}-{self.recipe}-{self.seed}"
        shared = {"name": name, "architecture": row.architecture, "dataset": row.dataset, "total_images": row.total_images}
        measured = {"num_evaluated": NUM_EVALUATED, "extractor": row.extractor, "evaluation_images": max(1, row.total_images // 8)}
        changes = (
            row.ours if self.recipe == "ours" else {"ema_halflife_images": 0.0, "evaluation_images": row.total_images} | dict(row.plain)
        )
        return TrainConfig.model_validate(shared | measured | {"seed": self.seed, "sample_images": row.total_images} | dict(changes))


def runs() -> Iterator[Run]:
    for row in ROWS:
        for recipe in ("ours", "plain"):
            for seed in range(row.num_seeds):
                yield Run(row, recipe, seed)


# --- training -----------------------------------------------------------------------------------------------------------------


def train(run: Run, state: Path) -> dict[str, object]:
    """Train and publish by the command line, as a user would; what the manifest says of it."""
    models = state / "quality-models"
    words = shlex.split(train_command(run.config))
    command = [GANSERVE, *words[1:], "--state", str(state), "--models", str(models), "--device", "cpu", "--threads", "1"]
    ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{run.key} failed: {ended.stderr.strip().splitlines()[-1]}")
    folder = max(versions.versions([models], str(run.config.name)).items())[1]
    manifest = Manifest.model_validate_json((folder / versions.MANIFEST).read_bytes())
    return {
        "row": run.row.name,
        "recipe": run.recipe,
        "seed": run.seed,
        "total_images": run.config.total_images,
        "metrics": manifest.metrics | classified(run.row, folder, manifest),
        "command": train_command(run.config),
        "dataset": {"name": manifest.dataset.name, "num_images": manifest.dataset.num_images, "sha256": manifest.dataset.content_sha256},
        "torch": manifest.torch_version,
    }


def classified(row: Row, folder: Path, manifest: Manifest) -> dict[str, float]:
    """What a classifier says of 10,000 images, as they are served: how many classes there are, or how often it is the one asked for."""
    if row.classifier is None:
        return {}
    torch.set_num_threads(1)
    engine = Engine.load(folder, manifest, torch.device("cpu"))
    classifier, inputs = load_classifier(row.classifier), manifest.generator.inputs
    labelled = any(spec.kind == "label" for spec in inputs)
    asked = torch.arange(CLASSIFIED) % 10
    named = []
    for start in range(0, CLASSIFIED, 50):
        labels = [int(label) for label in asked[start : start + 50]] if labelled else None
        encoded = encode(inputs, Fields(seed=2_000_000 + start, labels=labels), 50)
        images = from_uint8(engine.run("generator", encoded.inputs).numpy())
        named.append(classifier.probabilities(images).argmax(1))
    found = torch.cat(named)
    if not labelled:
        shares = torch.bincount(found, minlength=10) / CLASSIFIED
        return {"modes": float((shares >= 0.01).sum()), "rarest_class": float(shares.min())}
    right = (found == asked).float()
    each = torch.stack([right[asked == label].mean() for label in range(10)])
    return {"recognised": float(right.mean()), "recognised_worst_class": float(each.min())}


@dataclass
class Book:
    """The results, a line each."""

    path: Path
    lines: list[dict[str, object]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    @classmethod
    def read(cls, path: Path) -> "Book":
        return cls(path, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [])

    def find(self, run: Run) -> dict[str, object] | None:
        """The result of this very command; another budget is another run."""
        return next((line for line in self.lines if line["command"] == train_command(run.config)), None)

    def add(self, run: Run, line: dict[str, object]) -> None:
        with self.lock:
            self.lines = Book.read(self.path).lines  # another process may have written meanwhile
            self.lines = [old for old in self.lines if (old["row"], old["recipe"], old["seed"]) != run.key] + [line]
            order = {row.name: index for index, row in enumerate(ROWS)}
            self.lines.sort(key=lambda each: (order.get(str(each["row"]), 99), str(each["recipe"]), int(str(each["seed"]))))
            self.path.write_text("".join(json.dumps(each) + "\n" for each in self.lines))


# --- the table ----------------------------------------------------------------------------------------------------------------


def table(book: Book) -> str:
    lines = [
        "| row | recipe | images | minutes | Frechet distance | KID x 1000 | coverage | besides |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        for recipe in ("ours", "plain"):
            wanted = [run for run in runs() if run.row is row and run.recipe == recipe]
            found = [line for run in wanted if (line := book.find(run)) is not None]
            lines.append(_line(row, recipe, found, len(wanted)))
    return "\n".join(lines)


def _line(row: Row, recipe: str, found: Sequence[dict[str, object]], wanted: int) -> str:
    if not found:
        return f"| {row.name} | {recipe} | {row.total_images:,} | not run yet | | | | |"
    metrics: list[dict[str, float]] = [dict(line["metrics"]) for line in found]  # type: ignore[call-overload]
    suffix = row.extractor.replace("-", "_")

    def figure(name: str, scale: float = 1.0, digits: int = 2) -> str:
        values = [scale * each[name] for each in metrics if name in each]
        if not values:
            return ""
        middle = f"{statistics.mean(values):.{digits}f}"
        return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    besides = [f"{words} {figure(name, scale, digits)}" for name, (words, scale, digits) in BESIDES.items() if figure(name)]
    seeds = "" if len(found) == wanted else f" ({len(found)} of {wanted} seeds)"
    cells = [
        row.name,
        recipe + seeds,
        f"{row.total_images:,}",
        figure("seconds", 1 / 60, 1),
        figure(f"fd_{suffix}"),
        figure(f"kid_{suffix}", 1000),
        figure(f"coverage_{suffix}"),
        ", ".join(besides),
    ]
    return f"| {' | '.join(cells)} |"


BESIDES = {
    "modes": ("modes", 1.0, 0),
    "rarest_class": ("rarest class %", 100.0, 1),
    "recognised": ("recognised %", 100.0, 2),
    "recognised_worst_class": ("worst class %", 100.0, 1),
    "psnr": ("PSNR", 1.0, 2),
    "psnr_baseline": ("baseline", 1.0, 2),
    "ssim": ("SSIM", 1.0, 3),
    "ssim_baseline": ("baseline", 1.0, 3),
}


def page(book: Book) -> str:
    sets = "\n".join(f"| `{name}` | {how} |" for name, how in SETS.items())
    recipes = "\n".join(f"| {row.name} | {_words(row.ours)} | {_words(row.plain)} |" for row in ROWS)
    return TEMPLATE.format(table=table(book), sets=sets, recipes=recipes, num_evaluated=NUM_EVALUATED)


def _words(changes: object) -> str:
    assert isinstance(changes, dict)
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in changes.items()) or "the defaults"


TEMPLATE = """# What a small budget buys

Written by `bench/quality.py` from [quality.jsonl](quality.jsonl), which holds the command and every figure of each run. Measured on
{num_evaluated:,} held-out images (all there are, where there are fewer) against as many generated ones. The extractor is
EfficientNet-Lite0 at 64 pixels unless the row says otherwise; none of these is an FID, and none compares with a published figure. One
thread a run, on two cores that had other work as well: minutes tell no more than the order of things. *ours* is this project's recipe: the
best of eight evaluations by KID (PSNR for images to images), a moving average of the weights. *plain* is the architecture as it is usually
written: the last weights, no average, and what is said below. Several seeds: mean (lowest-highest).

{table}

## Recipes

| row | ours, beside the architecture's own defaults | plain |
|---|---|---|
{recipes}

## Data sets

`bench/quality_sets.py` makes the folders.

| name | how it is had |
|---|---|
{sets}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--state", type=Path, default=ROOT / "state", help="folder of the registered data sets; runs and models go there too"
    )
    parser.add_argument("--only", action="append", help="a row's name; may be given again")
    parser.add_argument("--again", action="store_true", help="train anew what has been trained already")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    book = Book.read(RESULTS)
    if not given.table:
        chosen = [run for run in runs() if not given.only or run.row.name in given.only]
        todo = [run for run in chosen if given.again or book.find(run) is None]

        def do(run: Run) -> None:
            book.add(run, train(run, given.state))
            print(f"{run.key}: done", file=sys.stderr, flush=True)

        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(do, sorted(todo, key=lambda run: run.seed)))
    PAGE.write_text(page(book))
    print(table(book))


if __name__ == "__main__":
    main()
