"""Small classifiers of digits and of fashion, trained by this project: they name what a generator makes, and their features measure it.

Each lies in `training/classifiers/<name>/` as card.json and weights.pt; `bench/train_classifiers.py` makes them.
"""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.contract import Document, FileSpec, Name, Seed, Sha256
from training.data import to_images
from training.datasets import Dataset
from training.files.directories import verify

FOLDER = Path(__file__).parent / "classifiers"
CARD, WEIGHTS = "card.json", "weights.pt"
SIZE = 28  # pixels a side that the networks see
NUM_FEATURES = 128
NUM_SHIFTED = 2  # pixels that a training image is moved at most, each way
BATCH_SIZE = 128
LEARNING_RATE = 4e-3
EVALUATED = 500  # images at once


class ClassifierCard(Document):
    """What is known of a committed classifier. `test_accuracy` is the share of the test set's images that it names rightly."""

    name: Name
    class_names: tuple[str, ...]
    num_epochs: Annotated[int, Field(ge=1)]
    seed: Seed
    trained_on: str
    trained_on_sha256: Sha256  # of the set's content
    tested_on: str
    tested_on_sha256: Sha256
    test_accuracy: Annotated[float, Field(ge=0, le=1)]
    source: str
    licence: str  # of the images that it was trained on
    command: str
    torch_version: str
    weights: FileSpec


class Classifier(nn.Module):
    """Images are float (N, 1 or 3, H, W) in [-1, 1]; colour is averaged to grey, other sizes are resized to 28 x 28.

    Meant for `eval()`, where each image is judged by itself.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()

        def layer(channels: int, out_channels: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]

        self.trunk = nn.Sequential(
            *layer(1, 24), nn.MaxPool2d(2), *layer(24, 48), *layer(48, 48), nn.MaxPool2d(2), *layer(48, 96), *layer(96, NUM_FEATURES)
        )
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, 128): the means over the last map."""
        grey = images.mean(1, keepdim=True)
        if grey.shape[-2:] != (SIZE, SIZE):
            grey = F.interpolate(grey, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        means: Tensor = self.trunk(grey).mean((-2, -1))
        return means

    def forward(self, images: Tensor) -> Tensor:
        """(N, num_classes) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """(N, num_classes), each row sums to 1; a few images are in memory at once."""
        return torch.cat([self(part).softmax(1) for part in torch.split(images, EVALUATED)])


# --- the committed ones -------------------------------------------------------------------------------------------------------


def classifiers() -> tuple[str, ...]:
    """Names of the committed classifiers, sorted."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD}")))


def read_card(name: str, folder: Path = FOLDER) -> ClassifierCard:
    return ClassifierCard.model_validate_json((folder / name / CARD).read_bytes())


def load_classifier(name: str, folder: Path = FOLDER) -> Classifier:
    """A committed classifier, frozen, in eval mode; it is kept in half precision and runs in single."""
    card = read_card(name, folder)
    classifier = Classifier(len(card.class_names))
    saved = torch.load(verify(folder / name, card.weights), map_location="cpu", weights_only=True)
    classifier.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in saved.items()})
    return classifier.requires_grad_(False).eval()


# --- training -----------------------------------------------------------------------------------------------------------------


def train_classifier(dataset: Dataset, num_epochs: int, seed: int) -> Classifier:
    """Cross-entropy by AdamW, one cycle of the learning rate; training images are moved by up to two pixels.

    The same set, seed and number of threads give the same weights on the same machine.
    """
    if dataset.labels is None or dataset.card.class_names is None:
        raise ValueError(f"data set {dataset.card.name!r} has no classes")
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    classifier = Classifier(len(dataset.card.class_names))
    pixels, labels = torch.from_numpy(np.array(dataset.images)), torch.from_numpy(np.array(dataset.labels))
    num_steps = num_epochs * math.ceil(len(pixels) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    for _ in range(num_epochs):
        for rows in torch.split(torch.randperm(len(pixels), generator=random), BATCH_SIZE):
            images = shifted(to_images(pixels[rows]), random)
            loss = F.cross_entropy(classifier(images), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return classifier.requires_grad_(False).eval()


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image moved by its own whole number of pixels, black moving in."""
    num_images, _, height, width = images.shape
    offsets = torch.randint(0, 2 * NUM_SHIFTED + 1, (2, num_images, 1), generator=random)
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    padded = F.pad(images, [NUM_SHIFTED] * 4, value=-1.0)
    return padded[torch.arange(num_images)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def accuracy(classifier: Classifier, dataset: Dataset) -> float:
    """The share of the set's images that the classifier names rightly."""
    if dataset.labels is None:
        raise ValueError(f"data set {dataset.card.name!r} has no labels")
    named = classifier.probabilities(to_images(torch.from_numpy(np.array(dataset.images)))).argmax(1)
    return float((named == torch.from_numpy(np.array(dataset.labels))).double().mean())
