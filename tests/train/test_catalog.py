import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training import catalog, datasets, export
from training.catalog import ConfigError
from training.contract import Manifest, TrainConfig
from training.datasets import About, Batch
from training.export import Provenance
from training.files import versions
from training.game import DataSpec

MakeConfig = Callable[..., TrainConfig]


def config(**values: object) -> TrainConfig:
    """As it comes over the wire."""
    return TrainConfig.model_validate_json(json.dumps({"dataset": "tiny", "batch_size": 20, "total_images": 240} | values))


@pytest.fixture(scope="module")
def repository(datasets_folder: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `start`, two versions of an mlp that is fresh from its initialisation; version 1 is in production."""
    repository = tmp_path_factory.mktemp("models")
    resolved = make_config(name="start")
    architecture, loss = catalog.build(resolved)
    spec = DataSpec((1, 16, 16))
    players = architecture.players(architecture.games(spec, samplewise_critic=False), data=spec, score=loss.score)
    for run in ("first", "second"):
        provenance = Provenance(run, architecture.source, resolved, datasets.card("tiny", datasets_folder), {})
        export.publish(players, provenance, torch.rand(70, 1, 16, 16) * 2 - 1, [repository])
    versions.write_alias([repository], "start", "production", 1)
    return repository


# --- what there is ------------------------------------------------------------------------------------------------------------


def test_every_file_of_architectures_is_found_by_its_key() -> None:
    files = {path.stem for path in (Path(catalog.__file__).parent / "architectures").glob("*.py")} - {"__init__"}
    found = catalog.architectures()
    assert set(found) == files >= {"mlp", "dcgan"}
    assert list(found) == sorted(found)
    assert all(kind.key == key and kind.source and kind.__doc__ for key, kind in found.items())


def test_every_loss_is_found_by_its_key() -> None:
    found = catalog.losses()
    assert set(found) >= {"minimax", "non-saturating"}
    assert all(kind.key == key and kind.source and kind.__doc__ for key, kind in found.items())


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


def a_set(folder: Path, name: str, *shape: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    datasets.write(name, folder, About((shape[1], shape[2], shape[3]), "a test", "CC0"), [Batch(images)])


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
    found = catalog.find_version("start", (repository,))
    assert isinstance(found, Manifest)
    assert (found.name, found.version, found.run) == ("start", 1, "first")
