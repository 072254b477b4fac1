"""The training loop, to be read aloud like a recipe.

A step shows `critic_steps` fresh batches to the discriminator, then moves the generator once, then its moving average.
The generator runs once for the last discriminator step and its own: the same images are judged, then improved.
"""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from training.contract import Metrics, OptimizerConfig, TrainConfig
from training.data import Batches
from training.game import Game
from training.losses import AdversarialLoss

EMA_RAMPUP = 0.05  # early on the half-life is at most this share of the images seen (Karras et al. 2020, arXiv:2006.06676)
METRIC_LINES = 200  # lines of metrics in a whole run


class NotFiniteError(Exception):
    """A loss became infinite or NaN; the message names the term and the step."""


@dataclass
class Match:
    """One game in training: its networks, the generator's moving average, and an optimiser for each side."""

    game: Game
    average: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer

    @classmethod
    def of(cls, game: Game, config: TrainConfig, device: torch.device) -> "Match":
        game.generator.to(device).train()
        game.discriminator.to(device).train()
        average = deepcopy(game.generator).eval().requires_grad_(False)
        return cls(game, average, _adam(game.generator, config.generator), _adam(game.discriminator, config.discriminator))

    @property
    def averaged_game(self) -> Game:
        """The game as it is served: the generator's moving average against the discriminator."""
        return Game(self.average, self.game.discriminator, self.game.deal)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts():
            part.load_state_dict(state[name])

    def _parts(self) -> Iterator[tuple[str, nn.Module | Optimizer]]:
        yield "generator", self.game.generator
        yield "discriminator", self.game.discriminator
        yield "average", self.average
        yield "generator_optimizer", self.generator_optimizer
        yield "discriminator_optimizer", self.discriminator_optimizer


def _adam(module: nn.Module, config: OptimizerConfig) -> Adam:
    assert config.learning_rate is not None, "the config is resolved before it is run"
    assert config.betas is not None, "the config is resolved before it is run"
    return Adam(module.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)


class Watcher(Protocol):
    """Who is told of the run. `Training.run` calls it between two steps, so whatever it raises ends the run in a whole state."""

    def beat(self, images: int, images_per_second: float) -> None:
        """About twice a second."""

    def measured(self, metrics: Metrics) -> None:
        """At each line of metrics, and at the end."""

    def sample(self, images: int) -> None:
        """At each `sample_images`."""

    def checkpoint(self, images: int) -> None:
        """At each `checkpoint_images`."""


class Training:
    """All that changes while a model is trained; `state_dict` holds every bit of it."""

    def __init__(
        self, matches: dict[str, Match], loss: AdversarialLoss, batches: Batches, config: TrainConfig, random: torch.Generator
    ) -> None:
        """random: on the device of the networks; deals the latents."""
        self.matches, self.images, self.seconds = matches, 0, 0.0
        self._loss, self._batches, self._config, self._random = loss, batches, config, random
        self._window: list[Tensor] = []  # losses since the last line of metrics, not read yet: reading waits for the device
        self._window_start = (0, 0.0)  # images and seconds at that line

    def run(self, watcher: Watcher) -> None:
        """Train until `total_images` are seen.

        Raises:
            NotFiniteError: a loss is not finite.
        """
        config = self._config
        every_metrics = max(config.total_images // METRIC_LINES, config.batch_size)
        clock = _Clock()
        while self.images < config.total_images:
            before = self.images
            self.step()
            self.seconds += clock.lap()
            if self._crossed(before, every_metrics):
                watcher.measured(self._measure())
            if self._crossed(before, config.sample_images):
                watcher.sample(self.images)
            if self._crossed(before, config.checkpoint_images):
                watcher.checkpoint(self.images)
            if rate := clock.beat(self.images):
                watcher.beat(self.images, rate)
        if self._window:  # the last steps, where they are no whole line
            watcher.measured(self._measure())

    def step(self) -> None:
        """One step of every game."""
        losses = [self._step(match) for match in self.matches.values()]
        self._window.append(torch.cat(losses))

    def _step(self, match: Match) -> Tensor:
        game, loss, config = match.game, self._loss, self._config
        for critic_step in range(config.critic_steps):
            last = critic_step == config.critic_steps - 1
            dealt = game.deal(self._batches.next(), self._random)
            with torch.set_grad_enabled(last):
                generated = game.generator(**dealt.inputs)
            # real and generated images go through apart: together, batch norm would tell the one from the other
            real_scores = game.discriminator(dealt.target, **dealt.condition)
            fake_scores = game.discriminator(generated.detach(), **dealt.condition)
            discriminator_loss = loss.discriminator(real_scores, fake_scores)
            _descend(match.discriminator_optimizer, discriminator_loss)
            self.images += dealt.target.shape[0]

        game.discriminator.requires_grad_(False)  # its weights need no gradient of the generator's loss
        generator_loss = loss.generator(game.discriminator(generated, **dealt.condition))
        _descend(match.generator_optimizer, generator_loss)
        game.discriminator.requires_grad_(True)
        move_average(match.average, game.generator, self._average_decay(config.batch_size * config.critic_steps))
        return torch.stack([discriminator_loss, generator_loss, real_scores.mean(), fake_scores.mean()]).detach()

    def _average_decay(self, images: int) -> float:
        halflife = min(self._config.ema_halflife_images, EMA_RAMPUP * self.images)
        return 0.5 ** (images / halflife) if halflife > 0 else 0.0

    def _crossed(self, before: int, every: int) -> bool:
        return self.images // every > before // every

    def _measure(self) -> Metrics:
        names, values = self._term_names(), self._finite_window()
        images_before, seconds_before = self._window_start
        self._window, self._window_start = [], (self.images, self.seconds)
        rate = (self.images - images_before) / max(self.seconds - seconds_before, 1e-9)
        means = dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        return Metrics(images=self.images, seconds=self.seconds, images_per_second=rate, losses=means)

    def check_finite(self) -> None:
        """Raise NotFiniteError for a loss that no line of metrics has told of yet; a state that is kept must be sound."""
        if self._window:
            self._finite_window()

    def _finite_window(self) -> Tensor:
        """(steps, terms) since the last line of metrics, on the CPU."""
        values = torch.stack(self._window).double().cpu()
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            images_a_step = self._config.batch_size * self._config.critic_steps * len(self.matches)
            step = self._window_start[0] // images_a_step + int(bad[0, 0]) + 1
            raise NotFiniteError(f"{self._term_names()[int(bad[0, 1])]} is not finite at step {step:,}; try a smaller learning_rate")
        return values

    def _term_names(self) -> list[str]:
        return [name if len(self.matches) == 1 else f"{key}/{name}" for key in self.matches for name in _TERMS]

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "seconds": self.seconds,
            "window": self._window,
            "window_start": list(self._window_start),
            "matches": {key: match.state_dict() for key, match in self.matches.items()},
            "batches": self._batches.state_dict(),
            "random": self._random.get_state(),
            "global_random": _global_random(self._random.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images, self.seconds, self._window = state["images"], state["seconds"], state["window"]
        self._window_start = (state["window_start"][0], state["window_start"][1])
        for key, match in self.matches.items():
            match.load_state_dict(state["matches"][key])
        self._batches.load_state_dict(state["batches"])
        self._random.set_state(state["random"].cpu())
        torch.set_rng_state(state["global_random"][0].cpu())
        if self._random.device.type == "cuda":
            torch.cuda.set_rng_state(state["global_random"][1].cpu(), self._random.device)


_TERMS = ("discriminator_loss", "generator_loss", "score_real", "score_generated")


def _global_random(device: torch.device) -> list[Tensor]:
    """Dropout draws from these."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, for weights and for the statistics of batch norm; counters are copied.

    Weights without their statistics would give images that no network ever made.
    """
    old = [*average.parameters(), *average.buffers()]
    new = [*current.parameters(), *current.buffers()]
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - decay)
    for a, b in zip(old, new, strict=True):
        if not a.is_floating_point():
            a.copy_(b)


class _Clock:
    """Seconds since the last lap, and a beat about twice a second."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._lap = now, now()
        self._beat: tuple[float, int] | None = None
        self._rate = math.nan

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
        self._rate = rate if math.isnan(self._rate) else 0.8 * self._rate + 0.2 * rate
        self._beat = (self._lap, images)
        return self._rate
