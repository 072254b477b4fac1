"""POST /train and /jobs over HTTP, without workers: what is accepted, refused, listed and cancelled."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_client import Api, pointers, refusal, serving

from app.settings import Settings
from training.contract import JobStatus, TrainConfig
from training.files import runs

TINY = {
    "name": "tiny",
    "architecture": "mlp",
    "options": {"generator_widths": [32], "discriminator_widths": [16]},
    "total_images": 6400,
    "num_evaluated": 0,
}
JSON_TYPE = {"content-type": "application/json"}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def api(tmp_path: Path, state: Path) -> Iterator[Api]:
    """A server without models whose jobs wait for ever."""
    with serving(Settings(models=(tmp_path / "models",), state=state, run_jobs=False)) as client:
        yield client


@pytest.fixture(scope="module")
def refusing_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusing")


@pytest.fixture(scope="module")
def refusing(refusing_state: Path) -> Iterator[Api]:
    """A server for configs that are refused, all of which leave it as it was."""
    with serving(Settings(models=(refusing_state / "models",), state=refusing_state, run_jobs=False)) as client:
        yield client


def submitted(api: Api, **changes: object) -> dict[str, Any]:
    response = api.post("/train", TINY | changes)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


# --- accepted -----------------------------------------------------------------------------------------------------------------


def test_an_accepted_config_is_a_queued_job_with_every_default_resolved(api: Api, state: Path) -> None:
    response = api.post("/train", TINY)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert re.fullmatch(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{12}", job["id"])
    assert (job["state"], job["position"], job["attempts"], job["message"]) == ("queued", 1, 0, "")
    assert (job["model"], job["version"], job["started_at"], job["finished_at"]) == (None, None, None, None)
    assert job["progress"] == {
        "images": 0,
        "total_images": 6400,
        "percent": 0.0,
        "images_per_second": None,
        "seconds_left": None,
        "losses": {},
        "evaluation": {},
    }
    config = job["config"]
    assert (config["loss"], config["dataset"], config["batch_size"]) == ("non-saturating", "fashion-mnist-10k", 64)
    assert (config["options"]["latent_size"], config["options"]["generator_widths"]) == (128, [32])
    assert config["loss_options"] == {"label_smoothing": 0.0}
    assert config["generator"] == {"learning_rate": 2e-4, "betas": [0.5, 0.999]}
    assert api.get(response.headers["location"]).json() == job
    assert runs.read_config(state / "jobs" / job["id"]) == TrainConfig.model_validate(config)


def test_a_request_that_is_sent_again_with_its_key_makes_no_second_job(api: Api, state: Path, tmp_path: Path) -> None:
    key = {"Idempotency-Key": "my training of Sunday"}
    begun = [api.begin_to_send(api.build("POST", "/train", json=TINY, headers=key)) for _ in range(5)]
    ids = {answer.result().json()["id"] for answer in begun}
    assert len(ids) == 1
    assert [job["id"] for job in api.get("/jobs").json()["jobs"]] == [*ids]
    problem = refusal(api.post("/train", TINY | {"seed": 5}, headers=key), 422)
    assert f"was sent with another config, for job {min(ids)}; a new request wants a new key" in problem["detail"]
    others = {api.post("/train", TINY, headers=headers).json()["id"] for headers in ({"Idempotency-Key": "another"}, {}, {})}
    assert len(others | ids) == 4
    with serving(Settings(models=(tmp_path / "models",), state=state, run_jobs=False)) as next_server:
        (state / "jobs" / min(others) / runs.REQUEST).write_bytes(b"{")
        again = next_server.post("/train", TINY, headers=key)
        assert (again.status_code, again.json()["id"]) == (202, min(ids))
    assert refusal(api.post("/train", TINY, headers={"Idempotency-Key": "x" * 256}), 422)


def test_nothing_but_defaults_is_a_config(api: Api) -> None:
    response = api.post("/train", {})
    assert response.status_code == 202, response.text
    assert response.json()["config"]["name"] == "dcgan-fashion-mnist-10k"


def test_an_accepted_job_is_known_to_the_next_server(api: Api, state: Path, tmp_path: Path) -> None:
    job = submitted(api)
    with serving(Settings(models=(tmp_path / "models",), state=state, run_jobs=False)) as again:
        assert again.get(f"/jobs/{job['id']}").json()["config"] == job["config"]


# --- refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"architecture": "dcgna"}, "/architecture", "known: "),
        ({"architecture": "../mlp"}, "/architecture", "known: "),
        ({"architecture": "training.architectures.mlp"}, "/architecture", "known: "),
        ({"architecture": None}, "/architecture", "valid string"),
        ({"options": {"latnt_size": 3}}, "/options/latnt_size", "latent_size"),
        ({"options": {"latent_size": 0}}, "/options/latent_size", "greater than"),
        ({"options": {"latent_size": "3"}}, "/options/latent_size", "valid integer"),
        ({"options": {"latent_size": True}}, "/options/latent_size", "valid integer"),
        ({"options": {"generator_widths": [8, "x"]}}, "/options/generator_widths/1", "valid integer"),
        ({"options": {"dropout": 1.5}}, "/options/dropout", "less than"),
        ({"options": []}, "/options", "valid dictionary"),
        ({"loss": "hinge-of-sorts"}, "/loss", "known: "),
        ({"publish": {"alias": "a", "condition": {}}}, "/publish/condition", "allowed: alias, if"),
        ({"publish": {"alias": "a", "if": {"metric": "psnr", "better_than": "a"}}}, "/publish/if/metric", "it will have: "),
        ({"loss_options": {"label_smoothing": 0.9}}, "/loss_options/label_smoothing", "less than"),
        ({"loss_options": {"label_smoothing": -0.1}}, "/loss_options/label_smoothing", "greater than"),
        ({"loss_options": {"smoothing": 0.1}}, "/loss_options/smoothing", "label_smoothing"),
        ({"dataset": "imagenet"}, "/dataset", "fashion-mnist-10k"),
        ({"dataset": "/etc/passwd"}, "/dataset", "small letters, digits"),
        ({"dataset": "../fashion-mnist-10k"}, "/dataset", "small letters, digits"),
        ({"dataset": ".."}, "/dataset", "small letters, digits"),
        ({"dataset": "https://example.org/set.zip"}, "/dataset", "small letters, digits"),
        ({"dataset": "http"}, "/dataset", "http"),
        ({"total_images": 63}, "", "total_images 63 is less than one batch of 64"),
        ({"batch_size": 65536, "total_images": 10**6}, "/dataset", "with batches of 65536 at least 66536 images are needed"),
        ({"batch_size": 1}, "/batch_size", "greater than or equal to 2"),
        ({"batch_size": 64.0}, "/batch_size", "valid integer"),
        ({"batch_size": True}, "/batch_size", "valid integer"),
        ({"total_images": 10**13}, "/total_images", "less than or equal"),
        ({"total_images": "6400"}, "/total_images", "valid integer"),
        ({"total_image": 6400}, "/total_image", "did you mean 'total_images'?"),
        ({"name": "../tiny"}, "/name", "small letters, digits"),
        ({"name": "Tiny"}, "/name", "small letters, digits"),
        ({"name": ""}, "/name", "small letters, digits"),
        ({"name": "x" * 64}, "/name", "1 to 63"),
        ({"learning_rate": 0}, "/learning_rate", "greater than 0"),
        ({"learning_rate": 1.1}, "/learning_rate", "less than or equal to 1"),
        ({"betas": [0.5]}, "/betas/1", "required"),
        ({"betas": [0.5, 1.0]}, "/betas/1", "less than 1"),
        ({"generator": {"learning_rate": 2}}, "/generator/learning_rate", "less than or equal to 1"),
        ({"generator": {"learning_rat": 0.1}}, "/generator/learning_rat", "did you mean 'learning_rate'?"),
        ({"hold_out": 0.6}, "/hold_out", "less than or equal to 0.5"),
        ({"seed": -1}, "/seed", "greater than or equal to 0"),
        ({"seed": 2**32}, "/seed", "less than or equal to 4294967295"),
        ({"critic_steps": 0}, "/critic_steps", "greater than or equal to 1"),
        ({"initial_model": "digits"}, "/initial_model", "there are: none yet"),
        ({"initial_model": "../../digits"}, "/initial_model", "there are: none yet"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_run_is_pointed_at_and_leaves_no_job(
    refusing: Api, refusing_state: Path, changes: dict[str, object], pointer: str, message: str
) -> None:
    problem = refusal(refusing.post("/train", TINY | changes), 422)
    assert pointers(problem) == [pointer]
    assert message in problem["errors"][0]["message"]
    assert message in problem["detail"]
    assert not list(refusing_state.glob("jobs/*"))


def test_every_wrong_field_is_told_at_once(refusing: Api) -> None:
    body = TINY | {"batch_size": 0, "seed": -1, "x": 1}
    assert set(pointers(refusal(refusing.post("/train", body), 422))) == {"/batch_size", "/seed", "/x"}
    both = TINY | {"options": {"x": 1, "dropout": 7}, "loss_options": {"y": 2}}
    assert set(pointers(refusal(refusing.post("/train", both), 422))) == {"/options/x", "/options/dropout", "/loss_options/y"}


@pytest.mark.parametrize(
    "content",
    [
        b'{"learning_rate": NaN}',
        b'{"ema_halflife_images": Infinity}',
        b'{"learning_rate": 1e400}',
        b'{"options": {"dropout": NaN}}',
        b"[]",
        b"{",
    ],
)
def test_a_body_that_is_no_config_is_refused(refusing: Api, refusing_state: Path, content: bytes) -> None:
    refusal(refusing.post("/train", content=content, headers=JSON_TYPE), 422)
    assert not list(refusing_state.glob("jobs/*"))


# --- jobs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "id",
    [
        "20261122-104500-9f3c2a7b41d0",
        "x",
        "..",
        "%2e%2e",
        "..%2f..%2fmodels",
        "%2fetc%2fpasswd",
        "a%20b",
        "%00",
        "lock",
        ".staging",
        "*",
        "%F0%9F%98%80",
        "a" * 300,
        "a" * 10_000,
        "-",
    ],
)
def test_an_unknown_job_is_a_404(api: Api, id: str) -> None:
    submitted(api)
    for request in (api.build("GET", f"/jobs/{id}"), api.build("POST", f"/jobs/{id}/cancel")):
        if request.url.raw_path.startswith(b"/jobs/"):
            problem = refusal(api.send(request), 404)
            assert problem["type"] in ("/problems/unknown-job", "/problems/not-found")
    assert "GET /jobs lists them" in refusal(api.get("/jobs/x"), 404)["detail"]


def test_a_job_of_a_higher_priority_goes_first(api: Api) -> None:
    first, second = submitted(api)["id"], submitted(api)["id"]
    urgent = api.post("/train?priority=5", TINY).json()
    assert (urgent["priority"], urgent["position"]) == (5, 1)
    assert [api.get(f"/jobs/{id}").json()["position"] for id in (urgent["id"], first, second)] == [1, 2, 3]
    assert api.post("/train?priority=-1", TINY).json()["position"] == 4
    for wrong in ("101", "-101", "1.5", "high"):
        assert pointers(refusal(api.post(f"/train?priority={wrong}", TINY), 422)) == ["/priority"]


def test_jobs_are_listed_by_what_they_are(api: Api) -> None:
    waiting, ended = submitted(api, name="one")["id"], submitted(api, name="two")["id"]
    api.post(f"/jobs/{ended}/cancel")

    def listed(query: str) -> set[str]:
        return {job["id"] for job in api.get(f"/jobs?{query}").json()["jobs"]}

    assert listed("state=queued") == {waiting}
    assert listed("state=cancelled&state=queued") == {waiting, ended}
    assert listed("model=two") == {ended}
    assert listed("architecture=mlp&dataset=fashion-mnist-10k&model=one&state=queued") == {waiting}
    assert listed("architecture=dcgan") == set()
    refusal(api.get("/jobs?state=lost"), 422)


def test_jobs_are_listed_newest_first_and_by_pages(api: Api) -> None:
    assert api.get("/jobs").json() == {"jobs": [], "next": None}
    ids = sorted((submitted(api, seed=seed)["id"] for seed in range(5)), reverse=True)
    assert [job["id"] for job in api.get("/jobs").json()["jobs"]] == ids
    pages, after = [], ""
    while True:
        page = api.get(f"/jobs?limit=2{after}").json()
        pages.append([job["id"] for job in page["jobs"]])
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    assert api.get("/jobs?limit=5").json()["next"] is None
    assert api.get(f"/jobs?after={ids[-1]}").json() == {"jobs": [], "next": None}


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "many", ""])
def test_another_limit_is_refused(refusing: Api, limit: str) -> None:
    assert pointers(refusal(refusing.get(f"/jobs?limit={limit}"), 422)) == ["/limit"]


def test_a_queued_job_is_cancelled_at_once_and_the_others_move_up(api: Api, state: Path) -> None:
    first, second, third = (submitted(api) for _ in range(3))
    assert [job["position"] for job in (first, second, third)] == [1, 2, 3]
    response = api.post(f"/jobs/{second['id']}/cancel")
    assert response.status_code == 202
    job = response.json()
    assert (job["state"], job["position"], job["message"]) == ("cancelled", None, "cancelled before it started")
    assert job["finished_at"] is not None
    assert runs.read_status(state / "jobs" / job["id"]).state == "cancelled"
    assert api.get(f"/jobs/{first['id']}").json()["position"] == 1
    assert api.get(f"/jobs/{third['id']}").json()["position"] == 2


def test_a_finished_job_cannot_be_cancelled(api: Api) -> None:
    job = submitted(api)
    api.post(f"/jobs/{job['id']}/cancel")
    problem = refusal(api.post(f"/jobs/{job['id']}/cancel"), 409)
    assert f"job {job['id']} is cancelled; a job can be cancelled while it is queued or running or paused" in problem["detail"]


def test_a_queued_job_is_paused_resumed_and_removed_over_http(api: Api, state: Path) -> None:
    first, second = (submitted(api)["id"] for _ in range(2))
    paused = api.post(f"/jobs/{first}/pause")
    assert (paused.status_code, paused.json()["state"], paused.json()["message"]) == (202, "paused", "paused before it started")
    assert api.get(f"/jobs/{second}").json()["position"] == 1
    resumed = api.post(f"/jobs/{first}/resume")
    assert (resumed.status_code, resumed.json()["state"], resumed.json()["position"]) == (202, "queued", 2)
    refusal(api.post(f"/jobs/{first}/retry"), 409)
    refusal(api.send(api.build("DELETE", f"/jobs/{first}")), 409)
    api.post(f"/jobs/{first}/cancel")
    assert api.post(f"/jobs/{first}/retry").json()["state"] == "queued"
    api.post(f"/jobs/{first}/cancel")
    removed = api.send(api.build("DELETE", f"/jobs/{first}"))
    assert (removed.status_code, removed.content) == (204, b"")
    refusal(api.get(f"/jobs/{first}"), 404)
    assert [job["id"] for job in api.get("/jobs").json()["jobs"]] == [second]
    assert not (state / "jobs" / first).exists()


def test_a_damaged_job_hides_no_other(api: Api, state: Path) -> None:
    whole, config_gone, status_gone = (submitted(api)["id"] for _ in range(3))
    (state / "jobs" / config_gone / runs.CONFIG).write_bytes(b"{")
    (state / "jobs" / status_gone / runs.STATUS).write_bytes(b"{")
    listed = {job["id"]: job for job in api.get("/jobs").json()["jobs"]}
    assert listed.keys() == {whole, config_gone}
    assert listed[config_gone]["config"] is None
    assert listed[config_gone]["state"] == "queued"
    assert "is damaged: its status.json cannot be read" in refusal(api.get(f"/jobs/{status_gone}"), 404)["detail"]
    assert len(api.get("/jobs?limit=1").json()["jobs"]) <= 1


def test_the_status_that_a_worker_writes_is_what_is_told(api: Api, state: Path) -> None:
    job = submitted(api)
    folder = state / "jobs" / job["id"]
    status = runs.read_status(folder)
    progress = status.progress.model_copy(
        update={"images": 3200, "images_per_second": 640.0, "seconds_left": 5.0, "losses": {"generator_loss": 0.7}}
    )
    changes: dict[str, object] = {"state": "running", "progress": progress, "attempts": 2, "started_at": "2026-11-22T10:45:00Z"}
    runs.write_status(folder, JobStatus.model_validate(status.model_copy(update=changes).model_dump()))
    told = api.get(f"/jobs/{job['id']}").json()
    assert (told["state"], told["attempts"], told["started_at"]) == ("running", 2, "2026-11-22T10:45:00Z")
    assert told["progress"] == {
        "images": 3200,
        "total_images": 6400,
        "percent": 50.0,
        "images_per_second": 640.0,
        "seconds_left": 5.0,
        "losses": {"generator_loss": 0.7},
        "evaluation": {},
    }


# --- what can be trained ------------------------------------------------------------------------------------------------------


def test_architectures_tell_their_options_as_json_schema(refusing: Api) -> None:
    answer = refusing.get("/architectures").json()
    by_name = {entry["name"]: entry for entry in answer["architectures"]}
    assert {"mlp", "dcgan"} <= by_name.keys()
    losses, penalties = ({entry["name"] for entry in answer[kind]} for kind in ("losses", "penalties"))
    assert {"r1", "gradient-penalty"} <= penalties
    for penalty in answer["penalties"]:
        assert penalty["summary"]
        assert penalty["source"]
        assert all("default" in option for option in penalty["options"].get("properties", {}).values())
    for entry in by_name.values():
        assert entry["summary"]
        assert entry["source"]
        assert entry["inputs"]
        assert entry["losses"]
        assert set(entry["losses"]) == losses - entry["refused"].keys()
        assert set(entry["penalties"]) == penalties - entry["refused"].keys()
        TrainConfig.model_validate(entry["recipe"])
        assert all("default" in option for option in entry["options"]["properties"].values())
    assert by_name["mlp"]["options"]["properties"]["latent_size"]["default"] == 128
    assert "fashion-mnist-10k" in {card["name"] for card in answer["datasets"]}


def test_every_architecture_loss_and_data_set_that_is_told_can_be_asked_for(api: Api) -> None:
    answer = api.get("/architectures").json()
    for architecture in answer["architectures"]:
        for loss in architecture["losses"]:
            options = {name: option["default"] for name, option in architecture["options"]["properties"].items()}
            body = {"architecture": architecture["name"], "options": options, "loss": loss, "dataset": answer["datasets"][0]["name"]}
            response = api.post("/train", body)
            if response.status_code != 202:  # some want classes, pairs or another size, and say so
                assert pointers(refusal(response, 422)) == ["/dataset"]
