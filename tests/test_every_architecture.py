"""The catalogue is the matrix: an architecture, a loss or a penalty that is added is tested here without a new test."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, batch_of, data_for, tiny
from torch import Tensor

from training import catalog, datasets, export, submission
from training.combination import Combination
from training.contract import Manifest, Metrics, OptimizerConfig, TensorSpec, TrainConfig
from training.data import Batches, rows_of
from training.datasets import About, Batch, Dataset
from training.export import HeldOut, Provenance
from training.files import versions
from training.game import Architecture, DataSpec, Game, Player, Tensors, Terms, UnsuitableDataError
from training.loop import Training
from training.losses import AdversarialLoss
from training.match import Match, Rules
from training.penalties import Penalty

CPU = torch.device("cpu")
ARCHITECTURES, LOSSES, PENALTIES = catalog.architectures(), catalog.losses(), catalog.penalties()
NORMS = ("batch", "sample", "none")
AUGMENTATIONS = ("color", "translation", "cutout")


def dataset_of(data: DataSpec, folder: Path, count: int = 24) -> Dataset:
    """A registered set of random images, with classes and sources where the data have them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *data.shape), dtype=np.uint8)
    sources = None if data.source_shape is None else random.integers(0, 256, (count, *data.source_shape), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    about = About(data.shape, "a test", "CC0", data.class_names, data.source_shape)
    return register(folder, about, Batch(images, labels, sources=sources))


def register(folder: Path, about: About, batch: Batch) -> Dataset:
    name = "x".join(map(str, about.shape))
    if not (folder / name).exists():
        datasets.write(name, folder, about, [batch])
    return datasets.load(name, folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dataset]:
    folder = tmp_path_factory.mktemp("datasets")
    return lambda key: dataset_of(data_for(key), folder)


def train(combination: Combination, dataset: Dataset, **changes: object) -> tuple[Training, Callable[[], dict[str, Player]]]:
    """A training as the worker builds it, and the players as it would publish them."""
    adam = OptimizerConfig(learning_rate=0.002, betas=(0.5, 0.999))
    tricks = {"spectral_norm": combination.spectral_norm, "diff_augment": AUGMENTATIONS if combination.diff_augment else ()}
    config = TrainConfig.model_validate({"batch_size": 8, "total_images": 96, "generator": adam, "discriminator": adam} | tricks | changes)
    architecture, score, spec = combination.architecture, combination.loss.score, DataSpec.of(dataset.card)
    torch.manual_seed(config.seed)
    games = architecture.games(spec, Terms(combination.norm))
    rows = torch.arange(len(dataset.images))
    architecture.fit(games, rows_of(dataset, rows)["image"])
    matches = {key: Match.of(game, config, CPU) for key, game in games.items()}
    batches = Batches(dataset, rows, config.batch_size, torch.Generator().manual_seed(config.seed + 1), CPU)
    rules = Rules.of(config, combination)
    training = Training(matches, rules, batches, config, torch.Generator().manual_seed(config.seed + 2))

    def players() -> dict[str, Player]:
        return architecture.players({key: match.averaged_game for key, match in matches.items()}, data=spec, score=score)

    return training, players


# --- the matrix ---------------------------------------------------------------------------------------------------------------

CELLS = [(key, loss, penalty) for key in ARCHITECTURES for loss in LOSSES for penalty in (catalog.NO_PENALTY, *PENALTIES)]


@pytest.mark.parametrize(("key", "loss", "penalty"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_a_cell_takes_a_real_step_or_is_refused_with_its_reason(key: str, loss: str, penalty: str, sets: Callable[[str], Dataset]) -> None:
    combination = Combination(tiny(key), LOSSES[loss](), None if penalty == catalog.NO_PENALTY else PENALTIES[penalty]())
    check_cell(combination, sets(key))


@pytest.mark.parametrize("loss", ["non-saturating", "wasserstein-clip", "wasserstein-gp", "relativistic"])
@pytest.mark.parametrize(("spectral_norm", "diff_augment"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("key", ARCHITECTURES)
def test_a_trick_takes_a_real_step_or_is_refused_with_its_reason(
    key: str, spectral_norm: bool, diff_augment: bool, loss: str, sets: Callable[[str], Dataset]
) -> None:
    check_cell(Combination(tiny(key), LOSSES[loss](), None, spectral_norm, diff_augment), sets(key))


def check_cell(combination: Combination, dataset: Dataset) -> None:
    if refusals := combination.refusals():
        assert all(pointer.startswith("/") and re.match(r".+ cannot be used with .+: .+", reason) for pointer, reason in refusals)
        return
    training, _ = train(combination, dataset)
    before = {name: value.clone() for name, value in weights(training)}
    for phase in training._phases:
        training.images = max(training.images, phase.start)  # a step of each phase, whatever came before it
        training.step()
        line = training._measure(phase)
        has_penalty = combination.penalty is not None or combination.loss.penalty() is not None
        assert any(name.endswith("penalty") for name in line.losses) == (has_penalty and not phase.warming_up)
    assert all(value.isfinite().all() for _, value in weights(training))
    moved = {
        name.rsplit(".", 1)[0].split("/")[0] + "/" + name.split("/")[1]
        for name, value in weights(training)
        if not torch.equal(value, before[name])
    }
    assert moved == {name.split("/")[0] + "/" + name.split("/")[1] for name in before}, "every network of every game learns"


def weights(training: Training) -> Iterator[tuple[str, Tensor]]:
    for key, match in training.matches.items():
        for role, network in (("generator", match.game.generator), ("discriminator", match.game.discriminator), ("average", match.average)):
            for name, value in network.named_parameters():
                yield f"{key}/{role}/{name}", value.detach()


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_every_weight_of_every_network_learns(key: str, sets: Callable[[str], Dataset]) -> None:
    training, _ = train(Combination(tiny(key), LOSSES["non-saturating"]()), sets(key))
    before = {name: value.clone() for name, value in weights(training)}
    for phase in training._phases:
        for _ in range(4):
            training.images = max(training.images, phase.start)
            training.step()
    stuck = [name for name, value in weights(training) if torch.equal(value, before[name])]
    assert stuck == []


# --- players ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("key", ARCHITECTURES)
def test_players_script_equal_eager_and_take_each_row_by_itself(key: str, norm: str, sets: Callable[[str], Dataset]) -> None:
    combination = {
        "batch": Combination(tiny(key), LOSSES["non-saturating"]()),
        "sample": Combination(tiny(key), LOSSES["wasserstein-gp"]()),
        "none": Combination(tiny(key), LOSSES["hinge"](), None, spectral_norm=True),
    }[norm]
    if combination.refusals():
        return
    training, players = train(combination, sets(key))
    for phase in training._phases:
        training.images = max(training.images, phase.start)
        training.step()
    assert "generator" in players()
    for name, player in players().items():
        check_player(name, player, combination, data_for(key))


def check_player(name: str, player: Player, combination: Combination, data: DataSpec) -> None:
    scripted = export.script(name, player)  # holds it against eager, to 1e-5, row by row
    inputs = export.example_inputs(player.inputs, 5, seed=3)
    with torch.inference_mode():
        output = scripted(**inputs)
        swapped = scripted(**{key: value.flip(0) for key, value in inputs.items()}).flip(0)
    assert torch.allclose(swapped, output, atol=1e-5)
    arguments = [argument.name for argument in scripted.forward.schema.arguments[1:]]
    assert arguments == [spec.name for spec in player.inputs], "an input is declared under its argument's name"
    if name == "generator":
        assert tuple(spec.kind for spec in player.inputs) == combination.architecture.inputs
        assert player.output.kind == "image"
        assert player.output.shape[0] == data.shape[0]
        assert output.abs().max() <= 1
        assert not torch.allclose(output[0], output[1]), "another input is another image"
    if name == "discriminator":
        assert player.inputs[0] == TensorSpec(name="image", kind="image", shape=data.shape)
        assert tuple(spec.kind for spec in player.inputs[1:]) == combination.architecture.conditions
        assert player.output.kind == combination.loss.score


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_what_real_data_give_is_what_the_players_take(key: str) -> None:
    data, architecture = data_for(key), tiny(key)
    players = architecture.players(architecture.games(data, Terms()), data=data, score="logit")
    batch = batch_of(data, 4)
    given = architecture.given(batch)
    latents = {spec.name for spec in players["generator"].inputs if spec.kind == "latent"}
    assert latents | set(given.inputs) == {spec.name for spec in players["generator"].inputs}
    assert not latents & set(given.inputs)
    assert set(given.condition) == {spec.name for spec in players["discriminator"].inputs[1:]}
    held_out = HeldOut(batch["image"], given)
    images = export.generate(players["generator"], held_out)
    assert images.shape == batch["image"].shape
    assert given.baseline is None or given.baseline.shape == images.shape
    assert ("image" in architecture.inputs) == (given.baseline is not None), "a task with a right answer has a baseline to beat"
    assert export.score_reference(players["generator"], players["discriminator"], held_out).num_real == 4


@pytest.mark.parametrize("key", ARCHITECTURES)
@pytest.mark.parametrize("norm", ["sample", "none"])
def test_a_penalised_discriminator_looks_at_one_image_at_a_time_even_in_training(key: str, norm: str) -> None:
    data = data_for(key)
    options = {"dropout": 0.0} if "dropout" in ARCHITECTURES[key].model_fields else {}
    torch.manual_seed(0)
    games = tiny(key, **options).games(data, Terms("sample" if norm == "sample" else "none"))
    batch = batch_of(data, 6)
    for game in games.values():
        together, alone = dealt_scores(game, batch), dealt_scores(game, batch, row=2)
        assert torch.allclose(together[2], alone[0], atol=1e-5)


def dealt_scores(game: Game, batch: Tensors, row: int | None = None) -> Tensor:
    """Scores in training mode of the targets that the batch is dealt into: of all, or of one row by itself."""
    dealt = game.deal(batch, torch.Generator().manual_seed(0))
    chosen = slice(None) if row is None else slice(row, row + 1)
    condition = {name: values[chosen] for name, values in dealt.condition.items()}
    scores: Tensor = game.discriminator.train()(dealt.target[chosen], **condition)
    return scores


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_networks_come_from_the_global_seed_alone(key: str) -> None:
    def built(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        games = tiny(key).games(data_for(key), Terms()).values()
        return [value for game in games for network in (game.generator, game.discriminator) for value in network.parameters()]

    first, again, other = built(1), built(1), built(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


# --- what is published --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, sets: Callable[[str], Dataset]) -> Path:
    """Every architecture published, under its own name."""
    folder = tmp_path_factory.mktemp("models")
    for key in ARCHITECTURES:
        dataset, architecture = sets(key), tiny(key)
        spec = DataSpec.of(dataset.card)
        players = architecture.players(architecture.games(spec, Terms()), data=spec, score="logit")
        config = TrainConfig(name=key, architecture=key, options=architecture.model_dump(mode="json"), dataset=dataset.card.name)
        batch = rows_of(dataset, torch.arange(8))
        held_out = HeldOut(batch["image"], architecture.given(batch))
        export.publish(players, Provenance("a-run", architecture.source, config, dataset.card, {}), held_out, held_out, [folder])
    return folder


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_what_is_published_reads_back_and_rebuilds_the_architecture(key: str, repository: Path) -> None:
    read = Manifest.model_validate_json((repository / key / "1" / versions.MANIFEST).read_bytes())
    assert catalog.build(read.config).architecture == tiny(key)
    assert tuple(spec.kind for spec in read.generator.inputs) == tiny(key).inputs


SERVE_ALL = """
import asyncio, json, sys

class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("training.architectures", "training.game", "training.layers", "training.export", "training.loop")):
            raise ImportError(f"{name} is closed here")

sys.meta_path.insert(0, Closed())
from pathlib import Path
import torch
from app.engine import Engine
from training.contract import Manifest

for folder in sorted(Path(sys.argv[1]).glob("*/1")):
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    Engine.load(folder, manifest, torch.device("cpu"))
    print(manifest.name, flush=True)
"""


def test_all_are_served_in_one_process_without_the_network_classes(repository: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", SERVE_ALL, str(repository)], capture_output=True, text=True, timeout=300, check=False)
    assert ran.stdout.split() == list(ARCHITECTURES), ran.stderr


# --- learning -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dataset]:
    """The right half is lighter than the left, how much is the class's; the sources are the negatives. Pixels have a little noise.

    Where labels are taken, one class is the other way round: who does not look at them stays at 0.78 of the distance.
    """
    folder = tmp_path_factory.mktemp("halves")

    def made(key: str) -> Dataset:
        data, random = data_for(key), np.random.default_rng(0)
        channels, height, width = data.shape
        labels = np.arange(120, dtype=np.int64) % len(CLASSES)
        labelled = "label" in ARCHITECTURES[key].inputs
        amplitudes = np.array([0.9, 0.6, -0.3] if labelled else [0.9, 0.3, 0.6])
        sides = np.where(np.arange(width) < width // 2, -1.0, 1.0)
        images = amplitudes[labels][:, None, None, None] * sides + random.normal(0, 0.03, (120, channels, height, width))
        pixels = ((images + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        about = About(data.shape, "a test", "CC0", data.class_names, data.source_shape)
        return register(folder / ("labelled" if labelled else "plain"), about, Batch(pixels, labels, sources=255 - pixels))

    return made


def distance(architecture: Architecture, players: dict[str, Player], dataset: Dataset) -> float:
    """How far generated images are from real ones, the mean absolute difference over the pixels.

    Of each image from its own target where the generator is given an image; of the classes' means where it is given a label; else of
    the means of all.
    """
    batch = rows_of(dataset, torch.arange(len(dataset.images)))
    images, real = export.generate(players["generator"], HeldOut(batch["image"], architecture.given(batch))), batch["image"]
    if "image" in architecture.inputs:
        return (images - real).abs().mean().item()
    groups = batch["label"].argmax(1) if "label" in architecture.inputs else torch.zeros(len(real))
    apart = [(images[groups == group].mean(0) - real[groups == group].mean(0)).abs().mean() for group in groups.unique()]
    return torch.stack(apart).mean().item()


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_a_short_training_brings_generated_images_to_the_data(key: str, halves: Callable[[str], Dataset]) -> None:
    check_learning(key, "non-saturating", halves(key))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches(loss: str, halves: Callable[[str], Dataset]) -> None:
    check_learning("mlp", loss, halves("mlp"))


def check_learning(key: str, loss: str, dataset: Dataset) -> None:
    architecture = tiny(key)
    adam = {"learning_rate": 0.005, "betas": [0.5, 0.999]}
    num_steps = 100 if "image" in architecture.inputs else 200  # each image's right answer is soon learned
    changes = {"batch_size": 16, "total_images": num_steps * 16, "ema_halflife_images": 300.0, "generator": adam, "discriminator": adam}
    training, players = train(Combination(architecture, LOSSES[loss]()), dataset, **changes)
    before = distance(architecture, players(), dataset)
    training.run(Deaf())
    after = distance(architecture, players(), dataset)
    assert after < (0.5 if "label" in architecture.inputs else 0.4) * before


class Deaf:
    """A watcher that does nothing."""

    def beat(self, images: int, images_per_second: float) -> None: ...

    def measured(self, metrics: Metrics) -> None: ...

    def sample(self, images: int) -> None: ...

    def evaluate(self, images: int) -> None: ...

    def checkpoint(self, images: int) -> None: ...


# --- options ------------------------------------------------------------------------------------------------------------------


Kind = type[Architecture] | type[AdversarialLoss] | type[Penalty]


@pytest.mark.parametrize("kind", [*ARCHITECTURES.values(), *LOSSES.values(), *PENALTIES.values()], ids=lambda kind: kind.key)
def test_every_option_has_a_default_a_range_and_a_description(kind: Kind) -> None:
    schema = kind.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["description"].split("\n")[0].endswith(".")
    for name, option in schema["properties"].items():
        assert option["description"].endswith("."), name
        assert "default" in option, name
    assert kind.model_validate_json(kind().model_dump_json()) == kind()
    assert re.search(r"\b(19|20)\d\d\b", kind.source), "a source has a year"


@pytest.mark.parametrize("kind", [*ARCHITECTURES.values(), *LOSSES.values(), *PENALTIES.values()], ids=lambda kind: kind.key)
def test_every_number_among_the_options_is_bounded(kind: Kind) -> None:
    for name, option in kind.model_json_schema()["properties"].items():
        number = option["items"] if option.get("type") == "array" else option
        if number.get("type") in ("integer", "number") and "enum" not in number:
            assert {"minimum", "exclusiveMinimum"} & set(number), name
            assert {"maximum", "exclusiveMaximum"} & set(number), name


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_recipes_are_parts_of_a_config_that_can_be_trained(key: str) -> None:
    """As a user's first command has it: the architecture, and nothing else."""
    data = data_for(key, 64)
    config = submission._follow_recipes(TrainConfig(architecture=key))
    combination = catalog.build(config)
    assert combination.refusals() == []
    assert set(ARCHITECTURES[key].recipe) <= set(TrainConfig.model_fields)
    combination.architecture.check(data)


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_data_that_an_architecture_needs_and_that_are_not_there_are_named(key: str) -> None:
    data = data_for(key)
    needs = {"label": DataSpec(data.shape, None, data.source_shape), "source": DataSpec(data.shape, data.class_names, None)}
    kinds = (*tiny(key).inputs, *tiny(key).conditions)
    for what, without in needs.items():
        wanted = "label" in kinds if what == "label" else "image" in tiny(key).conditions
        if wanted:
            with pytest.raises(UnsuitableDataError, match="class|label" if what == "label" else "pair|source"):
                tiny(key).check(without)
        else:
            tiny(key).check(without)
