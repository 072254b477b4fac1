"""The networks of a config as shapes alone, on torch's meta device: what is asked of them before any work, at no cost in memory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from training.catalog import build
from training.contract import DatasetCard, TrainConfig
from training.game import DataSpec, Game, Player, Terms

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Blueprint:
    """Games and players whose tensors have a shape and no values."""

    games: dict[str, Game]
    players: dict[str, Player]

    @classmethod
    def of(cls, config: TrainConfig, card: DatasetCard, weights: Path) -> "Blueprint":
        """Of a config whose architecture fits the data.

        Raises:
            UserError: a file of weights that an option asks for is missing or damaged.
        """
        combination, spec = build(config), DataSpec.of(card)
        architecture = combination.architecture
        with torch.device("meta"):
            games = architecture.games(spec, Terms(combination.norm, weights))
        return cls(games, architecture.players(games, data=spec, score=combination.loss.score))

    def shapes(self, player: str) -> Shapes:
        """Of every weight and buffer of a player, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.players[player].module.state_dict().items()}
