"""The real server process, as a user meets it: train, see the model listed, sample, walk, score; kill, restart, go on."""

import http.client
import io
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from servers import ROOT, Server

from training.files import runs
from training.files.locks import is_held

TINY = {
    "name": "tiny",
    "architecture": "mlp",
    "options": {"generator_widths": [32], "discriminator_widths": [16]},
    "total_images": 6400,
    "num_evaluated": 0,
}
JOB_SECONDS = 120
Start = Callable[..., Server]


def picture(response: httpx.Response) -> np.ndarray[Any, Any]:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def cell(grid: np.ndarray[Any, Any], index: int, columns: int, size: int = 28, padding: int = 2) -> np.ndarray[Any, Any]:
    row, column = divmod(index, columns)
    top, left = row * (size + padding), column * (size + padding)
    return grid[top : top + size, left : left + size]


def wait_for_job(client: httpx.Client, location: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(location).json()
        if until(job):
            return job
        time.sleep(0.1)
    raise AssertionError(f"the job did not come that far: {job}")


def is_finished(job: dict[str, Any]) -> bool:
    return job["state"] in ("succeeded", "failed", "cancelled")


def test_train_then_generate_interpolate_and_discriminate_its_own_sample(start: Start, tmp_path: Path) -> None:
    server = start(models=[tmp_path / "models"])
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/models").json() == {"models": [], "broken": []}
        submitted = client.post("/train", json=TINY)
        assert submitted.status_code == 202, submitted.text
        assert submitted.headers["location"] == f"/jobs/{submitted.json()['id']}"
        job = wait_for_job(client, submitted.headers["location"], is_finished)
        assert (job["state"], job["model"], job["version"]) == ("succeeded", "tiny", 1), job["message"]
        assert job["progress"]["percent"] == 100
        listed = client.get("/models").json()["models"]
        assert [(model["name"], model["version"]) for model in listed] == [("tiny", 1)]
        grid = client.post("/generate", json={"model": "tiny", "num_images": 4, "seed": 5})
        assert picture(grid).shape == (58, 58)
        strip = client.post("/interpolate", json={"model": "tiny", "anchors": [{"seed": 5}, {"seed": 6}], "steps": 2})
        assert picture(strip).shape == (28, 4 * 30 - 2)
        sample = client.post("/generate", json={"model": "tiny", "num_images": 1, "seed": 5})
        scores = client.post("/discriminate", data={"model": "tiny"}, files=[("files", ("own.png", sample.content))]).json()["scores"]
        assert scores[0]["file"] == "own.png"
        assert 0 <= scores[0]["percentile_generated"] <= 100
        assert client.get("/models/tiny/1").json()["manifest"]["config"]["options"]["latent_size"] == 128
        files = {path.name for path in next((tmp_path / "state" / "jobs").glob("2*")).iterdir()}
        assert {"config.json", "status.json", "metrics.jsonl", "samples", "checkpoints", "log.txt", "lock"} <= files


def test_image_i_of_a_grid_has_the_same_pixels_alone_in_any_grid_and_after_a_restart(start: Start, tmp_path: Path) -> None:
    seeds, alone = range(100, 170), {}
    server = start()
    for model in ("digits", "fashion"):
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for seed in seeds:
                alone[model, seed] = picture(client.post("/generate", json={"model": model, "num_images": 1, "seed": seed}))
            for num_images in (2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 64, 65, 70):
                body = {"model": model, "num_images": num_images, "seed": seeds[0], "columns": 8}
                grid = picture(client.post("/generate", json=body))
                for index in range(num_images):
                    assert np.array_equal(cell(grid, index, min(8, num_images)), alone[model, seeds[index]]), (model, num_images, index)
    assert server.stop() == 0
    again = start(tmp_path / "state")
    with httpx.Client(base_url=again.url, timeout=60) as client:
        for model in ("digits", "fashion"):
            grid = picture(client.post("/generate", json={"model": model, "num_images": 70, "seed": seeds[0], "columns": 10}))
            for index, seed in enumerate(seeds):
                assert np.array_equal(cell(grid, index, 10), alone[model, seed]), (model, seed)


def test_samples_png_shows_what_seeds_0_to_63_give(client: httpx.Client) -> None:
    # sample grids are drawn when a version is published, by the trainer: the same rule of seeds on the other side of the house
    samples = picture(client.get("/models/digits/1/samples.png"))[..., 0].astype(int)
    grid = picture(client.post("/generate", json={"model": "digits", "num_images": 64, "seed": 0, "columns": 8})).astype(int)
    for index in range(64):
        row, column = divmod(index, 8)
        published = samples[2 + row * 30 : 30 + row * 30, 2 + column * 30 : 30 + column * 30]
        assert np.abs(published - cell(grid, index, 8)).max() <= 1, index  # another batch size, another rounding


def test_a_killed_server_goes_on_with_its_job_and_a_queued_one(start: Start, tmp_path: Path) -> None:
    server = start(models=[tmp_path / "models"])
    long = TINY | {"name": "long", "total_images": 120_000, "checkpoint_images": 6400}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        first = client.post("/train", json=long).headers["location"]
        second = client.post("/train", json=TINY).headers["location"]
        assert client.get(second).json()["position"] == 1
        wait_for_job(client, first, lambda job: job["progress"]["images"] > 4_000)
    server.stop(signal.SIGKILL)
    again = start(tmp_path / "state", [tmp_path / "models"])
    with httpx.Client(base_url=again.url, timeout=60) as client:
        done = [wait_for_job(client, location, is_finished) for location in (first, second)]
        assert [(job["state"], job["model"], job["version"]) for job in done] == [("succeeded", "long", 1), ("succeeded", "tiny", 1)]
        assert {model["name"] for model in client.get("/models").json()["models"]} == {"long", "tiny"}


def test_a_stopped_server_asks_its_worker_for_a_checkpoint_and_goes_on_from_there(start: Start, tmp_path: Path) -> None:
    server = start(models=[tmp_path / "models"])
    long = TINY | {"total_images": 120_000, "checkpoint_images": 10**6}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        location = client.post("/train", json=long).headers["location"]
        seen = wait_for_job(client, location, lambda job: job["progress"]["images"] > 4_000)["progress"]["images"]
    assert server.stop() == 0
    checkpoints = [int(path.name) for path in (tmp_path / "state" / "jobs").glob("2*/checkpoints/0*")]
    assert len(checkpoints) == 1
    assert checkpoints[0] >= seen
    again = start(tmp_path / "state", [tmp_path / "models"])
    with httpx.Client(base_url=again.url, timeout=60) as client:
        assert wait_for_job(client, location, is_finished)["state"] == "succeeded"
    log = next((tmp_path / "state" / "jobs").glob("2*/log.txt")).read_text()
    assert f"going on from the checkpoint at {checkpoints[0]:,} images" in log


def test_a_worker_that_outlived_its_server_is_adopted_and_stopped_with_the_next_one(start: Start, tmp_path: Path) -> None:
    server = start(models=[tmp_path / "models"])
    with httpx.Client(base_url=server.url, timeout=60) as client:
        location = client.post("/train", json=TINY | {"total_images": 10**9}).headers["location"]
        wait_for_job(client, location, lambda job: job["progress"]["images"] > 0)
    server.stop(signal.SIGKILL)
    folder = tmp_path / "state" / location.removeprefix("/")
    assert is_held(folder)
    again = start(tmp_path / "state", [tmp_path / "models"])
    with httpx.Client(base_url=again.url, timeout=60) as client:
        seen = client.get(location).json()
        assert (seen["state"], seen["attempts"]) == ("running", 1)
    assert again.stop() == 0
    assert not is_held(folder)
    assert runs.read_status(folder).state == "queued"
    assert runs.checkpoint_images(folder) >= seen["progress"]["images"]


def test_generate_is_answered_while_a_job_trains_and_a_running_job_can_be_cancelled(start: Start, tmp_path: Path) -> None:
    server = start()
    kept, idle_since = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60), time.monotonic()
    kept.request("GET", "/healthz")
    kept.getresponse().read()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        location = client.post("/train", json=TINY | {"total_images": 10**9}).headers["location"]
        wait_for_job(client, location, lambda job: job["progress"]["images"] > 0)
        for seed in range(20):
            assert client.post("/generate", json={"model": "digits", "seed": seed}).status_code == 200
        assert client.get(location).json()["state"] == "running"
        assert client.post(f"{location}/cancel").status_code == 202
        job = wait_for_job(client, location, is_finished)
        assert job["state"] == "cancelled"
        assert "checkpoint is kept" in job["message"]
        again = client.post(f"{location}/cancel")
        assert again.status_code == 409
        assert "is cancelled; a job can be cancelled while" in again.json()["detail"]
    time.sleep(max(0.0, 6 - (time.monotonic() - idle_since)))
    connection = kept.sock
    kept.request("GET", "/healthz")
    assert kept.getresponse().status == 200
    assert kept.sock is connection, "a connection outlives the seconds in which uvicorn would close it"
    kept.close()


def test_a_version_published_by_the_command_line_is_served_without_a_restart(start: Start, tmp_path: Path) -> None:
    server = start(models=[tmp_path / "models"])
    command = [str(Path(sys.executable).parent / "ganserve"), "train", "--name", "tiny", "--architecture", "mlp"]
    command += ["--total-images", "640", "--num-evaluated", "8"]
    command += ["--options.generator-widths", "[32]", "--models", str(tmp_path / "models"), "--state", str(tmp_path / "state")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "published as tiny version 1\n"
    with httpx.Client(base_url=server.url, timeout=60) as client:
        deadline = time.monotonic() + 30
        while (response := client.post("/generate", json={"model": "tiny"})).status_code == 404 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert response.status_code == 200


def test_a_second_server_on_the_same_state_is_refused_with_a_sentence(start: Start, shared_server: Server) -> None:
    with pytest.raises(AssertionError, match=r"another server works on .*state: end it, or choose another --state"):
        start(shared_server.state)


def test_a_key_opens_another_address_and_then_only_the_probes_are_free(start: Start) -> None:
    with pytest.raises(AssertionError, match="GANSERVE_API_KEY"):
        start(None, None, "--host", "0.0.0.0")
    key = "a-long-enough-key-of-one-test"
    server = start(None, None, "--host", "0.0.0.0", "--log-format", "json", "--access-log", environment={"GANSERVE_API_KEY": key})
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    known = {"Authorization": f"Bearer {key}"}
    paths = [path for path in httpx.get(f"{url}/openapi.json", headers=known).json()["paths"] if "{" not in path]
    for path in [*paths, "/docs", "/openapi.json", "/_swagger/swagger-ui.css", "/"]:
        response = httpx.get(f"{url}{path}")
        is_open = path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
        assert (response.status_code != 401) is is_open, path
    assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(f"{url}/models", headers=known).status_code == 200
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    told = [(line["method"], line["route"], line["status"]) for line in lines if line["logger"] == "app.reception"]
    assert told[-2:] == [("GET", "other", 401), ("GET", "/models", 200)]
    assert key not in server.log.read_text()


def test_a_model_is_served_by_a_process_that_cannot_import_the_trainer(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, sys
        from pathlib import Path

        ALLOWED = ("training.contract", "training.commands", "training.probe", "training.catalog", "training.files")

        class Closed:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("training.") and not name.startswith(ALLOWED):
                    raise ModuleNotFoundError(f"{{name}} is not here", name=name)

        sys.meta_path.insert(0, Closed())
        import httpx
        from app.main import create_app
        from app.settings import Settings

        async def main():
            app = create_app(Settings(models=(Path({str(ROOT / "models")!r}),), state=Path({str(tmp_path)!r})))
            transport = httpx.ASGITransport(app)
            async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                for model in ("digits", "fashion"):
                    made = await client.post("/generate", json={{"model": model, "num_images": 3, "seed": 1}})
                    assert made.status_code == 200, made.text
                    files = [("files", ("own.png", made.content))]
                    scored = await client.post("/discriminate", data={{"model": model}}, files=files)
                    assert scored.status_code == 200, scored.text
                for path in ("/train", "/datasets/few/augment", "/architectures", "/datasets"):
                    body = {{}} if path == "/train" else {{"model": "digits"}}
                    refused = await (client.post(path, json=body) if path.endswith(("train", "augment")) else client.get(path))
                    assert refused.status_code == 501, refused.text
                    print(refused.json()["detail"])

        asyncio.run(main())
        assert not any(name.startswith("training.") and not name.startswith(ALLOWED) for name in sys.modules)
        """
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("this process serves only") == 4
