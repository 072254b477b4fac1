"""What `ganserve train --dry-run` prints."""

from collections.abc import Sequence
from statistics import mean, median

from training.commands import train_command
from training.contract import DatasetCard, TrainConfig
from training.estimate import Estimate, PhaseTime

MEGABYTE = 1e6


def describe(config: TrainConfig, card: DatasetCard, estimate: Estimate, where: str) -> list[str]:
    """Lines for a person.

    Args:
        config: resolved.
        where: the device and the threads that were measured on.
    """
    shape = "x".join(map(str, card.shape))
    return [
        train_command(config),
        "",
        f"{card.name}: {card.num_images:,} images of {shape}, {estimate.num_trained_on:,} to train on, {estimate.num_held_out:,} held out",
        "",
        *_networks(estimate),
        "",
        *_memory(estimate, where),
        "",
        *_steps(estimate),
        "",
        *_times(config, estimate, where),
    ]


def _networks(estimate: Estimate) -> list[str]:
    rows = [(network.name, f"{network.num_parameters:,}", f"{network.multiply_accumulates:,}") for network in estimate.networks]
    return _aligned([("network", "parameters", "multiply-accumulates an image, forward"), *rows])


def _memory(estimate: Estimate, where: str) -> list[str]:
    memory = estimate.memory
    whose = "of the GPU" if where.startswith("cuda") else "of this process, libraries and all"
    rows = [
        ("weights", memory.weights, ""),
        ("gradients", memory.gradients, ""),
        ("Adam's two moments", memory.moments, ""),
        ("moving average", memory.average, ""),
        ("data set", memory.dataset, "  read from its file where it is half of the memory or more"),
        ("peak", memory.peak, f"  measured, {whose}"),
    ]
    lines = _aligned([("memory", "MB"), *((name, f"{size / MEGABYTE:,.1f}") for name, size, _ in rows)])
    return [line + more for line, more in zip(lines, ("", *(note for _, _, note in rows)), strict=True)]


def _steps(estimate: Estimate) -> list[str]:
    head = ("steps of", "number", "images each", "ms each: median", "mean", "fastest", "slowest", "of measured", "h:mm:ss in all")
    return _aligned([head, *(_row(phase) for phase in estimate.phases)])


def _row(phase: PhaseTime) -> tuple[str, ...]:
    figures = [f"{1000 * choose(phase.measured):,.1f}" for choose in (median, mean, min, max)]
    return (
        phase.name,
        f"{phase.num_steps:,}",
        f"{phase.images_per_step:,}",
        *figures,
        f"{len(phase.measured):,}",
        _clock(phase.seconds),
    )


def _times(config: TrainConfig, estimate: Estimate, where: str) -> list[str]:
    lines = []
    if estimate.num_evaluations:
        num_images = min(config.num_evaluated, estimate.num_held_out)
        evaluations = f"{_counted(estimate.num_evaluations, 'evaluation')} on {num_images:,} images"
        lines.append(f"{evaluations}, about {estimate.evaluation_seconds:,.1f} s each, as two small ones tell")
    checkpoints, grids = _counted(estimate.num_checkpoints, "checkpoint"), _counted(estimate.num_samples, "grid")
    lines.append(f"{checkpoints} and {grids} of samples, whose time is not counted")
    return [*lines, f"in all about {_clock(estimate.seconds)} (h:mm:ss) on {where}, if it stays as busy as it is now"]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _clock(seconds: float) -> str:
    """`12:05:09`"""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(word.rjust(width) if column else word.ljust(width) for column, (word, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
