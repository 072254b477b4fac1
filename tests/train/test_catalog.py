import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training import catalog, datasets, export, submission
from training.catalog import ConfigError
from training.contract import Manifest, TrainConfig
from training.datasets import About, Batch
from training.export import HeldOut, Provenance
from training.files import versions
from training.game import Architecture, DataSpec, Terms
from training.losses import AdversarialLoss
from training.submission import find_version

MakeConfig = Callable[..., TrainConfig]


def config(**values: object) -> TrainConfig:
    """As it comes over the wire."""
    return TrainConfig.model_validate_json(json.dumps({"dataset": "tiny", "batch_size": 20, "total_images": 240} | values))


@pytest.fixture(scope="module")
def repository(datasets_folder: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `start`, two versions of an mlp that is fresh from its initialisation; version 1 is in production."""
    repository = tmp_path_factory.mktemp("models")
    resolved = make_config(name="start")
    built, spec = catalog.build(resolved), DataSpec((1, 16, 16))
    players = built.architecture.players(built.architecture.games(spec, Terms(built.norm)), data=spec, score=built.loss.score)
    held_out = HeldOut(torch.rand(70, 1, 16, 16) * 2 - 1)
    for run in ("first", "second"):
        provenance = Provenance(run, built.architecture.source, resolved, datasets.card("tiny", datasets_folder), {})
        export.publish(players, provenance, held_out, held_out.some(export.NUM_SAMPLES), [repository])
    versions.write_alias([repository], "start", "production", 1)
    return repository


# --- what there is ------------------------------------------------------------------------------------------------------------


def test_every_file_of_architectures_is_found_by_its_key() -> None:
    files = {path.stem for path in (Path(catalog.__file__).parent / "architectures").glob("*.py")} - {"__init__"}
    found = catalog.architectures()
    homes = {key: kind.__module__.rpartition(".")[2] for key, kind in found.items()}
    assert set(homes.values()) == files >= {"mlp", "dcgan"}
    assert all(key == home or key.startswith(f"{home}-") for key, home in homes.items())
    assert list(found) == sorted(found)
    assert all(kind.key == key and kind.source and kind.__doc__ for key, kind in found.items())


def test_every_loss_and_penalty_is_found_by_its_key() -> None:
    losses, penalties = catalog.losses(), catalog.penalties()
    wasserstein = {"wasserstein-clip", "wasserstein-gp"}
    assert set(losses) == {"minimax", "non-saturating", "least-squares", "hinge", "relativistic"} | wasserstein
    assert set(penalties) == {"r1", "r2", "r1-r2", "gradient-penalty", "dragan"}
    for found in (losses, penalties):
        assert all(kind.key == key and kind.source and kind.__doc__ for key, kind in found.items())


def test_extractors_are_named_with_where_their_weights_come_from() -> None:
    assert TrainConfig().extractor in catalog.extractors()
    assert all(catalog.extractors().values())


def test_data_sets_are_the_built_in_and_the_registered_ones(datasets_folder: Path) -> None:
    assert {"fashion-mnist-10k", "tiny"} <= {card.name for card in catalog.datasets(datasets_folder)}


def test_the_catalogue_is_imported_without_torch_and_asks_for_it_later() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom training import catalog\ncatalog.architectures()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "in architectures" in done.stderr, "the import of the catalogue itself went well"
    assert done.stderr.splitlines()[-1].startswith(("ModuleNotFoundError", "ImportError"))


# --- what a config says -------------------------------------------------------------------------------------------------------


def test_every_default_is_filled_in(datasets_folder: Path) -> None:
    given = config(architecture="mlp", discriminator={"learning_rate": 0.01}, options={"latent_size": 3})
    resolved = catalog.resolve(given, datasets_folder, ())
    assert resolved.name == "mlp-tiny"
    widths = {"generator_widths": [256, 512, 1024], "discriminator_widths": [256, 128, 64]}
    assert resolved.options == {"latent_size": 3, "dropout": 0.3} | widths
    assert resolved.loss_options == {"label_smoothing": 0.0}
    assert (resolved.generator.learning_rate, resolved.generator.betas) == (2e-4, (0.5, 0.999))
    assert (resolved.discriminator.learning_rate, resolved.discriminator.betas) == (0.01, (0.5, 0.999))


def test_a_resolved_config_is_a_fixed_point_and_survives_the_disk(datasets_folder: Path) -> None:
    resolved = catalog.resolve(config(architecture="dcgan"), datasets_folder, ())
    again = TrainConfig.model_validate_json(resolved.model_dump_json())
    assert again == resolved
    assert catalog.resolve(again, datasets_folder, ()) == resolved
    assert catalog.build(again) == catalog.build(resolved)


def refused(datasets_folder: Path, *repositories: Path, **values: object) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        catalog.resolve(config(**values), datasets_folder, repositories)
    for pointer, message in caught.value.errors:
        assert f"{pointer.lstrip('/').replace('/', '.')}: {message}" in str(caught.value)
    return caught.value.errors


def test_unknown_names_list_the_known_ones(datasets_folder: Path) -> None:
    assert refused(datasets_folder, architecture="stylegan", loss="wgan") == [
        ("/architecture", f"'stylegan' is unknown; known: {', '.join(catalog.architectures())}"),
        ("/loss", f"'wgan' is unknown; known: {', '.join(catalog.losses())}"),
    ]
    ((pointer, message),) = refused(datasets_folder, dataset="nowhere")
    assert pointer == "/dataset"
    assert "there is no data set 'nowhere'; known: fashion-mnist-10k, tiny" in message


def test_an_unknown_option_lists_the_known_ones(datasets_folder: Path) -> None:
    assert refused(datasets_folder, architecture="dcgan", options={"width": 3}) == [
        ("/options/width", "dcgan has no option 'width'; its options: latent_size, generator_width, discriminator_width")
    ]
    assert refused(datasets_folder, loss_options={"gamma": 1}) == [
        ("/loss_options/gamma", "non-saturating has no option 'gamma'; its options: label_smoothing")
    ]


def test_every_wrong_option_is_told_at_once(datasets_folder: Path) -> None:
    errors = refused(
        datasets_folder,
        architecture="mlp",
        options={"latent_size": 0, "dropout": "much", "generator_widths": [8, 0.5]},
        loss_options={"label_smoothing": 0.7},
    )
    assert [pointer for pointer, _ in errors] == [
        "/options/latent_size",
        "/options/generator_widths/1",
        "/options/dropout",
        "/loss_options/label_smoothing",
    ]


@pytest.mark.parametrize("wrong", [True, "4", 4.0, None, [4], -1, 10**9])
def test_an_option_of_another_type_is_refused(wrong: object, datasets_folder: Path) -> None:
    ((pointer, _),) = refused(datasets_folder, architecture="mlp", options={"latent_size": wrong})
    assert pointer == "/options/latent_size"


def a_set(folder: Path, name: str, *shape: int, classes: int = 0) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(shape[0]) % classes if classes else None
    names = tuple(map(str, range(classes))) or None
    datasets.write(name, folder, About((shape[1], shape[2], shape[3]), "a test", "CC0", names), [Batch(images, labels=labels)])


def test_data_that_the_architecture_cannot_make_are_refused(tmp_path: Path) -> None:
    a_set(tmp_path, "odd", 100, 1, 20, 24)
    ((pointer, message),) = refused(tmp_path, dataset="odd", architecture="dcgan")
    assert pointer == "/dataset"
    assert message.startswith("dcgan makes square images of 16, 28, 32, 64, 128 pixels, and these are 24 x 20")
    assert catalog.resolve(config(dataset="odd", architecture="mlp"), tmp_path, ()).dataset == "odd"


@pytest.mark.parametrize(("images", "held_out"), [(10, 10), (64, 64), (83, 64)])
def test_a_set_too_small_for_a_batch_is_refused_with_the_figures(images: int, held_out: int, tmp_path: Path) -> None:
    a_set(tmp_path, "few", images, 1, 4, 4)
    ((pointer, message),) = refused(tmp_path, dataset="few", architecture="mlp")
    assert pointer == "/dataset"
    assert message == f"few has {images} images, of which {held_out} are held out; with batches of 20 at least 84 images are needed"


def test_a_set_of_just_one_batch_is_enough(tmp_path: Path) -> None:
    a_set(tmp_path, "few", 84, 1, 4, 4)
    assert catalog.resolve(config(dataset="few", architecture="mlp"), tmp_path, ()).dataset == "few"


# --- recipes ------------------------------------------------------------------------------------------------------------------

RECIPE: dict[str, object] = {  # of a tiny architecture, for the tests
    "loss": "least-squares",
    "loss_options": {"label_smoothing": 0.2},
    "penalty": "r1",
    "penalty_options": {"weight": 7.0},
    "learning_rate": 0.03,
    "betas": [0.1, 0.2],
    "batch_size": 10,
}


@pytest.fixture
def with_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mlp as if it had the recipe."""
    monkeypatch.setattr(catalog.architectures()["mlp"], "recipe", RECIPE)


def followed(folder: Path, **values: object) -> TrainConfig:
    given = TrainConfig.model_validate({"dataset": "tiny", "total_images": 240, "architecture": "mlp"} | values)
    resolved = catalog.resolve(given, folder, ())
    again = TrainConfig.model_validate_json(resolved.model_dump_json())
    assert catalog.resolve(again, folder, ()) == resolved, "a resolved config is a fixed point"
    assert catalog.resolve(resolved, folder, ()) == resolved
    return resolved


def parts(config: TrainConfig) -> tuple[object, ...]:
    return config.loss, config.loss_options, config.penalty, config.penalty_options


@pytest.mark.usefixtures("with_recipe")
def test_an_architectures_recipe_is_its_default(datasets_folder: Path) -> None:
    config = followed(datasets_folder)
    assert parts(config) == ("least-squares", {"label_smoothing": 0.2}, "r1", {"weight": 7.0})
    assert (config.learning_rate, config.betas, config.batch_size) == (0.03, (0.1, 0.2), 10)
    assert (config.generator.learning_rate, config.discriminator.betas) == (0.03, (0.1, 0.2))


@pytest.mark.usefixtures("with_recipe")
def test_the_users_own_word_wins_over_a_recipe(datasets_folder: Path) -> None:
    config = followed(
        datasets_folder, learning_rate=2e-4, batch_size=20, penalty_options={"weight": 2.0}, loss_options={"label_smoothing": 0.1}
    )
    assert (config.learning_rate, config.batch_size) == (2e-4, 20)
    assert parts(config) == ("least-squares", {"label_smoothing": 0.1}, "r1", {"weight": 2.0})
    assert config.betas == (0.1, 0.2), "what the user left open still follows the recipe"


@pytest.mark.usefixtures("with_recipe")
def test_a_replaced_loss_takes_its_options_and_its_penalty_with_it(datasets_folder: Path) -> None:
    config = followed(datasets_folder, loss="hinge")
    assert parts(config) == ("hinge", {}, "none", {})
    assert config.learning_rate == 0.03
    assert parts(followed(datasets_folder, loss="hinge", penalty="r2")) == ("hinge", {}, "r2", {"weight": 1.0})


@pytest.mark.usefixtures("with_recipe")
def test_a_replaced_penalty_takes_its_options_with_it_and_leaves_the_loss(datasets_folder: Path) -> None:
    smoothed = {"label_smoothing": 0.2}
    assert parts(followed(datasets_folder, penalty="r2")) == ("least-squares", smoothed, "r2", {"weight": 1.0})
    assert parts(followed(datasets_folder, penalty="none")) == ("least-squares", smoothed, "none", {})


@pytest.mark.usefixtures("with_recipe")
def test_what_the_recipe_says_anyway_may_be_said_again(datasets_folder: Path) -> None:
    assert followed(datasets_folder, loss="least-squares", penalty="r1") == followed(datasets_folder)


def test_the_general_default_said_aloud_keeps_a_recipes_penalty(datasets_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.architectures()["mlp"], "recipe", {"penalty": "r1"})
    assert followed(datasets_folder, loss="non-saturating") == followed(datasets_folder)
    assert followed(datasets_folder).penalty == "r1"


@pytest.mark.usefixtures("with_recipe")
def test_a_losses_recipe_beats_the_architectures_and_the_user_beats_both(datasets_folder: Path) -> None:
    config = followed(datasets_folder, loss="wasserstein-gp")
    assert (config.critic_steps, config.betas, config.learning_rate) == (5, (0.0, 0.9), 1e-4)
    assert config.batch_size == 10, "of which the loss says nothing"
    config = followed(datasets_folder, loss="wasserstein-clip", critic_steps=2, learning_rate=0.001)
    assert (config.critic_steps, config.betas, config.learning_rate) == (2, (0.0, 0.9), 0.001)


def test_the_recipe_of_a_loss_that_a_recipe_names_is_followed(datasets_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.architectures()["mlp"], "recipe", {"loss": "wasserstein-gp"})
    assert followed(datasets_folder).critic_steps == 5


def test_a_recipes_batch_that_is_more_than_all_images_is_refused(datasets_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.architectures()["mlp"], "recipe", {"batch_size": 512})
    with pytest.raises(ConfigError) as caught:
        followed(datasets_folder)
    assert caught.value.errors == [("/total_images", "total_images 240 is less than one batch of 512: give at least batch_size")]


@pytest.mark.parametrize("kind", [*catalog.architectures().values(), *catalog.losses().values()], ids=lambda kind: kind.key)
def test_every_recipe_is_a_config_that_can_be_built(kind: type[Architecture] | type[AdversarialLoss]) -> None:
    field = "architecture" if issubclass(kind, Architecture) else "loss"
    for num_evaluated in (0, 100):
        values = {field: kind.key, **kind.recipe, "num_evaluated": num_evaluated}
        assert catalog.build(TrainConfig.model_validate(values)).refusals() == []


# --- what has no effect -------------------------------------------------------------------------------------------------------


def test_options_of_no_penalty_are_refused(datasets_folder: Path) -> None:
    ((pointer, message),) = refused(datasets_folder, penalty_options={"weight": 1.0})
    assert pointer == "/penalty_options"
    assert message == "there is no penalty that could have options; penalties: " + ", ".join(catalog.penalties())


def test_an_unknown_penalty_lists_the_known_ones_and_none(datasets_folder: Path) -> None:
    ((pointer, message),) = refused(datasets_folder, penalty="r3")
    assert pointer == "/penalty"
    assert message == f"'r3' is unknown; known: none, {', '.join(catalog.penalties())}"


def test_an_option_that_the_penalty_does_not_have_is_refused(datasets_folder: Path) -> None:
    assert refused(datasets_folder, penalty="r1", penalty_options={"target_norm": 1.0, "weight": -1.0}) == [
        ("/penalty_options/weight", "Input should be greater than 0"),
        ("/penalty_options/target_norm", "r1 has no option 'target_norm'; its options: weight"),
    ]


def test_an_unknown_extractor_lists_the_known_ones(datasets_folder: Path) -> None:
    assert refused(datasets_folder, extractor="vgg") == [("/extractor", f"'vgg' is unknown; known: {', '.join(catalog.extractors())}")]


def test_weights_that_are_put_there_by_hand_and_are_not_there_are_refused_before_any_work(datasets_folder: Path, tmp_path: Path) -> None:
    for values, pointer, file in (
        ({"extractor": "inception-v3"}, "/extractor", "inception-v3.pth"),
        ({"architecture": "srgan", "options": {"content": "vgg19"}, "batch_size": 20}, "/options/content", "vgg19.pth"),
    ):
        asked = config(**({"batch_size": 20} | values))
        with pytest.raises(ConfigError) as caught:
            catalog.resolve(asked, datasets_folder, (), tmp_path)
        ((where, message),) = caught.value.errors
        assert where == pointer
        assert message.endswith(f"needs {file} in the folder of weights, and none is ever downloaded; put it there, or choose another")
        (tmp_path / file).touch()
    catalog.resolve(config(batch_size=20, extractor="inception-v3"), datasets_folder, (), tmp_path)
    with pytest.raises(ConfigError, match=r"options: .*vgg19.pth holds no weights that can be read; put the state dict of"):
        catalog.resolve(asked, datasets_folder, (), tmp_path)


def test_a_run_too_short_for_its_phases_is_refused_with_what_would_do(datasets_folder: Path) -> None:
    values = {"architecture": "srgan", "options": {"pixel_phase": 0.75, "content": "none"}, "batch_size": 20}
    ((pointer, message),) = refused(datasets_folder, **values, total_images=120)
    assert pointer == "/total_images"
    assert message == (
        "srgan is trained in 2 phases, and 120 total_images leave 30 for one of them, less than two steps of 20; give at least 160"
    )
    catalog.resolve(config(**values, total_images=160), datasets_folder, ())


@pytest.mark.parametrize(("field", "value", "other"), [("learning_rate", 1e-3, 1e-4), ("betas", [0.1, 0.9], [0.2, 0.9])])
def test_a_shared_setting_that_both_networks_override_is_refused(datasets_folder: Path, field: str, value: object, other: object) -> None:
    own = {"generator": {field: value}, "discriminator": {field: other}, "architecture": "mlp", "batch_size": 20}
    shared = [0.5, 0.5] if field == "betas" else 0.5
    assert refused(datasets_folder, **own, **{field: shared}) == [
        (f"/{field}", f"has no effect, as generator.{field} and discriminator.{field} are given; leave {field} out, or one of them")
    ]
    followed(datasets_folder, **own)
    followed(datasets_folder, **(own | {"discriminator": {}, field: shared}))


def test_what_says_how_to_evaluate_is_refused_where_nothing_is_evaluated(datasets_folder: Path) -> None:
    message = "has no effect where num_evaluated is 0; leave {} out, or num_evaluated"
    assert refused(datasets_folder, num_evaluated=0, extractor="inception-v3", evaluation_images=5) == [
        (f"/{field}", message.format(field)) for field in ("extractor", "evaluation_images")
    ]
    assert followed(datasets_folder, num_evaluated=0, batch_size=20).num_evaluated == 0


def test_every_mistake_is_told_at_once_whatever_part_it_is_in(datasets_folder: Path) -> None:
    errors = refused(datasets_folder, architecture="x", loss="x", penalty="x", extractor="x")
    assert [pointer for pointer, _ in errors] == ["/architecture", "/loss", "/penalty", "/extractor"]


def test_what_is_said_of_a_discriminator_that_is_not_trained_is_refused(datasets_folder: Path) -> None:
    said = {"loss": "hinge", "penalty": "r1", "spectral_norm": True, "diff_augment": ["color"], "critic_steps": 2}
    pixels = {"architecture": "srgan", "options": {"pixel_phase": 1.0}, "batch_size": 20}
    errors = refused(datasets_folder, **pixels, **said)
    assert [pointer for pointer, _ in errors] == [f"/{field}" for field in said]
    assert errors[0][1] == "has no effect, as these options train no discriminator; leave loss out, or change them"
    ((pointer, _),) = refused(datasets_folder, **pixels, loss_options={"label_smoothing": 0.1})
    assert pointer == "/loss_options"
    resolved = followed(datasets_folder, **pixels)
    assert catalog.resolve(resolved, datasets_folder, ()) == resolved


def test_parts_that_do_not_go_together_are_refused_with_the_reason(datasets_folder: Path) -> None:
    ((pointer, message),) = refused(datasets_folder, loss="wasserstein-clip", spectral_norm=True)
    assert pointer == "/spectral_norm"
    assert message.startswith("spectral_norm cannot be used with wasserstein-clip: ")


# --- fine-tuning --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reference", "pinned"), [("start", "start/1"), ("start/2", "start/2"), ("start/production", "start/1")])
def test_an_initial_model_is_pinned_and_brings_its_architecture_and_options(
    reference: str, pinned: str, datasets_folder: Path, repository: Path
) -> None:
    resolved = catalog.resolve(config(initial_model=reference), datasets_folder, (repository,))
    assert (resolved.initial_model, resolved.architecture) == (pinned, "mlp")
    assert resolved.options["generator_widths"] == [8]
    assert resolved.name == "mlp-tiny"
    assert catalog.resolve(resolved, datasets_folder, (repository,)) == resolved


def test_what_equals_the_initial_model_may_be_said_again(datasets_folder: Path, repository: Path) -> None:
    values = {"architecture": "mlp", "options": {"generator_widths": [8], "latent_size": 4}, "loss": "minimax", "name": "again"}
    resolved = catalog.resolve(config(initial_model="start", **values), datasets_folder, (repository,))
    assert (resolved.loss, resolved.name) == ("minimax", "again")


def published(repository: Path, name: str, **changes: object) -> None:
    """Write another version's manifest beside that of `start`, with another config and data."""
    manifest = json.loads((repository / "start" / "1" / "manifest.json").read_bytes())
    manifest["name"] = name
    manifest["config"] |= changes.get("config", {})
    manifest["dataset"] |= changes.get("dataset", {})
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "manifest.json").write_text(json.dumps(manifest))


def test_fine_tuning_keeps_the_loss_and_the_penalty_that_it_does_not_name(datasets_folder: Path, repository: Path) -> None:
    own = {"loss": "minimax", "loss_options": {"label_smoothing": 0.2}, "penalty": "r1", "penalty_options": {"weight": 3.0}}
    published(repository, "penalised", config=own)
    kept = catalog.resolve(config(initial_model="penalised"), datasets_folder, (repository,))
    assert {field: getattr(kept, field) for field in own} == own
    options = catalog.resolve(config(initial_model="penalised", loss_options={"label_smoothing": 0.1}), datasets_folder, (repository,))
    assert (options.loss, options.loss_options) == ("minimax", {"label_smoothing": 0.1})
    other = catalog.resolve(config(initial_model="penalised", loss="hinge"), datasets_folder, (repository,))
    assert (other.loss, other.loss_options, other.penalty) == ("hinge", {}, "r1")


def test_another_architecture_than_the_initial_models_is_refused(datasets_folder: Path, repository: Path) -> None:
    assert refused(datasets_folder, repository, initial_model="start", architecture="dcgan") == [
        ("/architecture", "initial_model start is of architecture mlp")
    ]


def test_other_options_than_the_initial_models_are_refused_each_by_its_field(datasets_folder: Path, repository: Path) -> None:
    assert refused(datasets_folder, repository, initial_model="start/2", options={"latent_size": 5, "generator_widths": [8, 8]}) == [
        ("/options/latent_size", "initial_model start/2 has latent_size 4"),
        ("/options/generator_widths", "initial_model start/2 has generator_widths [8]"),
    ]
    ((pointer, _),) = refused(datasets_folder, repository, initial_model="start", options={"width": 5})
    assert pointer == "/options/width"


def test_bad_options_of_the_loss_are_refused_when_fine_tuning_too(datasets_folder: Path, repository: Path) -> None:
    ((pointer, _),) = refused(datasets_folder, repository, initial_model="start", loss_options={"label_smoothing": 2})
    assert pointer == "/loss_options/label_smoothing"


def test_images_of_another_shape_than_the_initial_models_are_refused(tmp_path: Path, repository: Path) -> None:
    a_set(tmp_path, "larger", 100, 3, 16, 20)
    assert refused(tmp_path, repository, initial_model="start", dataset="larger") == [
        (
            "/dataset",
            "initial_model start/1 was trained on images of 1x16x16, and those of larger are 3x16x20;"
            " add the data set again in that shape, or leave initial_model out",
        )
    ]


def test_a_penalty_that_needs_other_layers_than_the_initial_models_is_refused(datasets_folder: Path, repository: Path) -> None:
    options = catalog.resolve(config(architecture="dcgan", options={"discriminator_width": 4}), datasets_folder, ()).options
    published(repository, "normed", config={"architecture": "dcgan", "options": options})
    catalog.resolve(config(initial_model="normed", loss="hinge"), datasets_folder, (repository,))
    for change in ({"penalty": "r1"}, {"loss": "wasserstein-gp"}, {"spectral_norm": True}):
        ((pointer, message),) = refused(datasets_folder, repository, initial_model="normed", **change)
        assert pointer == "/initial_model"
        assert message.startswith("the discriminator of normed/1 has other layers (")
        assert "penalty none and spectral_norm false" in message


@pytest.mark.parametrize("reference", ["other", "start/9", "start/best", "", "../start", "start/1/1"])
def test_an_initial_model_that_is_not_there_is_refused(reference: str, datasets_folder: Path, repository: Path) -> None:
    ((pointer, message),) = refused(datasets_folder, repository, initial_model=reference)
    assert pointer == "/initial_model"
    assert "there is no model" in message or "has no version" in message


@pytest.mark.parametrize("content", [None, "{}", "nonsense"])
def test_a_damaged_initial_model_is_refused(content: str | None, datasets_folder: Path, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "models")
    manifest = tmp_path / "models" / "start" / "1" / versions.MANIFEST
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    assert refused(datasets_folder, tmp_path / "models", initial_model="start/1") == [
        ("/initial_model", "start/1 is damaged and cannot be started from; choose another version")
    ]


def test_a_version_is_found_by_its_reference(repository: Path) -> None:
    found = find_version("start", (repository,))
    assert isinstance(found, Manifest)
    assert (found.name, found.version, found.run) == ("start", 1, "first")


# --- presets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog.presets())
def test_a_preset_is_a_config_that_can_be_run_and_the_user_goes_before_it(name: str, tmp_path: Path) -> None:
    preset = catalog.presets()[name].config
    a_set(tmp_path, str(preset["dataset"]), 2000, 1, 28, 28, classes=10)
    resolved = catalog.resolve(TrainConfig(preset=name), tmp_path, ())
    assert resolved.preset is None
    for field, value in preset.items():
        found = getattr(resolved, field)
        assert {**found, **value} == found if isinstance(value, dict) else found == value
    assert catalog.resolve(resolved, tmp_path, ()) == resolved
    options = {"generator_width": 7}
    own = catalog.resolve(TrainConfig(preset=name, seed=5, batch_size=32, options=options), tmp_path, ())
    assert (own.seed, own.batch_size, own.options["generator_width"]) == (5, 32, 7)
    assert own.options["discriminator_width"] == resolved.options["discriminator_width"]
    for values, message in (({"preset": "slow"}, "/preset"), ({"preset": name, "architecture": "mlp"}, "leave one of them out")):
        with pytest.raises(ConfigError) as caught:
            catalog.resolve(TrainConfig(**values), tmp_path, ())
        assert message in str(caught.value.errors)


# --- going on ------------------------------------------------------------------------------------------------------------------


def test_a_run_may_go_on_to_more_images_and_with_nothing_else_changed(datasets_folder: Path) -> None:
    begun = catalog.resolve(config(architecture="mlp", batch_size=20, generator={"learning_rate": 0.1}), datasets_folder, ())
    card = datasets.card("tiny", datasets_folder)
    said = {"architecture": "mlp", "batch_size": 20, "generator": {"learning_rate": 0.1}, "options": {"dropout": begun.options["dropout"]}}
    assert submission.resume(begun, config(**said), card, Path()) == begun
    more = submission.resume(begun, config(total_images=300), card, Path())
    assert more == begun.model_copy(update={"total_images": 300})
    with pytest.raises(ConfigError) as caught:
        submission.resume(begun, config(seed=4, batch_size=30, options={"dropout": 0.9}, total_images=100), card, Path())
    assert {pointer for pointer, _ in caught.value.errors} == {"/seed", "/batch_size", "/options/dropout", "/total_images"}


def test_a_run_in_phases_cannot_be_made_longer(datasets_folder: Path) -> None:
    phased = {"architecture": "srgan", "options": {"pixel_phase": 0.5, "content": "none"}, "batch_size": 20}
    begun = catalog.resolve(config(**phased), datasets_folder, ())
    with pytest.raises(ConfigError, match="srgan is trained in phases, which 240 total_images have placed; begin a new run for more"):
        submission.resume(begun, config(total_images=300), datasets.card("tiny", datasets_folder), Path())
