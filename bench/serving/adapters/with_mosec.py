"""mosec: one worker with dynamic batching."""

import json
import sys

from mosec import Server, Worker
from work import Ask, Generator, Setup, render

setup = Setup.given()
sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(setup.port), "--timeout", "60000", "--log-level", "warning"]


class Render(Worker):
    resp_mime_type = "image/png"

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator.load(setup.folder)

    def deserialize(self, data: bytes) -> Ask:
        given = json.loads(data)
        return Ask(given["seed"], given["num_images"])

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[Ask] | Ask) -> list[bytes] | bytes:
        return render(self.generator, [data])[0] if setup.max_batch == 1 else render(self.generator, data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Render, max_batch_size=setup.max_batch, max_wait_time=max(1, round(setup.wait_ms)), route="/generate")
    server.run()
