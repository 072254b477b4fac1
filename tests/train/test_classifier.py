import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training import datasets
from training.classifier import Classifier, accuracy, classifiers, load_classifier, read_card, train_classifier
from training.data import to_images
from training.datasets import About, Batch, Dataset

AT_LEAST = {"digits-classifier": 0.99, "fashion-classifier": 0.91}


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sets: a bright bar that lies or stands, in noise; `mnist` of 384 images and `mnist-test` of 128."""
    folder = tmp_path_factory.mktemp("state") / "datasets"
    dice = np.random.default_rng(0)
    for name, count in (("mnist", 384), ("mnist-test", 128)):
        images = dice.integers(0, 60, (count, 1, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.int64) % 2
        for image, label, place in zip(images, labels, dice.integers(4, 24, count), strict=True):
            bar = image[0] if label == 0 else image[0].T
            bar[place : place + 2] = 220
        about = About((1, 28, 28), "a test", "CC0", class_names=("lying", "standing"))
        datasets.write(name, folder, about, [Batch(images, labels)])
    return folder


@pytest.fixture(scope="module")
def trained(bars: Path) -> Classifier:
    return train_classifier(datasets.load("mnist", bars), num_epochs=6, seed=0)


def test_a_classifier_learns_what_tells_the_classes_apart(trained: Classifier, bars: Path) -> None:
    test = datasets.load("mnist-test", bars)
    assert accuracy(trained, test) > 0.95
    probabilities = trained.probabilities(to_images(torch.tensor(test.images)))
    assert probabilities.shape == (128, 2)
    assert torch.allclose(probabilities.sum(1), torch.ones(128))
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_the_same_seed_trains_the_same_classifier(bars: Path) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        dataset = datasets.load("mnist-test", bars)
        return train_classifier(dataset, num_epochs=1, seed=seed).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_other_sizes_and_colour_are_brought_to_28_grey_pixels(trained: Classifier, bars: Path) -> None:
    images = to_images(torch.tensor(datasets.load("mnist-test", bars).images))
    large = torch.nn.functional.interpolate(images.repeat(1, 3, 1, 1), scale_factor=2.0)
    assert (trained.probabilities(large).argmax(1) == trained.probabilities(images).argmax(1)).double().mean() > 0.9


def test_a_set_without_classes_is_refused(trained: Classifier, datasets_folder: Path) -> None:
    plain = datasets.load("tiny", datasets_folder)
    with pytest.raises(ValueError, match="'tiny' has no classes"):
        train_classifier(plain, 1, 0)
    with pytest.raises(ValueError, match="'tiny' has no labels"):
        accuracy(trained, plain)


# --- the committed ones -------------------------------------------------------------------------------------------------------


def test_the_committed_classifiers_are_good_small_and_say_how_they_were_made(root: Path) -> None:
    assert classifiers() == tuple(AT_LEAST)
    for name, least in AT_LEAST.items():
        card = read_card(name)
        assert card.name == name
        assert card.test_accuracy >= least
        assert card.tested_on_sha256 != card.trained_on_sha256
        assert card.weights.size_bytes < 500_000
        assert (root / card.command.split()[1]).is_file()
        assert card.licence
        load_classifier(name)  # verifies the hash
    assert "training/classifiers" in (root / "NOTICE").read_text()


def test_the_committed_fashion_classifier_names_its_test_set_as_its_card_says() -> None:
    built_in = datasets.load("fashion-mnist-10k", Path("nowhere"))  # the published test images
    card = read_card("fashion-classifier")
    assert card.class_names == built_in.card.class_names
    assert card.tested_on_sha256 == built_in.card.content_sha256
    rows = slice(0, 1000)
    some = Dataset(built_in.card, built_in.images[rows], built_in.labels[rows] if built_in.labels is not None else None)
    assert accuracy(load_classifier("fashion-classifier"), some) == pytest.approx(card.test_accuracy, abs=0.02)


def test_one_command_trains_measures_and_keeps_a_classifier(bars: Path, root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "bench/train_classifiers.py"), "--state", str(bars.parent), "--folder", str(tmp_path)]
    done = subprocess.run([*command, "--only", "digits-classifier", "--threads", "1"], capture_output=True, text=True, check=False)
    card = read_card("digits-classifier", tmp_path)
    assert done.returncode == (0 if card.test_accuracy >= 0.99 else 1), done.stderr
    assert re.search(rf"\| digits-classifier \| mnist \| 2 \| \d+ \| mnist-test \| {card.test_accuracy:.4f} \|", done.stdout)
    assert accuracy(load_classifier("digits-classifier", tmp_path), datasets.load("mnist-test", bars)) == card.test_accuracy
