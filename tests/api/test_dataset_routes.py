"""Data sets over HTTP: sent as archives, made by real workers, looked at and removed; and what is left when something goes wrong."""

import asyncio
import io
import os
import resource
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_client import Api, picture, png, pointers, refusal, serving
from starlette.requests import ClientDisconnect

from app.datasets import MAX_UPLOADS, DatasetService
from app.errors import ClientLeft, Conflict, InsufficientStorage, Overloaded
from app.imports import SECONDS_TO_STAY
from app.index import Index
from app.jobs import JobService
from app.schemas.datasets import Dataset
from app.settings import Settings
from app.workers import WorkerSettings
from training import datasets
from training.datasets import About, Batch
from training.files import imports, locks
from training.files.imports import DatasetOptions, ImportStatus

SECONDS = 60
ZIP = {"content-type": "application/zip"}
TINY = {"architecture": "mlp", "options": {"generator_widths": [8], "discriminator_widths": [8]}, "num_evaluated": 0, "dataset": "used"}


def archive(*names: str, noise: int = 0) -> bytes:
    """Of pictures, each of its own grey, and of texts; and so many bytes that cannot be packed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for index, name in enumerate(names):
            made.writestr(name, b"no picture" if name.endswith(".txt") else png(np.full((8, 8), index, np.uint8)))
        if noise:
            made.writestr("noise.bin", np.random.default_rng(0).bytes(noise))
    return file.getvalue()


PETS = archive("pets/cat/1.png", "pets/dog/1.png", "pets/dog/2.png", "pets/notes.txt")


def send(api: Api, content: bytes | AsyncIterator[bytes] = PETS, headers: dict[str, str] | None = None, **query: object) -> httpx.Response:
    words = "&".join(f"{key}={value}" for key, value in query.items())
    return api.post(f"/datasets?{words}", content=content, headers=ZIP | (headers or {}))


def wait_for(wanted: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not wanted():
        assert time.monotonic() < until
        time.sleep(0.02)


def finished(api: Api, name: str) -> dict[str, Any]:
    wait_for(lambda: api.get(f"/datasets/{name}").json()["state"] != "importing")
    found: dict[str, Any] = api.get(f"/datasets/{name}").json()
    return found


def kept(state: Path) -> list[str]:
    """All that lies in the folder of imports."""
    folder = state / "imports"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != ".staging")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("making")


@pytest.fixture(scope="module")
def api(state: Path) -> Iterator[Api]:
    """A server whose imports are made."""
    with serving(Settings(models=(state / "models",), state=state)) as client:
        yield client


@pytest.fixture(scope="module")
def waiting_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("waiting")


@pytest.fixture(scope="module")
def waiting(waiting_state: Path) -> Iterator[Api]:
    """A server whose imports and jobs wait for ever."""
    with serving(Settings(models=(waiting_state / "models",), state=waiting_state, run_jobs=False, deadline_seconds=0.5)) as client:
        yield client


# --- made ---------------------------------------------------------------------------------------------------------------------


async def in_pieces(content: bytes, size: int = 50) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def test_an_archive_that_is_sent_becomes_a_set_that_is_looked_at_and_removed(api: Api, state: Path) -> None:
    answer = send(api, in_pieces(PETS), name="pets", size=8, licence="CC0")
    assert (answer.status_code, answer.headers["location"]) == (202, "/datasets/pets")
    assert (answer.json()["state"], answer.json()["card"], answer.json()["built_in"]) == ("importing", None, False)
    found = finished(api, "pets")
    card = found["card"]
    assert (found["state"], found["progress"], found["used_by"]) == ("ready", None, [])
    assert (card["class_names"], card["class_counts"], card["num_duplicates"]) == (["cat", "dog"], [1, 2], 0)
    assert (card["licence"], card["shape"], card["original_sizes"]["median"]) == ("CC0", [1, 8, 8], [8, 8])
    assert card["skipped"][0].startswith("notes.txt: this is no picture")
    wait_for(lambda: "pets/pets.zip" not in kept(state))  # its worker has said so, and now takes it away
    listed = {each["name"]: each for each in api.get("/datasets").json()["datasets"]}
    assert listed["pets"] == found
    assert listed["fashion-mnist-10k"]["built_in"]
    sheet = picture(api.get("/datasets/pets/sheet.png?num_images=4"))
    assert sheet.shape == (18, 18)
    assert sheet[::10, ::10].tolist() == [[0, 255], [1, 2]], "each class begins a row"
    assert picture(api.get("/datasets/pets/sheet.png?label=dog"))[0, ::10].tolist()[:3] == [1, 2, 255]
    problem = refusal(api.get("/datasets/pets/sheet.png?label=cow"), 422)
    assert problem["detail"] == "data set pets has no class 'cow'; its classes: cat, dog"
    assert pointers(problem) == ["/label"]
    assert api.send(api.build("DELETE", "/datasets/pets")).status_code == 204
    assert refusal(api.get("/datasets/pets"), 404)["type"] == "/problems/unknown-dataset"
    assert not (state / "datasets" / "pets").exists()
    assert kept(state) == []


def test_a_class_whose_pictures_are_all_damaged_has_no_sheet_of_its_own(api: Api) -> None:
    file = io.BytesIO(archive("a/1.png", "b/1.png"))
    with zipfile.ZipFile(file, "a") as more:
        more.writestr("c/1.png", png(np.zeros((8, 8), np.uint8))[:45])  # its head alone
    assert send(api, file.getvalue(), name="letters", size=8).status_code == 202
    card = finished(api, "letters")["card"]
    assert (card["class_names"], card["class_counts"]) == (["a", "b", "c"], [1, 1, 0])
    problem = refusal(api.get("/datasets/letters/sheet.png?label=c"), 422)
    assert problem["detail"] == "data set letters has no image of its class 'c'; choose another class"
    assert pointers(problem) == ["/label"]
    assert api.get("/datasets/letters/sheet.png").status_code == 200, "of the whole set, it is a row without images"
    assert api.send(api.build("DELETE", "/datasets/letters")).status_code == 204


def test_what_is_hostile_fails_with_its_reason_and_is_removed(api: Api, state: Path) -> None:
    assert send(api, archive("../../evil.png"), name="evil").status_code == 202
    found = finished(api, "evil")
    assert (found["state"], found["card"]) == ("failed", None)
    assert found["message"].startswith("evil.zip is refused, because its entry '../../evil.png' has a path that leads out")
    left = ["evil", "evil/lock", "evil/log.txt", "evil/request.json", "evil/status.json"]
    wait_for(lambda: kept(state) == left)
    assert "could not be made before (evil.zip is refused" in refusal(send(api, name="evil"), 409)["detail"]
    assert "is failed; it has a sheet once it is ready" in refusal(api.get("/datasets/evil/sheet.png"), 409)["detail"]
    assert [each["state"] for each in api.get("/datasets").json()["datasets"] if each["name"] == "evil"] == ["failed"]
    assert api.send(api.build("DELETE", "/datasets/evil")).status_code == 204
    assert kept(state) == []


def test_the_same_request_with_the_same_key_makes_one_set(api: Api) -> None:
    key = {"idempotency-key": "once"}
    assert send(api, headers=key, name="once", size=8).status_code == 202
    assert finished(api, "once")["state"] == "ready"
    again = send(api, headers=key, name="once", size=8)
    assert (again.status_code, again.json()["state"], again.headers["location"]) == (202, "ready", "/datasets/once")
    for content, query in ((PETS, {"name": "once", "size": 16}), (PETS, {"name": "two"}), (archive("1.png"), {"name": "once", "size": 8})):
        problem = refusal(send(api, content, headers=key, **query), 422)
        assert "the Idempotency-Key 'once' was sent with another archive or other options, for data set once" in problem["detail"]
    assert "is registered already and sets never change" in refusal(send(api, name="once", size=8), 409)["detail"]


# --- refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({}, "/name"),
        ({"name": "Pets"}, "/name"),
        ({"name": "..%2Fevil"}, "/name"),
        ({"name": "p", "size": 3}, "/size"),
        ({"name": "p", "size": 1025}, "/size"),
        ({"name": "p", "channels": 2}, "/channels"),
        ({"name": "p", "kind": "video"}, "/kind"),
        ({"name": "p", "swap": "true"}, "/swap"),
        ({"name": "p", "kind": "tiles", "swap": "true"}, "/swap"),
        ({"name": "p", "licence": ""}, "/licence"),
        ({"name": "p", "labels": "x"}, "/labels"),
    ],
)
def test_options_that_are_wrong_or_have_no_effect_are_refused(waiting: Api, query: dict[str, object], pointer: str) -> None:
    assert pointers(refusal(send(waiting, **query), 422)) == [pointer]


@pytest.mark.parametrize("content", [b"", b"PK", b"\x1f\x8b\x08 a tarball", b"<html>"])
def test_a_body_that_is_no_archive_is_refused_before_it_is_kept(waiting: Api, waiting_state: Path, content: bytes) -> None:
    problem = refusal(send(waiting, content, name="p"), 422)
    assert problem["type"] == "/problems/archive-invalid"
    assert "send one, as `zip -r pets.zip pets` makes it" in problem["detail"]
    assert kept(waiting_state) == []


def test_a_form_is_refused_with_what_to_do(waiting: Api) -> None:
    problem = refusal(waiting.post("/datasets?name=p", files=[("file", ("pets.zip", PETS))]), 415)
    assert "curl -X POST -T pets.zip -H 'Content-Type: application/zip'" in problem["detail"]


def test_an_archive_that_says_that_it_is_too_large_is_refused_unread(waiting: Api, waiting_state: Path) -> None:
    problem = refusal(send(waiting, in_pieces(PETS), headers={"content-length": str(2**31 + 1)}, name="p"), 413)
    assert "2147483648 are allowed on /datasets" in problem["detail"]
    assert kept(waiting_state) == []


def test_a_stream_may_take_its_time_but_not_stand_still(waiting: Api, waiting_state: Path) -> None:
    content = archive("1.png", noise=2**19)

    async def slow() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 2**16):
            yield content[start : start + 2**16]
            await asyncio.sleep(0.1)

    async def stands() -> AsyncIterator[bytes]:
        yield content[:4]
        await asyncio.sleep(SECONDS)

    assert send(waiting, slow(), name="slow").status_code == 202, "longer than the deadline, and faster than it must be"
    assert waiting.send(waiting.build("DELETE", "/datasets/slow")).status_code == 204
    problem = refusal(send(waiting, stands(), name="p"), 408)
    assert problem["detail"].startswith("the body was not here within 0.5 s and at 16,384 bytes/s; send less")
    assert kept(waiting_state) == []


@contextmanager
def short_files(num_bytes: int) -> Iterator[None]:
    """No file of this process may be longer, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_archive_that_the_disk_has_no_room_for_is_refused_and_leaves_nothing(waiting: Api, waiting_state: Path) -> None:
    content = archive("1.png", noise=2**21)
    with short_files(2**20):
        problem = refusal(send(waiting, content, name="large"), 507)
    assert problem["type"] == "/problems/insufficient-storage"
    assert problem["detail"].startswith("the archive cannot be kept: File too large; remove data sets or jobs")
    assert kept(waiting_state) == []
    assert send(waiting, content, name="large").status_code == 202, "there is room again"
    assert waiting.send(waiting.build("DELETE", "/datasets/large")).status_code == 204


# --- names, jobs, damage ------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused(waiting: Api) -> None:
    assert send(waiting, name="taken").status_code == 202
    assert refusal(send(waiting, name="taken"), 409)["detail"] == "data set 'taken' is being made; choose another name"
    assert "is built in already" in refusal(send(waiting, name="fashion-mnist-10k"), 409)["detail"]
    assert waiting.send(waiting.build("DELETE", "/datasets/taken")).status_code == 204


@pytest.mark.parametrize("name", ["nowhere", "...", "%2e%2e%2e", "Pets", "a" * 300])
def test_unknown_names_list_the_known_ones(waiting: Api, name: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/sheet.png")):
        problem = refusal(waiting.send(waiting.build(method, f"/datasets/{name}{path}")), 404)
        assert problem["type"] == "/problems/unknown-dataset"
        assert "known: fashion-mnist-10k" in problem["detail"]


def test_a_built_in_set_is_not_removed(waiting: Api) -> None:
    problem = refusal(waiting.send(waiting.build("DELETE", "/datasets/fashion-mnist-10k")), 409)
    assert problem["detail"] == "data set 'fashion-mnist-10k' is built in and cannot be removed"


def test_a_set_stays_while_a_job_may_go_on_with_it_and_the_job_is_bound_to_its_content(waiting: Api, waiting_state: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (160, 1, 8, 8), dtype=np.uint8)
    card = datasets.write("used", waiting_state / "datasets", About((1, 8, 8), "a test", "CC0"), [Batch(images)])
    wrong = refusal(waiting.post("/train", TINY | {"dataset_sha256": "0" * 64}), 422)
    assert pointers(wrong) == ["/dataset_sha256"]
    job = waiting.post("/train", TINY).json()
    assert job["config"]["dataset_sha256"] == card.content_sha256
    assert waiting.get("/datasets/used").json()["used_by"] == [job["id"]]
    detail = refusal(waiting.send(waiting.build("DELETE", "/datasets/used")), 409)["detail"]
    assert detail == f"data set 'used' is used by {job['id']}: cancel those jobs first, or wait for their end"
    waiting.post(f"/jobs/{job['id']}/cancel")
    assert waiting.get("/datasets/used").json()["used_by"] == []
    assert waiting.send(waiting.build("DELETE", "/datasets/used")).status_code == 204


def test_a_damaged_set_is_named_and_can_be_removed(waiting: Api, waiting_state: Path) -> None:
    datasets.write("worn", waiting_state / "datasets", About((1, 8, 8), "a test", "CC0"), [Batch(np.zeros((1, 1, 8, 8), np.uint8))])
    (waiting_state / "datasets" / "worn" / "images.npy").unlink()
    (broken,) = waiting.get("/datasets").json()["broken"]
    assert broken["name"] == "worn"
    assert broken["reason"].startswith("data set 'worn' is damaged: images.npy is missing")
    assert "is damaged" in refusal(waiting.get("/datasets/worn"), 404)["detail"]
    assert waiting.send(waiting.build("DELETE", "/datasets/worn")).status_code == 204
    assert waiting.get("/datasets").json()["broken"] == []


# --- servers that come and go -------------------------------------------------------------------------------------------------


class Life:
    """A state folder, and services of it that come and go as servers do."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        self.imports = folder / "imports"

    def live(self, scenario: Callable[[DatasetService], Awaitable[None]], *, working: bool = True, is_shared: bool = False) -> None:
        async def life() -> None:
            jobs = self.state / "jobs"
            worker = WorkerSettings(self.state / "datasets", self.state / "weights", (self.state / "models",), self.state / "digests")
            job_service = JobService(jobs, Index(f"sqlite:///{self.state / 'index.sqlite'}", "here"), worker, _nothing_is_published)
            service = DatasetService(self.state / "datasets", self.imports, job_service, is_shared=is_shared)
            if working:
                await service.start()
            try:
                await scenario(service)
            finally:
                await service.close()
                await job_service.close()

        asyncio.run(asyncio.wait_for(life(), SECONDS))


async def _nothing_is_published(name: str) -> None:
    raise AssertionError(f"{name} was published")


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


OPTIONS = DatasetOptions(name="pets", size=8)


async def sent(service: DatasetService) -> None:
    assert (await service.submit(OPTIONS, None, in_pieces(PETS), len(PETS))).state == "importing"


async def until(service: DatasetService, wanted: Callable[[Dataset], bool]) -> Dataset:
    while not wanted(found := await service.get("pets")):
        await asyncio.sleep(0.02)
    return found


async def made(service: DatasetService) -> None:
    assert (await until(service, lambda found: found.state != "importing")).state == "ready"


def test_an_archive_that_a_server_acknowledged_is_made_by_the_next(life: Life) -> None:
    life.live(sent, working=False)  # and it dies before it can begin
    (life.imports / ".staging" / "half-sent").mkdir()
    life.live(made)
    assert list(life.imports.glob(".staging/*")) == []


def test_a_full_disk_is_said_to_be_full_whatever_is_written(life: Life) -> None:
    async def full(service: DatasetService) -> None:
        for content in (PETS, archive()):  # the second is shorter than what is written beside it
            with short_files(100), pytest.raises(InsufficientStorage, match="the archive cannot be kept: File too large; remove"):
                await service.submit(OPTIONS, None, in_pieces(content), len(content))
            assert kept(life.state) == []

    life.live(full, working=False)


def test_an_import_that_the_disk_fails_is_tried_again(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(service: DatasetService) -> None:
        with short_files(10):
            held.close()  # now its server would begin it anew
            while "the import pets is tried again in 0.05 s" not in caplog.text:
                await asyncio.sleep(0.02)
        await made(service)
        assert imports.read_status(life.imports / "pets").attempts == 1

    monkeypatch.setattr("app.imports.PAUSE_SECONDS", 0.05)
    life.live(sent, working=False)
    with ExitStack() as held:
        held.enter_context(locks.hold(life.imports / "pets"))
        life.live(full)


def test_a_server_that_starts_leaves_alone_what_others_are_receiving(life: Life) -> None:
    for name in ("coming", "long-dead"):
        (life.imports / ".staging" / name).mkdir(parents=True)
        (life.imports / ".staging" / name / "pets.zip").write_bytes(PETS)
    before = time.time() - SECONDS_TO_STAY - 1
    for path in (life.imports / ".staging" / "long-dead" / "pets.zip", *life.imports.glob(".staging/*")):
        os.utime(path, (before, before))
    life.live(nothing, is_shared=True)
    assert [path.name for path in life.imports.glob(".staging/*")] == ["coming"]


async def nothing(service: DatasetService) -> None:
    """It starts and stops."""


def test_of_two_servers_that_receive_one_name_the_second_is_told(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def another_is_faster(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", flush)
        (life.imports / "pets").mkdir()
        imports.write_status(life.imports / "pets", ImportStatus())
        flush(descriptor)

    async def second(service: DatasetService) -> None:
        monkeypatch.setattr(os, "fsync", another_is_faster)
        with pytest.raises(Conflict, match="data set 'pets' is being made; choose another name"):
            await sent(service)

    life.live(second, working=False, is_shared=True)
    assert kept(life.state) == ["pets", "pets/status.json"]


def test_an_orderly_end_counts_as_no_death_of_the_worker(life: Life) -> None:
    async def begun(service: DatasetService) -> None:
        await sent(service)
        while not (life.imports / "pets" / "log.txt").exists():
            await asyncio.sleep(0.01)

    life.live(begun)
    assert imports.read_status(life.imports / "pets").attempts == 0
    life.live(made)


def test_an_import_whose_worker_dies_three_times_is_given_up(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dying(service: DatasetService) -> None:
        await sent(service)
        found = await until(service, lambda found: found.state == "failed")
        assert found.message == "its worker died 3 times; log.txt may say why; remove the data set and send it again"

    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    life.live(dying)
    assert not imports.archive(life.imports / "pets").exists()
    assert (life.imports / "pets" / "log.txt").read_text().count("encodings") >= 3, "three workers left their last words"


def test_a_worker_that_outlived_its_server_is_watched_and_not_followed(life: Life) -> None:
    life.live(sent, working=False)
    folder = life.imports / "pets"

    async def adopting(service: DatasetService) -> None:
        await asyncio.sleep(0.1)
        imports.write_status(folder, ImportStatus(num_files=9, num_done=4, attempts=1))
        found = await service.get("pets")
        assert found.progress is not None
        assert (found.state, found.progress.num_files, found.progress.num_done) == ("importing", 9, 4)

    with locks.hold(folder):
        life.live(adopting)
    assert imports.read_status(folder).attempts == 1
    life.live(made)


def test_an_import_is_ended_by_removing_it_and_others_go_on(life: Life) -> None:
    async def scenario(service: DatasetService) -> None:
        for name in ("first", "pets", "last"):
            await service.submit(OPTIONS.model_copy(update={"name": name}), None, in_pieces(PETS), None)
        await service.remove("first")
        await service.remove("last")
        await made(service)
        assert [found.name for found in (await service.listing()).datasets] == ["fashion-mnist-10k", "pets"]

    life.live(scenario)


def test_of_several_archives_by_one_name_one_is_kept(life: Life) -> None:
    async def scenario(service: DatasetService) -> None:
        asked = [service.submit(OPTIONS, key, in_pieces(PETS), None) for key in ("one", "one", "two", "three")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        kinds = [type(answer).__name__ for answer in answers]
        assert kinds in (
            ["Dataset", "Dataset", "Conflict", "Conflict"],
            ["Conflict"] * 2 + ["Dataset", "Conflict"],
            ["Conflict"] * 3 + ["Dataset"],
        )

    life.live(scenario, working=False)
    assert [path.name for path in imports.paths(life.imports)] == ["pets"]
    assert list((life.imports / ".staging").iterdir()) == []


def test_a_client_that_leaves_leaves_nothing(life: Life) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield PETS[:100]
        raise ClientDisconnect

    async def scenario(service: DatasetService) -> None:
        with pytest.raises(ClientLeft):
            await service.submit(OPTIONS, None, cut(), len(PETS))

    life.live(scenario, working=False)
    assert [path for path in life.imports.rglob("*") if path.name != ".staging"] == []


def test_only_so_many_are_sent_at_a_time(life: Life) -> None:
    gate = asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        yield PETS[:4]
        await gate.wait()
        yield PETS[4:]

    async def scenario(service: DatasetService) -> None:
        tasks = [
            asyncio.create_task(service.submit(OPTIONS.model_copy(update={"name": f"p{number}"}), None, held(), None))
            for number in range(MAX_UPLOADS)
        ]
        await asyncio.sleep(0.3)
        with pytest.raises(Overloaded, match="8 archives are being sent and 1 more would pass the limit of 8"):
            await service.submit(OPTIONS, None, in_pieces(PETS), None)
        gate.set()
        assert len(await asyncio.gather(*tasks)) == MAX_UPLOADS

    life.live(scenario, working=False)
