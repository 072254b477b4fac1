"""Generators as a run has left them, for the benches that judge them anew."""

from pathlib import Path

import torch

from training import checkpoint, datasets
from training.contract import TrainConfig
from training.files import runs
from training.preparation import Places, Prepared, prepare

CPU = torch.device("cpu")


def prepared(run: Path, state: Path) -> tuple[TrainConfig, Prepared]:
    """A run directory's networks and data, the networks as they were initialised."""
    config = runs.read_config(run)
    places = Places(state / "datasets", (), state / "weights")
    return config, prepare(config, datasets.load(config.dataset, places.datasets), places, CPU, begun=True)


def at_checkpoint(run: Path, state: Path) -> Prepared | None:
    """With the weights of the run's newest checkpoint; None where there is none yet."""
    images = runs.checkpoint_images(run)
    if not images:
        return None
    _, found = prepared(run, state)
    found.training.load_state_dict(checkpoint.load(run / runs.CHECKPOINTS, images, CPU))
    return found
