"""What a request may bring and how long it may take, and what is told of it at its end."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from api_client import Api, Pixels, png, refusal, serving
from prometheus_client.parser import text_string_to_metric_families

from app import inference
from app.errors import Overloaded
from app.logs import JsonLines
from app.schemas.inference import GenerateRequest
from app.service import MAX_ADMINISTRATIVE
from app.settings import Settings
from app.visits import Visit, visiting
from training.contract import Manifest

pytest_plugins = ["api_fixtures"]

GENERATE = {"model": "tiny", "num_images": 4, "seed": 1}
PHASES = {"decode", "prepare", "queue", "run", "encode"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, make_version: Callable[..., Manifest]) -> Iterator[Api]:
    """Serves `tiny`; ten images may wait, and bodies of a megabyte."""
    folder = tmp_path_factory.mktemp("small")
    make_version(folder / "models", "tiny")
    settings = Settings(
        models=(folder / "models",), state=folder / "state", queue_images=10, queue_megabytes=1, access_log=True, run_jobs=False
    )
    with serving(settings) as api:
        yield api


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, make_version: Callable[..., Manifest]) -> Iterator[Api]:
    """Serves `tiny`, and gives nobody longer than half a second: what ought to be answered may well be refused here."""
    folder = tmp_path_factory.mktemp("hasty")
    make_version(folder / "models", "tiny")
    with serving(Settings(models=(folder / "models",), state=folder / "state", deadline_seconds=0.5, run_jobs=False)) as api:
        yield api


@contextmanager
def busy(api: Api) -> Iterator[None]:
    """The engine's thread has other work to the end of the block."""
    gate, has_begun = threading.Event(), threading.Event()

    def wait() -> None:
        has_begun.set()
        gate.wait(60)

    work = api.begin(api.service.batcher.run_on_thread, wait)
    has_begun.wait(60)
    try:
        yield
    finally:
        gate.set()
        work.result(60)


def blank(side: int, *channels: int) -> Pixels:
    return np.zeros((side, side, *channels), np.uint8)


def told(api: Api, name: str, **labels: str) -> float:
    """The sum of the samples of that name with these labels."""
    families = text_string_to_metric_families(api.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


# --- times --------------------------------------------------------------------------------------------------------------------


def phases(timing: str) -> list[str]:
    names = []
    for entry in timing.split(", "):
        name, _, duration = entry.partition(";dur=")
        assert float(duration) >= 0
        names.append(name)
    assert len(set(names)) == len(names)
    assert set(names) <= PHASES
    return names


def test_every_inference_route_tells_its_times(api: Api, kinds: Api) -> None:
    made = api.post("/generate", {"model": "digits", "num_images": 4})
    walked = api.post("/interpolate", {"model": "digits", "anchors": [{"seed": 1}, {"seed": 2}]})
    assert [phases(answer.headers["server-timing"]) for answer in (made, walked)] == [["prepare", "queue", "run", "encode"]] * 2
    scored = api.post("/discriminate", data={"model": "digits"}, files=[("files", ("one.png", png(blank(28))))])
    assert phases(scored.headers["server-timing"]) == ["decode", "prepare", "queue", "run"]
    transformed = kinds.post("/transform", data={"model": "enlarge"}, files=[("file", ("one.png", png(blank(8, 3))))])
    assert phases(transformed.headers["server-timing"]) == ["decode", "queue", "run", "encode"]
    for path in ("/models", "/architectures"):
        assert "server-timing" not in api.get(path).headers


# --- deadlines ----------------------------------------------------------------------------------------------------------------


def test_a_request_that_is_too_late_is_told_so(hasty: Api) -> None:
    with busy(hasty):
        problem = refusal(hasty.post("/generate", GENERATE), 504)
    assert problem["type"] == "/problems/deadline-exceeded"
    assert problem["detail"] == "the answer was not ready within 0.5 s; ask for less, or again when less is asked"


def test_what_is_too_late_never_runs(small: Api) -> None:
    ran, missed = told(small, "ganserve_batch_rows_sum"), told(small, "ganserve_refused_total", reason="deadline", model="tiny")
    with busy(small):
        refusal(small.post("/generate", GENERATE, headers={"Prefer": "wait=2"}), 504)
        assert small.service.batcher.queued_images == 0
    assert small.post("/generate", GENERATE | {"num_images": 1}).status_code == 200
    assert told(small, "ganserve_batch_rows_sum") == ran + 1
    assert told(small, "ganserve_refused_total", reason="deadline", model="tiny", version="1") == missed + 1


def test_a_client_may_ask_for_a_shorter_deadline_and_is_told_whether_it_holds(small: Api, api: Api) -> None:
    with busy(small):
        response = small.post("/generate", GENERATE, headers={"Prefer": "wait=0"})
    assert "allow more than the header Prefer: wait=0" in refusal(response, 504)["detail"]
    assert response.headers["preference-applied"] == "wait=0"
    assert api.post("/generate", {"model": "digits"}, headers={"Prefer": "wait=50"}).headers["preference-applied"] == "wait=50"
    for preference in ("wait=61", "respond-async"):
        assert "preference-applied" not in api.post("/generate", {"model": "digits"}, headers={"Prefer": preference}).headers


def test_a_body_that_comes_too_slowly_is_given_up(hasty: Api) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "tiny", '
        await asyncio.sleep(60)
        yield b'"num_images": 4}'

    for path in ("/generate", "/discriminate"):
        response = hasty.post(path, content=body(), headers={"Content-Type": "application/json"})
        assert "the body was not here within 0.5 s" in refusal(response, 408)["detail"]
    assert told(hasty, "ganserve_body_bytes") == 0


# --- room ---------------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_the_probes_and_figures_answer(small: Api) -> None:
    refused = told(small, "ganserve_refused_total", reason="images")
    with busy(small):
        waiting = [small.begin_to_send(small.build("POST", "/generate", json=GENERATE)) for _ in range(2)]
        while small.service.batcher.queued_images < 8:
            time.sleep(0.001)
        files = [("files", ("one.png", png(blank(8))))] * 3
        for response in (small.post("/generate", GENERATE), small.post("/discriminate", data={"model": "tiny"}, files=files)):
            assert "8 images wait" in refusal(response, 503)["detail"]
            assert int(response.headers["retry-after"]) >= 1
            assert "server-timing" not in response.headers, "refused before any work"
        assert small.get("/healthz").status_code == 200
        assert told(small, "ganserve_queue_images") == 8
    assert [response.result(60).status_code for response in waiting] == [200, 200]
    assert told(small, "ganserve_refused_total", reason="images") == refused + 2


def test_bodies_of_a_stated_length_are_let_in_while_there_is_room_for_them(small: Api) -> None:
    rest = asyncio.Event()
    whole = json.dumps(GENERATE).encode().ljust(900_000)

    async def body() -> AsyncIterator[bytes]:
        yield whole[:10]
        await rest.wait()
        yield whole[10:]

    async def come() -> None:
        rest.set()

    refused = told(small, "ganserve_refused_total", reason="bodies")
    stated = {"Content-Type": "application/json", "Content-Length": str(len(whole))}
    first = small.begin_to_send(small.build("POST", "/generate", content=body(), headers=stated))
    while told(small, "ganserve_body_bytes") == 0:
        time.sleep(0.001)
    large = small.build("POST", "/discriminate", content=b"x" * 400_000, headers={"Content-Type": "image/png"})
    response = small.send(large)
    assert refusal(response, 503)["detail"].startswith("900000 bytes of requests are being worked on and 400000 more")
    assert "retry-after" in response.headers
    small.begin(come).result(60)
    assert first.result(60).status_code == 200
    assert small.send(large).status_code == 415
    assert told(small, "ganserve_refused_total", reason="bodies") == refused + 1


def test_bodies_of_no_stated_length_are_let_in_as_they_come(small: Api) -> None:
    rest = asyncio.Event()
    whole = json.dumps(GENERATE).encode().ljust(600_000)

    async def body() -> AsyncIterator[bytes]:
        yield whole[:50_000]
        await rest.wait()
        yield whole[50_000:]

    async def come() -> None:
        rest.set()

    refused = told(small, "ganserve_refused_total", reason="bodies")
    unstated = [small.build("POST", "/generate", content=body(), headers={"Content-Type": "application/json"}) for _ in range(10)]
    waiting = [small.begin_to_send(request) for request in unstated]
    while told(small, "ganserve_body_bytes") < 500_000:
        time.sleep(0.001)
    assert small.post("/generate", GENERATE | {"num_images": 1}).status_code == 200
    small.begin(come).result(60)
    responses = [response.result(60) for response in waiting]
    full = [response for response in responses if response.status_code == 503]
    assert all("bytes of requests are being worked on and 550000 more" in refusal(response, 503)["detail"] for response in full)
    assert told(small, "ganserve_refused_total", reason="bodies") == refused + len(full) > refused
    assert told(small, "ganserve_body_bytes") == 0


def test_a_length_of_thousands_of_digits_is_a_length(small: Api) -> None:
    response = small.post("/generate", content=b"{}", headers={"Content-Type": "application/json", "Content-Length": "0" * 5000})
    assert response.status_code == 422


def test_a_series_that_was_let_in_is_not_refused_half_way(small: Api) -> None:
    async def best_beside_others() -> list[int]:
        service = small.service
        body = GenerateRequest(model="tiny", num_images=8, seed=1, best_of=64)
        with visiting(Visit()):
            best = asyncio.create_task(inference.generate(service, body))
        while service.batcher.queued_images == 0:
            await asyncio.sleep(0)
        refused = 0
        while not best.done():
            try:
                with visiting(Visit()):
                    await inference.generate(service, GenerateRequest(model="tiny", num_images=8))
            except Overloaded:
                refused += 1
            await asyncio.sleep(0)
        return [len((await best).images), refused]

    num_images, refused = small.begin(best_beside_others).result(60)
    assert num_images == 8
    assert refused


def test_lists_files_and_jobs_have_a_room_of_their_own(small: Api) -> None:
    room = small.service.administration
    room.enter(MAX_ADMINISTRATIVE)
    for path in ("/models", "/models/tiny/1/samples.png", "/jobs"):
        assert "64 administrative requests wait and 1 more" in refusal(small.get(path), 503)["detail"]
    assert small.get("/healthz").status_code == 200
    assert small.post("/generate", GENERATE).status_code == 200
    room.leave(MAX_ADMINISTRATIVE)
    assert small.get("/models").status_code == 200


# --- leaving ------------------------------------------------------------------------------------------------------------------


def test_of_500_clients_that_leave_while_they_wait_no_row_runs(api: Api) -> None:
    content = json.dumps({"model": "digits", "num_images": 8}).encode()
    messages: list[dict[str, Any]] = []
    all_wait = asyncio.Event()

    async def leave() -> None:
        coming = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if coming:
                return coming.pop()
            await all_wait.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/generate", "raw_path": b"/generate", "query_string": b"", "headers": headers}
        await api.app(scope | {"http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)  # type: ignore[arg-type]

    async def leave_together() -> None:
        leaving = [asyncio.create_task(leave()) for _ in range(500)]
        while api.service.batcher.queued_images < 4000:
            await asyncio.sleep(0.001)
        all_wait.set()
        await asyncio.gather(*leaving)

    ran, left = told(api, "ganserve_batch_rows_sum"), told(api, "ganserve_refused_total", reason="left")
    with busy(api):
        api.begin(leave_together).result(60)
        assert api.service.batcher.queued_images == 0
    assert {message["status"] for message in messages if message["type"] == "http.response.start"} == {499}
    assert api.post("/generate", {"model": "digits", "num_images": 1}).status_code == 200
    assert told(api, "ganserve_batch_rows_sum") == ran + 1
    assert told(api, "ganserve_refused_total", reason="left", model="digits") == left + 500


# --- the log and the figures --------------------------------------------------------------------------------------------------


def test_each_request_is_told_in_the_log_where_that_is_asked_for(small: Api, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="app.reception"):
        small.post("/generate", GENERATE)
        small.get("/models/tiny/1")
        small.get("/nowhere/%0a")
        api.get("/models")
    records = [record for record in caplog.records if record.name == "app.reception"]
    lines = [json.loads(JsonLines().format(record)) for record in records]
    assert [(line["method"], line["route"], line["status"], line["model"], line["version"]) for line in lines] == [
        ("POST", "/generate", 200, "tiny", 1),
        ("GET", "/models/{name}/{version}", 200, None, None),
        ("GET", "other", 404, None, None),
    ]
    assert all(line["milliseconds"] > 0 for line in lines)
    assert lines[0]["message"] == f"POST /generate 200 {lines[0]['milliseconds']} tiny 1"


def test_what_clients_make_up_is_no_label(small: Api) -> None:
    small.post("/generate", {"model": "made-up"})
    small.post("/generate", {"model": "tiny", "version": "made-up"})
    for path in ("/made-up", "/models/made-up", "/models/tiny/made-up", "/_swagger/made-up"):
        small.get(path)
    figures = small.get("/metrics")
    assert figures.headers["content-type"].startswith("text/plain")
    assert "made-up" not in figures.text
