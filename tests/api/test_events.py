"""GET /jobs/{id}/events: numbered events without a gap, from where a client has been, to the end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_client import Api, refusal, serving

from app.settings import Settings
from training.contract import Metrics
from training.files import events, runs

TINY = {
    "architecture": "mlp",
    "name": "tiny",
    "options": {"generator_widths": [8], "discriminator_widths": [8]},
    "num_evaluated": 0,
    "total_images": 128,
}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A server whose jobs wait for ever: the tests write what a worker would."""
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", run_jobs=False)) as client:
        yield client


@pytest.fixture
def ended(api: Api, tmp_path: Path) -> str:
    """A job that has measured, drawn, and been cancelled."""
    id: str = api.post("/train", TINY).json()["id"]
    folder = tmp_path / "state" / "jobs" / id
    runs.append_metrics(folder, Metrics(images=64, seconds=1.0, losses={"generator_loss": 0.5}))
    events.append(folder, "sample", events.ImagesData(images=64))
    assert api.post(f"/jobs/{id}/cancel").json()["state"] == "cancelled"
    return id


def told(response: httpx.Response) -> list[tuple[str | None, str, dict[str, Any]]]:
    """Id, kind and data of every event."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def test_a_job_that_is_over_tells_all_that_happened_and_ends(api: Api, ended: str) -> None:
    found = told(api.get(f"/jobs/{ended}/events"))
    assert [(id, kind) for id, kind, _ in found] == [("1", "state"), ("2", "metrics"), ("3", "sample"), ("4", "state"), (None, "end")]
    queued, metrics, sample, cancelled, _ = [data for _, _, data in found]
    assert (queued["state"], queued["total_images"]) == ("queued", 128)
    assert metrics["losses"] == {"generator_loss": 0.5}
    assert sample["images"] == 64
    assert (cancelled["state"], cancelled["message"]) == ("cancelled", "cancelled before it started")


@pytest.mark.parametrize("seen", range(5))
def test_a_client_goes_on_behind_the_last_event_that_it_has_seen(api: Api, ended: str, seen: int) -> None:
    everything = told(api.get(f"/jobs/{ended}/events"))
    assert told(api.get(f"/jobs/{ended}/events", headers={"Last-Event-ID": str(seen)})) == everything[seen:]
    assert told(api.get(f"/jobs/{ended}/events?after={seen}")) == everything[seen:]


def test_events_that_there_are_not_and_jobs_that_there_are_not_are_refused(api: Api, ended: str) -> None:
    problem = refusal(api.get(f"/jobs/{ended}/events", headers={"Last-Event-ID": "5"}), 422)
    assert "has had 4 events, and none of number 5" in problem["detail"]
    refusal(api.get(f"/jobs/{ended}/events", headers={"Last-Event-ID": "-1"}), 422)
    refusal(api.get("/jobs/20261122-104500-9f3c2a7b41d0/events"), 404)


def test_more_than_so_many_watchers_are_sent_away(api: Api, ended: str) -> None:
    with api.service.watchers.holding(api.service.watchers.capacity):
        problem = refusal(api.get(f"/jobs/{ended}/events"), 503)
    assert "clients watch jobs" in problem["detail"]
    assert told(api.get(f"/jobs/{ended}/events"))


def test_a_server_that_ends_tells_its_watchers(api: Api) -> None:
    id = api.post("/train", TINY).json()["id"]
    answer = api.begin_to_send(api.build("GET", f"/jobs/{id}/events"))
    api.call(api.service.stop)
    assert [kind for _, kind, _ in told(answer.result(30))] in (["shutdown"], ["state", "shutdown"])


def test_a_real_job_is_watched_from_its_queue_to_its_model(tmp_path: Path) -> None:
    """In between it is told how far it is; when it is said to have succeeded, its model answers."""
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state")) as api:
        id = api.post("/train", TINY | {"total_images": 640, "batch_size": 8}).json()["id"]
        found = told(api.get(f"/jobs/{id}/events"))
        assert api.post("/generate", {"model": "tiny", "num_images": 1}).status_code == 200
    numbered = [(int(id), kind, data) for id, kind, data in found if id is not None]
    assert [number for number, _, _ in numbered] == list(range(1, len(numbered) + 1))
    states = [data["state"] for _, kind, data in numbered if kind == "state"]
    assert (states[0], states[-1]) == ("queued", "succeeded")
    assert "running" in states
    assert (numbered[-1][2]["model"], numbered[-1][2]["version"]) == ("tiny", 1)
    assert {kind for _, kind, _ in numbered} == {"state", "metrics", "sample"}
    measured = runs.read_metrics(tmp_path / "state" / "jobs" / id)
    assert [data["images"] for _, kind, data in numbered if kind == "metrics"] == [line.images for line in measured]
    assert found[-1][1] == "end"
