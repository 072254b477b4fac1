"""Finds architectures and losses, and turns what a user wrote into a config with every default resolved.

The catalogue imports torch when it is asked, not when it is imported: a process that only serves may not have the trainer at all.
"""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from training.contract import DatasetCard, Manifest, TrainConfig, UserError
from training.files import versions

if TYPE_CHECKING:
    from training.combination import Combination
    from training.game import Architecture
    from training.losses import AdversarialLoss
    from training.penalties import Penalty

NO_PENALTY = "none"

Options = TypeVar("Options", bound=BaseModel)
Keyed = TypeVar("Keyed", "AdversarialLoss", "Penalty")


class ConfigError(UserError):
    """A training config that cannot be run; `errors` are (pointer, sentence), one for each field that is wrong."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{pointer.lstrip('/').replace('/', '.')}: {message}" for pointer, message in errors))
        self.errors = errors


@cache
def architectures() -> dict[str, type["Architecture"]]:
    """Every architecture by its key: the classes of `training/architectures/*.py`."""
    from training.game import Architecture

    package = importlib.import_module("training.architectures")
    found: dict[str, type[Architecture]] = {}
    for module_info in pkgutil.iter_modules(package.__path__, "training.architectures."):
        module = importlib.import_module(module_info.name)
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Architecture) and member.__module__ == module.__name__:
                found[member.key] = member
    return dict(sorted(found.items()))


@cache
def losses() -> dict[str, type["AdversarialLoss"]]:
    """Every loss by its key: the classes of `training/losses.py`."""
    from training import losses as module

    return _keyed(module, module.AdversarialLoss)


@cache
def penalties() -> dict[str, type["Penalty"]]:
    """Every penalty by its key: the classes of `training/penalties.py`."""
    from training import penalties as module

    return _keyed(module, module.Penalty)


def _keyed(module: ModuleType, kind: type[Keyed]) -> dict[str, type[Keyed]]:
    """The classes of a kind that a config can name; one without a key is a base."""
    found = [member for _, member in inspect.getmembers(module, inspect.isclass) if issubclass(member, kind)]
    return {member.key: member for member in found if hasattr(member, "key")}


def extractors() -> dict[str, str]:
    """Every feature extractor by its name, and where its weights come from; they need not be at hand."""
    from training.features import EXTRACTORS

    return EXTRACTORS


def datasets(folder: Path) -> list[DatasetCard]:
    """Every data set that a config may name."""
    from training.datasets import known

    return list(known(folder).values())


def build(config: TrainConfig) -> "Combination":
    """The architecture, the loss and the penalty of a config.

    Raises:
        ConfigError: an unknown name, an unknown option, a value that is not allowed, or parts that do not go together; every one of them.
    """
    from training.combination import Combination

    errors: list[tuple[str, str]] = []
    architecture = _options(architectures(), "architecture", config.architecture, "options", config.options, errors)
    loss = _options(losses(), "loss", config.loss, "loss_options", config.loss_options, errors)
    penalty = None
    if config.penalty != NO_PENALTY:
        penalty = _options(penalties(), "penalty", config.penalty, "penalty_options", config.penalty_options, errors)
    elif config.penalty_options:
        errors.append(("/penalty_options", f"there is no penalty that could have options; penalties: {', '.join(penalties())}"))
    errors += _evaluation_errors(config)
    if errors or architecture is None or loss is None:
        raise ConfigError(errors)
    combination = Combination(architecture, loss, penalty, config.spectral_norm, bool(config.diff_augment))
    if refusals := combination.refusals() + _idle_fields(config, combination):
        raise ConfigError(refusals)
    return combination


def _idle_fields(config: TrainConfig, combination: "Combination") -> list[tuple[str, str]]:
    """What is said of a discriminator that is not trained."""
    if combination.architecture.is_adversarial:
        return []
    fields = ("loss", "penalty", "spectral_norm", "diff_augment", "critic_steps")
    idle = [field for field in fields if getattr(config, field) != TrainConfig.model_fields[field].default]
    if combination.loss != type(combination.loss)():
        idle.append("loss_options")
    return [(f"/{field}", f"has no effect, as these options train no discriminator; leave {field} out, or change them") for field in idle]


def _missing_weights(config: TrainConfig, combination: "Combination", weights: Path) -> list[tuple[str, str]]:
    from training.features import BY_HAND

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


def _evaluation_errors(config: TrainConfig) -> list[tuple[str, str]]:
    if config.num_evaluated == 0:
        without_effect = [
            field for field in ("extractor", "evaluation_images") if getattr(config, field) != TrainConfig.model_fields[field].default
        ]
        return [(f"/{field}", f"has no effect where num_evaluated is 0; leave {field} out, or num_evaluated") for field in without_effect]
    if config.extractor not in extractors():
        return [("/extractor", f"{config.extractor!r} is unknown; known: {', '.join(extractors())}")]
    return []


def _options(
    known: Mapping[str, type[Options]],
    field: str,
    key: str,
    options_field: str,
    options: Mapping[str, JsonValue],
    errors: list[tuple[str, str]],
) -> Options | None:
    if key not in known:
        nothing = [NO_PENALTY] if field == "penalty" else []
        errors.append((f"/{field}", f"{key!r} is unknown; known: {', '.join([*nothing, *known])}"))
        return None
    try:
        return known[key].model_validate_json(json.dumps(options))
    except ValidationError as error:
        for item in error.errors():
            message = str(item["msg"]).removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                allowed = ", ".join(known[key].model_fields) or "none"
                message = f"{key} has no option {item['loc'][-1]!r}; its options: {allowed}"
            errors.append(("/".join(["", options_field, *map(str, item["loc"])]), message))
        return None


def resolve(config: TrainConfig, datasets_folder: Path, repositories: tuple[Path, ...], weights: Path = Path("weights")) -> TrainConfig:
    """The config with every default filled in, checked against its data set before any work.

    Args:
        datasets_folder: of registered data sets.
        repositories: where `initial_model` is looked up, and where its name will be published.
        weights: the folder of weights files that were put there by hand.

    Raises:
        ConfigError: it cannot be run; each reason with its field.
    """
    from training.datasets import DatasetError
    from training.datasets import card as read_card
    from training.game import DataSpec, UnsuitableDataError

    config = _follow_recipes(_follow_initial_model(config, repositories))
    combination = build(config)
    if missing := _missing_weights(config, combination, weights):
        raise ConfigError(missing)
    try:
        card = read_card(config.dataset, datasets_folder)
        combination.architecture.check(DataSpec.of(card))
    except (DatasetError, UnsuitableDataError) as error:
        raise ConfigError([("/dataset", str(error))]) from error
    _check_weights_fit(config, combination, card, repositories)
    held_out = config.num_held_out(card.num_images)
    left = card.num_images - held_out
    if left < config.batch_size:
        raise ConfigError(
            [
                (
                    "/dataset",
                    f"{card.name} has {card.num_images} images, of which {min(held_out, card.num_images)} are held out;"
                    f" with batches of {config.batch_size} at least {held_out + config.batch_size} images are needed",
                )
            ]
        )
    shared = {"learning_rate": config.learning_rate, "betas": config.betas}
    return config.model_copy(
        update={
            "name": config.model_name,
            "options": combination.architecture.model_dump(mode="json"),
            "loss_options": combination.loss.model_dump(mode="json"),
            "penalty_options": {} if combination.penalty is None else combination.penalty.model_dump(mode="json"),
            "generator": config.generator.model_copy(update=_missing(config.generator, shared)),
            "discriminator": config.discriminator.model_copy(update=_missing(config.discriminator, shared)),
        }
    )


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
    try:
        return TrainConfig.model_validate({**recipe, **values, "recipe": not recipe})
    except ValidationError as error:  # each value is fine by itself, and a recipe's batch may be larger than all the user's images
        raise ConfigError([(_pointer(item["loc"]), str(item["msg"]).removeprefix("Value error, ")) for item in error.errors()]) from error


def _pointer(location: tuple[int | str, ...]) -> str:
    """Of a field in a config; what is wrong with the whole of it is its number of images."""
    return "/" + "/".join(str(part) for part in location or ("total_images",))


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


def _check_weights_fit(config: TrainConfig, combination: "Combination", card: DatasetCard, repositories: tuple[Path, ...]) -> None:
    """The networks of a published version are those of its data's shapes and classes."""
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
