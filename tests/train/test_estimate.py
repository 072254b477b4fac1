"""What a run will take: counted figures against hand-computed ones and against a run, measured ones within reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, OPTIONS
from torch import Tensor, nn

from training import catalog, datasets, estimate
from training.contract import TrainConfig
from training.datasets import About, Batch
from training.game import DataSpec, Terms
from training.loop import Watcher
from training.preparation import Places, prepare

EVALUATED = {"num_evaluated": 6, "extractor": "digits-classifier"}  # a small network
CPU = torch.device("cpu")
PIXELS = 16 * 16
SRGAN = OPTIONS["srgan"] | {"pixel_phase": 0.5}


class Counting(Watcher):
    """Counts what a run does beside its steps."""

    def __init__(self) -> None:
        self.checkpoints: set[int] = set()
        self.samples: set[int] = set()
        self.evaluations = 0

    def sample(self, images: int) -> None:
        self.samples.add(images)

    def evaluate(self, images: int) -> None:
        self.evaluations += 1

    def checkpoint(self, images: int) -> None:
        self.checkpoints.add(images)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the set `both`: 160 images of 1 x 16 x 16 with classes and sources, of which 64 are held out."""
    made = tmp_path_factory.mktemp("datasets")
    random, shape = np.random.default_rng(0), (1, 16, 16)
    images, sources = random.integers(0, 256, (2, 160, *shape), dtype=np.uint8)
    batch = Batch(images, labels=np.arange(160) % len(CLASSES), sources=sources)
    datasets.write("both", made, About(shape, "a test", "CC0", CLASSES, shape), [batch])
    return made


def resolved(folder: Path, **changes: object) -> TrainConfig:
    architecture = str(changes.get("architecture", "mlp"))
    values = {"architecture": architecture, "options": OPTIONS[architecture], "dataset": "both", "batch_size": 20, "total_images": 240}
    return catalog.resolve(TrainConfig.model_validate_json(json.dumps(values | {"num_evaluated": 0} | changes)), folder, ())


def places(folder: Path, tmp_path: Path) -> Places:
    return Places(folder, (tmp_path / "models",), tmp_path / "weights")


def estimated(config: TrainConfig, folder: Path, tmp_path: Path) -> estimate.Estimate:
    dataset = datasets.load(config.dataset, folder)
    return estimate.estimate(config, dataset, places(folder, tmp_path), CPU, torch.get_num_threads())


def test_a_perceptron_is_counted_by_hand(folder: Path) -> None:
    generator, discriminator = estimate.network_sizes(resolved(folder), datasets.card("both", folder), Path("weights"))
    assert generator.name == "generator"
    assert generator.multiply_accumulates == 4 * 8 + 8 * 8 + 8 * PIXELS
    assert generator.num_parameters == generator.multiply_accumulates + 8 + 8 + PIXELS
    assert discriminator.name == "discriminator"
    assert discriminator.multiply_accumulates == PIXELS * 8 + 8 * 8 + 8
    assert discriminator.num_parameters == discriminator.multiply_accumulates + 8 + 8 + 1


def test_convolutions_are_counted_as_their_shapes_say(folder: Path) -> None:
    """Once more, layer by layer, on real numbers."""
    config, card = resolved(folder, architecture="dcgan"), datasets.card("both", folder)
    combination = catalog.build(config)
    (game,) = combination.architecture.games(DataSpec.of(card), Terms(combination.norm)).values()
    for size, network, given in zip(
        estimate.network_sizes(config, card, Path("weights")),
        (game.generator, game.discriminator),
        ({"latent": torch.zeros(1, 4)}, {"image": torch.zeros(1, 1, 16, 16)}),
        strict=True,
    ):
        assert size.multiply_accumulates == counted(network.eval(), given)
        assert size.num_parameters == sum(parameter.numel() for parameter in network.parameters())


def counted(network: nn.Module, given: dict[str, Tensor]) -> int:
    found = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal found
        assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        if isinstance(layer, nn.ConvTranspose2d):
            found += inputs[0].numel() * layer.weight[0].numel()
        else:
            found += output.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    network(**given)
    return found


@pytest.mark.parametrize("key", sorted(OPTIONS))
def test_every_architecture_is_counted_without_weights(key: str, folder: Path) -> None:
    sizes = estimate.network_sizes(resolved(folder, architecture=key), datasets.card("both", folder), Path("weights"))
    assert [size.name.rpartition("/")[2] for size in sizes] == ["generator", "discriminator"] * (len(sizes) // 2)
    assert all(size.multiply_accumulates > 0 for size in sizes)
    assert all(size.num_parameters > 0 for size in sizes)


@pytest.mark.parametrize(
    "changes",
    [
        {"total_images": 240, "checkpoint_images": 60, "sample_images": 100, "evaluation_images": 50},
        {"total_images": 250, "checkpoint_images": 7, "sample_images": 1000, "evaluation_images": 250},
        {"total_images": 330, "critic_steps": 3, "checkpoint_images": 100, "sample_images": 30, "evaluation_images": 70},
        {"architecture": "lapgan", "total_images": 500, "checkpoint_images": 110, "evaluation_images": 30},
        {"architecture": "srgan", "options": SRGAN, "total_images": 450, "critic_steps": 2, "checkpoint_images": 90, "sample_images": 41},
    ],
    ids=lambda changes: f"{changes.get('architecture', 'mlp')}-{changes['total_images']}",
)
def test_steps_and_what_is_done_between_them_are_as_many_as_a_run_has(folder: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    config = resolved(folder, **changes, **EVALUATED)
    training, watcher = prepare(config, datasets.load("both", folder), places(folder, tmp_path), CPU).training, Counting()
    found = estimate.Schedule.of(training.games, config)
    training.run(watcher)
    assert sum(stretch.num_steps for stretch in found.stretches) == training.steps
    assert sum(stretch.num_steps * stretch.images_per_step for stretch in found.stretches) == training.images
    assert found.num_checkpoints == len(watcher.checkpoints | {training.images})  # the worker's own at the end
    assert found.num_samples == len(watcher.samples | {training.images})
    assert found.num_evaluations == watcher.evaluations + 1


def test_memory_is_that_of_the_weights_and_what_goes_with_them(folder: Path, tmp_path: Path) -> None:
    found = estimated(resolved(folder), folder, tmp_path)
    generator, discriminator = (4 * network.num_parameters for network in found.networks)
    assert found.memory.gradients == generator + discriminator
    assert found.memory.moments == 2 * (generator + discriminator)
    assert found.memory.weights == generator + discriminator  # no norm has statistics
    assert found.memory.average == generator
    assert found.memory.dataset == 96 * (PIXELS + PIXELS + 8)  # an image, its source, its class
    assert 50e6 < found.memory.peak < 100e9  # of torch alone, and of any machine
    assert (found.num_trained_on, found.num_held_out) == (96, 64)


def test_time_is_that_of_the_steps_and_evaluations(folder: Path, tmp_path: Path) -> None:
    found = estimated(resolved(folder, architecture="srgan", options=SRGAN, **EVALUATED), folder, tmp_path)
    assert [phase.name for phase in found.phases] == ["main, warm-up", "main"]
    for phase in found.phases:
        assert len(phase.measured) >= estimate.FEWEST_STEPS
        assert min(phase.measured) > 0
        assert min(phase.measured) * phase.num_steps <= phase.seconds <= max(phase.measured) * phase.num_steps
    assert found.evaluation_seconds > 0
    alone = sum(phase.seconds for phase in found.phases)
    assert found.seconds == pytest.approx(alone + found.num_evaluations * found.evaluation_seconds)


def test_a_rare_penalty_is_measured_as_often_as_it_comes(folder: Path, tmp_path: Path) -> None:
    config = resolved(folder, penalty="r1", penalty_interval=16)
    (phase,) = estimated(config, folder, tmp_path).phases
    assert len(phase.measured) % 16 == 0


def test_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    found = estimated(resolved(folder), folder, tmp_path)
    assert found.num_evaluations == 0
    assert found.evaluation_seconds == 0
    assert list(tmp_path.iterdir()) == []
