"""What /generate chooses: the best of several candidates, a row of each class, a part in place of the generator."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from api_client import Api, Pixels, cells, picture, pointers, refusal, singles
from PIL import Image

pytest_plugins = ["api_fixtures"]
ARRAY, JSON = {"accept": "application/x-npy"}, {"accept": "application/json"}
LAST_SEED = 2**32 - 1


def images_of(api: Api, body: dict[str, object]) -> Pixels:
    return singles(api.post("/generate", body, headers=ARRAY))


def scores_of(api: Api, images: list[str], model: str, **more: object) -> list[float]:
    response = api.post("/discriminate", {"model": model, "images": images, **more})
    assert response.status_code == 200, response.text
    return [score["score"] for score in response.json()["scores"]]


# --- the best of several ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "num_images", "best_of"), [("digits", 5, 7), ("colour", 3, 2), ("critic", 2, 20)])
def test_each_image_is_the_candidate_that_discriminate_rates_highest(api: Api, model: str, num_images: int, best_of: int) -> None:
    body = {"model": model, "num_images": num_images, "seed": 100, "best_of": best_of}
    best = api.post("/generate", body, headers=JSON).json()
    candidates = api.post("/generate", {"model": model, "num_images": num_images * best_of, "seed": 100}, headers=JSON).json()
    scores = scores_of(api, candidates["images"], model)
    for index in range(num_images):
        group = scores[index * best_of : (index + 1) * best_of]
        assert best["seeds"][index] == 100 + index * best_of + group.index(max(group))
    kept = np.stack([picture(base64.b64decode(candidates["images"][seed - 100])) for seed in best["seeds"]])
    assert np.array_equal(images_of(api, body), kept)


def test_the_told_seed_alone_gives_the_same_pixels(api: Api) -> None:
    body = {"model": "digits", "num_images": 4, "seed": 9, "best_of": 8, "truncation": 0.9}
    answer = api.post("/generate", body)
    seeds = api.post("/generate", body, headers=JSON).json()["seeds"]
    assert answer.headers["X-Seed"] == str(seeds[0])
    text = Image.open(io.BytesIO(answer.content)).text
    assert (text["seed"], json.loads(text["request"])) == (str(seeds[0]), body)
    for index, image in enumerate(cells(picture(answer), 4, 2, 28)):
        alone = {"model": "digits", "num_images": 1, "seed": seeds[index], "truncation": 0.9}
        assert np.array_equal(picture(api.post("/generate", alone)), image)
    archive = zipfile.ZipFile(io.BytesIO(api.post("/generate", body, headers={"accept": "application/zip"}).content))
    assert archive.namelist() == [f"digits-1-seed-{seed}.png" for seed in seeds]


def test_a_request_without_a_seed_can_be_asked_again_by_its_text(api: Api) -> None:
    answer = api.post("/generate", {"model": "digits", "num_images": 2, "best_of": 3})
    request = json.loads(Image.open(io.BytesIO(answer.content)).text["request"])
    again = api.post("/generate", request)
    assert np.array_equal(picture(again), picture(answer))
    assert again.headers["X-Seed"] == answer.headers["X-Seed"]


def test_candidates_are_ranked_with_the_label_of_their_image(kinds: Api) -> None:
    body = {"model": "classes", "num_images": 3, "seed": 40, "best_of": 6, "labels": ["cat", "dog", "fox"]}
    best = kinds.post("/generate", body, headers=JSON).json()["seeds"]
    for index, label in enumerate(("cat", "dog", "fox")):
        first = 40 + 6 * index
        made = kinds.post("/generate", {"model": "classes", "num_images": 6, "seed": first, "labels": [label]}, headers=JSON).json()
        scores = scores_of(kinds, made["images"], "classes", labels=[label])
        assert best[index] == first + scores.index(max(scores))
        others = scores_of(kinds, made["images"], "classes", labels=["cat" if label != "cat" else "dog"])
        assert others != scores


def test_of_equal_candidates_the_first_is_kept(api: Api) -> None:
    body = {"model": "digits", "num_images": 3, "seed": 7, "best_of": 5, "truncation": 0}
    assert api.post("/generate", body, headers=JSON).json()["seeds"] == [7, 12, 17]


def test_more_candidates_than_one_turn_holds_are_ranked_too(api: Api) -> None:
    whole = api.post("/generate", {"model": "critic", "num_images": 100, "seed": 0, "best_of": 6}, headers=JSON).json()["seeds"]
    for index in (0, 42, 43, 99):  # 252 candidates a turn are 42 images
        part = {"model": "critic", "num_images": 1, "seed": 6 * index, "best_of": 6}
        assert api.post("/generate", part, headers=JSON).json()["seeds"] == [whole[index]]


@pytest.mark.parametrize(
    ("more", "pointer", "message"),
    [
        ({"best_of": 1}, "/best_of", "greater than or equal to 2"),
        ({"best_of": 65}, "/best_of", "less than or equal to 64"),
        ({"best_of": 2.0}, "/best_of", "integer"),
        ({"best_of": 2, "num_images": 1, "latents": [[0.0] * 128]}, "/best_of", "candidates are drawn, and latents are given"),
        ({"best_of": 64, "num_images": 65}, "/best_of", "65 images with the best of 64 are 4160 candidates; at most 4096 are allowed"),
        ({"best_of": 4, "num_images": 2, "seed": LAST_SEED - 6}, "/seed", f"8 seeds from {LAST_SEED - 6} on end at {LAST_SEED + 1}"),
    ],
)
def test_a_best_of_that_cannot_be_is_refused(api: Api, more: dict[str, object], pointer: str, message: str) -> None:
    problem = refusal(api.post("/generate", {"model": "digits", **more}), 422)
    assert pointers(problem) == [pointer]
    assert message in problem["detail"]


def test_nothing_is_ranked_without_a_discriminator(api: Api) -> None:
    problem = refusal(api.post("/generate", {"model": "blind", "best_of": 2}), 422)
    assert pointers(problem) == ["/best_of"]
    assert "blind has no discriminator that could rank candidates" in problem["detail"]


# --- a row of each class ------------------------------------------------------------------------------------------------------


def test_all_labels_give_each_class_a_row_of_eight(kinds: Api) -> None:
    grid = picture(kinds.post("/generate", {"model": "classes", "labels": "all", "seed": 5}))
    assert grid.shape == (3 * 10 - 2, 8 * 10 - 2)
    made = cells(grid, 24, 8, 8)
    for index, image in enumerate(made):
        alone = {"model": "classes", "num_images": 1, "seed": 5 + index, "labels": [index // 8]}
        assert np.array_equal(picture(kinds.post("/generate", alone)), image)


def test_a_number_of_images_is_shared_among_the_classes(kinds: Api) -> None:
    body = {"model": "classes", "labels": "all", "seed": 5, "num_images": 6}
    assert picture(kinds.post("/generate", body)).shape == (28, 18)
    assert picture(kinds.post("/generate", body | {"columns": 2})).shape == (28, 18)
    assert len(images_of(kinds, body)) == 6
    assert len(images_of(kinds, body | {"best_of": 2})) == 6


@pytest.mark.parametrize(
    ("more", "pointer", "message"),
    [
        ({"num_images": 16}, "/num_images", 'with the labels "all" it is a multiple of the 3 classes, 3 to 255'),
        ({"num_images": 6, "columns": 3}, "/columns", "give each class a row, of 2 images here; leave columns out"),
        ({"latents": [[0.0] * 8] * 4}, "/num_images", "a multiple of the 3 classes"),
    ],
)
def test_what_gives_no_even_rows_is_refused(kinds: Api, more: dict[str, object], pointer: str, message: str) -> None:
    problem = refusal(kinds.post("/generate", {"model": "classes", "labels": "all", **more}), 422)
    assert pointers(problem) == [pointer]
    assert message in problem["detail"]


def test_all_labels_are_refused_by_a_model_without_classes(api: Api) -> None:
    problem = refusal(api.post("/generate", {"model": "digits", "labels": "all"}), 422)
    assert pointers(problem) == ["/labels"]
    assert "this model takes seed, latents, truncation" in problem["detail"]
    assert pointers(refusal(api.post("/generate", {"model": "labelled", "labels": "every"}), 422)) == ["/labels"]


def test_a_model_of_classes_that_gets_no_labels_names_them_and_all(kinds: Api) -> None:
    detail = refusal(kinds.post("/generate", {"model": "classes"}), 422)["detail"]
    assert 'one label for all images or 16 labels can be given, or "all" for a row of each class; classes: cat, dog, fox' in detail


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_a_part_runs_in_place_of_the_generator_one_wide_image_a_row(kinds: Api) -> None:
    body = {"model": "staged", "num_images": 3, "seed": 4}
    wide, made = images_of(kinds, body | {"part": "stages"}), images_of(kinds, body)
    assert wide.shape == (3, 8, 16)
    assert np.array_equal(wide[:, :, 8:], made)
    sheet = picture(kinds.post("/generate", body | {"part": "stages"}))
    assert sheet.shape == (28, 16)
    assert np.array_equal(sheet[10:18], wide[1])
    assert picture(kinds.post("/generate", body | {"part": "stages", "columns": 3})).shape == (8, 52)


def test_a_part_that_is_unknown_or_does_not_run_is_refused_with_those_that_do(kinds: Api, api: Api) -> None:
    for part, message in (
        ("stage", "staged has no part 'stage'; parts to run: stages; did you mean 'stages'?"),
        ("level-0", "level-0 takes other inputs than the generator, and can only be fetched; parts to run: stages"),
        ("generator", "staged has no part 'generator'; parts to run: stages"),
    ):
        problem = refusal(kinds.post("/generate", {"model": "staged", "part": part}), 422)
        assert pointers(problem) == ["/part"]
        assert message in problem["detail"]
    assert "parts to run: none" in refusal(api.post("/generate", {"model": "digits", "part": "stages"}), 422)["detail"]


# --- walks between classes ----------------------------------------------------------------------------------------------------


def test_only_the_label_walks_where_the_anchors_repeat_a_seed(kinds: Api) -> None:
    body = {"model": "classes", "anchors": [{"seed": 3}] * 3, "labels": ["cat", "dog", "fox"], "steps": 15}
    made = singles(kinds.post("/interpolate", body, headers=ARRAY)).astype(int)
    for index, label in enumerate(("cat", "dog", "fox")):
        own = picture(kinds.post("/generate", {"model": "classes", "num_images": 1, "seed": 3, "labels": [label]}))
        assert np.array_equal(made[16 * index], own)
    steps = np.abs(np.diff(made, axis=0)).mean((1, 2))
    assert steps.max() < np.abs(made[16] - made[0]).mean() / 4, "no jump"
    assert steps.min() > 0, "and no standing still"


def test_a_walk_without_labels_names_the_classes(kinds: Api) -> None:
    detail = refusal(kinds.post("/interpolate", {"model": "classes", "anchors": [{"seed": 3}] * 2}), 422)["detail"]
    assert "one label for all anchors or 2 labels can be given, and there are 0; classes: cat, dog, fox" in detail
