"""How soon digits can be read: samples after 60, 120 and 300 seconds from a cold start, imports and all.

    .venv/bin/python bench/time_to_quality.py                      about 25 minutes; wants 2 idle cores
    .venv/bin/python bench/time_to_quality.py --seconds 60 --preset fast-digits

Beside a preset of ours stand the loop of the tutorials with the mlp (bench/textbook.py), and our trainer with that very mlp. Of 10,000
samples the digits-classifier names a share with a confidence of 0.9 or more; the divergence is that of the classes it names from those of
the data; the first row says what the data's own pictures come to. The data set mnist is registered in the state folder before
(`ganserve datasets add mnist`).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from samplers import at_checkpoint
from textbook import loop
from torch import Tensor, nn

from training import catalog, datasets
from training.classifier import load_classifier
from training.data import split, to_images
from training.export import draw_inputs
from training.files import runs
from training.game import DataSpec, Terms
from training.metrics import mode_histogram

ROOT = Path(__file__).parent.parent
NUM_SAMPLES, CONFIDENT = 10_000, 0.9
BATCH = 128
LATENT_SIZE = 100
TEXTBOOK, SAME_NETWORKS = "textbook", "mlp"
# the textbook's networks, batch and loss in our trainer, without end
SAME = (
    *("--architecture", "mlp", "--options.latent-size", str(LATENT_SIZE), "--recipe=false", "--batch-size", str(BATCH)),
    *("--dataset", "mnist", "--total-images", "10000000"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / "state", help="folder of the registered data sets")
    parser.add_argument("--preset", action="append", choices=list(catalog.presets()), help="fast-digits when left out")
    parser.add_argument("--seconds", type=float, action="append", help="60, 120 and 300 when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-textbook", action="store_true", help="the preset alone")
    parser.add_argument("--textbook", type=Path, help=argparse.SUPPRESS)  # the other side, in a process of its own
    given = parser.parse_args()
    seconds = given.seconds or [60.0, 120.0, 300.0]
    if given.textbook:
        train_textbook(given.state, given.textbook, seconds[0], given.seed)
        return
    print("| side | seconds | images seen | read with confidence % | divergence of the classes | digits |")
    print("|---|---|---|---|---|---|")
    print(f"| the data | - | {NUM_SAMPLES:,} | {judged(real(given.state), given.state)} |", flush=True)
    sides = [*(given.preset or ["fast-digits"]), *([] if given.without_textbook else [SAME_NETWORKS, TEXTBOOK])]
    for side in sides:
        for each in seconds:
            with tempfile.TemporaryDirectory() as folder:
                sampled, images = (textbook if side == TEXTBOOK else ours)(side, given.state, Path(folder), each, given.seed)
            print(f"| {side} | {each:g} | {images:,} | {judged(sampled, given.state)} |", flush=True)


def ours(side: str, state: Path, folder: Path, seconds: float, seed: int) -> tuple[Tensor, int]:
    """Samples of `ganserve train` as it stands after so many seconds: asked to stop, it leaves a checkpoint."""
    run = folder / "run"
    asked = SAME if side == SAME_NETWORKS else ("--preset", side)
    words = ["train", *asked, "--seed", str(seed), "--run-dir", str(run), "--state", str(state)]
    command = [str(Path(sys.executable).parent / "ganserve"), *words, "--models", str(folder / "models"), "--device", "cpu"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(max(0.0, seconds - (time.perf_counter() - begin)))
    process.send_signal(signal.SIGINT)
    process.wait()
    prepared = at_checkpoint(run, state)
    if prepared is None:
        raise SystemExit(f"{side} had not begun after {seconds:g} seconds: {runs.read_status(run).message}")
    generator = prepared.players["generator"]
    labels = torch.eye(10)[torch.arange(NUM_SAMPLES) % 10]
    given = {"label": labels} if any(spec.kind == "label" for spec in generator.inputs) else {}
    inputs = draw_inputs(generator.inputs, range(NUM_SAMPLES), given)
    return sampled(generator.module, inputs), prepared.training.images


def textbook(_side: str, state: Path, folder: Path, seconds: float, seed: int) -> tuple[Tensor, int]:
    words = ["--state", str(state), "--seconds", str(seconds), "--seed", str(seed), "--textbook", str(folder / "generator.pt")]
    subprocess.run([sys.executable, __file__, *words], check=True, env=os.environ | {"STARTED": str(time.time())})
    saved = torch.load(folder / "generator.pt", weights_only=True)
    generator, _ = networks()
    generator.load_state_dict(saved["generator"])
    latent = torch.randn(NUM_SAMPLES, LATENT_SIZE, generator=torch.Generator().manual_seed(seed))
    return sampled(generator, {"latent": latent}), saved["images"]


def train_textbook(state: Path, out: Path, seconds: float, seed: int) -> None:
    """In a fresh process, whose imports count."""
    torch.manual_seed(seed)
    generator, discriminator = networks()
    dataset = datasets.load("mnist", state / "datasets")
    pixels = dataset.images[split(dataset, 6000).train.numpy()]
    images = 0
    for step in loop(generator, discriminator, pixels, LATENT_SIZE, BATCH, num_workers=0):
        images += step
        if time.time() - float(os.environ["STARTED"]) >= seconds:
            break
    torch.save({"generator": generator.state_dict(), "images": images}, out)


def networks() -> tuple[nn.Module, nn.Module]:
    game = catalog.architectures()["mlp"].model_validate({"latent_size": LATENT_SIZE}).games(DataSpec((1, 28, 28)), Terms("batch"))["main"]
    return game.generator, game.discriminator


@torch.inference_mode()
def sampled(generator: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    generator.eval()
    parts = [{name: values[start : start + 500] for name, values in inputs.items()} for start in range(0, NUM_SAMPLES, 500)]
    return torch.cat([generator(**part) for part in parts])


def real(state: Path) -> Tensor:
    images = datasets.load("mnist", state / "datasets").images
    return to_images(torch.from_numpy(images[:NUM_SAMPLES].copy()))


def judged(images: Tensor, state: Path) -> str:
    """Cells: the share that is read with confidence, the classes' divergence, and how many digits there are."""
    sure, named = load_classifier("digits-classifier").probabilities(images).max(1)
    labels = datasets.load("mnist", state / "datasets").labels
    assert labels is not None
    found = mode_histogram(named, torch.from_numpy(np.bincount(labels, minlength=10)))
    return f"{100 * float((sure >= CONFIDENT).float().mean()):.1f} | {found.divergence:.4f} | {found.num_modes}"


if __name__ == "__main__":
    main()
