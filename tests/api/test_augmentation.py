"""Labelled images of a model for a data set: how many, of which seeds, as an archive or as a new set, and who else waits for them."""

import asyncio
import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from api_client import Api, picture, pointers, refusal, serving, singles
from consoles import Console
from tiny_versions import enlarging, label_judging, labelled, publish, single

from app.augmentation import PIECE_IMAGES, folder_names
from app.errors import Overloaded
from app.settings import Settings
from training import datasets
from training.datasets import About, Batch

pytest_plugins = ["console_fixtures"]

LABELS = [0, 0, 0, 0, 1, 2, 2]  # in the set's own order of the classes
NAMES = ("fox", "cat", "dog")
ASK = {"model": "classes", "seed": 7}


def write(folder: Path, name: str, size: int = 8, classes: tuple[str, ...] | None = NAMES, labels: list[int] = LABELS) -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 1, size, size), np.uint8)
    about = About((1, size, size), "drawn for tests", "CC0-1.0", classes)
    datasets.write(name, folder, about, [Batch(images, np.array(labels, np.int64) if classes else None)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data sets: `few` and others that fit no model."""
    home = tmp_path_factory.mktemp("augmentation")
    publish(home / "models", "classes", labelled(), discriminator=label_judging())
    publish(home / "models", "plain", single())
    publish(home / "models", "unjudged", labelled())
    publish(home / "models", "enlarge", enlarging())
    folder = home / "state" / "datasets"
    write(folder, "few")
    write(folder, "even", labels=[0, 1, 2])
    write(folder, "large", size=16)
    write(folder, "others", classes=("fox", "cat", "cow"))
    write(folder, "unlabelled", classes=None)
    write(folder, "rotten")
    with (folder / "rotten" / "images.npy").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    return home


@pytest.fixture(scope="module")
def api(home: Path) -> Iterator[Api]:
    with serving(Settings(models=(home / "models",), state=home / "state", run_jobs=False)) as client:
        yield client


def archive_of(response: httpx.Response) -> tuple[zipfile.ZipFile, list[dict[str, object]]]:
    """An archive, and its lines of metadata."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.testzip() is None
    lines = [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]
    assert [line["file_name"] for line in lines] == archive.namelist()[:-1]
    return archive, lines


# --- an archive ---------------------------------------------------------------------------------------------------------------


def test_every_class_gets_what_it_lacks_and_each_image_is_that_of_its_seed(api: Api) -> None:
    response = api.post("/datasets/few/augment", ASK)
    archive, lines = archive_of(response)
    assert [(line["label"], line["seed"]) for line in lines] == [("cat", 7), ("cat", 8), ("cat", 9), ("dog", 10), ("dog", 11)]
    assert {(line["model"], line["version"]) for line in lines} == {("classes", 1)}
    assert archive.namelist() == ["cat/7.png", "cat/8.png", "cat/9.png", "dog/10.png", "dog/11.png", "metadata.jsonl"]
    assert response.headers["x-seed"] == "7"
    for line in lines:
        asked = {"model": "classes", "num_images": 1, "seed": line["seed"], "labels": [line["label"]]}
        assert np.array_equal(picture(archive.read(str(line["file_name"]))), picture(api.post("/generate", asked))), line


def test_how_many_is_said_in_all_or_for_each_class(api: Api) -> None:
    for how_many in ({"images_per_class": PIECE_IMAGES + 1}, {"num_images": 3 * (PIECE_IMAGES + 1)}):
        _, lines = archive_of(api.post("/datasets/few/augment", ASK | how_many))
        assert [line["label"] for line in lines] == [name for name in NAMES for _ in range(PIECE_IMAGES + 1)]
        assert [line["seed"] for line in lines] == list(range(7, 7 + len(lines)))


def test_real_images_come_first_and_have_no_seed(api: Api, home: Path) -> None:
    archive, lines = archive_of(api.post("/datasets/few/augment", ASK | {"include_real": True}))
    real = datasets.load("few", home / "state" / "datasets").images
    assert [line["label"] for line in lines[:7]] == [NAMES[label] for label in LABELS]
    assert [line.get("seed") for line in lines] == [None] * 7 + [7, 8, 9, 10, 11]
    assert all(np.array_equal(picture(archive.read(str(line["file_name"]))), real[row, 0]) for row, line in enumerate(lines[:7]))


def test_the_best_of_several_are_kept_by_their_own_seeds(api: Api) -> None:
    archive, lines = archive_of(api.post("/datasets/few/augment", ASK | {"best_of": 3, "images_per_class": 2, "truncation": 0.5}))
    asked = {"model": "classes", "num_images": 2, "seed": 13, "labels": ["cat"], "best_of": 3, "truncation": 0.5}
    best = singles(api.post("/generate", asked, headers={"accept": "application/zip"}))
    assert np.array_equal(best, [picture(archive.read(str(line["file_name"]))) for line in lines[2:4]])
    assert [range(7 + 3 * index, 10 + 3 * index).count(int(str(line["seed"]))) for index, line in enumerate(lines)] == [1] * 6


def test_a_class_is_a_folder_that_no_system_takes_amiss() -> None:
    assert folder_names(["t-shirt/top", "../x", "a b", "", "Ärmel"]) == ["t-shirt-top", "-x", "a b", "-", "-rmel"]
    assert folder_names(["a/b", "a:b", "A-b", "c"]) == ["a-b-0", "a-b-1", "A-b-2", "c"]


# --- a data set ---------------------------------------------------------------------------------------------------------------


def test_a_new_set_says_where_its_images_come_from(api: Api, home: Path) -> None:
    response = api.post("/datasets/few/augment", ASK | {"save_as": "more", "include_real": True})
    assert (response.status_code, response.headers["location"]) == (201, "/datasets/more")
    made = datasets.load("more", home / "state" / "datasets")
    assert response.json() == made.card.model_dump(mode="json")
    assert made.card.class_names == NAMES
    assert made.labels is not None
    assert made.labels.tolist() == [*LABELS, 1, 1, 1, 2, 2]
    few = datasets.load("few", home / "state" / "datasets")
    assert np.array_equal(made.images[:7], few.images)
    asked = {"model": "classes", "num_images": 1, "seed": 10, "labels": ["dog"]}
    assert np.array_equal(made.images[-2, 0], picture(api.post("/generate", asked)))
    assert made.card.source == (
        "5 images generated by classes version 1 with seeds 7 to 11, which was trained on tiny-set (000000000000), for the classes of few"
        f" ({few.card.content_sha256[:12]}), after its 7 real images"
    )
    assert "taken" not in refusal(api.post("/datasets/few/augment", ASK | {"save_as": "more"}), 409)["title"]


def test_nothing_comes_of_a_set_whose_client_has_left(api: Api, home: Path) -> None:
    folder = home / "state" / "datasets"
    body = ASK | {"save_as": "left", "images_per_class": 20_000}
    begun = api.begin_to_send(api.build("POST", "/datasets/few/augment", json=body))
    while not any((folder / ".staging").glob("*/images.npy")):
        assert not begun.done(), begun.result().text
    begun.cancel()
    while any((folder / ".staging").iterdir()):
        time.sleep(0.01)
    assert not (folder / "left").exists()
    assert api.service.batcher.queued_images == 0


# --- others -------------------------------------------------------------------------------------------------------------------


def test_others_take_their_turns(api: Api) -> None:
    begun = api.begin_to_send(api.build("POST", "/datasets/few/augment", json=ASK | {"images_per_class": 700}))
    for seed in range(5):
        assert api.post("/generate", {"model": "plain", "num_images": 1, "seed": seed}).status_code == 200
        assert api.service.batcher.queued_images <= PIECE_IMAGES
    assert not begun.done()
    assert len(archive_of(begun.result())[1]) == 2100


def test_once_it_has_begun_it_waits_for_room_in_a_full_queue(api: Api) -> None:
    held = api.begin(_hold_the_queue, api)
    begun = api.begin_to_send(api.build("POST", "/datasets/few/augment", json=ASK | {"images_per_class": 100}))
    assert held.result()
    assert len(archive_of(begun.result())[1]) == 300


async def _hold_the_queue(api: Api) -> bool:
    """All of it, once the archive has begun, for longer than a piece takes; whether anybody was refused."""
    batcher, engine = api.service.batcher, await api.service.store.engine("plain")
    for waits in (True, False):  # until the first piece waits, and until it is taken
        while bool(batcher.queued_images) is not waits:
            await asyncio.sleep(0)
    with batcher.holding(engine, api.service.settings.queue_images):
        await asyncio.sleep(0.1)
        try:
            batcher.refuse_while_full()
        except Overloaded:
            return True
    return False


def test_with_real_images_the_answer_has_begun_and_waits_for_room_too(api: Api) -> None:
    held = api.begin(_hold_all, api)
    begun = api.begin_to_send(api.build("POST", "/datasets/few/augment", json=ASK | {"include_real": True}))
    held.result()
    assert len(archive_of(begun.result())[1]) == 12


async def _hold_all(api: Api) -> None:
    """The whole queue, for longer than the real images take."""
    engine = await api.service.store.engine("plain")
    api.service.batcher.refuse_while_full()  # so that the door forgets who was refused before
    with api.service.batcher.holding(engine, api.service.settings.queue_images):
        await asyncio.sleep(0.5)


# --- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "changes", "status", "words"),
    [
        ("nobody", {}, 404, "there is no data set 'nobody'; known: even, fashion-mnist-10k, few"),
        ("few", {"model": "nobody"}, 404, "there is no model 'nobody'"),
        ("few", {"version": 9}, 404, "has no version 9"),
        ("rotten", {"model": "nobody"}, 404, "there is no model 'nobody'"),  # what is quick to see is seen first
        ("rotten", {}, 409, "data set 'rotten' is damaged: images.npy does not have the sha256"),
        ("few", {"model": "unjudged", "best_of": 2, "include_real": True}, 422, "best_of: unjudged has no discriminator that could rank"),
        ("few", {"model": "plain"}, 422, "model: plain version 1 takes no labels; name a model that was trained with classes"),
        ("few", {"model": "enlarge"}, 422, "enlarge version 1 takes no labels"),
        ("unlabelled", {}, 422, "data set unlabelled has no classes"),
        (
            "others",
            {},
            422,
            "the classes of classes version 1 are cat, dog, fox, and those of data set others are fox, cat, cow; they must be",
        ),
        ("large", {}, 422, "classes makes images of 1 x 8 x 8, and those of data set large are 1 x 16 x 16; they must be the same"),
        ("even", {}, 422, "each class of even has 1 images already; say images_per_class or num_images"),
        ("few", {"num_images": 7}, 422, "7 images are no multiple of the 3 classes"),
        ("few", {"num_images": 3, "images_per_class": 1}, 422, "both say how many"),
        ("few", {"images_per_class": 40_000}, 422, "120,000 images are wanted, and at most 100,000 are made at a time"),
        ("few", {"seed": 2**32 - 1}, 422, "5 seeds from 4294967295 on end at 4294967299"),
        ("few", {"save_as": "even"}, 409, "data set 'even' is registered already"),
        ("few", {"save_as": "fashion-mnist-10k"}, 409, "is built in already"),
        ("few", {"save_as": "../x"}, 422, "save_as is '../x'"),
        ("few", {"truncation": 2.0}, 422, "truncation is 2.0"),
    ],
)
def test_a_refusal_says_what_is_allowed(api: Api, dataset: str, changes: dict[str, object], status: int, words: str) -> None:
    problem = refusal(api.post(f"/datasets/{dataset}/augment", ASK | changes), status)
    assert words in problem["detail"]
    if changes.get("model") == "plain":
        assert pointers(problem) == ["/model"]


def test_the_form_is_an_archive_or_with_a_name_a_card(api: Api) -> None:
    assert "application/zip" in refusal(api.post("/datasets/few/augment", ASK, headers={"accept": "image/png"}), 406)["detail"]
    saved = ASK | {"save_as": "saved"}
    assert "application/json" in refusal(api.post("/datasets/few/augment", saved, headers={"accept": "application/zip"}), 406)["detail"]


# --- the console --------------------------------------------------------------------------------------------------------------


def test_the_console_does_the_same_without_a_server(console: Console, api: Api, home: Path, tmp_path: Path) -> None:
    where = ("--models", home / "models", "--state", home / "state")
    said = console.done("augment", "few", "--model", "classes/1", "--seed", "7", "-o", "more.zip", *where)
    assert said == "more.zip: classes version 1, seeds from 7 on\n"
    assert (tmp_path / "more.zip").read_bytes() == api.post("/datasets/few/augment", ASK).content
    said = console.done("augment", "few", "--model", "classes", "--images-per-class", "2", "--save-as", "by-hand", *where)
    assert said.startswith("registered by-hand: 6 images of 3 classes: 6 images generated by classes version 1 with seeds ")
    assert datasets.card("by-hand", home / "state" / "datasets").num_images == 6
    assert console.refused("augment", "few", "--model", "plain", *where).startswith("model: plain version 1 takes no labels")
    assert "--output x.zip has no effect with --save-as" in console.refused(
        "augment", "few", "--model", "classes", "--save-as", "x", "-o", "x.zip", *where
    )
    assert "the ending .zip is allowed" in console.refused("augment", "few", "--model", "classes", "-o", "x.png", *where)
    assert not [path for path in tmp_path.iterdir() if path.name != "more.zip"]
