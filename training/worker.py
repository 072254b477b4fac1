"""One run directory, one process: `python -m training.worker FOLDER`. It holds the directory's lock as long as it lives.

Started by torchrun, several processes are one worker: the first leads, holds the lock and writes, the others follow.

Ends with exit code 0 when the run is finished (or cancelled), 1 when it failed, 75 when it was stopped and can go on later.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import get_args

import torch

from training import catalog, checkpoint, tuning
from training.contract import FINISHED, JobState, JobStatus, Manifest, MemoryLayout, Tuning, UserError, now
from training.datasets import load
from training.detectors import Detectors
from training.evaluation import Evaluator
from training.export import MAX_SCORED, Provenance, publish
from training.files import machine, runs, versions
from training.files.locks import hold
from training.files.machine import num_cores
from training.loop import NotFiniteError
from training.preparation import Places, prepare
from training.promotion import promote
from training.run import Cancelled, Collapsed, Follower, Listener, Run, Stopped, Superseded, rounded
from training.summary import draw
from training.team import LostMemberError, Team, is_restarted

STOPPED = 75  # EX_TEMPFAIL: run me again
_log = logging.getLogger("training")


def work(
    folder: Path,
    places: Places,
    device: torch.device,
    listener: Listener | None = None,
    num_threads: int | None = None,
    memory_layout: MemoryLayout | None = None,
    *,
    compiling: bool = False,
    attempt: int | None = None,
) -> int:
    """Run a run directory to its end, from its newest checkpoint where there is one.

    Args:
        num_threads: intra-op threads; measured when None. A run that has begun keeps what it began with, as it keeps its layout.
        memory_layout: of the networks' weights; measured when None.
        compiling: try torch.compile, and use it where it is faster.
        attempt: the number that a service has granted (`runs.grant`); once it grants another, this one ends and writes nothing more.

    Returns:
        The exit code of the module's head. What went wrong is in the status, and its traceback in the log.

    Raises:
        LockedError: another process works in the directory.
    """
    tuning.set_up_torch()
    team = Team.gather(device)
    if not team.leads:
        return _follow(folder, places, device, team)
    with hold(folder), _logging_to(folder / runs.LOG):
        try:
            return _work(folder, places, device, team, listener or Listener(), (num_threads, memory_layout, compiling), attempt)
        except Superseded:
            _log.warning("another attempt works on the run: this one ends, and has written nothing since")
            return STOPPED
        except LostMemberError as error:
            return _end(folder, "queued", f"{error}; the run goes on from its last checkpoint", STOPPED)
        except Exception as error:
            _log.exception("the run failed")
            return _fail(folder, error, attempt)


_Asked = tuple[int | None, MemoryLayout | None, bool]  # threads, layout, and whether torch.compile is tried


def _work(folder: Path, places: Places, device: torch.device, team: Team, listener: Listener, asked: _Asked, attempt: int | None) -> int:
    if not runs.is_granted(folder, attempt):
        raise Superseded
    status = runs.read_status(folder)
    if team.agree(is_restarted() and _is_lost(status)):
        return 1  # the same steps would come to the same end
    begin = {"state": "running", "message": "", "attempts": status.attempts + 1, "started_at": now(), "finished_at": None}
    status = status.model_copy(update=begin)
    runs.enter_state(folder, status)
    (folder / runs.STOP).unlink(missing_ok=True)
    if team.agree(runs.is_cancel_asked(folder)):
        return _end(folder, "cancelled", "cancelled before it started", 0)
    run = _prepare(folder, places, device, team, status, listener, asked)
    run.attempt = attempt
    return _lead(run, places)


def _is_lost(status: JobStatus) -> bool:
    return status.state == "failed" and any(finding.kind == "not-finite" for finding in status.findings)


def _fail(folder: Path, error: Exception, attempt: int | None) -> int:
    if not runs.is_granted(folder, attempt):
        return STOPPED  # it stumbled over another attempt's work
    if runs.read_status(folder).state in FINISHED:
        return 0  # what came after the end, a picture say, does not undo it
    return _end(folder, "failed", _sentence(error, folder), 1)


def _end(folder: Path, state: JobState, message: str, code: int) -> int:
    finished = {} if state == "queued" else {"finished_at": now()}
    status = runs.read_status(folder).model_copy(update={"state": state, "message": message, **finished})
    runs.enter_state(folder, status)
    draw(folder)
    return code


def _prepare(
    folder: Path,
    places: Places,
    device: torch.device,
    team: Team,
    status: JobStatus,
    listener: Listener,
    asked: _Asked,
) -> Run:
    """All that a run needs, at the point where it goes on."""
    config = runs.read_config(folder)
    begun = runs.checkpoint_images(folder) > 0
    prepared = prepare(config, load(config.dataset, places.datasets, config.dataset_sha256), places, device, begun=begun, team=team)
    evaluator = None
    if config.num_evaluated:
        evaluator = Evaluator.of(config, prepared.held_out, places.weights, device, prepared.trained_on)
    detectors = Detectors(config, catalog.build(config).loss, evaluator.extractor.suffix if evaluator else "")
    run = Run(config, prepared.training, team, folder, device, prepared, evaluator, detectors, status, listener)
    if status.tuning is not None:
        for name, value in zip(("num_threads", "memory_layout", "compiled"), (*asked[:2], asked[2] or None), strict=True):
            if value not in (None, was := getattr(status.tuning, name)):
                _log.warning("%s %s has no effect: the run goes on with %s, as it began", name, value, was)
    run.say(tuning=status.tuning or _tuning(run, device, *asked))
    assert run.status.tuning is not None
    tuning.apply(run.training, run.status.tuning)
    run.take_up()
    team.agree(run.training.images)
    return run


def _tuning(run: Run, device: torch.device, num_threads: int | None, memory_layout: MemoryLayout | None, compiling: bool) -> Tuning:
    """What was asked for, and what the clock says where nothing was; a team shares the cores."""
    if run.team.size > 1:
        num_threads = num_threads or max(1, num_cores() // run.team.local_size)
    among = tuning.candidates(device, num_threads, memory_layout, compiling=compiling)
    num_steps = run.config.total_images // (run.config.batch_size * run.config.critic_steps)
    if run.team.size > 1 or num_steps < tuning.MIN_STEPS or len(among) == 1:
        if compiling:
            raise UserError(
                f"--compile has no effect in a team, or in a run of {num_steps:,} steps, which is over before it has paid for itself"
                f" ({tuning.MIN_STEPS:,} at least); leave it out"
            )
        return among[0]
    return tuning.fastest(run.training, among)


def _follow(folder: Path, places: Places, device: torch.device, team: Team) -> int:
    """Train as the leader does, from the leader's state."""
    try:
        if team.agree(0) or team.agree(0):
            return 0  # lost, or cancelled before it started
        config, begun = runs.read_config(folder), runs.checkpoint_images(folder) > 0
        prepared = prepare(config, load(config.dataset, places.datasets, config.dataset_sha256), places, device, begun=begun, team=team)
        images, training = team.agree(0), prepared.training
        chosen = runs.read_status(folder).tuning
        assert chosen is not None, "the leader has said so before it agreed"
        tuning.apply(training, chosen)
        if images:
            training.load_state_dict(checkpoint.load(folder / runs.CHECKPOINTS, images, device))
        return _train_along(Follower(config, training, team))
    except LostMemberError:
        return STOPPED
    except NotFiniteError:
        return 1  # found by all at once, and told by the leader


def _stopped(team: Team) -> int:
    """torchrun starts a team anew that ends otherwise than with 0."""
    return STOPPED if team.size == 1 else 0


def _train_along(follower: Follower) -> int:
    code = 0
    for number in (signal.SIGTERM, signal.SIGINT):  # all are told, and the leader ends the run in order
        signal.signal(number, signal.SIG_IGN)
    try:
        follower.begin()
        follower.training.run(follower)
        follower.heed()
    except Stopped:
        code = _stopped(follower.team)
    except (Cancelled, Collapsed):
        _log.info("the leader ends the run here")
    follower.checkpoint(follower.training.images)  # the leader's last one
    return code


def _lead(run: Run, places: Places) -> int:
    try:
        code = _train(run)
    except NotFiniteError as error:
        raise run.lose(error) from error
    code = _finish(run, places) if code is None else code
    if run.event_files is not None:
        run.event_files.close()
    return code


def _train(run: Run) -> int | None:
    """Train to the end, or to where it is to end; the exit code where nothing is to be published now."""
    total = run.config.total_images
    with _stop_signals(run):
        try:
            run.listener.started(run.config, run.training.images)
            run.begin()
            run.training.run(run)
            run.heed()
        except Collapsed:
            _log.info("the run ends here, as on_collapse says")
        except (Stopped, Cancelled) as end:
            run.checkpoint(run.training.images)
            seen = f"{run.training.images:,} of {total:,} images"
            if isinstance(end, Cancelled):
                run.end("cancelled", f"cancelled after {seen}; the last checkpoint is kept")
                return 0
            run.say(state="queued", message=f"stopped after {seen}; it goes on from there")
            return _stopped(run.team)
    run.checkpoint(run.training.images)
    return None


def _finish(run: Run, places: Places) -> int:
    run.heed_grant()
    images = run.training.images
    for match in run.training.matches.values():
        run.team.separate_norms(match.game.generator)
        run.team.separate_norms(match.game.discriminator)
    run.save_samples(images)
    progress = run.status.progress.model_copy(update={"images": images, "seconds_left": 0.0})
    manifest = _publish(run, places)
    _log.info("published %s version %s", manifest.name, manifest.version)
    message = f"published as {manifest.name} version {manifest.version}"
    if pointed := promote(manifest, run.config.publish, places.repositories):
        _log.info("%s", pointed)
        message += f"; {pointed}"
    _prune(manifest.name, places)
    if run.ends_here and images < run.config.total_images:
        at, total = f"{run.training.images:,} images", f"{images:,} of {run.config.total_images:,}"
        message += f", of {at}; ended after {total}, because the generator collapsed and on_collapse is stop"
    run.end("succeeded", message, progress=progress, model=manifest.name, version=manifest.version)
    return 0


def _prune(name: str, places: Places) -> None:
    """Old versions go, where few are to be kept; the run is not lost where they cannot."""
    if places.keep_versions is None:
        return
    try:
        gone = versions.prune(places.repositories, name, places.keep_versions)
    except (OSError, ValueError) as error:
        _log.warning("old versions of %s cannot be removed: %s", name, error)
    else:
        _log.info("%s versions of %s are kept; removed: %s", places.keep_versions, name, ", ".join(map(str, gone)) or "none")


def _publish(run: Run, places: Places) -> Manifest:
    evaluated = run.go_back_to_best()
    training = run.training
    lines = [line.losses for line in runs.read_metrics(run.folder) if line.losses and line.images <= training.images]
    losses = rounded(lines[-1]) if lines else {}
    provenance = Provenance(
        run=run.status.id,
        source=run.prepared.architecture.source,
        config=run.config,
        dataset=run.prepared.dataset.card,
        metrics={"images": float(training.images), "seconds": round(training.seconds, 1), **losses, **evaluated},
    )
    held_out = run.prepared.held_out.some(MAX_SCORED)
    return publish(run.prepared.players, provenance, held_out, run.prepared.examples, places.repositories, places.digests)


def _sentence(error: Exception, folder: Path) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            f"out of memory with a batch_size of {runs.read_config(folder).batch_size}: give a smaller one, or narrower networks ({text})"
        )
    return text if isinstance(error, UserError | NotFiniteError) else f"{type(error).__name__}: {text}"


@contextmanager
def _stop_signals(run: Run) -> Iterator[None]:
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
    """`auto` is the first GPU (in a team, each member's own), or else the CPU.

    Raises:
        UserError: no such device here.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if text == "cuda":
        text = f"cuda:{torch.distributed.get_node_local_rank(fallback_rank=0)}"
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
    parser.add_argument("--digests", type=Path, required=True, help="the folder of digests of what was published or confirmed here")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="the folder of pretrained weights")
    parser.add_argument(
        "--keep-versions", type=int, help="versions of a model that stay, beside those that an alias names; all if left out"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=int, help="intra-op threads of a new run; measured when left out")
    parser.add_argument("--memory-layout", choices=get_args(MemoryLayout), help="of the weights, in a new run; measured when left out")
    parser.add_argument("--attempt", type=int, help="as granted by the service that starts it")
    parser.add_argument("--memory-megabytes", type=int, help="with --attempt: what it may take of the machine's memory")
    parser.add_argument("--device-memory-share", type=float, help="what it may take of a GPU's memory, from 0 to 1; all when left out")
    parser.add_argument("--nice", type=int, default=0, help="added to the process's niceness")
    parser.add_argument("--compile", action="store_true", help="try torch.compile, and use it where it is faster")
    given = parser.parse_args(arguments)
    os.nice(given.nice)
    if given.attempt is not None:  # a service's worker: it goes before the service does
        machine.limit_memory(given.memory_megabytes)
    device = pick_device(given.device)
    if given.device_memory_share is not None and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(given.device_memory_share, device)
    places = Places(given.datasets, tuple(given.repository), given.weights, given.digests, given.keep_versions)
    asked = {"num_threads": given.threads, "memory_layout": given.memory_layout, "compiling": given.compile}
    return work(given.folder, places, device, attempt=given.attempt, **asked)


if __name__ == "__main__":
    sys.exit(main())
