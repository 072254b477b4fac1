"""What can be seen of a job over HTTP while it trains: figures, samples, an animation of them, its log."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from api_client import Api, pointers, refusal, serving
from PIL import Image

from app.settings import Settings
from app.watching import MAX_FRAMES
from training.contract import Metrics
from training.files import runs

TINY = {"architecture": "mlp", "options": {"generator_widths": [8], "discriminator_widths": [8]}, "num_evaluated": 0}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A server whose jobs wait for ever: the tests write what a worker would."""
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", run_jobs=False)) as client:
        yield client


@pytest.fixture
def job(api: Api) -> str:
    id: str = api.post("/train", TINY).json()["id"]
    return id


@pytest.fixture
def folder(job: str, tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs" / job


def draw(folder: Path, images: int, grey: int) -> bytes:
    Image.new("L", (12, 8), grey).save(runs.sample_path(folder, images))
    return runs.sample_path(folder, images).read_bytes()


def frames(content: bytes) -> list[int]:
    """The grey of each frame of an animation."""
    animation = Image.open(io.BytesIO(content))
    assert animation.format == "GIF"
    greys = []
    for index in range(getattr(animation, "n_frames", 1)):
        animation.seek(index)
        pixels = np.asarray(animation.convert("L"))
        assert pixels.shape == (8, 12)
        greys.append(int(pixels[0, 0]))
    return greys


def test_metrics_are_told_in_their_order_and_from_where_a_client_has_been(api: Api, job: str, folder: Path) -> None:
    assert api.get(f"/jobs/{job}/metrics").json() == {"metrics": [], "samples": []}
    for images in (64, 128, 192):
        runs.append_metrics(folder, Metrics(images=images, seconds=images / 100, losses={"generator_loss": images / 1000}))
    draw(folder, 128, 9)
    answer = api.get(f"/jobs/{job}/metrics").json()
    assert [line["images"] for line in answer["metrics"]] == [64, 128, 192]
    assert answer["metrics"][1]["losses"] == {"generator_loss": 0.128}
    assert answer["samples"] == [128]
    assert [line["images"] for line in api.get(f"/jobs/{job}/metrics?after=64").json()["metrics"]] == [128, 192]
    with (folder / runs.METRICS).open("a") as file:
        file.write('{"images": 256, "sec')  # a line that is being written
    assert len(api.get(f"/jobs/{job}/metrics").json()["metrics"]) == 3


def test_samples_are_the_worker_s_own_files(api: Api, job: str, folder: Path) -> None:
    assert "has no samples yet" in refusal(api.get(f"/jobs/{job}/samples.png"), 404)["detail"]
    first, second = draw(folder, 100, 10), draw(folder, 2000, 20)
    newest = api.get(f"/jobs/{job}/samples.png")
    assert (newest.content, newest.headers["content-type"]) == (second, "image/png")
    assert api.get(f"/jobs/{job}/samples/100.png").content == first
    problem = refusal(api.get(f"/jobs/{job}/samples/150.png"), 404)
    assert "has samples of 100 images, and none of 150" in problem["detail"]


@pytest.mark.parametrize("images", ["-1", "1.5", "many", "1" + "0" * 12])
def test_another_number_of_images_is_refused(api: Api, job: str, images: str) -> None:
    assert pointers(refusal(api.get(f"/jobs/{job}/samples/{images}.png"), 422)) == ["/images"]


def test_the_animation_shows_every_grid_in_its_order(api: Api, job: str, folder: Path) -> None:
    assert "has no samples yet" in refusal(api.get(f"/jobs/{job}/progress.gif"), 404)["detail"]
    for step in range(3):
        draw(folder, 1000 * step, 80 * step)
    answer = api.get(f"/jobs/{job}/progress.gif")
    assert answer.headers["content-type"] == "image/gif"
    assert frames(answer.content) == [0, 80, 160]


def test_of_many_grids_the_animation_has_a_hundred_and_both_ends(api: Api, job: str, folder: Path) -> None:
    for step in range(250):
        draw(folder, step, step)
    shown = frames(api.get(f"/jobs/{job}/progress.gif").content)
    assert (len(shown), shown[0], shown[-1]) == (MAX_FRAMES, 0, 249)
    assert shown == sorted(set(shown))


def test_what_is_damaged_or_gone_is_said_and_no_bug(api: Api, job: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(folder, 100, 10)
    runs.sample_path(folder, 200).write_bytes(b"no picture")
    runs.sample_path(folder, 300).write_bytes(draw(folder, 400, 40)[:-30])
    assert frames(api.get(f"/jobs/{job}/progress.gif").content) == [10, 40]
    assert caplog.text.count("cannot be read and are left out of the animation") == 2
    (folder / runs.METRICS).write_text("nonsense\n")
    (folder / runs.LOG).unlink()
    for what, file in (("metrics", runs.METRICS), ("log", runs.LOG)):
        assert f"is damaged, or was removed: its {file} cannot be read" in refusal(api.get(f"/jobs/{job}/{what}"), 404)["detail"]
    for images in (100, 400):
        runs.sample_path(folder, images).unlink()
    assert "has no samples yet" in refusal(api.get(f"/jobs/{job}/progress.gif"), 404)["detail"]


def test_the_summary_is_there_once_it_is_drawn(api: Api, job: str, folder: Path) -> None:
    assert "has no summary yet" in refusal(api.get(f"/jobs/{job}/summary.png"), 404)["detail"]
    Image.new("RGB", (4, 4)).save(folder / runs.SUMMARY)
    assert api.get(f"/jobs/{job}/summary.png").content == (folder / runs.SUMMARY).read_bytes()


def test_the_log_is_told_from_its_end_in_whole_lines(api: Api, job: str, folder: Path) -> None:
    assert api.get(f"/jobs/{job}/log").text == ""
    lines = [f"line {number}: größer\n" for number in range(100)]
    (folder / runs.LOG).write_text("".join(lines), encoding="utf-8")
    answer = api.get(f"/jobs/{job}/log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "".join(lines)
    last = "".join(lines[-2:])
    size = len(last.encode())
    assert api.get(f"/jobs/{job}/log?num_bytes={size}").text == last
    assert api.get(f"/jobs/{job}/log?num_bytes={size - 1}").text == lines[-1]
    assert pointers(refusal(api.get(f"/jobs/{job}/log?num_bytes=0"), 422)) == ["/num_bytes"]


@pytest.mark.parametrize("what", ["metrics", "samples.png", "samples/1.png", "progress.gif", "summary.png", "log"])
def test_of_an_unknown_job_there_is_nothing_to_see(api: Api, what: str) -> None:
    for id in ("20261122-104500-9f3c2a7b41d0", "other"):
        response = api.get(f"/jobs/{id}/{what}")
        assert response.status_code == 404, response.text
