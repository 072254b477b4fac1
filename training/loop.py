"""The training loop, to be read aloud like a recipe.

Games are played one after the other. A step shows `critic_steps` fresh batches to the discriminator, then moves the generator once,
then its moving average.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from training.contract import Metrics, TrainConfig, UserError
from training.data import Batches
from training.game import Game, Tensors
from training.match import Match, Rules, move_average
from training.phases import Phase, phases

EMA_RAMPUP = 0.05  # early on the half-life is at most this share of the images seen (Karras et al. 2020, arXiv:2006.06676)
METRIC_LINES = 200  # lines of metrics in a whole run


class NotFiniteError(Exception):
    """A loss became infinite or NaN; the message names the term and the step."""


class OtherDeviceError(UserError):
    """A run can only go on on the kind of device that it was begun on."""


class Watcher(Protocol):
    """Who is told of the run. `Training.run` calls it between two steps, so whatever it raises ends the run in a whole state."""

    def beat(self, images: int, images_per_second: float) -> None:
        """About twice a second."""

    def measured(self, metrics: Metrics) -> None:
        """At each line of metrics, and at the end."""

    def sample(self, images: int) -> None:
        """At each `sample_images`."""

    def evaluate(self, images: int) -> None:
        """At each `evaluation_images` of the last phase, whose images are those that will be published, and at the end."""

    def checkpoint(self, images: int) -> None:
        """At each `checkpoint_images`."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: at how many images, and its value."""

    images: int
    value: float


class Training:
    """All that changes while a model is trained; `state_dict` holds every bit of it."""

    def __init__(self, matches: dict[str, Match], rules: Rules, batches: Batches, config: TrainConfig, random: torch.Generator) -> None:
        """random: on the device of the networks; deals the latents."""
        self.matches, self.images, self.steps, self.seconds = matches, 0, 0, 0.0
        self.best: Best | None = None
        self.rules, self._batches, self._config, self._random = rules, batches, config, random
        self._phases = phases(self.games, config.total_images)
        self._terms: tuple[str, ...] = ()
        self._window: list[Tensor] = []  # losses since the last line of metrics, not read yet: reading waits for the device
        self._window_start = (0, 0, 0.0)  # images, steps and seconds at that line

    @property
    def games(self) -> dict[str, Game]:
        return {key: match.game for key, match in self.matches.items()}

    @property
    def device(self) -> torch.device:
        return self._random.device

    @property
    def phase(self) -> Phase:
        return next((phase for phase in self._phases if self.images < phase.end), self._phases[-1])

    def run(self, watcher: Watcher) -> None:
        """Train until `total_images` are seen.

        Raises:
            NotFiniteError: a loss is not finite.
        """
        config = self._config
        every_metrics = max(config.total_images // METRIC_LINES, config.batch_size)
        clock = _Clock()
        while self.images < config.total_images:
            before, phase = self.images, self.phase
            clock.lap()  # what a watcher did is no training
            self.step()
            self.seconds += clock.lap()
            ended = self.images >= config.total_images
            if ended or self._crossed(before, every_metrics) or self.phase is not phase:
                watcher.measured(self._measure(phase))
            if self.phase.key != phase.key:
                self.matches[phase.key].end()
            if self._crossed(before, config.sample_images):
                watcher.sample(self.images)
            if phase is self._phases[-1] and (ended or self._crossed(before, config.evaluation_images)):
                watcher.evaluate(self.images)  # before the checkpoint, which then knows the best state so far
            if self._crossed(before, config.checkpoint_images):
                watcher.checkpoint(self.images)
            if self.rules.team.meets(self.steps):
                rate = clock.beat(self.images)
                if self.rules.team.agree(rate is not None):
                    watcher.beat(self.images, rate or clock.rate)

    def step(self) -> None:
        """One step of the game whose turn it is."""
        phase, before = self.phase, self.images
        match = self.matches[phase.key]
        match.set_learning_rates(self._config, self._learning_rate_factor(phase))
        if phase.warming_up:
            terms = match.warm_up(self.rules, self._next_batch, self._random)
        else:
            terms = match.play(self.rules, self.steps, self._next_batch, self._random)
        decay = self._average_decay(self.images - before, self.images - phase.game_start)
        move_average(match.average, match.game.generator, decay)
        self.steps += 1
        self._terms = tuple(terms)
        self._window.append(torch.stack(list(terms.values())))

    def rehearse(self) -> None:
        """A step of every game, for who measures; the state it leaves is nobody's."""
        for match in self.matches.values():
            match.set_learning_rates(self._config, 1.0)
            match.play(self.rules, self.steps, self._next_batch, self._random)
            move_average(match.average, match.game.generator, 0.5)

    def _next_batch(self) -> Tensors:
        batch = self._batches.next()
        self.images += len(batch["image"])
        return batch

    def _learning_rate_factor(self, phase: Phase) -> float:
        progress = (self.images - phase.game_start) / (phase.game_end - phase.game_start)
        if self._config.learning_rate_schedule == "linear":
            return min(1.0, 2 * (1 - progress))
        return 0.5 * (1 + math.cos(math.pi * progress)) if self._config.learning_rate_schedule == "cosine" else 1.0

    def _average_decay(self, images: int, images_of_game: int) -> float:
        halflife = min(self._config.ema_halflife_images, EMA_RAMPUP * images_of_game)
        return 0.5 ** (images / halflife) if halflife > 0 else 0.0

    def _crossed(self, before: int, every: int) -> bool:
        return self.images // every > before // every

    def _measure(self, phase: Phase) -> Metrics:
        values = self._finite_window()
        images_before, _, seconds_before = self._window_start
        means = dict(zip(self._terms, values.mean(dim=0).tolist(), strict=True))
        if not phase.warming_up:
            means |= self.matches[phase.key].score_after(self.rules)
        if bad := [name for name, value in means.items() if not math.isfinite(value)]:  # the last step moved weights out of bounds
            raise NotFiniteError(f"{bad[0]} is not finite at step {self.steps:,}; try a smaller learning_rate")
        self._window, self._window_start = [], (self.images, self.steps, self.seconds)
        rate = (self.images - images_before) / max(self.seconds - seconds_before, 1e-9)
        prefix = f"{phase.key}/" if len(self.matches) > 1 else ""
        losses = {prefix + name: value for name, value in means.items()}
        return Metrics(images=self.images, seconds=self.seconds, images_per_second=rate, losses=losses)

    def check_finite(self) -> None:
        """Raise NotFiniteError for a loss that no line of metrics has told of yet; a state that is kept must be sound."""
        if self._window:
            self._finite_window()

    def _finite_window(self) -> Tensor:
        """(steps, terms) since the last line of metrics, on the CPU."""
        values = self.rules.team.average(torch.stack(self._window)).cpu().double()  # in this order: Apple's GPUs know no double
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            step = self._window_start[1] + int(bad[0, 0]) + 1
            raise NotFiniteError(f"{self._terms[int(bad[0, 1])]} is not finite at step {step:,}; try a smaller learning_rate")
        return values

    def state_dict(self) -> dict[str, Any]:
        return {
            "device": self._random.device.type,
            "images": self.images,
            "steps": self.steps,
            "seconds": self.seconds,
            "best": None if self.best is None else [self.best.images, self.best.value],
            "terms": list(self._terms),
            "window": self._window,
            "window_start": list(self._window_start),
            "matches": {key: match.state_dict() for key, match in self.matches.items()},
            "batches": self._batches.state_dict(),
            "random": self._random.get_state(),
            "global_random": _global_random(self._random.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise OtherDeviceError where the state was made on another kind of device."""
        if state["device"] != (here := self._random.device.type):
            raise OtherDeviceError(
                f"the run was begun on {state['device']}, and this is {here}, whose random numbers are others; go on with it there"
            )
        self.images, self.steps, self.seconds = state["images"], state["steps"], state["seconds"]
        self.best = None if state["best"] is None else Best(*state["best"])
        self._terms, self._window = tuple(state["terms"]), state["window"]
        self._window_start = (state["window_start"][0], state["window_start"][1], state["window_start"][2])
        for key, match in self.matches.items():
            match.load_state_dict(state["matches"][key])
        for phase in self._phases:
            if phase.key == self.phase.key:
                break
            self.matches[phase.key].hold_still()
        self._batches.load_state_dict(state["batches"])
        self._random.set_state(state["random"].cpu())
        torch.set_rng_state(state["global_random"][0].cpu())
        if self._random.device.type == "cuda":
            torch.cuda.set_rng_state(state["global_random"][1].cpu(), self._random.device)


def _global_random(device: torch.device) -> list[Tensor]:
    """Dropout draws from these."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


class _Clock:
    """Seconds since the last lap, and a beat about twice a second."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._lap = now, now()
        self._beat: tuple[float, int] | None = None
        self.rate = math.nan

    def lap(self) -> float:
        before, self._lap = self._lap, self._now()
        return self._lap - before

    def beat(self, images: int) -> float | None:
        """Images a second, smoothed over the last beats, where it is time for a beat."""
        if self._beat is None:
            self._beat = (self._lap, images)
            return None
        seconds = self._lap - self._beat[0]
        if seconds < 0.5:
            return None
        rate = (images - self._beat[1]) / seconds
        self.rate = rate if math.isnan(self.rate) else 0.8 * self.rate + 0.2 * rate
        self._beat = (self._lap, images)
        return self.rate
