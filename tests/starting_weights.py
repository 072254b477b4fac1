"""Networks that no training has touched, published as a model that runs can start from."""

import torch
from torch import Tensor

from training import catalog, datasets, export
from training.contract import TrainConfig
from training.export import HeldOut, Provenance
from training.game import DataSpec, Terms
from training.preparation import Places

SPEC = DataSpec((1, 16, 16))


def publish_with_weights(places: Places, config: TrainConfig, discriminator_head: float | None = None) -> dict[str, dict[str, Tensor]]:
    """Publish fresh networks as version 1 of the config's name; returns their weights."""
    torch.manual_seed(42)
    built = catalog.build(config)
    architecture = built.architecture
    players = architecture.players(architecture.games(SPEC, Terms()), data=SPEC, score=built.loss.score)
    if discriminator_head is not None:
        with torch.no_grad():
            list(players["discriminator"].module.parameters())[-2].fill_(discriminator_head)
    provenance = Provenance("by-hand", architecture.source, config, datasets.card(config.dataset, places.datasets), {})
    images = HeldOut(torch.zeros(64, *SPEC.shape))
    export.publish(players, provenance, images, images, places.repositories, places.digests)
    return {key: {name: value.clone() for name, value in player.module.state_dict().items()} for key, player in players.items()}
