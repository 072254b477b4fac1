"""Configs by name, each made for one purpose, with a figure that a bench of this repository measures."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue


@dataclass(frozen=True)
class Preset:
    """`config` holds fields of a TrainConfig; what the user says goes before them."""

    summary: str
    config: Mapping[str, JsonValue]


PRESETS: Mapping[str, Preset] = {
    "fast-digits": Preset(
        "Handwritten digits that can be read, within a minute or two on two cores (bench/time_to_quality.py); wants the data set mnist.",
        {
            "architecture": "cgan",
            "options": {"generator_width": 16, "discriminator_width": 16, "classification_weight": 1.0},
            "dataset": "mnist",
            "total_images": 400_000,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "penalty_interval": 4,
            "ema_halflife_images": 5_000.0,
            "num_evaluated": 1000,
            "extractor": "digits-classifier",
        },
    ),
}
