"""How a run tells of itself in a console: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from training.contract import Finding, JobStatus, TrainConfig
from training.run import Listener

SECONDS_BETWEEN_LINES = 10.0
_SHORT = {"discriminator_loss": "D", "generator_loss": "G", "reconstruction_loss": "R", "penalty": "P"}


def describe(status: JobStatus) -> str:
    """`49,152 of 500,000 images  5,021 images/s  losses D 1.21 G 0.93  1:30 left`"""
    progress = status.progress
    parts = [f"{progress.images:,} of {progress.total_images:,} images"]
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:,.0f} images/s")
    terms = {name.rpartition("/")[2]: value for name, value in progress.losses.items()}  # of several games, the one that is played
    if losses := [f"{short} {terms[name]:.2f}" for name, short in _SHORT.items() if name in terms]:
        parts.append(f"losses {' '.join(losses)}")
    if progress.evaluation:
        name, value = next(iter(progress.evaluation.items()))
        parts.append(f"{name} {value:.4g}")
    if progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
    return "  ".join(parts)


def tell(finding: Finding) -> str:
    """`warning: generator-collapsed at 49,152 images: ...`"""
    return f"warning: {finding.kind} at {finding.images:,} images: {finding.message}"


@contextmanager
def telling() -> Iterator[Listener]:
    """The listener that suits where standard error goes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    with Progress(BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), console=console) as progress:
        yield Bar(progress)


class Bar(Listener):
    """A progress bar, redrawn at each beat."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def started(self, config: TrainConfig, images: int) -> None:
        self._task = self._progress.add_task("", total=config.total_images, completed=images)

    def progressed(self, status: JobStatus) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=status.progress.images, description=describe(status))

    def found(self, finding: Finding) -> None:
        self._progress.console.print(tell(finding), markup=False, highlight=False, soft_wrap=True)


class Lines(Listener):
    """A line every ten seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def progressed(self, status: JobStatus) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{status.progress.percent:3.0f}%  {describe(status)}", file=sys.stderr, flush=True)

    def found(self, finding: Finding) -> None:
        print(tell(finding), file=sys.stderr, flush=True)
