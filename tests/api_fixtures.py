"""One application for all tests that change nothing: a demo model, and tiny ones of every kind."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from api_client import Api, serving
from servers import ROOT

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
