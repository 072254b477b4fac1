"""POST /interpolate: what lies between anchors, and how it is laid out."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from api_client import Api, Pixels, cells, frames, picture, pointers, refusal, singles
from PIL import Image

pytest_plugins = ["api_fixtures"]
SEEDS = [3, 11, 20]
ARRAY = {"accept": "application/x-npy"}


def walk(model: str = "digits", seeds: list[int] = SEEDS, steps: int = 2, **more: object) -> dict[str, object]:
    return {"model": model, "anchors": [{"seed": seed} for seed in seeds], "steps": steps, **more}


def images_of(api: Api, body: dict[str, object]) -> Pixels:
    return singles(api.post("/interpolate", body, headers=ARRAY))


def own_image(api: Api, model: str, seed: int) -> Pixels:
    return picture(api.post("/generate", {"model": model, "num_images": 1, "seed": seed}))


def latent_of(api: Api, model: str, seed: int) -> list[float]:
    body = {"model": model, "num_images": 1, "seed": seed, "return_latents": True}
    latent: list[float] = api.post("/generate", body, headers={"accept": "application/json"}).json()["latents"]["latent"][0]
    return latent


# --- frames -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["slerp", "lerp"])
@pytest.mark.parametrize(("model", "steps"), [("digits", 0), ("digits", 1), ("digits", 7), ("colour", 2)])
def test_the_frames_at_the_anchors_are_the_anchors_own_images(api: Api, model: str, steps: int, method: str) -> None:
    made = images_of(api, walk(model, SEEDS, steps, method=method))
    assert len(made) == 2 * (steps + 1) + 1
    for index, seed in enumerate(SEEDS):
        assert np.array_equal(made[index * (steps + 1)], own_image(api, model, seed)), seed


def test_frames_move_from_one_anchor_to_the_next_without_a_jump(api: Api) -> None:
    made = images_of(api, walk(seeds=[3, 11], steps=30)).astype(int)
    whole = np.abs(made[-1] - made[0]).mean()
    assert max(np.abs(after - before).mean() for before, after in pairwise(made)) < whole / 4


def test_slerp_and_lerp_differ_between_the_anchors_only(api: Api) -> None:
    arc, line = (images_of(api, walk(seeds=[3, 11], steps=1, method=method)) for method in ("slerp", "lerp"))
    assert np.array_equal(arc[[0, 2]], line[[0, 2]])
    assert not np.array_equal(arc[1], line[1])
    assert np.array_equal(images_of(api, walk(seeds=[3, 11], steps=1)), arc), "slerp where none is named"


def test_the_same_seed_twice_stands_still(api: Api) -> None:
    for method in ("slerp", "lerp"):
        made = images_of(api, walk(seeds=[5, 5], steps=6, method=method))
        assert len(made) == 8
        assert np.abs(made.astype(int) - own_image(api, "digits", 5)).max() <= 1


@pytest.mark.parametrize("scale", [-1.0, -0.25])
def test_opposite_latents_are_walked_between_without_a_collapse(api: Api, scale: float) -> None:
    latent = latent_of(api, "digits", 7)
    anchors = [{"latent": latent}, {"latent": [scale * value for value in latent]}]
    body = {"model": "digits", "anchors": anchors, "steps": 7, "return_latents": True}
    answer = api.post("/interpolate", body, headers={"accept": "application/json"})
    lengths = np.linalg.norm(answer.json()["latents"]["latent"], axis=1)
    assert np.all(lengths >= min(1, -scale) * lengths[0] * 0.999)
    made = singles(answer)
    assert len({image.tobytes() for image in made}) == 9
    assert all(image.std() > 20 for image in made), "each frame shows something"


def test_a_latent_of_zeros_is_an_anchor_like_others(api: Api) -> None:
    for method in ("slerp", "lerp"):
        body = {"model": "digits", "anchors": [{"latent": [0.0] * 128}, {"seed": 1}, {"latent": [0] * 128}], "steps": 3, "method": method}
        made = images_of(api, body)
        assert np.array_equal(made[0], made[-1])
        assert np.array_equal(made[4], own_image(api, "digits", 1))


def test_seeds_and_latents_may_be_mixed(api: Api) -> None:
    mixed = {"model": "digits", "anchors": [{"seed": 3}, {"latent": latent_of(api, "digits", 11)}, {"seed": 20}], "steps": 2}
    assert np.array_equal(images_of(api, mixed), images_of(api, walk()))


def test_truncation_draws_the_anchors_towards_the_mean(api: Api) -> None:
    still = images_of(api, walk(truncation=0))
    assert all(np.array_equal(image, still[0]) for image in still)
    half = picture(api.post("/generate", {"model": "digits", "num_images": 1, "seed": 3, "truncation": 0.5}))
    assert np.array_equal(images_of(api, walk(truncation=0.5))[0], half)


def test_labels_are_walked_between_in_a_straight_line(api: Api) -> None:
    body = walk("labelled", [3, 3], 1, labels=["cat", "fox"])
    mixed = {"model": "labelled", "num_images": 1, "seed": 3, "labels": [{"cat": 0.5, "fox": 0.5}]}
    assert np.array_equal(images_of(api, body)[1], singles(api.post("/generate", mixed, headers=ARRAY))[0])
    one = images_of(api, walk("labelled", [3, 4], 1, labels=["dog"]))
    assert np.array_equal(one, images_of(api, walk("labelled", [3, 4], 1, labels=["dog", 1])))
    assert pointers(refusal(api.post("/interpolate", walk("labelled", SEEDS, labels=["cat", "dog"])), 422)) == ["/labels"]
    assert pointers(refusal(api.post("/interpolate", walk(labels=["cat"])), 422)) == ["/labels"]


# --- layouts and forms --------------------------------------------------------------------------------------------------------


def test_a_strip_is_one_row(api: Api) -> None:
    for more in ({}, {"layout": "strip"}):
        strip = picture(api.post("/interpolate", walk(**more)))
        assert strip.shape == (28, 7 * 30 - 2)
        assert np.array_equal(cells(strip, 7, 7, 28), images_of(api, walk()))


def test_a_grid_has_the_columns_that_were_asked_for(api: Api) -> None:
    for more, columns in (({"columns": 4}, 4), ({"layout": "grid", "columns": 2}, 2), ({"layout": "grid"}, 3)):
        grid = picture(api.post("/interpolate", walk(**more)))
        assert grid.shape == (-(-7 // columns) * 30 - 2, columns * 30 - 2)
        assert np.array_equal(cells(grid, 7, columns, 28), images_of(api, walk()))


@pytest.mark.parametrize(("model", "size"), [("digits", 28), ("colour", 16)])
@pytest.mark.parametrize(("form", "layout"), [("image/gif", None), ("image/gif", "animation"), ("image/webp", "animation")])
def test_an_animation_shows_the_cells_of_the_strip(api: Api, model: str, size: int, form: str, layout: str | None) -> None:
    strip = picture(api.post("/interpolate", walk(model)))
    body = walk(model) | ({} if layout is None else {"layout": layout})
    response = api.post("/interpolate", body, headers={"accept": form})
    assert response.headers["content-type"] == form
    shown = frames(response)
    assert len(shown) == 7
    for frame, cell in zip(shown, cells(strip, 7, 7, size), strict=True):
        exact = np.asarray(Image.fromarray(cell).convert("RGB")).astype(int)
        if (model, form) == ("digits", "image/gif"):
            assert np.array_equal(frame, exact), "256 greys are a palette"
        assert np.abs(frame - exact).mean() < 24, "noise loses more than photographs"


def test_an_animation_keeps_frames_that_are_equal(api: Api) -> None:
    for form in ("image/gif", "image/webp"):
        body = walk(seeds=[5, 5, 5], steps=4, layout="animation", truncation=0)
        assert len(frames(api.post("/interpolate", body, headers={"accept": form}))) == 11


def test_frames_per_second_are_kept_and_12_without_a_wish(api: Api) -> None:
    for more, seconds in (({}, 7 / 12), ({"frames_per_second": 5}, 7 / 5), ({"frames_per_second": 50.0}, 7 / 50)):
        for form in ("image/gif", "image/webp"):
            body = walk(layout="animation", **more)
            image = Image.open(io.BytesIO(api.post("/interpolate", body, headers={"accept": form}).content))
            total = 0
            for index in range(7):
                image.seek(index)
                image.load()
                total += image.info["duration"]
            assert abs(total / 1000 - seconds) < 0.011, (form, more)


def test_every_lossless_form_has_the_pixels_of_the_strip(api: Api) -> None:
    strip = cells(picture(api.post("/interpolate", walk())), 7, 7, 28)
    for form in ("application/zip", "application/json", "application/x-npy"):
        assert np.array_equal(singles(api.post("/interpolate", walk(), headers={"accept": form})), strip)


def test_the_answer_names_its_model_and_no_seed(api: Api) -> None:
    response = api.post("/interpolate", walk(method="lerp"))
    assert (response.headers["X-Model"], response.headers["X-Version"]) == ("digits", "1")
    assert "X-Seed" not in response.headers
    text = Image.open(io.BytesIO(response.content)).text
    assert "seed" not in text
    assert json.loads(text["request"])["anchors"] == [{"seed": seed} for seed in SEEDS]
    assert api.post("/interpolate", walk(), headers={"accept": "application/json"}).json()["seeds"] is None


def test_a_webp_is_a_still_unless_an_animation_is_asked_for(api: Api) -> None:
    assert picture(api.post("/interpolate", walk(), headers={"accept": "image/webp"})).shape[:2] == (28, 208)


# --- refusals -----------------------------------------------------------------------------------------------------------------


def test_2_to_16_anchors_are_allowed(api: Api) -> None:
    assert len(images_of(api, walk(seeds=list(range(16)), steps=0))) == 16
    for count in (0, 1, 17):
        assert pointers(refusal(api.post("/interpolate", walk(seeds=list(range(count)))), 422)) == ["/anchors"]


def test_256_frames_are_allowed_and_more_are_refused_with_their_number(api: Api) -> None:
    assert len(images_of(api, walk(seeds=[1, 2], steps=254))) == 256
    problem = refusal(api.post("/interpolate", walk(seeds=[1, 2], steps=255)), 422)
    assert "2 anchors with 255 steps are 257 frames; at most 256 are allowed" in problem["detail"]
    assert "271 frames" in refusal(api.post("/interpolate", walk(seeds=list(range(16)), steps=17)), 422)["detail"]


@pytest.mark.parametrize("steps", [-1, 257, 1.0, True, "3"])
def test_another_number_of_steps_is_refused(api: Api, steps: object) -> None:
    assert pointers(refusal(api.post("/interpolate", walk() | {"steps": steps}), 422)) == ["/steps"]


@pytest.mark.parametrize(
    ("anchor", "pointer"),
    [
        ({"seed": 1, "latent": [0.0] * 128}, "/anchors/1"),
        ({}, "/anchors/1"),
        ({"seed": None}, "/anchors/1"),
        ({"seed": -1}, "/anchors/1/seed"),
        ({"seed": 2**32}, "/anchors/1/seed"),
        ({"seed": 1.5}, "/anchors/1/seed"),
        ({"latent": [0.0] * 127}, "/anchors/1/latent"),
        ({"latent": []}, "/anchors/1/latent"),
        ({"latent": [[0.0] * 128]}, "/anchors/1/latent"),
        ({"latent": [0.0] * 127 + ["0"]}, "/anchors/1/latent/127"),
        ({"latent": [0.0] * 127 + [1e9]}, "/anchors/1/latent/127"),
        ({"latents": [0.0] * 128}, "/anchors/1/latents"),
        (3, "/anchors/1"),
    ],
    ids=str,
)
def test_an_anchor_that_is_none_is_pointed_at(api: Api, anchor: object, pointer: str) -> None:
    body = {"model": "digits", "anchors": [{"seed": 1}, anchor]}
    assert pointers(refusal(api.post("/interpolate", body), 422))[0] == pointer


def test_a_number_that_is_not_finite_is_pointed_at(api: Api) -> None:
    for number in (b"NaN", b"-Infinity", b"1e400"):
        content = b'{"model": "critic", "anchors": [{"seed": 1}, {"latent": [0, 0, 0, 0, 0, 0, 0, ' + number + b"]}]}"
        problem = refusal(api.post("/interpolate", content=content, headers={"content-type": "application/json"}), 422)
        assert pointers(problem) == ["/anchors/1/latent/7"]


def test_an_unknown_field_of_an_anchor_names_the_nearest_one(api: Api) -> None:
    problem = refusal(api.post("/interpolate", {"model": "digits", "anchors": [{"seed": 1}, {"sed": 2}]}), 422)
    assert pointers(problem) == ["/anchors/1/sed"]
    assert "did you mean 'seed'?" in problem["detail"]


@pytest.mark.parametrize(
    ("accept", "more", "pointer"),
    [
        ("image/png", {"layout": "strip", "columns": 2}, "/columns"),
        ("image/gif", {"layout": "animation", "columns": 2}, "/columns"),
        ("application/zip", {"columns": 2}, "/columns"),
        ("image/png", {"frames_per_second": 5}, "/frames_per_second"),
        ("image/webp", {"frames_per_second": 5}, "/frames_per_second"),
        ("application/zip", {"frames_per_second": 5}, "/frames_per_second"),
        ("image/gif", {"return_latents": True}, "/return_latents"),
        ("image/gif", {"frames_per_second": 51}, "/frames_per_second"),
        ("image/gif", {"frames_per_second": 0.5}, "/frames_per_second"),
        ("image/png", {"layout": "spiral"}, "/layout"),
        ("image/png", {"method": "bezier"}, "/method"),
    ],
    ids=str,
)
def test_a_field_without_effect_is_refused(api: Api, accept: str, more: dict[str, object], pointer: str) -> None:
    assert pointers(refusal(api.post("/interpolate", walk(**more), headers={"accept": accept}), 422)) == [pointer]


def test_a_form_that_a_layout_cannot_have_is_refused_with_those_it_can(api: Api) -> None:
    png = refusal(api.post("/interpolate", walk(layout="animation"), headers={"accept": "image/png"}), 406)
    assert "this route can make image/gif, image/webp" in png["detail"]
    gif = refusal(api.post("/interpolate", walk(layout="grid"), headers={"accept": "image/gif"}), 406)
    assert "image/gif" not in gif["detail"].split(";")[1]


def test_an_unknown_model_or_version_is_refused_as_everywhere(api: Api) -> None:
    assert refusal(api.post("/interpolate", walk("digit")), 404)["type"] == "/problems/unknown-model"
    assert refusal(api.post("/interpolate", walk(version="best")), 404)["type"] == "/problems/unknown-version"
