"""One game in training: its networks, the generator's moving average, an optimiser for each side, and how a step of it is played.

The generator runs once for the last discriminator step and its own: the same images are judged, then improved.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from training.augment import augment
from training.combination import Combination
from training.contract import OptimizerConfig, TrainConfig
from training.game import Game, Round, Tensors
from training.layers import add_spectral_norm
from training.losses import AdversarialLoss
from training.penalties import Penalty
from training.team import ALONE, Team


@dataclass(frozen=True)
class Rules:
    """What holds in every game of a run.

    penalty_interval: penalties are added at every so many-th step of the discriminator, and weigh as many times more.
    samplewise: the discriminator judges each image by itself, so that real and generated ones may go through it together.
    bfloat16: layers compute in bfloat16 where that is safe; weights, scores and losses stay in float32.
    team: the processes that play together.
    """

    loss: AdversarialLoss
    penalties: tuple[Penalty, ...] = ()
    penalty_interval: int = 1
    augmentations: tuple[str, ...] = ()
    critic_steps: int = 1
    samplewise: bool = False
    bfloat16: bool = False
    team: Team = ALONE

    @classmethod
    def of(cls, config: TrainConfig, combination: Combination, team: Team = ALONE) -> "Rules":
        return cls(
            combination.loss,
            combination.penalties,
            config.penalty_interval,
            config.diff_augment,
            config.critic_steps,
            samplewise=combination.norm != "batch",
            bfloat16=config.precision == "bfloat16",
            team=team,
        )

    def forward(self, network: Callable[..., Tensor], *images: Tensor, **inputs: Tensor) -> Tensor:
        """A pass through a network; float32 comes out."""
        device = next(iter((*images, *inputs.values()))).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bfloat16):
            return network(*images, **inputs).float()


Next = Callable[[], Tensors]  # the next batch of real data


@dataclass
class Match:
    """One game in training. `last` is the round that its generator moved in last."""

    game: Game
    average: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    last: Round | None = None
    compiled: list[nn.Module] = field(default_factory=list)

    @classmethod
    def of(cls, game: Game, config: TrainConfig, device: torch.device, team: Team = ALONE) -> "Match":
        if config.spectral_norm:
            add_spectral_norm(game.discriminator)
        game.generator.to(device).train()
        game.discriminator.to(device).train()
        average = deepcopy(game.generator).eval().requires_grad_(False)
        for network in (game.generator, game.discriminator):
            team.synchronise_norms(network)
        return cls(game, average, _adam(game.generator, config.generator), _adam(game.discriminator, config.discriminator))

    @property
    def averaged_game(self) -> Game:
        """The game as it is served: the generator's moving average against the discriminator."""
        return replace(self.game, generator=self.average)

    def compile(self, rules: Rules) -> None:
        """By torch.compile, once. The discriminator stays plain where the gradient of a penalty is taken twice, which compiled networks
        cannot, and where it scores all classes, which is another call than the one that is compiled."""
        plain = rules.penalties or self.game.class_scores is not None
        networks = (self.game.generator,) if plain else (self.game.generator, self.game.discriminator)
        for network in networks:
            if network not in self.compiled:
                network.compile()
                self.compiled.append(network)

    def end(self) -> None:
        """Hold the generator still as its moving average: what later games build on is what is served."""
        self.game.generator.load_state_dict(self.average.state_dict())
        self.hold_still()

    def hold_still(self) -> None:
        self.game.generator.eval().requires_grad_(False)

    def set_learning_rates(self, config: TrainConfig, factor: float) -> None:
        for optimizer, settings in ((self.generator_optimizer, config.generator), (self.discriminator_optimizer, config.discriminator)):
            for group in optimizer.param_groups:
                group["lr"] = factor * _rate(settings)

    # --- a step ---

    def warm_up(self, rules: Rules, batch: Next, random: torch.Generator) -> dict[str, Tensor]:
        """Move the generator by what it warms up by; the term that moved it, a detached scalar."""
        assert self.game.warmup is not None, "a game that warms up says by what"
        dealt = rules.team.share(self.game.deal(batch(), random))
        loss = self.game.warmup(rules.forward(self.game.generator, **dealt.inputs), dealt)
        _descend(self.generator_optimizer, loss, rules.team)
        return {"warmup_loss": loss.detach()}

    def play(self, rules: Rules, step: int, batch: Next, random: torch.Generator) -> dict[str, Tensor]:
        """Show `critic_steps` fresh batches to the discriminator, then move the generator once; terms as detached scalars.

        Args:
            step: counts from 0, and decides when penalties are added.
        """
        moved: list[dict[str, Tensor]] = []
        own_random = rules.team.own_random(random, step)
        for critic_step in range(rules.critic_steps):
            dealt = rules.team.share(self.game.deal(batch(), random))
            with torch.set_grad_enabled(critic_step == rules.critic_steps - 1):
                generated = rules.forward(self.game.generator, **dealt.inputs)
            penalised = (step * rules.critic_steps + critic_step) % rules.penalty_interval == 0
            moved.append(self._move_discriminator(rules, dealt, generated.detach(), own_random, penalised=penalised))
        terms = {name: torch.stack([each[name].detach() for each in moved]).mean() for name in moved[0]}
        terms |= self._move_generator(rules, dealt, generated, own_random)
        self.last = dealt
        return {name: value.detach() for name, value in terms.items()}

    def _move_discriminator(
        self, rules: Rules, dealt: Round, generated: Tensor, random: torch.Generator, *, penalised: bool
    ) -> dict[str, Tensor]:
        images = (dealt.target.detach(), generated)
        if rules.penalties and penalised:
            for batch in images:
                batch.requires_grad_()
        judge = _Judge(self.game, rules, dealt.condition, random)
        real, fake = judge.both(*images)
        loss = rules.loss.discriminator(real, fake)
        terms = {"discriminator_loss": loss, "score_real": real.mean()}
        if rules.loss.score == "logit":
            terms["probability_real"] = real.sigmoid().mean()
        if rules.penalties:
            terms["penalty"] = loss.new_zeros(())
            if penalised:
                penalties = torch.stack([each(judge, *images, random) for each in rules.penalties])
                terms["penalty"] = rules.penalty_interval * penalties.sum()
            loss = loss + terms["penalty"]
        if self.game.class_scores is not None:
            terms["classification_real"] = judge.classified(images[0])
            loss = loss + self.game.classification_weight * terms["classification_real"]
        _descend(self.discriminator_optimizer, loss, rules.team)
        rules.loss.constrain(self.game.discriminator)
        return terms

    def _move_generator(self, rules: Rules, dealt: Round, generated: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        game, judge = self.game, _Judge(self.game, rules, dealt.condition, random)
        game.discriminator.requires_grad_(False)  # its weights need no gradient of the generator's loss
        fake = judge(generated)
        with torch.no_grad():
            real = judge(dealt.target) if rules.loss.needs_real else fake
        loss = rules.loss.generator(real, fake)
        terms = {"generator_loss": loss, "score_generated": fake.mean()}
        if rules.loss.score == "logit":
            terms["probability_generated"] = fake.sigmoid().mean()
        if game.class_scores is not None:
            terms["classification_generated"] = judge.classified(generated)
            loss = loss + game.classification_weight * terms["classification_generated"]
        if game.reconstruction is not None:
            terms["reconstruction_loss"] = game.reconstruction(generated, dealt)
            loss = game.adversarial_weight * loss + terms["reconstruction_loss"]
        _descend(self.generator_optimizer, loss, rules.team)
        game.discriminator.requires_grad_(True)
        return terms

    @torch.no_grad()
    def score_after(self, rules: Rules) -> dict[str, float]:
        """What the discriminator says of the last round's images now that the generator has moved; no state is changed."""
        if self.last is None:
            return {}
        device = self.last.target.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            generator, discriminator = deepcopy((self.game.generator, self.game.discriminator))  # statistics of norms move too
            scores = rules.forward(discriminator, rules.forward(generator, **self.last.inputs), **self.last.condition)
        after = {"score_generated_after": scores.mean()}
        if rules.loss.score == "logit":
            after["probability_generated_after"] = scores.sigmoid().mean()
        return {name: float(rules.team.average(value)) for name, value in after.items()}

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts():
            part.load_state_dict(state[name])
        self.last = None

    def _parts(self) -> Iterator[tuple[str, nn.Module | Optimizer]]:
        yield "generator", self.game.generator
        yield "discriminator", self.game.discriminator
        yield "average", self.average
        yield "generator_optimizer", self.generator_optimizer
        yield "discriminator_optimizer", self.discriminator_optimizer


class _Judge:
    """The discriminator in one step. It remembers what it said: a penalty at the images of the loss costs no further pass.

    What it says of a batch is its scores (N,), or where it classifies too those as every class (N, K).
    """

    def __init__(self, game: Game, rules: Rules, condition: Tensors, random: torch.Generator) -> None:
        self._game, self._rules, self._condition, self._random = game, rules, condition, random
        self._said: list[tuple[Tensor, Tensor]] = []  # images and what was said of them

    def __call__(self, images: Tensor) -> Tensor:
        said = self._of(images)
        return said if self._game.class_scores is None else (said * self._condition["label"]).sum(1)

    def classified(self, images: Tensor) -> Tensor:
        """How far it is from naming the labels: a cross-entropy."""
        return F.cross_entropy(self._of(images), self._condition["label"])

    def both(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of both. A batch norm must see them apart: together, its statistics would tell the one from the other."""
        if self._rules.samplewise:
            twice = {name: torch.cat([values, values]) for name, values in self._condition.items()}
            self._said += zip((real, fake), self._say(torch.cat([real, fake]), twice).chunk(2), strict=True)
        return self(real), self(fake)

    def _of(self, images: Tensor) -> Tensor:
        for known, said in self._said:
            if known is images:
                return said
        said = self._say(images, self._condition)
        self._said.append((images, said))
        return said

    def _say(self, images: Tensor, condition: Tensors) -> Tensor:
        if self._rules.augmentations:
            images = augment(images, self._rules.augmentations, self._random)
        if self._game.class_scores is not None:
            return self._rules.forward(self._game.class_scores, images)
        return self._rules.forward(self._game.discriminator, images, **condition)


def _adam(module: nn.Module, config: OptimizerConfig) -> Adam:
    assert config.betas is not None, "the config is resolved before it is run"
    return Adam(module.parameters(), lr=_rate(config), betas=config.betas, fused=True)


def _rate(config: OptimizerConfig) -> float:
    assert config.learning_rate is not None, "the config is resolved before it is run"
    return config.learning_rate


def _descend(optimizer: Optimizer, loss: Tensor, team: Team) -> None:
    """One step. Gradients of the weights alone: a penalty's images need none of the loss."""
    optimizer.zero_grad(set_to_none=True)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    loss.backward(inputs=weights)  # type: ignore[no-untyped-call]
    team.average_gradients(weights)
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
