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
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from training.contract import DatasetCard, Manifest, TrainConfig, UserError
from training.files import versions

if TYPE_CHECKING:
    from training.game import Architecture
    from training.losses import AdversarialLoss

Options = TypeVar("Options", bound=BaseModel)


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

    classes = [member for _, member in inspect.getmembers(module, inspect.isclass) if issubclass(member, module.AdversarialLoss)]
    return {member.key: member for member in classes if member is not module.AdversarialLoss}


def datasets(folder: Path) -> list[DatasetCard]:
    """Every data set that a config may name."""
    from training.datasets import known

    return list(known(folder).values())


def build(config: TrainConfig) -> tuple["Architecture", "AdversarialLoss"]:
    """The architecture and the loss of a config.

    Raises:
        ConfigError: an unknown name, an unknown option, or a value that is not allowed; every one of them.
    """
    errors: list[tuple[str, str]] = []
    architecture = _options(architectures(), "architecture", config.architecture, "options", config.options, errors)
    loss = _options(losses(), "loss", config.loss, "loss_options", config.loss_options, errors)
    if architecture is None or loss is None:
        raise ConfigError(errors)
    return architecture, loss


def _options(
    known: Mapping[str, type[Options]],
    field: str,
    key: str,
    options_field: str,
    options: Mapping[str, JsonValue],
    errors: list[tuple[str, str]],
) -> Options | None:
    if key not in known:
        errors.append((f"/{field}", f"{key!r} is unknown; known: {', '.join(known)}"))
        return None
    try:
        return known[key].model_validate_json(json.dumps(options))
    except ValidationError as error:
        for item in error.errors():
            place = "/".join(str(part) for part in item["loc"])
            message = str(item["msg"])
            if item["type"] == "extra_forbidden":
                allowed = ", ".join(known[key].model_fields) or "none"
                message = f"{key} has no option {item['loc'][-1]!r}; its options: {allowed}"
            errors.append((f"/{options_field}/{place}", message))
        return None


def resolve(config: TrainConfig, datasets_folder: Path, repositories: tuple[Path, ...]) -> TrainConfig:
    """The config with every default filled in, checked against its data set before any work.

    Args:
        datasets_folder: of registered data sets.
        repositories: where `initial_model` is looked up, and where its name will be published.

    Raises:
        ConfigError: it cannot be run; each reason with its field.
    """
    from training.datasets import DatasetError
    from training.datasets import card as read_card
    from training.game import DataSpec, UnsuitableDataError

    config = _follow_initial_model(config, repositories)
    architecture, loss = build(config)
    try:
        card = read_card(config.dataset, datasets_folder)
        architecture.check(DataSpec.of(card))
    except (DatasetError, UnsuitableDataError) as error:
        raise ConfigError([("/dataset", str(error))]) from error
    _check_same_shape(config, card, repositories)
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
            "options": architecture.model_dump(mode="json"),
            "loss_options": loss.model_dump(mode="json"),
            "generator": config.generator.model_copy(update=_missing(config.generator, shared)),
            "discriminator": config.discriminator.model_copy(update=_missing(config.discriminator, shared)),
        }
    )


def _missing(given: BaseModel, defaults: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in defaults.items() if getattr(given, key) is None}


def _follow_initial_model(config: TrainConfig, repositories: tuple[Path, ...]) -> TrainConfig:
    """Pin `initial_model` to a number; architecture and options are its own unless they are given, and then must be the same."""
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
    return config.model_copy(
        update={
            "architecture": initial.architecture,
            "options": {**initial.options, **config.options},
            "initial_model": f"{manifest.name}/{manifest.version}",
        }
    )


def _check_same_shape(config: TrainConfig, card: DatasetCard, repositories: tuple[Path, ...]) -> None:
    """The weights of a published version fit images of one shape."""
    if config.initial_model is None:
        return
    shape = find_version(config.initial_model, repositories).dataset.shape
    if shape != card.shape:
        wanted, given = ("x".join(map(str, each)) for each in (shape, card.shape))
        message = f"initial_model {config.initial_model} was trained on images of {wanted}, and those of {card.name} are {given}"
        raise ConfigError([("/dataset", f"{message}; add the data set again in that shape, or leave initial_model out")])


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
