"""Which game is played when: games follow one another, and each may begin with a warm-up of its generator."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.contract import TrainConfig
from training.game import Game


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, from `start` to `end` images, in which one game is played, or its generator warms up.

    The game itself lasts from `game_start` to `game_end`.
    """

    key: str
    warming_up: bool
    start: int
    end: int
    game_start: int
    game_end: int


def phases(games: Mapping[str, Game], total_images: int) -> list[Phase]:
    """The games' shares of the run, in their order, each with its warm-up before it."""
    shares = sum(game.share for game in games.values())
    found: list[Phase] = []
    begin, played = 0, 0.0
    for key, game in games.items():
        played += game.share
        end = round(total_images * played / shares)
        warm = begin + round((end - begin) * game.warmup_share)
        if warm > begin:
            found.append(Phase(key, True, begin, warm, begin, end))
        if end > warm:
            found.append(Phase(key, False, warm, end, begin, end))
        begin = end
    return found


def too_short(games: Mapping[str, Game], config: TrainConfig) -> str | None:
    """Why the run cannot hold its phases, or None. A step may take what is left of one phase and the start of the next."""
    stretches = phases(games, config.total_images)
    step = config.batch_size * config.critic_steps
    shortest = min(phase.end - phase.start for phase in stretches)
    if len(stretches) == 1 or shortest >= 2 * step:
        return None
    return (
        f"{config.architecture} is trained in {len(stretches)} phases, and {config.total_images:,} total_images leave {shortest:,} for"
        f" one of them, less than two steps of {step}; give at least {-(-2 * step * config.total_images // max(shortest, 1)):,}"
    )
