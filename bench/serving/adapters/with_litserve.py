"""LitServe: a batching LitAPI with one worker."""

import litserve
from fastapi import Response
from work import Ask, Generator, Setup, render

setup = Setup.given()


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.generator = Generator.load(setup.folder)

    def decode_request(self, request: dict[str, str | int]) -> Ask:
        return Ask(request["seed"], request["num_images"])

    def batch(self, inputs: list[Ask]) -> list[Ask]:
        return inputs

    def predict(self, asked: list[Ask] | Ask) -> list[bytes] | bytes:
        if setup.max_batch == 1:
            return render(self.generator, [asked])[0]
        return render(self.generator, asked)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = Api(max_batch_size=setup.max_batch, batch_timeout=setup.wait_ms / 1000, api_path="/generate")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=setup.port, generate_client_file=False, log_level="warning", access_log=False)
