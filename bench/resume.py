"""Runs of every architecture, cut by SIGKILL at random points and gone on with: whether they end with the bits of one that was not cut.

    .venv/bin/python bench/resume.py            25 cut runs of each architecture, about 40 minutes on 2 cores
    .venv/bin/python bench/resume.py --full     100 of each
    .venv/bin/python bench/resume.py --only dcgan --cuts 5

Compared are all that a run leaves: the last checkpoint (networks, averages, optimisers, random generators, the order of the data), the
best one, the lines of metrics and the published weights. A run is cut once or twice. Seconds alone may differ.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import catalog, checkpoint, datasets
from training.contract import Manifest, TrainConfig
from training.datasets import About, Batch
from training.export import published_weights
from training.files import runs, versions

SIZE, NUM_IMAGES, BATCH, STEPS = 16, 400, 8, 240
CPU = torch.device("cpu")
# networks whose steps take milliseconds; all else is what each architecture's recipe says
TINY: dict[str, dict[str, object]] = {
    "mlp": {"generator_widths": [16, 16], "discriminator_widths": [16, 16]},
    "lapgan": {"first_generator_width": 16, "first_discriminator_width": 16, "generator_width": 4, "discriminator_width": 4},
    "r3gan": {"group_width": 4, "width": 4, "max_width": 8},
    "r3gan-conditional": {"group_width": 4, "width": 4, "max_width": 8},
    "pix2pix": {"num_levels": 3, "generator_width": 4, "discriminator_width": 4},
    "srgan": {"num_blocks": 2, "generator_width": 8, "discriminator_width": 4, "content": "discriminator"},
}
WIDTHS = {"generator_width": 4, "discriminator_width": 4}
FAILED_CODE = 1


@dataclass(frozen=True)
class Ending:
    """What a run has left, as hashes."""

    checkpoint: str
    best: str
    metrics: str
    weights: str


@dataclass(frozen=True)
class Cut:
    """A run that was killed at so many images each time, and what it ended with."""

    killed_at: tuple[int, ...]
    ending: Ending


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--cuts", type=int)
    parser.add_argument("--only", action="append")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    cuts = given.cuts or (100 if given.full else 25)
    print("| architecture | cut runs | kills | before the first checkpoint | bit-identical |")
    print("|---|---|---|---|---|")
    whole = True
    with tempfile.TemporaryDirectory() as folder:
        register(Path(folder) / "datasets")
        for key in given.only or catalog.architectures():
            line, same = row(key, Path(folder), cuts, given.jobs, random.Random(f"{given.seed} {key}"))  # noqa: S311 - no secret
            print(line, flush=True)
            whole &= same
    sys.exit(0 if whole else FAILED_CODE)


def row(key: str, folder: Path, cuts: int, jobs: int, chance: random.Random) -> tuple[str, bool]:
    config = config_of(key, folder / "datasets")
    begin = time.perf_counter()
    whole = uncut(folder, f"{key}-whole", config)
    seconds = time.perf_counter() - begin
    plans = [[chance.random() for _ in range(chance.choice((1, 1, 2)))] for _ in range(cuts)]
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda item: cut(folder, f"{key}-{item[0]}", config, item[1], seconds), enumerate(plans)))
    same = [each.ending == whole for each in done]
    for each, is_same in zip(done, same, strict=True):
        if not is_same:
            print(f"{key} killed at {each.killed_at}: {each.ending} is not {whole}", file=sys.stderr)
    kills = [images for each in done for images in each.killed_at]
    early = sum(images < config.checkpoint_images for images in kills)
    return f"| {key} | {cuts} | {len(kills)} | {early} | {sum(same)}/{cuts} |", all(same)


def register(folder: Path) -> None:
    numbers = np.random.default_rng(0)
    images, sources = (numbers.integers(0, 256, (NUM_IMAGES, 1, SIZE, SIZE), dtype=np.uint8) for _ in range(2))
    about = About((1, SIZE, SIZE), "random numbers", "CC0", class_names=("a", "b"), source_shape=(1, SIZE, SIZE))
    datasets.write("random", folder, about, [Batch(images, labels=np.arange(NUM_IMAGES) % 2, sources=sources)])


def config_of(key: str, datasets_folder: Path) -> TrainConfig:
    values: dict[str, Any] = {
        "architecture": key,
        "options": TINY.get(key, WIDTHS),
        "dataset": "random",
        "batch_size": BATCH,
        "total_images": STEPS * BATCH,
        "checkpoint_images": STEPS * BATCH // 12,
        "evaluation_images": STEPS * BATCH // 6,
        "sample_images": STEPS * BATCH // 2,
        "num_evaluated": 16,
        "diff_augment": [] if key in ("pix2pix", "srgan") else ["color", "translation"],
    }
    return catalog.resolve(TrainConfig.model_validate(values), datasets_folder, ())


# --- runs ---------------------------------------------------------------------------------------------------------------------


def uncut(folder: Path, name: str, config: TrainConfig) -> Ending:
    run = begin(folder, name, config)
    process = start(folder, run)
    if process.wait():
        raise SystemExit(f"{name} failed: {runs.read_status(run).message}")
    return ending(folder, run)


def cut(folder: Path, name: str, config: TrainConfig, shares: Sequence[float], seconds: float) -> Cut:
    """Kill the worker after each of these shares of a whole run's time, which is mostly its start; then let it end."""
    run, killed_at = begin(folder, name, config), []
    for share in shares:
        process = start(folder, run)
        while process.poll() is None and not (run / runs.METRICS).stat().st_size:
            time.sleep(0.02)  # nothing is lost before training begins
        try:
            process.wait(share * 0.6 * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            lines = runs.read_metrics(run)
            killed_at.append(lines[-1].images if lines else 0)
    return Cut(tuple(killed_at), uncut_from(folder, run))


def uncut_from(folder: Path, run: Path) -> Ending:
    process = start(folder, run)
    if process.wait() and runs.read_status(run).state != "succeeded":
        raise SystemExit(f"{run.name} failed: {runs.read_status(run).message}")
    return ending(folder, run)


def begin(folder: Path, name: str, config: TrainConfig) -> Path:
    run = folder / "runs" / name
    runs.create(run, config.model_copy(update={"name": name}), runs.new_id())
    return run


def start(folder: Path, run: Path) -> subprocess.Popen[bytes]:
    places = ["--datasets", str(folder / "datasets"), "--repository", str(folder / "models" / run.name)]
    places += ["--digests", str(folder / "digests")]
    command = [sys.executable, "-m", "training.worker", str(run), *places, "--device", "cpu", "--threads", "1"]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


# --- what is compared ---------------------------------------------------------------------------------------------------------


def ending(folder: Path, run: Path) -> Ending:
    best = sorted(int(path.name) for path in (run / runs.BEST).iterdir() if path.name.isdecimal())
    published = max(versions.versions([folder / "models" / run.name], run.name).items())[1]
    manifest = Manifest.model_validate_json((published / versions.MANIFEST).read_bytes())
    return Ending(
        checkpoint=hashed(checkpoint.load(run / runs.CHECKPOINTS, runs.checkpoint_images(run), CPU)),
        best=f"{best} " + hashed(checkpoint.load(run / runs.BEST, best[-1], CPU)),
        metrics=hashed([line.model_dump(exclude={"seconds", "images_per_second"}) for line in runs.read_metrics(run)]),
        weights=hashed({key: dict(published_weights(manifest, published, key)) for key in ("generator", "discriminator")}),
    )


def hashed(value: object) -> str:
    """Of tensors, numbers and words, however they are nested; seconds are left out."""
    digest = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key, each in part.items():
                if key != "seconds":
                    digest.update(repr(key).encode())
                    add(each)
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        else:
            digest.update(json.dumps(part).encode())

    add(value if not isinstance(value, dict) or "window_start" not in value else {**value, "window_start": value["window_start"][:2]})
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
