"""The Python client against a real server, and against a peer that does what no good server does."""

import asyncio
import inspect
import io
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from servers import ROOT, Server
from tiny_versions import CLASSES, enlarging, label_judging, labelled, normalising, pair_judging, publish, single

from app.client import AsyncClient, Client, ImportFailed, JobFailed, NoAnswer, Refused, bar
from app.client.archives import PIECE_BYTES, zipped
from app.client.events import State
from app.schemas.training import Job
from training import datasets
from training.contract import TrainConfig
from training.datasets import About, Batch

TINY = {
    "name": "tiny",
    "architecture": "mlp",
    "options": {"generator_widths": [32], "discriminator_widths": [16]},
    "total_images": 640,
    "num_evaluated": 0,
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a data set `few` and models: of its classes, one that enlarges, one that judges pairs, and a `digits` of sorts."""
    folder = tmp_path_factory.mktemp("client")
    publish(folder / "models", "digits", single())
    publish(folder / "models", "classes", labelled(), discriminator=label_judging())
    publish(folder / "models", "enlarge", enlarging())
    publish(folder / "models", "pairs", normalising(size=8), discriminator=pair_judging(size=8))
    images, labels = np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 0, 1])
    about = About((1, 8, 8), "made for tests", "CC0-1.0", CLASSES)
    datasets.write("few", folder / "state" / "datasets", about, [Batch(images, labels)])
    server = Server(folder / "state", [folder / "models"])
    yield server.url
    server.stop()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


# --- the package --------------------------------------------------------------------------------------------------------------


def test_it_is_imported_without_torch_and_without_fastapi() -> None:
    code = "import sys, app.client; print([name for name in ('torch', 'fastapi', 'starlette', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_both_clients_have_the_same_methods() -> None:
    ours, theirs = ({name: each for name, each in vars(kind).items() if not name.startswith("_")} for kind in (Client, AsyncClient))
    assert ours.keys() - {"close"} == theirs.keys() - {"aclose"}
    for name in ours.keys() - {"close", "take", "events"}:
        assert inspect.signature(ours[name]) == inspect.signature(theirs[name]), name
        assert inspect.iscoroutinefunction(theirs[name])
        assert inspect.getdoc(ours[name]), name
        assert f"`{name}`" in (ROOT / "docs" / "client.md").read_text(), name


# --- images -------------------------------------------------------------------------------------------------------------------


def test_generated_images_are_those_of_the_route_with_their_seeds(client: Client, address: str) -> None:
    images = client.generate("classes", num_images=5, seed=7, labels=["fox"])
    assert (len(images), images.model, images.version, images.seeds) == (5, "classes", 1, (7, 8, 9, 10, 11))
    body = {"model": "classes", "num_images": 5, "seed": 7, "labels": ["fox"]}
    grid = httpx.post(f"{address}/generate", json=body, timeout=60).content
    assert np.array_equal(np.asarray(images.grid()), np.asarray(Image.open(io.BytesIO(grid))))
    assert np.asarray(images[2:4][0]).tolist() == np.asarray(images[2]).tolist()
    assert images.grid(columns=5).size == (5 * 10 - 2, 8)


def test_the_asynchronous_client_gets_the_same(client: Client, address: str) -> None:
    async def ask() -> list[bytes]:
        async with AsyncClient(address) as asking:
            made = await asyncio.gather(*(asking.generate("classes", num_images=2, seed=seed, labels=["cat"]) for seed in range(3)))
            with pytest.raises(Refused, match="there is no model 'nobody'"):
                await asking.model("nobody")
            return [image.tobytes() for images in made for image in images]

    alone = [image.tobytes() for seed in range(3) for image in client.generate("classes", num_images=2, seed=seed, labels=["cat"])]
    assert asyncio.run(ask()) == alone


def test_a_walk_begins_and_ends_at_its_anchors(client: Client) -> None:
    frames = client.interpolate("classes", [3, 5], steps=4, labels=["cat"])
    ends = [client.generate("classes", num_images=1, seed=seed, labels=["cat"])[0] for seed in (3, 5)]
    assert (len(frames), frames.seeds) == (6, None)
    assert [frames[0].tobytes(), frames[-1].tobytes()] == [end.tobytes() for end in ends]


def test_a_picture_goes_as_pillows_image_as_a_path_or_as_bytes(client: Client, tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    picture.save(tmp_path / "small.png")
    kinds = (picture, tmp_path / "small.png", str(tmp_path / "small.png"), (tmp_path / "small.png").read_bytes())
    large = [client.transform("enlarge", kind) for kind in kinds]
    assert {image.size for image in large} == {(16, 16)}
    assert len({image.tobytes() for image in large}) == 1
    scores = client.discriminate("classes", kinds, labels=["dog"])
    assert [score.file for score in scores.scores] == ["0.png", "small.png", "small.png", "3"]
    assert len({score.score for score in scores.scores}) == 1
    assert client.discriminate("pairs", [picture], sources=[picture]).version == 1


def test_what_is_served_is_told_as_documents(client: Client) -> None:
    assert [model.name for model in client.models().models][:2] == ["classes", "digits"]
    assert client.model("classes").history[0].version == 1
    assert client.version("classes", 1).manifest.generator.inputs[1].classes == ("cat", "dog", "fox")
    assert client.card("classes").startswith("# classes")
    assert client.card("classes") == client.card("classes", 1)
    assert "mlp" in {each.name for each in client.architectures().architectures}


def test_a_set_is_made_of_a_models_images(client: Client) -> None:
    card = client.augment("few", "classes", save_as="more", seed=3, include_real=True)
    assert (card.name, card.num_images, card.class_names) == ("more", 6, CLASSES)
    with pytest.raises(Refused, match="is registered already"):
        client.augment("few", "classes", save_as="more")


# --- refusals -----------------------------------------------------------------------------------------------------------------


def test_a_refusal_has_the_problem_field_by_field(client: Client) -> None:
    with pytest.raises(Refused) as refused:
        client.generate("classes", num_images=300, labels=["cat"])
    problem = refused.value
    assert (problem.status, problem.type, problem.title) == (422, "/problems/invalid-request", "Invalid request")
    assert [error.pointer for error in problem.errors] == ["/num_images"]
    assert str(problem) == problem.detail
    with pytest.raises(Refused, match="there is no job 'x'"):
        client.job("x/../y".partition("/")[0])


def test_where_nobody_answers_the_address_is_said() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(NoAnswer, match=r"^nobody answers at http://127\.0\.0\.1:9 \("):
        client.models()
    with pytest.raises(ValueError, match="write http://localhost:8000"):
        Client("localhost:8000")


# --- jobs ---------------------------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_runs_while_other_jobs_are_asked_for(
    client: Client, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(1) as threads:
        example = threads.submit(_run_the_example, address)
        while not client.jobs():
            assert not example.done(), example.result()
            time.sleep(0.05)
        queued = client.train(TrainConfig.model_validate(TINY), key="the second", priority=3)
        assert queued.priority == 3
        assert client.train(**TINY, key="the second", priority=3).id == queued.id
        with pytest.raises(JobFailed, match="is paused: paused before it started"):
            client.wait(client.pause(queued))
        assert client.resume(queued).state == "queued"
        client.cancel(queued)
        with pytest.raises(JobFailed, match=r"^job .* was cancelled: cancelled") as failed:
            asyncio.run(_waited(address, queued))
        assert (failed.value.job.id, failed.value.log) == (queued.id, "")
        example.result()
    for name, side in (("digits.png", 8), ("mine.png", 28)):
        with Image.open(name) as sheet:
            assert sheet.size == (4 * (side + 2) - 2, 4 * (side + 2) - 2)
    (job,) = [each for each in client.jobs() if each.id != queued.id]
    with bar() as shown:
        assert client.wait(job, progress=shown) == job
    assert (job.state, job.model, job.version) == ("succeeded", "my-second", 1)
    assert client.metrics(job).metrics[-1].images == 640
    assert client.metrics(job, after=640).metrics == []
    assert client.samples(job).size == client.samples(job, images=client.metrics(job).samples[-1]).size
    assert client.summary(job).width > 100
    assert "training mlp" in client.log(job)
    assert client.jobs(limit=1) == client.jobs()[:1]
    events = list(client.events(job))
    assert [event.number for event in events if event.number] == list(range(1, len(events) + 1))
    assert (events[-1].kind, events[-1].data) == ("state", State(**job.model_dump() | job.progress.model_dump()))
    assert [event.data for event in events if event.kind == "metrics"] == client.metrics(job).metrics
    assert list(client.events(job, after=len(events))) == []
    client.remove(job)
    assert [each.id for each in client.jobs()] == [queued.id]


def _run_the_example(address: str) -> None:
    """As it is printed, but for the address and the size of the training."""
    (code,) = re.findall(r"```python\n(from app.client .*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert "http://127.0.0.1:8000" in code
    code = code.replace("http://127.0.0.1:8000", address).replace("200_000", "640, num_evaluated=0")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102


async def _waited(address: str, job: Job) -> Job:
    async with AsyncClient(address) as asking:
        return await asking.wait(job)


# --- folders ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        Image.new("L", (8, 8), 100).save(folder / label / "one.png")
    (folder / "dog" / "large.bin").write_bytes(bytes(3 * PIECE_BYTES + 5))
    (folder / "empty.txt").touch()
    return folder


def test_a_folder_becomes_a_zip_a_piece_at_a_time(pictures: Path) -> None:
    pieces = list(zipped(pictures))
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))
    assert archive.testzip() is None
    assert archive.namelist() == ["cat/one.png", "dog/large.bin", "dog/one.png", "empty.txt"]
    assert archive.read("cat/one.png") == (pictures / "cat" / "one.png").read_bytes()
    assert b"".join(zipped(pictures)) == b"".join(pieces)


# --- a peer that answers as it was told ---------------------------------------------------------------------------------------


class Peer(ThreadingHTTPServer):
    """Gives the answers that it was told, in order, and remembers what it was asked; an answer of None closes the connection."""

    def __init__(self, *answers: tuple[int, dict[str, str], str] | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Peer

    def _answer(self) -> None:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        body += self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((f"{self.command} {self.path}", dict(self.headers), body))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.close_connection = True
            return
        status, headers, text = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        """Nothing."""


NOTHING = (200, {}, '{"models": [], "broken": []}')
FULL = (503, {"Retry-After": "0"}, '{"type": "/problems/overloaded", "title": "Full", "status": 503, "detail": "full", "instance": "/x"}')


def test_a_full_server_is_asked_again_and_not_for_ever() -> None:
    with Peer(FULL, FULL, NOTHING, *[FULL] * 6) as peer, Client(peer.url, api_key="of sixteen and more") as client:
        assert client.models().models == []
        assert peer.asked[0][1]["Authorization"] == "Bearer of sixteen and more"
        with pytest.raises(Refused, match="full"):
            client.models()
        assert len(peer.answers) == 1
        with pytest.raises(Refused):
            client.pause("a-job")  # nobody knows whether it was heard
        assert peer.answers == []


def test_a_lost_connection_is_made_again_and_a_training_keeps_its_key() -> None:
    with Peer(None, FULL, (500, {}, "<html>"), None) as peer, Client(peer.url) as client:
        with pytest.raises(Refused, match="answered 500 Internal Server Error, which is no answer of ganserve's"):
            client.train(architecture="mlp")
        assert len({asked[1]["Idempotency-Key"] for asked in peer.asked}) == 1
        assert len(peer.asked) == 3
        with pytest.raises(NoAnswer, match="was lost while it was asked for /jobs/a-job/cancel"):
            client.cancel("a-job")


def test_an_upload_that_is_asked_again_is_the_same_one(pictures: Path) -> None:
    with Peer(FULL, (202, {"Location": "/datasets/mine"}, ""), None, None, None) as peer, Client(peer.url) as client:
        with pytest.raises(NoAnswer):
            client.upload(pictures, "mine", size=8)
        first, second = peer.asked[:2]
        assert first[0] == "POST /datasets?name=mine&size=8&kind=auto"
        assert (second[1]["Content-Type"], second[2]) == ("application/zip", b"".join(zipped(pictures)))
        assert first[1]["Idempotency-Key"] == second[1]["Idempotency-Key"]


def test_a_folder_or_an_archive_is_uploaded_and_waited_for(client: Client, address: str, pictures: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    uploaded = client.upload(pictures, "mine", size=8, progress=lambda each: seen.append(each.state))
    assert uploaded.card is not None
    assert (uploaded.state, uploaded.card.class_names, uploaded.card.num_images) == ("ready", ("cat", "dog"), 2)
    assert seen[-1] == "ready"
    assert client.sheet("mine").height == 18
    assert client.sheet("mine", num_images=1, label="dog").height == 8
    with pytest.raises(Refused, match="'mine' is registered already"):
        client.upload(pictures, "mine")
    client.remove_dataset("mine")
    assert "mine" not in [each.name for each in client.datasets().datasets]
    with zipfile.ZipFile(tmp_path / "words.zip", "w") as archive:
        archive.writestr("words.txt", "no picture")
    with pytest.raises(ImportFailed, match=r"words\.zip became no data set: data set 'words' would be empty"):
        asyncio.run(_uploaded(address, tmp_path / "words.zip"))
    with pytest.raises(ValueError, match="neither a folder nor a ZIP"):
        client.upload(pictures / "cat" / "one.png", "mine")


async def _uploaded(url: str, archive: Path) -> None:
    async with AsyncClient(url) as asking:
        await asking.upload(archive, archive.stem)


EVENTS = {"Content-Type": "text/event-stream"}
FIRST = 'retry: 10\n\nid: 1\nevent: sample\ndata: {"at": "2026-11-23T00:00:00Z", "images": 64}\n\n: still here\n\n'
NEWS = "event: news\nid: 2\ndata: {}\n\nid: 3\nevent: sample\n"
REST = (
    'event: progress\ndata: {"images": 80,\ndata:"total_images": 640}\n\nid: 3\nevent: rewound\ndata: {"images": 64}\n\nevent: shutdown\n\n'
)
END = "event: end\ndata: {}\n\n"


def test_events_go_on_where_the_connection_was_lost() -> None:
    with Peer(*[(200, EVENTS, text) for text in (FIRST + NEWS, REST, END)] * 2) as peer, Client(peer.url) as client:
        told = list(client.events("a-job"))
        assert [(event.number, event.kind, event.data.images) for event in told] == [
            (1, "sample", 64),
            (None, "progress", 80),
            (3, "rewound", 64),
        ]
        assert [event.at for event in told] == ["2026-11-23T00:00:00Z", None, None]
        assert [asked[1]["Last-Event-ID"] for asked in peer.asked] == ["0", "2", "3"]
        assert asyncio.run(_told(peer.url)) == told


async def _told(url: str) -> list[object]:
    async with AsyncClient(url) as asking:
        events: AsyncIterator[object] = asking.events("a-job")
        return [event async for event in events]
