"""A config as the command line that trains the same. Imports no torch."""

import json
import shlex

from pydantic import JsonValue

from training.contract import OptimizerConfig, TrainConfig


def train_command(config: TrainConfig) -> str:
    """The command line that equals the config; what stands at its default is left out."""
    words = ["ganserve", "train"]
    shared = OptimizerConfig(learning_rate=config.learning_rate, betas=config.betas)
    own = [name for name in ("generator", "discriminator") if getattr(config, name) == shared]
    config = config.model_copy(update=dict.fromkeys(own, OptimizerConfig()))
    for path, value in _flat(config.model_dump(mode="json", exclude_defaults=True), ""):
        words += [f"--{path.replace('_', '-')}", *value]
    return shlex.join(words)


def _flat(values: dict[str, JsonValue], prefix: str) -> list[tuple[str, list[str]]]:
    """Flags and their words: a list in an option is one word of JSON, elsewhere a word an item."""
    flat: list[tuple[str, list[str]]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool) and not prefix:
            flat.append((key if value else f"{key}=false", []))
        elif isinstance(value, list) and not prefix.startswith(("options.", "loss_options.", "penalty_options.")):
            flat.append((prefix + key, [str(item) for item in value]))
        elif isinstance(value, str):
            flat.append((prefix + key, [value]))
        elif value is not None:
            flat.append((prefix + key, [json.dumps(value, separators=(",", ":"))]))
    return flat
