"""`ganserve serve` with a part exchanged, for what the benches compare it with: variants.py [pillow] [probe] -- serve FLAGS.

pillow  PNG by Pillow, as the peers' adapters do it
probe   two more routes: POST /null reads the body of /generate and answers 20 kB that were there before, which is what a request costs by
        itself; GET /rows says how many rows the engines have been asked for
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from unittest.mock import patch

import work
from fastapi import FastAPI, Response
from torch import Tensor

from app import encoders, server
from app.engine import Engine, num_rows
from app.main import create_app
from app.schemas.inference import GenerateRequest
from app.settings import Settings
from ganserve.cli import main

NULL = bytes(range(256)) * 80


class Probe:
    """An app and engines that share a count."""

    def __init__(self) -> None:
        self.rows = 0

    def create_app(self, settings: Settings) -> FastAPI:
        app = create_app(settings)

        @app.post("/null")
        async def null(body: GenerateRequest) -> Response:
            return Response(NULL, media_type="image/png", headers={"X-Model": body.model})

        @app.get("/rows")
        async def rows() -> int:
            return self.rows

        return app

    def counting(self) -> Callable[[Engine, str, Mapping[str, Tensor]], Tensor]:
        """`Engine.run`, and the rows are counted."""
        original = Engine.run

        def run(engine: Engine, module: str, inputs: Mapping[str, Tensor]) -> Tensor:
            self.rows += num_rows(inputs)
            return original(engine, module, inputs)

        return run


if __name__ == "__main__":
    split = sys.argv.index("--")
    chosen, sys.argv[1:] = sys.argv[1:split], sys.argv[split + 1 :]
    with ExitStack() as exchanged:
        if "pillow" in chosen:
            exchanged.enter_context(patch.object(encoders, "png", work.png))
        if "probe" in chosen:
            probe = Probe()
            exchanged.enter_context(patch.object(server, "create_app", probe.create_app))
            exchanged.enter_context(patch.object(Engine, "run", probe.counting()))
        sys.exit(main())
