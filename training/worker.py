"""One run directory, one process: `python -m training.worker FOLDER`. It holds the directory's lock as long as it lives.

Ends with exit code 0 when the run is finished (or cancelled), 1 when it failed, 75 when it was stopped and can go on later.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from training import catalog, checkpoint
from training.contract import JobState, JobStatus, Manifest, Metrics, TrainConfig, UserError, now
from training.data import Batches, Split, evenly, split, to_images
from training.datasets import Dataset, load
from training.export import (
    MAX_SCORED,
    ExportError,
    Provenance,
    publish,
    published_weights,
    sample,
    save_grid,
    script,
)
from training.files import runs, versions
from training.files.locks import hold
from training.files.machine import num_training_threads
from training.game import DataSpec, Player
from training.loop import Match, NotFiniteError, Training

STOPPED = 75  # EX_TEMPFAIL: run me again
FIXED_SEEDS = range(64)
_log = logging.getLogger("training")


@dataclass(frozen=True)
class Places:
    """Where a run finds its data and leaves its model; the first repository is written to."""

    datasets: Path
    repositories: tuple[Path, ...]


class Listener:
    """Told of a run as it goes, in the worker's own process; the console's progress bar is one."""

    def started(self, config: TrainConfig, images: int) -> None:
        """The networks stand; the run begins at `images`."""

    def progressed(self, status: JobStatus) -> None:
        """About twice a second."""


class _Stop(Exception):
    """A signal asked the process to end; the run goes on another time."""


class _Cancelled(Exception):
    """Somebody asked the run to end."""


@dataclass
class _Run:
    """A run at work: the training, its directory, and what it says of itself. It is the loop's Watcher."""

    folder: Path
    config: TrainConfig
    training: Training
    status: JobStatus
    listener: Listener
    players: dict[str, Player] = field(default_factory=dict)
    stop_asked: bool = False

    def beat(self, images: int, images_per_second: float) -> None:
        left = (self.config.total_images - images) / images_per_second
        update = {"images": images, "images_per_second": round(images_per_second, 1), "seconds_left": round(left, 1)}
        self.say(progress=self.status.progress.model_copy(update=update))
        self.listener.progressed(self.status)
        if self.stop_asked or runs.is_stop_asked(self.folder):
            raise _Stop
        if runs.is_cancel_asked(self.folder):
            raise _Cancelled

    def measured(self, metrics: Metrics) -> None:
        runs.append_metrics(self.folder, metrics)
        progress = self.status.progress.model_copy(update={"losses": _rounded(metrics.losses)})
        self.status = self.status.model_copy(update={"progress": progress})

    def sample(self, images: int) -> None:
        save_grid(runs.sample_path(self.folder, images), sample(self.players["generator"], FIXED_SEEDS))

    def checkpoint(self, images: int) -> None:
        self.training.check_finite()
        checkpoint.save(self.folder / runs.CHECKPOINTS, images, self.training.state_dict())

    def say(self, **changes: object) -> None:
        self.status = self.status.model_copy(update=changes)
        runs.write_status(self.folder, self.status)

    def end(self, state: JobState, message: str, **changes: object) -> None:
        self.say(state=state, message=message, finished_at=now(), **changes)


def work(folder: Path, places: Places, device: torch.device, listener: Listener | None = None, num_threads: int | None = None) -> int:
    """Run a run directory to its end, from its newest checkpoint where there is one.

    Args:
        num_threads: intra-op threads, all cores but one when None; a run that has begun keeps what it began with.

    Returns:
        The exit code of the module's head. What went wrong is in the status, and its traceback in the log.

    Raises:
        LockedError: another process works in the directory.
    """
    with hold(folder), _logging_to(folder / runs.LOG):
        status = runs.read_status(folder)
        begin = {"state": "running", "message": "", "attempts": status.attempts + 1, "started_at": now(), "finished_at": None}
        status = status.model_copy(update=begin | {"num_threads": status.num_threads or num_threads or num_training_threads()})
        assert status.num_threads is not None
        torch.set_num_threads(status.num_threads)
        runs.write_status(folder, status)
        (folder / runs.STOP).unlink(missing_ok=True)
        try:
            return _work(folder, places, device, status, listener or Listener())
        except Exception as error:
            _log.exception("the run failed")
            ended = {"state": "failed", "message": _sentence(error), "finished_at": now()}
            runs.write_status(folder, runs.read_status(folder).model_copy(update=ended))
            return 1


def _work(folder: Path, places: Places, device: torch.device, status: JobStatus, listener: Listener) -> int:
    torch.set_flush_denormal(True)
    config = runs.read_config(folder)
    if runs.is_cancel_asked(folder):
        ended = {"state": "cancelled", "message": "cancelled before it started", "finished_at": now()}
        runs.write_status(folder, status.model_copy(update=ended))
        return 0
    dataset = load(config.dataset, places.datasets)
    parts = split(dataset, config.num_held_out(dataset.card.num_images))
    run = _prepare(folder, config, dataset, parts, places, device, status, listener)
    with _stop_signals(run):
        try:
            listener.started(config, run.training.images)
            run.training.run(run)
        except (_Stop, _Cancelled) as end:
            run.checkpoint(run.training.images)
            seen = f"{run.training.images:,} of {config.total_images:,} images"
            if isinstance(end, _Cancelled):
                run.end("cancelled", f"cancelled after {seen}; the last checkpoint is kept")
                return 0
            run.say(state="queued", message=f"stopped after {seen}; it goes on from there")
            return STOPPED
    run.checkpoint(run.training.images)
    run.sample(run.training.images)
    manifest = _publish(run, dataset, parts, places)
    _log.info("published %s version %s", manifest.name, manifest.version)
    done = run.status.progress.model_copy(update={"images": run.training.images, "seconds_left": 0.0})
    message = f"published as {manifest.name} version {manifest.version}"
    run.end("succeeded", message, progress=done, model=manifest.name, version=manifest.version)
    return 0


def _prepare(
    folder: Path,
    config: TrainConfig,
    dataset: Dataset,
    parts: Split,
    places: Places,
    device: torch.device,
    status: JobStatus,
    listener: Listener,
) -> _Run:
    """Networks, data and optimisers as the config says, and then as the newest checkpoint says."""
    torch.manual_seed(config.seed)
    architecture, loss = catalog.build(config)
    spec = DataSpec.of(dataset.card)
    games = architecture.games(spec, samplewise_critic=loss.samplewise_critic)
    players = architecture.players(games, data=spec, score=loss.score)
    if config.initial_model is not None:
        _start_from(config.initial_model, players, places)
    for name, player in players.items():
        script(name, player)  # a model that cannot be exported is better refused now than after a day
    matches = {key: Match.of(game, config, device) for key, game in games.items()}
    batches = Batches(dataset, parts.train, config.batch_size, torch.Generator().manual_seed(config.seed + 1), device)
    training = Training(matches, loss, batches, config, torch.Generator(device).manual_seed(config.seed + 2))
    state = checkpoint.load_newest(folder / runs.CHECKPOINTS, device)
    if state is not None:
        training.load_state_dict(state)
    runs.truncate_metrics(folder, training.images)
    if (last := runs.last_metrics(folder)) is not None:
        status = status.model_copy(update={"progress": status.progress.model_copy(update={"losses": _rounded(last.losses)})})
    averaged = {key: match.averaged_game for key, match in matches.items()}
    run = _Run(folder, config, training, status, listener, architecture.players(averaged, data=spec, score=loss.score))
    _log.info(
        "training %s on %s: %s images of %s, %s held out, on %s with %s threads",
        config.architecture,
        config.dataset,
        f"{len(parts.train):,}",
        "x".join(map(str, spec.shape)),
        f"{len(parts.held_out):,}",
        device,
        torch.get_num_threads(),
    )
    return run


def _start_from(reference: str, players: dict[str, Player], places: Places) -> None:
    """Copy a published version's weights into fresh networks."""
    folder = versions.find(reference, places.repositories)
    manifest = Manifest.model_validate_json((folder / versions.MANIFEST).read_bytes())
    for name, player in players.items():
        try:
            player.module.load_state_dict(published_weights(manifest, folder, name))
        except RuntimeError as error:
            raise ExportError(f"{reference} does not fit this config: {error}") from error
    _log.info("starting from %s", reference)


def _publish(run: _Run, dataset: Dataset, parts: Split, places: Places) -> Manifest:
    architecture, _ = catalog.build(run.config)
    provenance = Provenance(
        run=run.status.id,
        source=architecture.source,
        config=run.config,
        dataset=dataset.card,
        metrics={"images": float(run.training.images), "seconds": round(run.training.seconds, 1), **run.status.progress.losses},
    )
    held_out = to_images(torch.from_numpy(dataset.images[evenly(parts.held_out, MAX_SCORED).numpy()]))
    return publish(run.players, provenance, held_out, places.repositories)


def _rounded(losses: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in losses.items()}


def _sentence(error: Exception) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if isinstance(error, UserError | NotFiniteError) else f"{type(error).__name__}: {text}"


@contextmanager
def _stop_signals(run: _Run) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the run at its next beat, with a checkpoint."""

    def ask(_signal: int, _frame: FrameType | None) -> None:
        run.stop_asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("training")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def pick_device(text: str) -> torch.device:
    """`auto` is the first GPU, or else the CPU.

    Raises:
        UserError: no such device here.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {text!r} is not to be had here: {str(error).splitlines()[0]}; auto and cpu are") from error
    return device


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.worker", description=__doc__)
    parser.add_argument("folder", type=Path, help="the run directory")
    parser.add_argument("--datasets", type=Path, required=True, help="the folder of registered data sets")
    parser.add_argument("--repository", type=Path, required=True, action="append", help="model repository; the first is written to")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=int, help="intra-op threads; all cores but one when left out")
    parser.add_argument("--nice", type=int, default=0, help="added to the process's niceness")
    given = parser.parse_args(arguments)
    os.nice(given.nice)
    places = Places(given.datasets, tuple(given.repository))
    return work(given.folder, places, pick_device(given.device), num_threads=given.threads)


if __name__ == "__main__":
    sys.exit(main())
