"""From a resolved config to networks, data and optimisers, ready to train or to go on."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training import catalog
from training.contract import Manifest, TrainConfig, UserError
from training.data import Batches, evenly, rows_of, split
from training.datasets import Dataset
from training.evaluation import MAX_COMPARED
from training.export import MAX_SCORED, NUM_SAMPLES, ExportError, HeldOut, published_weights, script
from training.files import digests, versions
from training.game import Architecture, DataSpec, Player, Terms
from training.loop import Training
from training.match import Match, Rules
from training.team import ALONE, Team

NUM_FITTED = 2000  # images that data-dependent constants are measured on
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """Where a run finds its data and leaves its model; the first repository is written to.

    weights: files of pretrained networks that were put there by hand, `vgg19.pth` say.
    digests: the folder of those that were published or confirmed here: a run starts from no other version, and adds its own. None where
        the caller answers for the repositories.
    keep_versions: how many of a model's newest versions stay when one more is published, beside those that an alias names; all when None.
    """

    datasets: Path
    repositories: tuple[Path, ...]
    weights: Path
    digests: Path | None = None
    keep_versions: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A run ready to begin. The players are those of the moving averages, which go on with the training.

    held_out: real images that are never trained on, for evaluation and the score reference.
    examples: some of them, for the grids of samples.
    trained_on: some of the images that are trained on, by which an evaluation sees whether they are memorised.
    """

    architecture: Architecture
    dataset: Dataset
    training: Training
    players: dict[str, Player]
    held_out: HeldOut
    examples: HeldOut
    trained_on: Tensor | None


def prepare(
    config: TrainConfig, dataset: Dataset, places: Places, device: torch.device, *, begun: bool = False, team: Team = ALONE
) -> Prepared:
    """Networks, data and optimisers as the config says, before the first step.

    Args:
        begun: the run has a checkpoint, which holds every weight.
        team: the processes that train it together; each prepares the same.

    Raises:
        UserError: the config cannot be run here, or its networks cannot be exported; better said now than after a day.
    """
    team.check(config.batch_size)
    torch.manual_seed(config.seed)
    combination = catalog.build(config)
    architecture, score = combination.architecture, combination.loss.score
    parts = split(dataset, config.num_held_out(dataset.card.num_images))
    spec = DataSpec.of(dataset.card)
    games = architecture.games(spec, Terms(combination.norm, places.weights))
    architecture.fit(games, rows_of(dataset, evenly(parts.train, NUM_FITTED))["image"])
    players = architecture.players(games, data=spec, score=score)
    if config.initial_model is not None and not begun:
        _start_from(config.initial_model, players, places)
    for name, player in players.items():
        script(name, player)
    matches = {key: Match.of(game, config, device, team) for key, game in games.items()}
    batches = Batches(dataset, parts.train, config.batch_size, torch.Generator().manual_seed(config.seed + 1), device, team.local_size)
    rules = Rules.of(config, combination, team)
    training = Training(matches, rules, batches, config, torch.Generator(device).manual_seed(config.seed + 2))
    averaged = {key: match.averaged_game for key, match in matches.items()}
    _log.info(
        "training %s on %s: %s images of %s, %s held out, on %s",
        config.architecture,
        config.dataset,
        f"{len(parts.train):,}",
        "x".join(map(str, spec.shape)),
        f"{len(parts.held_out):,}",
        device,
    )
    return Prepared(
        architecture,
        dataset,
        training,
        architecture.players(averaged, data=spec, score=score),
        _held_out(architecture, dataset, evenly(parts.held_out, max(MAX_SCORED, config.num_evaluated))),
        _held_out(architecture, dataset, _examples(dataset, parts.held_out)),
        _trained_on(config, dataset, parts.train),
    )


def _held_out(architecture: Architecture, dataset: Dataset, rows: Tensor) -> HeldOut:
    batch = rows_of(dataset, rows)
    return HeldOut(batch["image"], architecture.given(batch))


def _trained_on(config: TrainConfig, dataset: Dataset, rows: Tensor) -> Tensor | None:
    """None where images come in groups: these are held out whole, and which group is near to what is generated is luck."""
    if dataset.groups is not None or not config.num_evaluated:
        return None
    return rows_of(dataset, evenly(rows, min(config.num_evaluated, MAX_COMPARED)))["image"]


def _examples(dataset: Dataset, rows: Tensor) -> Tensor:
    """Rows for a grid: evenly spaced, and class by class where there are classes."""
    if dataset.labels is not None:
        labels = torch.from_numpy(dataset.labels[rows.numpy()])
        rows = rows[labels.argsort(stable=True)]
    return evenly(rows, NUM_SAMPLES)


def _start_from(reference: str, players: dict[str, Player], places: Places) -> None:
    """Copy a published version's weights into fresh networks."""
    try:
        folder = versions.find(reference, places.repositories)
    except LookupError as error:
        raise UserError(str(error.args[0])) from error
    content = (folder / versions.MANIFEST).read_bytes()
    manifest, digest = Manifest.model_validate_json(content), digests.digest_of(content)
    if places.digests is not None and digest not in digests.known(places.digests):
        raise UserError(f"{reference} cannot be started from: {digests.unknown(digest, reference)}")
    for name in ("generator", "discriminator"):
        if name not in players:
            continue
        try:
            players[name].module.load_state_dict(published_weights(manifest, folder, name))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ExportError(f"{reference} does not fit this config: {reason}") from error
    _log.info("starting from %s", reference)
