"""Finds architectures, losses and penalties, and puts together what a config names.

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

from training.contract import DatasetCard, TrainConfig, UserError

if TYPE_CHECKING:
    from training.combination import Combination
    from training.game import Architecture
    from training.losses import AdversarialLoss
    from training.penalties import Penalty
    from training.presets import Preset

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


def presets() -> Mapping[str, "Preset"]:
    """Every named config."""
    from training.presets import PRESETS

    return PRESETS


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
    refusals = combination.refusals() + _idle_fields(config, combination)
    if config.penalty_interval > 1 and not combination.penalties:
        refusals.append(("/penalty_interval", "has no effect where there is no penalty; leave penalty_interval out, or choose a penalty"))
    if refusals:
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
    """`training.submission.resolve`, for who may not import it: the service does without the trainer's rooms until it is asked."""
    from training import submission

    return submission.resolve(config, datasets_folder, repositories, weights)
