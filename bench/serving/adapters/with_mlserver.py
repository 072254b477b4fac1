"""MLServer: a runtime with adaptive batching in the server's own process. It speaks the Open Inference Protocol; PNG is BYTES there."""

import asyncio
import base64

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from running import free_port
from work import Ask, Generator, Setup, render

setup = Setup.given()


class Render(MLModel):
    async def load(self) -> bool:
        self.generator = Generator.load(setup.folder)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values = list(payload.inputs[0].data.root)  # (N, 2), row by row
        values = [number for row in values for number in row] if isinstance(values[0], list) else values
        asked = [Ask(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
        pngs = [base64.b64encode(png).decode() for png in render(self.generator, asked)]
        output = ResponseOutput(name="png", datatype="BYTES", shape=[len(pngs), 1], data=pngs, parameters=Parameters(content_type="base64"))
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])


settings = Settings(
    host="127.0.0.1",
    http_port=setup.port,
    grpc_port=free_port(),
    metrics_endpoint=None,
    parallel_workers=0,
    gzip_enabled=False,
    debug=False,
    logging_settings={"version": 1, "root": {"level": "WARNING"}},
)
model = ModelSettings(
    name="render", implementation=Render, max_batch_size=setup.max_batch if setup.max_batch > 1 else 0, max_batch_time=setup.wait_ms / 1000
)
asyncio.run(MLServer(settings).start([model]))
