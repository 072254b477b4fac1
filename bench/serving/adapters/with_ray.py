"""Ray Serve: one replica that batches."""

import signal
import sys

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from work import Ask, Generator, Setup, render

setup = Setup.given()


@serve.deployment(max_ongoing_requests=256)
class Render:
    def __init__(self) -> None:
        self.generator = Generator.load(setup.folder)

    @serve.batch(max_batch_size=setup.max_batch, batch_wait_timeout_s=setup.wait_ms / 1000)
    async def render(self, asked: list[Ask]) -> list[bytes]:
        return render(self.generator, asked)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.render(Ask.parse(await request.body())), media_type="image/png")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())  # so that ray ends what it has started
    ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": setup.port})
    serve.run(Render.bind(), route_prefix="/generate")
    signal.pause()
