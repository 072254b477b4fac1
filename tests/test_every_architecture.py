"""The catalogue is the matrix: an architecture or a loss that is added is tested here without a new test."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import catalog, datasets, export
from training.contract import DatasetCard, Manifest, OptimizerConfig, TrainConfig
from training.data import Batches, to_images
from training.datasets import About, Batch, Dataset
from training.export import Provenance
from training.files import versions
from training.game import Architecture, DataSpec, Player, UnsuitableDataError
from training.loop import Match, Training
from training.losses import AdversarialLoss

CPU = torch.device("cpu")
ARCHITECTURES, LOSSES = catalog.architectures(), catalog.losses()
SHAPES = [(channels, size, size) for size in (16, 28, 32) for channels in (1, 3)]
# A tiny value for each name of an option; one that is not here keeps its default, which must then be cheap.
TINY: dict[str, object] = {
    "latent_size": 4,
    "generator_width": 4,
    "discriminator_width": 4,
    "generator_widths": (8, 8),
    "discriminator_widths": (8, 8),
}


def tiny(key: str, **options: object) -> Architecture:
    kind = ARCHITECTURES[key]
    return kind.model_validate({name: value for name, value in TINY.items() if name in kind.model_fields} | options)


def allowed(key: str, shape: tuple[int, int, int]) -> bool:
    try:
        tiny(key).check(DataSpec(shape))
    except UnsuitableDataError:
        return False
    return True


def training_of(
    architecture: Architecture, loss: AdversarialLoss, dataset: Dataset, **changes: object
) -> tuple[Training, Callable[[], dict[str, Player]]]:
    """A training as the worker builds it, and the players as it would publish them."""
    adam = OptimizerConfig(learning_rate=0.002, betas=(0.5, 0.999))
    config = TrainConfig.model_validate({"batch_size": 8, "generator": adam, "discriminator": adam} | changes)
    spec = DataSpec.of(dataset.card)
    torch.manual_seed(config.seed)
    games = architecture.games(spec, samplewise_critic=loss.samplewise_critic)
    matches = {key: Match.of(game, config, CPU) for key, game in games.items()}
    rows = torch.arange(len(dataset.images))
    batches = Batches(dataset, rows, config.batch_size, torch.Generator().manual_seed(config.seed + 1), CPU)
    training = Training(matches, loss, batches, config, torch.Generator().manual_seed(config.seed + 2))

    def players() -> dict[str, Player]:
        averaged = {key: match.averaged_game for key, match in matches.items()}
        return architecture.players(averaged, data=spec, score=loss.score)

    return training, players


def write_set(folder: Path, images: np.ndarray) -> Dataset:
    name = "x".join(map(str, images.shape[1:]))
    channels, height, width = images.shape[1:]
    datasets.write(name, folder, About((channels, height, width), "a test", "CC0"), [Batch(images)])
    return datasets.load(name, folder)


@pytest.fixture(scope="module")
def random_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Dataset]:
    folder, random = tmp_path_factory.mktemp("datasets"), np.random.default_rng(0)
    return {shape: write_set(folder, random.integers(0, 256, (24, *shape), dtype=np.uint8)) for shape in SHAPES}


CELLS = [(key, loss, shape) for key in ARCHITECTURES for loss in LOSSES for shape in SHAPES if allowed(key, shape)]


# --- the matrix ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "loss", "shape"), CELLS, ids=[f"{key}-{loss}-{'x'.join(map(str, shape))}" for key, loss, shape in CELLS])
def test_it_trains_scripts_and_publishes(
    key: str, loss: str, shape: tuple[int, ...], random_sets: dict[tuple[int, ...], Dataset], tmp_path: Path
) -> None:
    architecture, adversarial, dataset = tiny(key), LOSSES[loss](), random_sets[shape]
    training, players = training_of(architecture, adversarial, dataset)
    before = {name: value.clone() for name, value in weights(training)}
    for _ in range(4):
        training.step()
    assert all(value.isfinite().all() for _, value in weights(training))
    stuck = [name for name, value in weights(training) if torch.equal(value, before[name])]
    assert stuck == [], "every weight of both networks and of the average learns"

    served = players()
    assert "generator" in served
    for name, player in served.items():
        check_player(name, player, adversarial, shape)
    check_published(architecture, served, dataset.card, tmp_path)


def weights(training: Training) -> Iterator[tuple[str, Tensor]]:
    for key, match in training.matches.items():
        for role, network in (("generator", match.game.generator), ("discriminator", match.game.discriminator), ("average", match.average)):
            for name, value in network.named_parameters():
                yield f"{key}/{role}/{name}", value.detach()


def check_player(name: str, player: Player, loss: AdversarialLoss, shape: tuple[int, ...]) -> None:
    scripted = export.script(name, player)
    eager = player.module.eval()
    inputs = export.example_inputs(player.inputs, 5, seed=3)
    with torch.inference_mode():
        output = eager(**inputs)
        assert tuple(output.shape) == (5, *player.output.shape)
        assert torch.allclose(scripted(**inputs), output, atol=1e-6)
        for row in range(5):
            alone = scripted(**{key: value[row : row + 1] for key, value in inputs.items()})
            assert torch.allclose(alone[0], output[row], atol=1e-5)
        swapped = scripted(**{key: value.flip(0) for key, value in inputs.items()}).flip(0)
        assert torch.allclose(swapped, output, atol=1e-5)
    arguments = [argument.name for argument in scripted.forward.schema.arguments[1:]]
    assert arguments == [spec.name for spec in player.inputs], "an input is declared under its argument's name"
    if name == "generator":
        assert (player.output.kind, player.output.shape) == ("image", shape)
        assert output.abs().max() <= 1
        assert not torch.allclose(output[0], output[1]), "another latent is another image"
    if name == "discriminator":
        assert (player.inputs[0].name, player.inputs[0].kind, player.inputs[0].shape) == ("image", "image", shape)
        assert player.output.kind == loss.score


def check_published(architecture: Architecture, served: dict[str, Player], card: DatasetCard, tmp_path: Path) -> None:
    config = TrainConfig(name="mine", architecture=architecture.key, options=architecture.model_dump(mode="json"), dataset=card.name)
    provenance = Provenance("a-run", architecture.source, config, card, {})
    manifest = export.publish(served, provenance, torch.zeros(8, *card.shape), [tmp_path])
    read = Manifest.model_validate_json((tmp_path / "mine" / "1" / versions.MANIFEST).read_bytes())
    assert read == manifest
    assert catalog.build(read.config)[0] == architecture, "the manifest rebuilds the architecture"
    assert tuple(spec.kind for spec in read.generator.inputs) == architecture.inputs
    assert manifest.generator.inputs == served["generator"].inputs


@pytest.mark.parametrize("key", ARCHITECTURES)
@pytest.mark.parametrize("samplewise_critic", [False, True])
def test_a_samplewise_critic_looks_at_one_image_at_a_time_even_in_training(key: str, samplewise_critic: bool) -> None:
    shape = next(shape for shape in SHAPES if allowed(key, shape))
    options = {"dropout": 0.0} if "dropout" in ARCHITECTURES[key].model_fields else {}
    torch.manual_seed(0)
    games = tiny(key, **options).games(DataSpec(shape), samplewise_critic=samplewise_critic)
    assert games
    for game in games.values():
        images = torch.randn(6, *shape)
        together, alone = game.discriminator.train()(images), game.discriminator(images[2:3]) if samplewise_critic else None
        assert alone is None or torch.allclose(together[2], alone[0], atol=1e-5)


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_networks_come_from_the_global_seed_alone(key: str) -> None:
    spec = DataSpec(next(shape for shape in SHAPES if allowed(key, shape)))

    def built(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        games = tiny(key).games(spec, samplewise_critic=False).values()
        return [value for game in games for network in (game.generator, game.discriminator) for value in network.parameters()]

    first, again, other = built(1), built(1), built(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", [*ARCHITECTURES.values(), *LOSSES.values()], ids=lambda kind: kind.key)
def test_every_option_has_a_default_a_range_and_a_description(kind: type[Architecture] | type[AdversarialLoss]) -> None:
    schema = kind.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["description"].split("\n")[0].endswith(".")
    for name, option in schema["properties"].items():
        assert option["description"].endswith("."), name
        assert "default" in option, name
    assert kind.model_validate_json(kind().model_dump_json()) == kind()
    assert re.search(r"\b(19|20)\d\d\b", kind.source), "a source has a year"


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_every_number_among_the_options_is_bounded(key: str) -> None:
    for name, option in ARCHITECTURES[key].model_json_schema()["properties"].items():
        number = option["items"] if option["type"] == "array" else option
        if number["type"] in ("integer", "number"):
            assert {"minimum", "exclusiveMinimum"} & set(number), name
            assert {"maximum", "exclusiveMaximum"} & set(number), name


# --- mlp ----------------------------------------------------------------------------------------------------------------------


def layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


def test_mlp_has_the_layers_that_it_is_known_for() -> None:
    game = ARCHITECTURES["mlp"]().games(DataSpec((1, 28, 28)), samplewise_critic=False)["main"]
    sizes = {
        role: [(layer.in_features, layer.out_features) for layer in layers(network) if isinstance(layer, nn.Linear)]
        for role, network in (("generator", game.generator), ("discriminator", game.discriminator))
    }
    assert sizes["generator"] == [(128, 256), (256, 512), (512, 1024), (1024, 784)]
    assert sizes["discriminator"] == [(784, 256), (256, 128), (128, 64), (64, 1)]
    assert [str(layer) for layer in layers(game.generator) if not isinstance(layer, nn.Linear)] == [
        *["LeakyReLU(negative_slope=0.2, inplace=True)"] * 3,
        "Tanh()",
        "Unflatten(dim=1, unflattened_size=(1, 28, 28))",
    ]
    assert [str(layer) for layer in layers(game.discriminator) if not isinstance(layer, nn.Linear)] == [
        "Flatten(start_dim=1, end_dim=-1)",
        *["LeakyReLU(negative_slope=0.2, inplace=True)", "Dropout(p=0.3, inplace=False)"] * 3,
    ]


# --- dcgan --------------------------------------------------------------------------------------------------------------------


def dcgan(size: int, channels: int, *, samplewise_critic: bool = False, **options: object) -> tuple[nn.Module, nn.Module]:
    games = tiny("dcgan", **options).games(DataSpec((channels, size, size)), samplewise_critic=samplewise_critic)
    return games["main"].generator, games["main"].discriminator


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "grown"), [(16, (4, 8, 16)), (28, (7, 14, 28)), (32, (4, 8, 16, 32)), (64, (4, 8, 16, 32, 64)), (128, (4, 8, 16, 32, 64, 128))]
)
def test_dcgan_doubles_from_the_latent_to_the_image_and_halves_back(size: int, grown: tuple[int, ...], channels: int) -> None:
    generator, discriminator = dcgan(size, channels)
    seen: dict[str, list[tuple[int, ...]]] = {"up": [], "down": []}
    for layer in layers(generator):
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _module, _inputs, output: seen["up"].append(tuple(output.shape[1:])))
    for layer in layers(discriminator):
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _module, _inputs, output: seen["down"].append(tuple(output.shape[1:])))
    image = generator(torch.randn(2, 4))
    assert image.shape == (2, channels, size, size)
    assert discriminator(image).shape == (2,)
    widths = [4 * 2**step for step in reversed(range(len(grown) - 1))]
    assert seen["up"] == [(width, side, side) for width, side in zip([*widths, channels], grown, strict=True)]
    assert seen["down"] == [*((width, side, side) for width, side in zip(widths[::-1], grown[-2::-1], strict=True)), (1, 1, 1)]


def test_dcgan_is_built_of_the_papers_layers() -> None:
    generator, discriminator = dcgan(32, 3)
    kinds = [type(layer).__name__ for layer in layers(generator)]
    assert kinds == ["Unflatten", "ConvTranspose2d", *["BatchNorm2d", "ReLU", "ConvTranspose2d"] * 3, "Tanh"]
    kinds = [type(layer).__name__ for layer in layers(discriminator)]
    assert kinds == ["Conv2d", "LeakyReLU", *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2, "Conv2d"], "no norm in the first and the last"
    assert {layer.negative_slope for layer in layers(discriminator) if isinstance(layer, nn.LeakyReLU)} == {0.2}
    norms = [layer for network in (generator, discriminator) for layer in layers(network) if isinstance(layer, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}, "0.8 would weigh the newest batch alone"


def test_dcgan_of_default_widths_has_the_papers_size() -> None:
    game = ARCHITECTURES["dcgan"]().games(DataSpec((3, 64, 64)), samplewise_critic=False)["main"]
    convolutions = [layer.weight.shape for layer in layers(game.generator) if isinstance(layer, nn.ConvTranspose2d)]
    widths = [(100, 512), (512, 256), (256, 128), (128, 64), (64, 3)]
    assert [tuple(shape) for shape in convolutions] == [(*width, 4, 4) for width in widths]


@pytest.mark.parametrize("samplewise_critic", [False, True])
def test_dcgan_starts_from_the_papers_normal_weights(samplewise_critic: bool) -> None:
    torch.manual_seed(0)
    networks = dcgan(32, 3, samplewise_critic=samplewise_critic, latent_size=64, generator_width=32, discriminator_width=32)
    for layer in (layer for network in networks for layer in layers(network)):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            check_normal(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            check_normal(layer.weight, 1.0, 0.02)
        bias = getattr(layer, "bias", None)
        assert bias is None or not bias.any()


def check_normal(values: Tensor, mean: float, deviation: float) -> None:
    """Mean and deviation within five standard errors, and a share beyond two deviations as a normal has it."""
    count = values.numel()
    assert abs(values.mean().item() - mean) < 5 * deviation / math.sqrt(count)
    assert abs(values.std().item() / deviation - 1) < 5 / math.sqrt(2 * count)
    if count > 5000:
        assert ((values - mean).abs() > 2 * deviation).float().mean().item() == pytest.approx(0.0455, abs=0.01)


def test_a_samplewise_critic_of_dcgan_has_no_batch_norm() -> None:
    _, discriminator = dcgan(32, 3, samplewise_critic=True)
    kinds = {type(layer).__name__ for layer in layers(discriminator)}
    assert "BatchNorm2d" not in kinds
    assert "GroupNorm" in kinds


@pytest.mark.parametrize(("height", "width"), [(20, 20), (28, 32), (256, 256), (8, 8)])
def test_a_size_that_dcgan_cannot_make_is_refused(height: int, width: int) -> None:
    with pytest.raises(UnsuitableDataError) as caught:
        tiny("dcgan").check(DataSpec((1, height, width)))
    assert str(caught.value) == (
        f"dcgan makes square images of 16, 28, 32, 64, 128 pixels, and these are {width} x {height}; add the data set again with --size"
    )


# --- learning -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_halves(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The left half is dark (-0.6), the right one light (0.6); images differ in brightness, and pixels by a little noise."""
    random = np.random.default_rng(0)
    halves = np.concatenate([np.full((1, 1, 16, 8), 51.0), np.full((1, 1, 16, 8), 204.0)], axis=3)
    images = halves + random.normal(0, 12, (128, 1, 1, 1)) + random.normal(0, 3, (128, 1, 16, 16))
    return write_set(tmp_path_factory.mktemp("halves"), images.round().clip(0, 255).astype(np.uint8))


def distance(players: dict[str, Player], dataset: Dataset) -> float:
    """How far the mean of 64 generated images is from the data's mean image: the mean over the pixels of the absolute difference."""
    real = to_images(torch.from_numpy(np.array(dataset.images)))
    return (export.sample(players["generator"], range(64)).mean(0) - real.mean(0)).abs().mean().item()


LEARNERS = [key for key, kind in ARCHITECTURES.items() if kind.inputs == ("latent",) and allowed(key, (1, 16, 16))]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("key", LEARNERS)
def test_a_short_training_brings_generated_images_to_the_data(key: str, loss: str, two_halves: Dataset) -> None:
    adam = OptimizerConfig(learning_rate=0.005, betas=(0.5, 0.999))
    config = {"batch_size": 32, "ema_halflife_images": 1000.0, "generator": adam, "discriminator": adam}
    training, players = training_of(tiny(key), LOSSES[loss](), two_halves, **config)
    before = distance(players(), two_halves)
    assert before == pytest.approx(0.6, abs=0.05), "a fresh generator's mean image is grey"
    for _ in range(400):
        training.step()
    assert distance(players(), two_halves) < 0.25 * before
