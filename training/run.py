"""A run at work, as the loop's watcher: what it says of itself, what it keeps of its states, and when it is to end.

One member of a team leads and writes; the others follow it to the same end.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from training import checkpoint
from training.contract import Finding, JobState, JobStatus, Metrics, Progress, TrainConfig, now
from training.detectors import Detectors, check_finite_weights, not_finite
from training.evaluation import Evaluator
from training.event_files import EventFiles, open_event_files
from training.export import generate, save_grid, sheet
from training.files import events, runs
from training.loop import Best, NotFiniteError, Training
from training.preparation import Prepared
from training.summary import draw
from training.team import Team

# of the first image; far from the seeds of samples and the score reference
EVALUATION_SEED = 1_000_000
FINAL_SEED = 1_500_000  # other images than those by which the best state was chosen: luck in the choice is not reported
CHECKPOINT_SECONDS = 600.0  # no more of a slow run is lost, whatever checkpoint_images says
_log = logging.getLogger(__name__)


class Listener:
    """Told of a run as it goes, in the worker's own process; the console's progress bar is one."""

    def started(self, config: TrainConfig, images: int) -> None:
        """The networks stand; the run begins at `images`."""

    def progressed(self, status: JobStatus) -> None:
        """About twice a second."""

    def found(self, finding: Finding) -> None:
        """Something goes wrong, and the run goes on or is ended in order."""


class Stopped(Exception):
    """A signal asked the process to end; the run goes on another time."""


class Cancelled(Exception):
    """Somebody asked the run to end."""


class Superseded(Exception):
    """Another attempt works on the run: this one must not write any more."""


class Collapsed(Exception):
    """The run was to end where its generator collapses, and it has."""


_ENDS = (None, Stopped, Cancelled)


@dataclass
class Follower:
    """A member of a team that does not lead. It checks what the leader checks, when the leader does, and writes nothing."""

    config: TrainConfig
    training: Training
    team: Team

    @property
    def ends_here(self) -> bool:
        """Whether it was to end where its generator collapses, and it has; the leader knows."""
        return False

    def begin(self) -> None:
        """Raise Collapsed where the run had ended already, and was cut before it could say so."""
        if self.team.agree(self.ends_here):
            raise Collapsed

    def beat(self, images: int, images_per_second: float) -> None:
        if self.team.agree(0):
            self.checkpoint(images)
        self.heed()

    def heed(self) -> None:
        """Raise what ends the run, where the leader was asked for its end."""
        if end := _ENDS[self.team.agree(0)]:
            raise end

    def measured(self, metrics: Metrics) -> None:
        """The leader tells."""

    def sample(self, images: int) -> None:
        """The leader draws."""

    def evaluate(self, images: int) -> None:
        if self.config.num_evaluated:
            self._check()
            if self.team.agree(0):
                raise Collapsed

    def checkpoint(self, images: int) -> None:
        self._check()

    def _check(self) -> None:
        """A state that is kept must be sound."""
        self.training.check_finite()
        check_finite_weights(self.training)


@dataclass
class Run(Follower):
    """The run of a directory, alone or leading: what was prepared, and what it says of itself."""

    folder: Path
    device: torch.device
    prepared: Prepared
    evaluator: Evaluator | None
    detectors: Detectors
    status: JobStatus
    listener: Listener
    attempt: int | None = None  # its number, where a service has given one
    event_files: EventFiles | None = None
    stop_asked: bool = False
    checkpointed_at: float = field(default_factory=time.monotonic)
    named_best: int | None = None  # by the newest checkpoint: images of the best state that it would be published with

    def beat(self, images: int, images_per_second: float) -> None:
        self.heed_grant()
        left = (self.config.total_images - images) / images_per_second
        update = {"images": images, "images_per_second": round(images_per_second, 1), "seconds_left": round(left, 1)}
        self.say(progress=self.status.progress.model_copy(update=update))
        self.listener.progressed(self.status)
        if self.team.agree(time.monotonic() - self.checkpointed_at > CHECKPOINT_SECONDS):
            self.checkpoint(images)
        self.heed()

    def heed(self) -> None:
        """Raise what ends the run, where somebody has asked for its end."""
        self.heed_grant()
        stop = self.stop_asked or runs.is_stop_asked(self.folder)
        asked = Stopped if stop else Cancelled if runs.is_cancel_asked(self.folder) else None
        if end := _ENDS[self.team.agree(_ENDS.index(asked))]:
            raise end

    def heed_grant(self) -> None:
        """Raise Superseded where another attempt may write, and this one no longer."""
        if not runs.is_granted(self.folder, self.attempt):
            raise Superseded

    @property
    def ends_here(self) -> bool:
        """Whether it was to end where its generator collapses, and it has."""
        return self.config.on_collapse == "stop" and any(each.kind == "generator-collapsed" for each in self.status.findings)

    def measured(self, metrics: Metrics) -> None:
        self._note(metrics)
        progress = self.status.progress.model_copy(update={"losses": rounded(metrics.losses)})
        self.status = self.status.model_copy(update={"progress": progress})

    def sample(self, images: int) -> None:
        self.save_samples(images)
        draw(self.folder)

    def save_samples(self, images: int) -> None:
        path = runs.sample_path(self.folder, images)
        save_grid(path, sheet(self.prepared.players["generator"], self.prepared.examples))
        events.append(self.folder, "sample", events.ImagesData(images=images))
        if self.event_files is not None:
            self.event_files.sampled(images, path)

    def evaluate(self, images: int) -> None:
        """Compare with held-out images; a state that is the best so far is kept."""
        if self.evaluator is None:
            return
        self._check()
        values = self.evaluator.quick(self._generated())
        value = self.evaluator.chosen_by(values)
        best = self.training.best
        if best is None or self.evaluator.is_better(value, best.value):
            self.training.best = Best(images, value)
            checkpoint.save(self.folder / runs.BEST, images, self.training.state_dict())
        self.say(progress=self.status.progress.model_copy(update={"evaluation": rounded(values)}))
        self._note(Metrics(images=images, seconds=self.training.seconds, evaluation=values))
        if self.team.agree(self.ends_here):
            raise Collapsed

    def _note(self, line: Metrics) -> None:
        """Write a line of metrics down, and say what it shows."""
        runs.append_metrics(self.folder, line)
        if self.event_files is not None:
            self.event_files.measured(line)
        for finding in self.detectors.look(line):
            _log.warning("%s: %s", finding.kind, finding.message)
            self._find(finding)
            self.listener.found(finding)

    def _find(self, finding: Finding) -> None:
        self.say(findings=(*self.status.findings, finding))
        events.append(self.folder, "finding", finding)

    def lose(self, error: NotFiniteError) -> NotFiniteError:
        """Say that the run cannot go on; the error, with what is left of the run."""
        kept = {runs.CHECKPOINTS: runs.checkpoint_images(self.folder), runs.BEST: self.training.best.images if self.training.best else 0}
        finding = not_finite(str(error), kept, self.training.images)
        self._find(finding)
        return NotFiniteError(finding.message)

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
        if self.status.attempts > 1:
            events.append(self.folder, "rewound", events.ImagesData(images=self.training.images))
        progress, findings = Progress(images=self.training.images, total_images=self.config.total_images), list[Finding]()
        for line in runs.read_metrics(self.folder):
            told = {"losses": rounded(line.losses)} if line.losses else {"evaluation": rounded(line.evaluation)}
            progress = progress.model_copy(update=told)
            findings += self.detectors.look(line)
        self.status = self.status.model_copy(update={"progress": progress, "findings": tuple(findings)})
        self.event_files = open_event_files(self.folder, self.training.images)

    def checkpoint(self, images: int) -> None:
        self._check()
        self.checkpointed_at = time.monotonic()
        checkpoint.save(self.folder / runs.CHECKPOINTS, images, self.training.state_dict())
        checkpoint.drop_all_but_newest(self.folder / runs.CHECKPOINTS)
        best = None if self.training.best is None else self.training.best.images
        checkpoint.drop_all_but(self.folder / runs.BEST, [named for named in (best, self.named_best) if named is not None])
        self.named_best = best

    def say(self, **changes: object) -> None:
        self.status = self.status.model_copy(update=changes)
        (runs.enter_state if "state" in changes else runs.write_status)(self.folder, self.status)

    def end(self, state: JobState, message: str, **changes: object) -> None:
        self.say(state=state, message=message, finished_at=now(), **changes)
        if state != "cancelled":  # who cancels waits for the device, and has the picture of the last samples
            draw(self.folder)


def rounded(losses: dict[str, float]) -> dict[str, float]:
    """As they are told in documents."""
    return {name: round(value, 4) for name, value in losses.items()}
