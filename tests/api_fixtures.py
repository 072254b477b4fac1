"""One application for all tests that change nothing: a demo model, and tiny ones of every kind."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from api_client import Api, serving
from servers import ROOT
from tiny_versions import beside, enlarging, label_judging, labelled, normalising, pair_judging, publish, single, stages

from app.settings import Settings
from training.contract import Manifest


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory, make_version: Callable[..., Manifest]) -> Iterator[Api]:
    """Serves digits (1 x 28 x 28, latent of 128), colour (3 x 16 x 16), labelled (classes cat, dog, fox), critic (no probabilities) and
    blind (no discriminator); the tiny ones are 1 x 8 x 8 with a latent of 8. Starts no jobs."""
    folder = tmp_path_factory.mktemp("api")
    models = folder / "models"
    shutil.copytree(ROOT / "models" / "digits", models / "digits")
    make_version(models, "colour", channels=3, size=16, network="conv")
    make_version(models, "labelled", classes=("cat", "dog", "fox"))
    make_version(models, "critic", critic=True)
    make_version(models, "blind", with_discriminator=False)
    with serving(Settings(models=(models,), state=folder / "state", run_jobs=False)) as client:
        yield client


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Serves tiny models of what the demo models are not: `enlarge` (colour, any size, twice as large, in tiles), `whole` (grey, even
    sides, never tiled), `fixed` (grey, 8 x 8), `pairs` (fixed, and its discriminator judges pairs), `classes` (labels, for both
    networks), `staged` (a part that runs and one that does not), `beside` (a latent and a picture). Starts no jobs."""
    folder = tmp_path_factory.mktemp("kinds")
    models = folder / "models"
    publish(models, "enlarge", enlarging())
    publish(models, "whole", normalising(), discriminator=pair_judging())
    publish(models, "fixed", normalising(size=8))
    publish(models, "pairs", normalising(size=8), discriminator=pair_judging(size=8))
    publish(models, "classes", labelled(), discriminator=label_judging())
    publish(models, "staged", single(), parts={"stages": stages(), "level-0": enlarging(1)})
    publish(models, "beside", beside())
    with serving(Settings(models=(models,), state=folder / "state", run_jobs=False)) as client:
        yield client
