"""How fast this machine runs each module, by back end, threads and rows of a batch; and what is to be chosen of that.

What is compared takes turns, and each counts by its fastest run: a busy moment makes some runs slow, and none fast.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from app import backends
from app.choices import DEFAULT, Backend, Choice, Choices
from app.engine import Engine, ModuleName
from app.proving import BrokenVersionError
from app.service import pick_device
from app.settings import Settings
from training.contract import Manifest, now
from training.files import digests, versions
from training.files.machine import num_cores
from training.probe import probe_shape

ROUNDS = 8
MARGIN = 0.9  # of the usual one's time: what is hardly faster is not worth other bits
BACKENDS_SHARE = 0.6  # of the time, for back ends; the rest is for threads


@dataclass(frozen=True)
class Row:
    """A module, as it was run."""

    model: str
    module: ModuleName
    backend: Backend
    threads: int
    seconds: Mapping[int, float]  # of a batch, by its rows

    @property
    def smallest(self) -> int:
        """Rows of what one image needs."""
        return min(self.seconds)

    @property
    def best(self) -> int:
        """Rows at which an image takes least time; the most, unless fewer are clearly faster."""
        most = max(self.seconds)
        best = min(self.seconds, key=self.seconds_an_image)
        return best if self.seconds_an_image(best) < MARGIN * self.seconds_an_image(most) else most

    def seconds_an_image(self, rows: int) -> float:
        return self.seconds[rows] / rows

    @property
    def cost(self) -> float:
        """What is compared: the time of one image alone and that of one among many, their geometric mean."""
        return math.sqrt(self.seconds[self.smallest] * self.seconds_an_image(self.best))

    @property
    def choice(self) -> Choice:
        return Choice(backend=self.backend, max_rows=self.best if self.best < max(self.seconds) else None)


@dataclass
class Tuning:
    """What was measured, and what follows."""

    rows: list[Row] = field(default_factory=list)
    chosen: list[Row] = field(default_factory=list)
    threads: int | None = None  # another number than usual
    left_out: list[str] = field(default_factory=list)  # a sentence each

    @property
    def choices(self) -> Choices:
        """For the file."""
        models: dict[str, dict[str, Choice]] = {}
        for row in self.chosen:
            if row.choice != Choice():
                models.setdefault(row.model, {})[row.module] = row.choice
        return Choices(threads=self.threads, models=models, created_at=now())


@dataclass(frozen=True)
class _Version:
    folder: Path
    manifest: Manifest


def measure(settings: Settings, seconds: float, cores: int | None = None) -> Tuning:
    """Measure, for each model, the version that answers where none is named.

    Args:
        settings: with `threads`, no other number is tried.
        seconds: what it may take; what there is no time for stays as usual, and `left_out` says so.
        cores: those that this process may use when None; one of them is left to the event loop and the encoders.

    Raises:
        SettingsError: the device is not here.
    """
    begin, device, tuning = time.perf_counter(), pick_device(settings.device), Tuning(threads=settings.threads)
    found = list(_versions(settings, tuning))
    usual, before = settings.engine_threads, torch.get_num_threads()
    possible = [backend for backend in get_args(Backend) if backend not in backends.HALVES and not backends.refusal(backend, device)]
    try:
        _measure_all(found, device, usual, possible, begin + seconds * BACKENDS_SHARE, tuning)
        tuning.chosen = _fastest_backends(tuning.rows)
        if settings.threads is None and device.type == "cpu" and tuning.chosen:
            _choose_threads(found, device, _thread_numbers(cores or num_cores()) - {usual}, begin + seconds, tuning)
    finally:
        torch.set_num_threads(before)
    return tuning


def _thread_numbers(cores: int) -> set[int]:
    """Powers of two, and all cores but one."""
    return {min(2**power, cores - 1) for power in range(cores.bit_length())} - {0}


def _versions(settings: Settings, tuning: Tuning) -> Iterator[_Version]:
    known = digests.known(settings.digests)
    for name in versions.names(settings.models):
        try:
            folder = versions.find(name, settings.models)
            content = (folder / versions.MANIFEST).read_bytes()
            if (digest := digests.digest_of(content)) in known:
                yield _Version(folder, Manifest.model_validate_json(content))
            else:
                tuning.left_out.append(f"{name} is not measured: {digests.unknown(digest, f'{name}/{folder.name}')}")
        except (LookupError, OSError, ValueError) as error:
            tuning.left_out.append(f"{name} is not measured: {str(error).splitlines()[0]}")


def _choose_threads(found: Sequence[_Version], device: torch.device, numbers: set[int], end: float, tuning: Tuning) -> None:
    """Of the numbers of threads that all modules were measured with, as they were chosen to be run."""
    best, least = tuning.chosen, MARGIN * _total(tuning.chosen)
    for index, threads in enumerate(sorted(numbers)):
        trial = Tuning()
        share = time.perf_counter() + (end - time.perf_counter()) / (len(numbers) - index)
        names = {row.backend for row in tuning.chosen}
        _measure_all(found, device, threads, sorted(names | {DEFAULT}), share, trial)
        wanted = {(row.model, row.module, row.backend) for row in tuning.chosen}
        rows = [row for row in trial.rows if (row.model, row.module, row.backend) in wanted]
        tuning.rows += rows
        if len(rows) < len(wanted):
            tuning.left_out.append(f"{threads} threads are not compared: there was no time for all modules; give more --seconds")
        elif _total(rows) < least:
            best, least, tuning.threads = rows, _total(rows), threads
    tuning.chosen = best


def _total(rows: Sequence[Row]) -> float:
    return statistics.geometric_mean(row.cost for row in rows)


def _fastest_backends(rows: Sequence[Row]) -> list[Row]:
    """Of each module the fastest row, or the usual one where it is hardly slower."""
    chosen = []
    for usual in (row for row in rows if row.backend == DEFAULT):
        best = min((row for row in rows if (row.model, row.module) == (usual.model, usual.module)), key=lambda row: row.cost)
        chosen.append(best if best.cost < MARGIN * usual.cost else usual)
    return chosen


# --- measuring ----------------------------------------------------------------------------------------------------------------


def _measure_all(
    found: Sequence[_Version], device: torch.device, threads: int, names: Sequence[Backend], end: float, tuning: Tuning
) -> None:
    """Each model in an equal share of the time that is left."""
    torch.set_num_threads(threads)
    for index, version in enumerate(found):
        share = time.perf_counter() + (end - time.perf_counter()) / (len(found) - index)
        name = version.manifest.name
        try:
            rows = _measured(version, device, threads, names, share)
        except BrokenVersionError as error:
            tuning.left_out.append(f"{name} is not measured: {error}")
            continue
        tuning.rows += rows
        if not rows:
            tuning.left_out.append(f"{name} is not measured: there was no time for it; give more --seconds")


def _measured(version: _Version, device: torch.device, threads: int, names: Sequence[Backend], end: float) -> list[Row]:
    """The rows of one model; fewer where the time is over, none where it is over before any was measured."""
    runs: dict[tuple[ModuleName, Backend], Callable[[int], float]] = {}
    sizes: dict[tuple[ModuleName, Backend], tuple[int, ...]] = {}
    for backend in sorted(names, key=lambda name: name != DEFAULT):  # as usual first: without it there is no comparison
        engine = _loaded(version, device, backend, end)
        if engine is None:
            break
        for module, actual in engine.backends.items():
            runs[module, actual] = partial(_seconds, engine, module)
            sizes[module, actual] = engine.buckets[module]
    seconds: dict[tuple[ModuleName, Backend], dict[int, float]] = {key: {} for key in runs}
    for index in range(ROUNDS):
        if index and time.perf_counter() > end:
            break
        for key, run in runs.items():
            for rows in sizes[key]:
                seconds[key][rows] = min(seconds[key].get(rows, math.inf), run(rows))
    return [Row(version.manifest.name, *key, threads, taken) for key, taken in seconds.items()]


def _loaded(version: _Version, device: torch.device, backend: Backend, end: float) -> Engine | None:
    """Verified, proved and warm; nothing where the time is over."""
    steps = Engine.loading(version.folder, version.manifest, device, lambda _module: Choice(backend=backend))
    while time.perf_counter() < end:
        try:
            next(steps)
        except StopIteration as done:
            engine: Engine = done.value
            return engine
    return None


def _seconds(engine: Engine, module: ModuleName, rows: int) -> float:
    """Of one batch, as it is served: with its way to the device and back."""
    inputs = {spec.name: torch.rand(rows, *probe_shape(spec)) for spec in engine.inputs(module)}
    begin = time.perf_counter()
    engine.run(module, inputs)
    return time.perf_counter() - begin
