"""Turns what a user wrote into a config that can be run: every default resolved, everything checked that can be before any work."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from training import promotion
from training.blueprint import Blueprint
from training.catalog import ConfigError, architectures, build, losses, presets
from training.combination import Combination
from training.contract import DatasetCard, Manifest, OptimizerConfig, TrainConfig, UserError
from training.datasets import DatasetError
from training.datasets import card as read_card
from training.export_onnx import refusal
from training.features import BY_HAND
from training.files import versions
from training.game import DataSpec, UnsuitableDataError
from training.phases import phases, too_short


def resolve(config: TrainConfig, datasets_folder: Path, repositories: tuple[Path, ...], weights: Path = Path("weights")) -> TrainConfig:
    """The config with every default filled in, checked against its data set before any work.

    Args:
        datasets_folder: of registered data sets.
        repositories: where `initial_model` is looked up, and where its name will be published.
        weights: the folder of weights files that were put there by hand.

    Raises:
        ConfigError: it cannot be run; each reason with its field.
    """
    if idle := [field for field in _idle_settings(config) if field in config.model_fields_set]:
        message = "has no effect, as generator.{0} and discriminator.{0} are given; leave {0} out, or one of them"
        raise ConfigError([(f"/{field}", message.format(field)) for field in idle])
    config = _follow_recipes(_follow_initial_model(_follow_preset(config), repositories))
    combination = build(config)
    if config.on_collapse == "stop" and "image" in combination.architecture.inputs:
        message = f"stop has no effect with {config.architecture}, whose images have targets; leave on_collapse out"
        raise ConfigError([("/on_collapse", message)])
    if errors := promotion.refusals(config, of_pairs="image" in combination.architecture.inputs):
        raise ConfigError(errors)
    if config.formats and (reason := refusal()):
        raise ConfigError([("/formats", reason)])
    if missing := _missing_weights(config, combination, weights):
        raise ConfigError(missing)
    card = _suitable_data(config, combination, datasets_folder)
    _check_same_shapes(config, combination, card, repositories)
    _check_networks(config, card, weights, repositories)
    return _filled(config, combination, card)


def resume(begun: TrainConfig, given: TrainConfig, card: DatasetCard, weights: Path) -> TrainConfig:
    """The config of a run that goes on: what is said again must be what it was begun with, and total_images may be larger.

    Args:
        begun: the run's, resolved.
        given: what the user says now; what is left out stays.
        card: of the run's data set.

    Raises:
        ConfigError: a difference; every one of them.
    """
    # what a recipe says stands in what was begun
    said = _follow_preset(given).model_dump(mode="json", exclude_unset=True, exclude={"recipe"})
    if _may_be(begun.initial_model, given.initial_model):
        said.pop("initial_model")
    total_images = said.pop("total_images", begun.total_images)
    errors = _differences(begun.model_dump(mode="json"), said, "")
    was = begun.total_images
    if total_images < was:
        errors.append(("/total_images", f"the run was begun for {was:,}; give more, to train on, or leave total_images out"))
    if total_images > was and len(phases(Blueprint.of(begun, card, weights).games, was)) > 1:
        message = f"{begun.architecture} is trained in phases, which {was:,} total_images have placed; begin a new run for more"
        errors.append(("/total_images", message))
    if errors:
        raise ConfigError(errors)
    return begun.model_copy(update={"total_images": total_images})


def _may_be(pinned: str | None, reference: str | None) -> bool:
    """Whether a pinned version is one that a name, or a name and an alias, may have stood for."""
    if pinned is None or reference is None:
        return False
    name, _, version = reference.partition("/")
    return name == pinned.split("/")[0] and not version.isdecimal()


def _differences(begun: Mapping[str, JsonValue], said: Mapping[str, JsonValue], pointer: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in said.items():
        was, where = begun.get(key), f"{pointer}/{key}"
        if isinstance(value, dict) and isinstance(was, dict):
            found += _differences(was, value, where)
        elif value != was:
            message = f"the run was begun with {json.dumps(was)}, not {json.dumps(value)}; leave {key} out, or begin a new run"
            found.append((where, message))
    return found


def _suitable_data(config: TrainConfig, combination: Combination, datasets_folder: Path) -> DatasetCard:
    """The card of the config's data set, where the architecture can be trained on it."""
    try:
        card = read_card(config.dataset, datasets_folder)
        combination.architecture.check(DataSpec.of(card))
    except (DatasetError, UnsuitableDataError) as error:
        raise ConfigError([("/dataset", str(error))]) from error
    if config.dataset_sha256 not in (None, card.content_sha256):
        message = f"{config.dataset_sha256} is not the content of {card.name}, which has {card.content_sha256}; leave dataset_sha256 out"
        raise ConfigError([("/dataset_sha256", f"{message}, or add the data set that is meant by another name")])
    held_out = config.num_held_out(card.num_images)
    if card.num_images - held_out < config.batch_size:
        raise ConfigError(
            [
                (
                    "/dataset",
                    f"{card.name} has {card.num_images} images, of which {min(held_out, card.num_images)} are held out;"
                    f" with batches of {config.batch_size} at least {held_out + config.batch_size} images are needed",
                )
            ]
        )
    return card


def _check_networks(config: TrainConfig, card: DatasetCard, weights: Path, repositories: tuple[Path, ...]) -> None:
    try:
        blueprint = Blueprint.of(config, card, weights)
    except UserError as error:  # a file of weights that is there and cannot be read
        raise ConfigError([("/options", str(error))]) from error
    if reason := too_short(blueprint.games, config):
        raise ConfigError([("/total_images", reason)])
    if config.initial_model is not None:
        _check_same_layers(config.initial_model, blueprint, weights, repositories)


def _filled(config: TrainConfig, combination: Combination, card: DatasetCard) -> TrainConfig:
    """With every default said."""
    shared = {"learning_rate": config.learning_rate, "betas": config.betas}
    return config.model_copy(
        update={
            **{field: getattr(config.generator, field) for field in _idle_settings(config)},
            "name": config.model_name,
            "dataset_sha256": card.content_sha256,
            "options": combination.architecture.model_dump(mode="json"),
            "loss_options": combination.loss.model_dump(mode="json"),
            "penalty_options": {} if combination.penalty is None else combination.penalty.model_dump(mode="json"),
            "generator": config.generator.model_copy(update=_missing(config.generator, shared)),
            "discriminator": config.discriminator.model_copy(update=_missing(config.discriminator, shared)),
        }
    )


def _missing_weights(config: TrainConfig, combination: Combination, weights: Path) -> list[tuple[str, str]]:
    wanted = {f"/options/{option}": network for option, network in combination.architecture.pretrained.items()}
    if config.num_evaluated:
        wanted["/extractor"] = config.extractor
    return [
        (
            pointer,
            f"{network} needs {BY_HAND[network]} in the folder of weights, and none is ever downloaded; put it there, or choose another",
        )
        for pointer, network in wanted.items()
        if network in BY_HAND and not (weights / BY_HAND[network]).is_file()
    ]


def _follow_preset(config: TrainConfig) -> TrainConfig:
    """What the user left open is the preset's; `preset` becomes None: all is said now."""
    if config.preset is None:
        return config
    if config.preset not in presets():
        raise ConfigError([("/preset", f"{config.preset!r} is unknown; known: {', '.join(presets())}")])
    preset, given = presets()[config.preset].config, config.model_dump(mode="json", exclude_unset=True)
    architecture = given.get("architecture", preset["architecture"])
    if architecture != preset["architecture"]:
        message = f"{config.preset} is of {preset['architecture']}, and {architecture} is given; leave one of them out"
        raise ConfigError([("/preset", message)])
    merged = {key: {**value, **given.get(key, {})} for key, value in preset.items() if isinstance(value, dict)}
    return _validated({**preset, **given, **merged, "preset": None})


def _follow_recipes(config: TrainConfig) -> TrainConfig:
    """Defaults of the loss and of the architecture for what the user left open; the architecture's, where they are made for that loss.

    What goes with a loss or a penalty that the user has replaced goes with it. Where a recipe was followed, `recipe` becomes False:
    all is said now.
    """
    if not config.recipe:
        return config
    given = config.model_fields_set
    recipe: dict[str, JsonValue] = dict(architectures()[config.architecture].recipe) if config.architecture in architectures() else {}
    for part, goes in (("loss", ("loss", "penalty")), ("penalty", ("penalty",))):
        if part in given and getattr(config, part) != recipe.get(part, TrainConfig.model_fields[part].default):
            recipe = {field: value for field, value in recipe.items() if not field.startswith(goes)}
    loss = config.loss if "loss" in given else str(recipe.get("loss", config.loss))
    of_loss = losses()[loss].recipe if loss in losses() else {}
    recipe = {**of_loss, **recipe} if recipe.get("loss") == loss else {**recipe, **of_loss}
    values = config.model_dump(mode="json", exclude_unset=True)
    return _validated({**recipe, **values, "recipe": not recipe})


def _validated(values: Mapping[str, JsonValue]) -> TrainConfig:
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:  # each value is fine by itself, and a recipe's batch may be larger than all the user's images
        raise ConfigError([(_pointer(item["loc"]), str(item["msg"]).removeprefix("Value error, ")) for item in error.errors()]) from error


def _pointer(location: tuple[int | str, ...]) -> str:
    """Of a field in a config; what is wrong with the whole of it is its number of images."""
    return "/" + "/".join(str(part) for part in location or ("total_images",))


def _idle_settings(config: TrainConfig) -> list[str]:
    """Adam's settings that neither network follows, each having its own."""
    own = {field: (getattr(config.generator, field), getattr(config.discriminator, field)) for field in OptimizerConfig.model_fields}
    return [field for field, values in own.items() if None not in values and getattr(config, field) not in values]


def _missing(given: BaseModel, defaults: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in defaults.items() if getattr(given, key) is None}


def _follow_initial_model(config: TrainConfig, repositories: tuple[Path, ...]) -> TrainConfig:
    """Pin `initial_model` to a number; what is left out of architecture, options, loss, penalty and spectral norm is its own.

    An architecture or option that is given must be the same.
    """
    if config.initial_model is None:
        return config
    manifest = find_version(config.initial_model, repositories)
    given = config.model_fields_set
    initial = manifest.config
    if "architecture" in given and config.architecture != initial.architecture:
        raise ConfigError([("/architecture", f"initial_model {config.initial_model} is of architecture {initial.architecture}")])
    wrong = {key: initial.options[key] for key, value in config.options.items() if initial.options.get(key, value) != value}
    if wrong:
        raise ConfigError([(f"/options/{key}", f"initial_model {config.initial_model} has {key} {value}") for key, value in wrong.items()])
    kept = {field: getattr(initial, field) for field in _followed_fields(given)}
    return config.model_copy(
        update={
            **kept,
            "architecture": initial.architecture,
            "options": {**initial.options, **config.options},
            "initial_model": f"{manifest.name}/{manifest.version}",
        }
    )


def _followed_fields(given: set[str]) -> list[str]:
    """A loss or a penalty that is given brings its own options, and options that are given are of the same loss or penalty."""
    replaced = {f"{part}_options" for part in ("loss", "penalty") if part in given}
    return [field for field in ("loss", "loss_options", "penalty", "penalty_options", "spectral_norm") if field not in given | replaced]


def _check_same_shapes(config: TrainConfig, combination: Combination, card: DatasetCard, repositories: tuple[Path, ...]) -> None:
    """What networks are started from was trained on data of the same shapes and classes."""
    if config.initial_model is None:
        return
    initial = find_version(config.initial_model, repositories)
    reference, old, errors = f"initial_model {config.initial_model}", initial.dataset, []
    for what, wanted, given in (("images", old.shape, card.shape), ("sources", old.source_shape, card.source_shape)):
        if wanted != given:
            trained, these = ["x".join(map(str, shape)) if shape else "no shape" for shape in (wanted, given)]
            message = f"{reference} was trained on {what} of {trained}, and those of {card.name} are {these}"
            errors.append(("/dataset", f"{message}; add the data set again in that shape, or leave initial_model out"))
    kinds = (*combination.architecture.inputs, *combination.architecture.conditions)
    classes = [len(each.class_names or ()) for each in (old, card)]
    if "label" in kinds and classes[0] != classes[1]:
        message = f"{reference} was trained on {classes[0]} classes, and {card.name} has {classes[1]}"
        errors.append(("/dataset", f"{message}; choose another data set, or leave initial_model out"))
    if errors:
        raise ConfigError(errors)


def _check_same_layers(reference: str, blueprint: Blueprint, weights: Path, repositories: tuple[Path, ...]) -> None:
    """A loss, a penalty or spectral norm may ask for other layers than those that the published version has."""
    initial = find_version(reference, repositories)
    old = Blueprint.of(initial.config, initial.dataset, weights)
    for player in ("generator", "discriminator"):
        if player in blueprint.players and (differing := blueprint.shapes(player).items() ^ old.shapes(player).items()):
            trained = initial.config
            message = (
                f"the {player} of {reference} has other layers ({min(differing)[0]}, say): it was trained with loss {trained.loss}, penalty"
                f" {trained.penalty} and spectral_norm {str(trained.spectral_norm).lower()}, which decide about its norms; leave loss,"
                " penalty and spectral_norm out, or initial_model"
            )
            raise ConfigError([("/initial_model", message)])


def find_version(reference: str, repositories: tuple[Path, ...]) -> Manifest:
    """The manifest of `name`, `name/3` or `name/production`.

    Raises:
        ConfigError: there is no such version, and the message lists what there is; or it is damaged.
    """
    try:
        folder = versions.find(reference, repositories)
        return Manifest.model_validate_json((folder / versions.MANIFEST).read_bytes())
    except LookupError as error:
        raise ConfigError([("/initial_model", str(error.args[0]))]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([("/initial_model", f"{reference} is damaged and cannot be started from; choose another version")]) from error
