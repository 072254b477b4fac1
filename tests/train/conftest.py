"""Tiny things that the tests of training share: a registered set, and configs and trainings of it that take milliseconds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training import catalog, datasets
from training.contract import TrainConfig
from training.data import Batches, split
from training.datasets import About, Batch
from training.game import DataSpec, Terms
from training.loop import Training
from training.match import Match, Rules

TINY = {
    "mlp": {"latent_size": 4, "generator_widths": [8], "discriminator_widths": [8]},
    "dcgan": {"latent_size": 4, "generator_width": 2, "discriminator_width": 2},
}
MakeConfig = Callable[..., TrainConfig]
MakeTraining = Callable[[TrainConfig], Training]


@pytest.fixture(scope="session")
def datasets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the set `tiny`: 160 images of 1 x 16 x 16, of which 64 are held out."""
    folder = tmp_path_factory.mktemp("datasets")
    images = np.random.default_rng(0).integers(0, 256, (160, 1, 16, 16), dtype=np.uint8)
    datasets.write("tiny", folder, About((1, 16, 16), "a test", "CC0"), [Batch(images)])
    return folder


@pytest.fixture(scope="session")
def make_config(datasets_folder: Path) -> MakeConfig:
    """A resolved config of tiny networks on the tiny set, with what the test wants changed."""

    def make(**changes: object) -> TrainConfig:
        architecture = str(changes.get("architecture", "mlp"))
        values = {
            "architecture": architecture,
            "options": TINY[architecture],
            "dataset": "tiny",
            "batch_size": 20,
            "total_images": 240,
            "num_evaluated": 0,
        }
        return catalog.resolve(TrainConfig.model_validate(values | changes), datasets_folder, ())

    return make


@pytest.fixture(scope="session")
def make_training(datasets_folder: Path) -> MakeTraining:
    """A fresh training as the worker builds it."""

    def make(config: TrainConfig) -> Training:
        torch.manual_seed(config.seed)
        built = catalog.build(config)
        dataset = datasets.load(config.dataset, datasets_folder)
        device = torch.device("cpu")
        games = built.architecture.games(DataSpec.of(dataset.card), Terms(built.norm))
        rows = split(dataset, config.num_held_out(dataset.card.num_images)).train
        batches = Batches(dataset, rows, config.batch_size, torch.Generator().manual_seed(config.seed + 1), device)
        matches = {key: Match.of(game, config, device) for key, game in games.items()}
        rules = Rules.of(config, built)
        return Training(matches, rules, batches, config, torch.Generator().manual_seed(config.seed + 2))

    return make
