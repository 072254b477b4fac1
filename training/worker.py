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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from training import checkpoint
from training.contract import JobState, JobStatus, Manifest, Metrics, Progress, TrainConfig, UserError, now
from training.datasets import load
from training.evaluation import Evaluator
from training.export import MAX_SCORED, Provenance, generate, publish, save_grid, sheet
from training.files import runs
from training.files.locks import hold
from training.files.machine import num_training_threads
from training.loop import Best, NotFiniteError, Training
from training.preparation import Places, Prepared, prepare

STOPPED = 75  # EX_TEMPFAIL: run me again
# of the first image; far from the seeds of samples and the score reference
EVALUATION_SEED = 1_000_000
FINAL_SEED = 1_500_000  # other images than those by which the best state was chosen: luck in the choice is not reported
_log = logging.getLogger("training")


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
    """A run at work: what was prepared, its directory, and what it says of itself. It is the loop's Watcher."""

    folder: Path
    config: TrainConfig
    device: torch.device
    prepared: Prepared
    evaluator: Evaluator | None
    status: JobStatus
    listener: Listener
    stop_asked: bool = False
    named_best: int | None = None  # by the newest checkpoint: images of the best state that it would be published with

    @property
    def training(self) -> Training:
        return self.prepared.training

    def beat(self, images: int, images_per_second: float) -> None:
        left = (self.config.total_images - images) / images_per_second
        update = {"images": images, "images_per_second": round(images_per_second, 1), "seconds_left": round(left, 1)}
        self.say(progress=self.status.progress.model_copy(update=update))
        self.listener.progressed(self.status)
        self.heed()

    def heed(self) -> None:
        """Raise what ends the run, where somebody has asked for its end."""
        if self.stop_asked or runs.is_stop_asked(self.folder):
            raise _Stop
        if runs.is_cancel_asked(self.folder):
            raise _Cancelled

    def measured(self, metrics: Metrics) -> None:
        runs.append_metrics(self.folder, metrics)
        progress = self.status.progress.model_copy(update={"losses": _rounded(metrics.losses)})
        self.status = self.status.model_copy(update={"progress": progress})

    def sample(self, images: int) -> None:
        save_grid(runs.sample_path(self.folder, images), sheet(self.prepared.players["generator"], self.prepared.examples))

    def evaluate(self, images: int) -> None:
        """Compare with held-out images; a state that is the best so far is kept."""
        if self.evaluator is None:
            return
        values = self.evaluator.quick(self._generated())
        runs.append_metrics(self.folder, Metrics(images=images, seconds=self.training.seconds, evaluation=values))
        value = self.evaluator.chosen_by(values)
        best = self.training.best
        if best is None or self.evaluator.is_better(value, best.value):
            self.training.best = Best(images, value)
            checkpoint.save(self.folder / runs.BEST, images, self.training.state_dict())
        self.say(progress=self.status.progress.model_copy(update={"evaluation": _rounded(values)}))

    def go_back_to_best(self) -> dict[str, float]:
        """Bring the networks to where they were evaluated best, and evaluate them thoroughly."""
        if self.evaluator is None:
            return {}
        best = self.training.best
        assert best is not None, "there is an evaluation at the end of every run"
        if best.images != self.training.images:
            _log.info("publishing the best state, of %s images", f"{best.images:,}")
            self.training.load_state_dict(checkpoint.load(self.folder / runs.BEST, best.images, self.device))
        return self.evaluator.thorough(self._generated(FINAL_SEED))

    def _generated(self, seed: int = EVALUATION_SEED) -> Tensor:
        held_out = self.prepared.held_out
        return generate(self.prepared.players["generator"], held_out.some(self.config.num_evaluated), seed)

    def take_up(self) -> None:
        """Go on from the newest checkpoint, where there is one."""
        state = checkpoint.load_newest(self.folder / runs.CHECKPOINTS, self.device)
        if state is not None:
            self.training.load_state_dict(state)
        best = self.training.best
        self.named_best = None if best is None else best.images
        # a dead process may have found a better one, which this one will find again
        checkpoint.drop_all_but(self.folder / runs.BEST, [] if best is None else [best.images])
        runs.truncate_metrics(self.folder, self.training.images)
        progress = Progress(images=self.training.images, total_images=self.config.total_images)
        for line in runs.read_metrics(self.folder):
            told = {"losses": _rounded(line.losses)} if line.losses else {"evaluation": _rounded(line.evaluation)}
            progress = progress.model_copy(update=told)
        self.status = self.status.model_copy(update={"progress": progress})

    def checkpoint(self, images: int) -> None:
        self.training.check_finite()
        checkpoint.save(self.folder / runs.CHECKPOINTS, images, self.training.state_dict())
        checkpoint.drop_all_but_newest(self.folder / runs.CHECKPOINTS)
        best = None if self.training.best is None else self.training.best.images
        checkpoint.drop_all_but(self.folder / runs.BEST, [named for named in (best, self.named_best) if named is not None])
        self.named_best = best

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
    begun = runs.checkpoint_images(folder) > 0
    prepared = prepare(config, load(config.dataset, places.datasets), places, device, begun=begun)
    evaluator = Evaluator.of(config, prepared.held_out, places.weights, device) if config.num_evaluated else None
    run = _Run(folder, config, device, prepared, evaluator, status, listener)
    run.take_up()
    with _stop_signals(run):
        try:
            listener.started(config, run.training.images)
            run.training.run(run)
            run.heed()
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
    progress = run.status.progress.model_copy(update={"images": run.training.images, "seconds_left": 0.0})
    manifest = _publish(run, places)
    _log.info("published %s version %s", manifest.name, manifest.version)
    message = f"published as {manifest.name} version {manifest.version}"
    run.end("succeeded", message, progress=progress, model=manifest.name, version=manifest.version)
    return 0


def _publish(run: _Run, places: Places) -> Manifest:
    evaluated = run.go_back_to_best()
    training = run.training
    lines = [line.losses for line in runs.read_metrics(run.folder) if line.losses and line.images <= training.images]
    losses = _rounded(lines[-1]) if lines else {}
    provenance = Provenance(
        run=run.status.id,
        source=run.prepared.architecture.source,
        config=run.config,
        dataset=run.prepared.dataset.card,
        metrics={"images": float(training.images), "seconds": round(training.seconds, 1), **losses, **evaluated},
    )
    held_out = run.prepared.held_out.some(MAX_SCORED)
    return publish(run.prepared.players, provenance, held_out, run.prepared.examples, places.repositories)


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
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="the folder of pretrained weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=int, help="intra-op threads; all cores but one when left out")
    parser.add_argument("--nice", type=int, default=0, help="added to the process's niceness")
    given = parser.parse_args(arguments)
    os.nice(given.nice)
    places = Places(given.datasets, tuple(given.repository), given.weights)
    return work(given.folder, places, pick_device(given.device), num_threads=given.threads)


if __name__ == "__main__":
    sys.exit(main())
