"""/discriminate where the discriminator judges more than a picture: labels, or the pictures that others were made of."""

import base64

import numpy as np
import pytest
import torch
from api_client import Api, Pixels, png, pointers, refusal
from tiny_versions import label_judging, pair_judging

from app import pixels

pytest_plugins = ["api_fixtures"]
Part = tuple[str, tuple[str | None, bytes]]


def noise(seed: int, height: int = 8, width: int = 8) -> Pixels:
    drawn: Pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return drawn


def files(*images: Pixels, field: str = "files") -> list[Part]:
    return [(field, (f"{index}.png", png(image))) for index, image in enumerate(images)]


def labels(*names: str) -> list[Part]:
    return [("labels", (None, name.encode())) for name in names]


def scores(api: Api, model: str, parts: list[Part]) -> list[float]:
    response = api.post("/discriminate", data={"model": model}, files=parts)
    assert response.status_code == 200, response.text
    return [score["score"] for score in response.json()["scores"]]


def tensor(*images: Pixels) -> torch.Tensor:
    return pixels.from_uint8(np.stack(images)[:, np.newaxis])


def text(image: Pixels) -> str:
    return base64.b64encode(png(image)).decode()


# --- labels -------------------------------------------------------------------------------------------------------------------


def test_a_label_is_a_name_or_an_index_for_all_files_or_for_each(kinds: Api) -> None:
    images = [noise(0), noise(1)]
    with torch.inference_mode():
        wanted = label_judging().network(tensor(*images), torch.eye(3)[[1, 2]]).tolist()
    found = scores(kinds, "classes", files(*images) + labels("dog", "fox"))
    assert np.allclose(found, wanted, atol=1e-5)
    assert scores(kinds, "classes", files(*images) + labels("1", "2")) == found
    assert scores(kinds, "classes", files(*images) + labels("dog"))[0] == found[0]
    body = {"model": "classes", "images": [text(image) for image in images], "labels": ["dog", {"fox": 1.0}]}
    assert [score["score"] for score in kinds.post("/discriminate", body).json()["scores"]] == found


@pytest.mark.parametrize(
    ("given", "pointer", "message"),
    [
        ([], "/labels", "one label for all files or 2 labels can be given, and there are 0; classes: cat, dog, fox (or 0 to 2)"),
        (["cat"] * 3, "/labels", "and there are 3; classes: cat, dog, fox"),
        (["cat", "cow"], "/labels/1", "no such class; classes: cat, dog, fox (or 0 to 2)"),
        (["cat", "3"], "/labels/1", "no such class"),
    ],
)
def test_labels_that_are_missing_or_wrong_are_refused_with_the_classes(kinds: Api, given: list[str], pointer: str, message: str) -> None:
    problem = refusal(kinds.post("/discriminate", data={"model": "classes"}, files=files(noise(0), noise(1)) + labels(*given)), 422)
    assert pointers(problem) == [pointer]
    assert message in problem["detail"]


def test_an_empty_field_of_swagger_ui_is_no_label_and_a_file_is_none_either(kinds: Api) -> None:
    assert pointers(refusal(kinds.post("/discriminate", data={"model": "classes"}, files=files(noise(0)) + labels("")), 422)) == ["/labels"]
    parts = [*files(noise(0)), ("labels", ("label.txt", b"cat"))]
    problem = refusal(kinds.post("/discriminate", data={"model": "classes"}, files=parts), 422)
    assert "labels: part 0 is a file; a class is named in a text field" in problem["detail"]


# --- pairs --------------------------------------------------------------------------------------------------------------------


def test_each_file_is_judged_with_its_source(kinds: Api) -> None:
    images, sources = [noise(0), noise(1)], [noise(2), noise(3)]
    with torch.inference_mode():
        wanted = pair_judging(size=8).network(tensor(*images), tensor(*sources)).flatten(1).mean(1).tolist()
    found = scores(kinds, "pairs", files(*images) + files(*sources, field="sources"))
    assert np.allclose(found, wanted, atol=1e-5)
    body = {"model": "pairs", "images": [text(image) for image in images], "sources": [text(source) for source in sources]}
    assert [score["score"] for score in kinds.post("/discriminate", body).json()["scores"]] == found
    assert scores(kinds, "pairs", files(*images) + files(*sources[::-1], field="sources")) != found


def test_sources_are_brought_to_the_size_that_is_judged(kinds: Api) -> None:
    flat = np.full((40, 60), 77, np.uint8)
    small = np.full((8, 8), 77, np.uint8)
    found = [scores(kinds, "pairs", files(noise(0)) + files(source, field="sources")) for source in (flat, small)]
    assert found[0] == found[1]


def test_pairs_of_any_size_are_judged_one_by_one(kinds: Api) -> None:
    images, sources = [noise(0, 8, 20), noise(1, 4, 4)], [noise(2, 8, 20), noise(3, 4, 4)]
    found = scores(kinds, "whole", files(*images) + files(*sources, field="sources"))
    with torch.inference_mode():
        wanted = [
            float(pair_judging().network(tensor(image), tensor(source)).mean()) for image, source in zip(images, sources, strict=True)
        ]
    assert np.allclose(found, wanted, atol=1e-5)
    large = np.kron(sources[1], np.ones((5, 5), np.uint8))
    assert len(scores(kinds, "whole", files(images[1]) + files(large, field="sources"))) == 1
    odd = files(noise(0, 8, 9)) + files(noise(0), field="sources")
    problem = refusal(kinds.post("/discriminate", data={"model": "whole"}, files=odd), 422)
    assert "0.png: this picture is 9 wide and 8 high; the width must be a multiple of 2" in problem["detail"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_sources_than_of_files_is_refused(kinds: Api, count: int) -> None:
    parts = files(noise(0), noise(1)) + files(*[noise(2)] * count, field="sources")
    problem = refusal(kinds.post("/discriminate", data={"model": "pairs"}, files=parts), 422)
    assert pointers(problem) == ["/sources"]
    wanted = f"2 sources are wanted, one for each file in the same order, and {count} {'is' if count == 1 else 'are'} given"
    assert wanted in problem["detail"]


def test_a_source_that_is_no_picture_is_pointed_at(kinds: Api) -> None:
    parts = [*files(noise(0)), ("sources", ("bad.png", b"no picture"))]
    problem = refusal(kinds.post("/discriminate", data={"model": "pairs"}, files=parts), 422)
    assert pointers(problem) == ["/sources/0"]
    assert "bad.png: " in problem["detail"]


# --- fields without effect ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "field", "message"),
    [
        ("pairs", "labels", "the discriminator of pairs takes no labels, beside its files it takes sources; leave them out"),
        ("classes", "sources", "the discriminator of classes takes no sources, beside its files it takes labels; leave them out"),
        ("digits", "labels", "the discriminator of digits takes no labels, it takes files alone; leave them out"),
        ("digits", "sources", "the discriminator of digits takes no sources, it takes files alone; leave them out"),
    ],
)
def test_a_field_that_the_discriminator_does_not_take_is_refused(api: Api, kinds: Api, model: str, field: str, message: str) -> None:
    extra = labels("cat") if field == "labels" else files(noise(1), field="sources")
    asked = api if model == "digits" else kinds
    problem = refusal(asked.post("/discriminate", data={"model": model}, files=files(noise(0)) + extra), 422)
    assert pointers(problem) == [f"/{field}"]
    assert problem["detail"] == f"{field}: {message}"
