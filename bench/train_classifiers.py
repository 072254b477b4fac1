"""Train the classifiers of digits and of fashion, measure them on their test sets, and put them into training/classifiers.

    ganserve datasets add mnist
    ganserve datasets add mnist --split test --as mnist-test
    ganserve datasets add fashion-mnist
    ganserve datasets add fashion-mnist --split test --as fashion-mnist-test
    .venv/bin/python bench/train_classifiers.py

Prints one table. The same sets, seed and threads give the same weights on the same machine.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import torch

from training import datasets
from training.classifier import CARD, FOLDER, WEIGHTS, ClassifierCard, accuracy, load_classifier, train_classifier
from training.datasets import Dataset
from training.files.directories import describe, write_atomically

SETS = {"digits-classifier": "mnist", "fashion-classifier": "fashion-mnist"}
NUM_EPOCHS = {"digits-classifier": 2, "fashion-classifier": 4}
AT_LEAST = {"digits-classifier": 0.99, "fashion-classifier": 0.91}
SEED = 0


def make(name: str, train: Dataset, test: Dataset, folder: Path) -> ClassifierCard:
    """Train, save in half precision, and measure what was saved; a folder that is there already is replaced."""
    classifier = train_classifier(train, NUM_EPOCHS[name], SEED)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    halves = {key: value.half() if value.is_floating_point() else value for key, value in classifier.state_dict().items()}
    torch.save(halves, folder / WEIGHTS)
    card = ClassifierCard(
        name=name,
        class_names=train.card.class_names or (),
        num_epochs=NUM_EPOCHS[name],
        seed=SEED,
        trained_on=train.card.name,
        trained_on_sha256=train.card.content_sha256,
        tested_on=test.card.name,
        tested_on_sha256=test.card.content_sha256,
        test_accuracy=0.0,
        source=train.card.source,
        licence=train.card.licence,
        command="python bench/train_classifiers.py",
        torch_version=str(torch.__version__),
        weights=describe(folder / WEIGHTS),
    )
    write_atomically(folder / CARD, card.model_dump_json(indent=2).encode())
    card = card.model_copy(update={"test_accuracy": accuracy(load_classifier(name, folder.parent), test)})
    write_atomically(folder / CARD, card.model_dump_json(indent=2).encode() + b"\n")
    return card


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("state"), help="the folder with the registered sets, in `datasets` below it")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the classifiers are put")
    parser.add_argument("--only", choices=sorted(SETS), help="one of them")
    parser.add_argument("--threads", type=int, help="intra-op threads; torch's own number when left out")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| classifier | trained on | epochs | seconds | tested on | accuracy | at least | bytes |")
    print("|---|---|---|---|---|---|---|---|")
    good = True
    for name, published in SETS.items():
        if given.only not in (None, name):
            continue
        sets = [datasets.load(part, given.state / "datasets") for part in (published, f"{published}-test")]
        begin = time.monotonic()
        card = make(name, *sets, given.folder / name)
        seconds = time.monotonic() - begin
        row = f"| {name} | {card.trained_on} | {card.num_epochs} | {seconds:.0f} | {card.tested_on} | {card.test_accuracy:.4f} |"
        print(f"{row} {AT_LEAST[name]} | {card.weights.size_bytes:,} |", flush=True)
        good = good and card.test_accuracy >= AT_LEAST[name]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
