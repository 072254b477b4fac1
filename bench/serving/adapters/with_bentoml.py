"""BentoML: a service that batches, behind the one that takes bodies of several fields; where nothing is batched, one service."""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from work import Ask, Generator, Setup, render

setup = Setup.given()
Png = Annotated[bytes, ContentType("image/png")]
config = {"workers": 1, "traffic": {"timeout": 60}, "logging": {"access": {"enabled": False}}}


@bentoml.service(**config)
class Batches:
    def __init__(self) -> None:
        self.generator = Generator.load(setup.folder)

    @bentoml.api(batchable=True, max_batch_size=max(2, setup.max_batch), max_latency_ms=60_000)
    def render(self, asked: list[Ask]) -> list[bytes]:
        return render(self.generator, [Ask(*ask) for ask in asked])


@bentoml.service(**config)
class Batched:
    batches = bentoml.depends(Batches)

    @bentoml.api(route="/generate")
    async def generate(self, model: str, num_images: int, seed: int) -> Png:
        [png] = await self.batches.to_async.render([Ask(seed, num_images)])
        return png


@bentoml.service(**config)
class Single:
    def __init__(self) -> None:
        self.generator = Generator.load(setup.folder)

    @bentoml.api(route="/generate")
    def generate(self, model: str, num_images: int, seed: int) -> Png:
        return render(self.generator, [Ask(seed, num_images)])[0]


if __name__ == "__main__":
    service = f"with_bentoml:{'Single' if setup.max_batch == 1 else 'Batched'}"
    os.chdir(Path(__file__).parent)
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(setup.port)]
    os.execv(sys.executable, command)  # noqa: S606
