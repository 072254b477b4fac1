"""What the benches serve: this repository's digits (28 x 28, mlp), copies of them, and a 64 x 64 dcgan of which only the speed counts."""

import shutil
from pathlib import Path

import torch

from training import catalog, export
from training.contract import Manifest
from training.files import versions
from training.files.directories import staging
from training.game import DataSpec, Player, Terms

ROOT = Path(__file__).parent.parent.parent
DIGITS, FASHION = ROOT / "models" / "digits" / "1", ROOT / "models" / "fashion" / "1"
DCGAN = "dcgan-64"
SHAPE = (3, 64, 64)
SETTLING = 20  # batches


def repository(cache: Path) -> Path:
    """The two models that are compared, made where they are missing."""
    folder = cache / "models"
    copy(DIGITS, folder, "digits")
    if not versions.versions([folder], DCGAN):
        _publish_dcgan(folder)
    return folder


def folder_of(models: Path, name: str) -> Path:
    return versions.find(name, [models])


def copy(source: Path, repository: Path, name: str, version: int = 1) -> None:
    """The files of one version under another name and number, which only the manifest says; what is there already is left."""
    if version in versions.versions([repository], name):
        return
    repository.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.model_validate_json((source / versions.MANIFEST).read_bytes())
    with staging(repository) as staged:
        shutil.copytree(source, staged, dirs_exist_ok=True)
        _write(staged, manifest.model_copy(update={"name": name, "version": version}))
        versions.publish(staged, [repository], name, version)


def _publish_dcgan(repository: Path) -> None:
    player = _untrained()
    scripted = export.script("generator", player)
    manifest = Manifest.model_validate_json((FASHION / versions.MANIFEST).read_bytes())  # of the same architecture
    with staging(repository) as staged:
        generator = export.write_module(staged, "generator", player, scripted)
        shutil.copy(FASHION / manifest.samples.file, staged)
        update = {"name": DCGAN, "version": 1, "generator": generator, "discriminator": None, "score_reference": None}
        _write(staged, manifest.model_copy(update=update))
        versions.publish(staged, [repository], DCGAN, 1)


def _untrained() -> Player:
    """Its own defaults with random weights; the norms have seen some batches, so that the images are neither grey nor noise alone."""
    torch.manual_seed(0)
    architecture = catalog.architectures()["dcgan"]()
    data = DataSpec(SHAPE)
    player = architecture.players(architecture.games(data, Terms()), data=data, score="logit")["generator"]
    latent = player.inputs[0].shape
    with torch.no_grad():
        for _ in range(SETTLING):
            player.module.train()(torch.randn(32, *latent))
    return player


def _write(folder: Path, manifest: Manifest) -> None:
    (folder / versions.MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
