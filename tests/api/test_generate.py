"""POST /generate: forms of the answer, seeds, latents, labels, and everything that is refused."""

import io
import json
import zipfile
from collections.abc import AsyncIterator

import numpy as np
import pytest
from api_client import Api, Pixels, cells, picture, pointers, refusal, singles
from PIL import Image

pytest_plugins = ["api_fixtures"]
LOSSLESS = ["image/png", "application/zip", "application/json", "application/x-npy"]
LAST_SEED = 2**32 - 1
JSON_TYPE = {"content-type": "application/json"}


# --- forms --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "size"), [("digits", 28), ("colour", 16)])
@pytest.mark.parametrize("form", LOSSLESS[1:])
def test_single_images_have_the_pixels_of_the_grid(api: Api, model: str, size: int, form: str) -> None:
    body = {"model": model, "num_images": 5, "seed": 3}
    grid = picture(api.post("/generate", body))
    response = api.post("/generate", body, headers={"accept": form})
    assert response.headers["content-type"] == form
    assert np.array_equal(singles(response), cells(grid, 5, 3, size))


@pytest.mark.parametrize("model", ["digits", "colour"])
@pytest.mark.parametrize("form", ["image/jpeg", "image/webp"])
def test_a_lossy_picture_is_near_the_png(api: Api, model: str, form: str) -> None:
    body = {"model": model, "num_images": 5, "seed": 3}
    grid, response = api.post("/generate", body), api.post("/generate", body, headers={"accept": form})
    assert response.headers["content-type"] == form
    image = Image.open(io.BytesIO(response.content))
    assert f"image/{image.format.lower()}" == form if image.format else False
    exact = np.asarray(Image.open(io.BytesIO(grid.content)).convert("RGB")).astype(int)
    assert image.size == exact.shape[1::-1]
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - exact)
    assert difference.mean() < 16, "a noisy picture of few pixels loses more than a photograph"


def test_without_a_wish_the_answer_is_a_png_grid_of_16(api: Api) -> None:
    request = api.build("POST", "/generate", json={"model": "digits", "seed": 1})
    del request.headers["accept"]
    response = api.send(request)
    assert response.headers["content-type"] == "image/png"
    assert picture(response).shape == (118, 118)
    assert np.array_equal(picture(response), picture(api.post("/generate", {"model": "digits", "seed": 1}, headers={"accept": "*/*"})))


def test_headers_name_the_model_its_version_and_the_first_seed(api: Api) -> None:
    for form in ("image/png", "image/webp", "application/x-npy", "application/json"):
        response = api.post("/generate", {"model": "digits", "seed": 12, "num_images": 2}, headers={"accept": form})
        assert [response.headers[f"X-{name}"] for name in ("Model", "Version", "Seed")] == ["digits", "1", "12"]


def test_a_png_carries_what_made_it(api: Api) -> None:
    body = {"model": "digits", "seed": 12, "num_images": 2, "columns": 1, "truncation": 0.5}
    text = Image.open(io.BytesIO(api.post("/generate", body).content)).text
    assert text["Software"] == "ganserve"
    assert (text["model"], text["version"], text["seed"]) == ("digits", "1", "12")
    assert json.loads(text["request"]) == body


def test_a_zip_holds_a_png_a_seed_and_each_carries_its_own(api: Api) -> None:
    response = api.post("/generate", {"model": "digits", "seed": 9, "num_images": 3}, headers={"accept": "application/zip"})
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.namelist() == ["digits-1-seed-9.png", "digits-1-seed-10.png", "digits-1-seed-11.png"]
    texts = [Image.open(io.BytesIO(archive.read(name))).text for name in archive.namelist()]
    assert [text["seed"] for text in texts] == ["9", "10", "11"]


def test_json_holds_every_seed_and_no_latents_unless_asked(api: Api) -> None:
    answer = api.post("/generate", {"model": "digits", "seed": 9, "num_images": 3}, headers={"accept": "application/json"}).json()
    assert (answer["model"], answer["version"], answer["seeds"]) == ("digits", 1, [9, 10, 11])
    assert len(answer["images"]) == 3
    assert "latents" not in answer


def test_npy_has_a_channel_axis_for_grey_too(api: Api) -> None:
    for model, shape in (("digits", (2, 28, 28, 1)), ("colour", (2, 16, 16, 3))):
        response = api.post("/generate", {"model": model, "num_images": 2}, headers={"accept": "application/x-npy"})
        array = np.load(io.BytesIO(response.content), allow_pickle=False)
        assert (array.shape, array.dtype) == (shape, np.uint8)


def test_a_form_that_cannot_be_made_is_refused_with_those_that_can(api: Api) -> None:
    problem = refusal(api.post("/generate", {"model": "digits"}, headers={"accept": "image/gif, video/mp4"}), 406)
    assert "image/gif, video/mp4" in problem["detail"]
    for form in (*LOSSLESS, "image/jpeg", "image/webp"):
        assert form in problem["detail"]


# --- how many, and from which seed --------------------------------------------------------------------------------------------


def test_1_and_256_images_are_made_and_each_has_the_pixels_of_its_seed(api: Api) -> None:
    many = singles(api.post("/generate", {"model": "digits", "num_images": 256, "seed": 40}, headers={"accept": "application/x-npy"}))
    assert many.shape == (256, 28, 28)
    assert len({image.tobytes() for image in many}) == 256
    for index in (0, 1, 15, 16, 63, 64, 255):
        alone = picture(api.post("/generate", {"model": "digits", "num_images": 1, "seed": 40 + index}))
        assert np.array_equal(alone, many[index]), index


@pytest.mark.parametrize("num_images", [0, -1, 257, 10**30])
def test_another_number_of_images_is_refused(api: Api, num_images: int) -> None:
    assert pointers(refusal(api.post("/generate", {"model": "digits", "num_images": num_images}), 422)) == ["/num_images"]


def test_a_seed_that_was_left_out_is_told_and_gives_the_same_again(api: Api) -> None:
    first, second = (api.post("/generate", {"model": "digits", "num_images": 4}) for _ in range(2))
    assert first.headers["X-Seed"] != second.headers["X-Seed"]
    again = api.post("/generate", {"model": "digits", "num_images": 4, "seed": int(first.headers["X-Seed"])})
    assert np.array_equal(picture(again), picture(first))


def test_the_last_seed_is_allowed_and_nothing_behind_it(api: Api) -> None:
    assert picture(api.post("/generate", {"model": "digits", "num_images": 2, "seed": LAST_SEED - 1})).shape == (28, 58)
    problem = refusal(api.post("/generate", {"model": "digits", "num_images": 2, "seed": LAST_SEED}), 422)
    assert pointers(problem) == ["/seed"]
    assert str(LAST_SEED) in problem["detail"]
    for seed in (-1, LAST_SEED + 1):
        assert pointers(refusal(api.post("/generate", {"model": "digits", "num_images": 1, "seed": seed}), 422)) == ["/seed"]


def test_columns_lay_the_grid_out(api: Api) -> None:
    body = {"model": "digits", "num_images": 6, "seed": 0}
    alone = singles(api.post("/generate", body, headers={"accept": "application/x-npy"}))
    for columns, used, shape in ((1, 1, (178, 28)), (4, 4, (58, 118)), (256, 6, (28, 178))):
        grid = picture(api.post("/generate", body | {"columns": columns}))
        assert grid.shape == shape
        assert np.array_equal(cells(grid, 6, used, 28), alone)


# --- latents, truncation, labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["digits", "colour"])
def test_the_latents_that_were_told_give_the_same_images_bit_for_bit(api: Api, model: str) -> None:
    accept = {"accept": "application/json"}
    told = api.post("/generate", {"model": model, "num_images": 3, "seed": 21, "return_latents": True}, headers=accept)
    latents = told.json()["latents"]["latent"]
    again = api.post("/generate", {"model": model, "num_images": 3, "latents": latents, "return_latents": True}, headers=accept)
    assert np.array_equal(singles(again), singles(told))
    assert again.json()["latents"]["latent"] == latents
    assert again.json()["seeds"] is None
    assert "X-Seed" not in again.headers
    zipped = api.post("/generate", {"model": model, "num_images": 3, "latents": latents}, headers={"accept": "application/zip"})
    assert zipfile.ZipFile(io.BytesIO(zipped.content)).namelist() == [f"{model}-1-{index:03}.png" for index in range(3)]


def test_truncation_0_gives_one_image_and_1_changes_nothing(api: Api) -> None:
    body = {"model": "digits", "num_images": 4, "seed": 5}
    as_it_is, whole, half, none = (
        singles(api.post("/generate", body | more, headers={"accept": "application/x-npy"}))
        for more in ({}, {"truncation": 1}, {"truncation": 0.5}, {"truncation": 0.0})
    )
    assert np.array_equal(as_it_is, whole)
    assert all(np.array_equal(image, none[0]) for image in none)
    assert not np.array_equal(half, whole)
    assert not np.array_equal(half[0], none[0])


@pytest.mark.parametrize("truncation", [-0.01, 1.01, "0.5", True])
def test_another_truncation_is_refused(api: Api, truncation: object) -> None:
    assert pointers(refusal(api.post("/generate", {"model": "digits", "truncation": truncation}), 422)) == ["/truncation"]


def test_labels_choose_the_class_by_name_index_or_weights(api: Api) -> None:
    def made(labels: list[object]) -> Pixels:
        body = {"model": "labelled", "num_images": 2, "seed": 3, "labels": labels}
        return singles(api.post("/generate", body, headers={"accept": "application/x-npy"}))

    assert np.array_equal(made(["dog"]), made([1]))
    assert np.array_equal(made(["dog"]), made([{"dog": 7}, {"dog": 0.5}]))
    assert np.array_equal(made(["dog", "cat"])[1], made(["cat"])[1])
    assert not np.array_equal(made(["dog"]), made(["fox"]))


def test_a_model_of_classes_wants_labels_and_names_them(api: Api) -> None:
    problem = refusal(api.post("/generate", {"model": "labelled", "num_images": 2}), 422)
    assert pointers(problem) == ["/labels"]
    assert "cat, dog, fox" in problem["detail"]
    unknown = refusal(api.post("/generate", {"model": "labelled", "num_images": 2, "labels": ["cat", "cow"]}), 422)
    assert pointers(unknown) == ["/labels/1"]
    assert "cat, dog, fox" in unknown["detail"]


def test_labels_are_refused_by_a_model_that_takes_none_with_what_it_takes(api: Api) -> None:
    problem = refusal(api.post("/generate", {"model": "digits", "labels": [3]}), 422)
    assert pointers(problem) == ["/labels"]
    assert "this model takes seed, latents, truncation" in problem["detail"]


@pytest.mark.parametrize("form", ["application/zip", "application/json", "application/x-npy"])
def test_columns_are_refused_where_there_is_no_grid(api: Api, form: str) -> None:
    problem = refusal(api.post("/generate", {"model": "digits", "columns": 2}, headers={"accept": form}), 422)
    assert pointers(problem) == ["/columns"]
    assert "image/png" in problem["detail"]


@pytest.mark.parametrize("form", ["image/png", "application/zip"])
def test_latents_cannot_be_told_where_there_is_no_room(api: Api, form: str) -> None:
    problem = refusal(api.post("/generate", {"model": "digits", "return_latents": True}, headers={"accept": form}), 422)
    assert pointers(problem) == ["/return_latents"]
    assert "application/json" in problem["detail"]
    assert api.post("/generate", {"model": "digits", "return_latents": False}, headers={"accept": form}).status_code == 200


@pytest.mark.parametrize(
    ("latents", "pointer"),
    [
        ([[0.0] * 8], "/latents"),
        ([[0.0] * 8, [0.0] * 7], "/latents/1"),
        ([[0.0] * 8, [0.0] * 7 + ["x"]], "/latents/1/7"),
        ([[0.0] * 8, [0.0] * 7 + [101.0]], "/latents/1/7"),
        ([[0.0] * 8, [0.0] * 7 + [True]], "/latents/1/7"),
        ([[0.0] * 8, [0.0] * 7 + [[0.0]]], "/latents/1/7"),
        ([[0.0] * 8, 5], "/latents/1"),
        ([], "/latents"),
        ({"latent": []}, "/latents"),
        ("zeros", "/latents"),
    ],
)
def test_latents_of_another_shape_are_refused_where_they_differ(api: Api, latents: object, pointer: str) -> None:
    assert pointers(refusal(api.post("/generate", {"model": "critic", "num_images": 2, "latents": latents}), 422)) == [pointer]


def test_a_seed_and_latents_together_are_refused(api: Api) -> None:
    body = {"model": "critic", "num_images": 1, "latents": [[0.0] * 8], "seed": 1}
    assert pointers(refusal(api.post("/generate", body), 422)) == ["/latents"]


# --- names --------------------------------------------------------------------------------------------------------------------


def test_an_unknown_model_lists_the_known_ones_and_the_nearest(api: Api) -> None:
    problem = refusal(api.post("/generate", {"model": "digit"}), 404)
    assert problem["type"] == "/problems/unknown-model"
    assert problem["instance"] == "/generate"
    assert "'digit'; there are: blind, colour, critic, digits, labelled; did you mean 'digits'?" in problem["detail"]
    assert "did you mean" not in refusal(api.post("/generate", {"model": "zebra"}), 404)["detail"]


@pytest.mark.parametrize("model", ["../digits", "digits/1", "..", "/etc/passwd", "di\x00gits", "digits ", "DIGITS", "digits\u202e", "."])
def test_a_name_is_never_a_path(api: Api, model: str) -> None:
    assert refusal(api.post("/generate", {"model": model}), 404)["type"] == "/problems/unknown-model"


def test_an_unknown_version_lists_the_known_ones(api: Api) -> None:
    for version in (2, "2", "production", "9" * 63):
        problem = refusal(api.post("/generate", {"model": "digits", "version": version}), 404)
        assert problem["type"] == "/problems/unknown-version"
        assert "versions: 1; aliases: none" in problem["detail"]
    for version in (0, -1, 1.0, True, "", "9" * 64, [1]):
        problem = refusal(api.post("/generate", {"model": "digits", "version": version}), 422)
        assert pointers(problem) == ["/version"], problem


def test_an_unknown_field_names_the_nearest_one(api: Api) -> None:
    problem = refusal(api.post("/generate", {"model": "digits", "num_image": 2, "x": 1}), 422)
    assert pointers(problem) == ["/num_image", "/x"]
    assert "num_image: unknown field; did you mean 'num_images'?" in problem["detail"]
    assert "num_images, seed, latents" in problem["errors"][1]["message"]


# --- bodies that are no request -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model": "digits", "truncation": NaN}', 422),
        (b'{"model": "digits", "truncation": Infinity}', 422),
        (b'{"model": "digits", "truncation": -Infinity}', 422),
        (b'{"model": "digits", "truncation": 1e400}', 422),
        (b'{"model": "digits", "seed": NaN}', 422),
        (b'{"model": "digits", "seed": true}', 422),
        (b'{"model": "digits", "seed": "4"}', 422),
        (b'{"model": "digits", "seed": 4.0}', 422),
        (b'{"model": "digits", "num_images": 4.0}', 422),
        (b'{"model": "digits", "return_latents": 1}', 422),
        (b'{"model": "digits", "seed": ' + b"9" * 4000 + b"}", 422),
        (b'{"model": "digits", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "critic", "num_images": 1, "latents": [[NaN, 0, 0, 0, 0, 0, 0, 0]]}', 422),
        (b'{"model": "critic", "num_images": 1, "latents": [[1e400, 0, 0, 0, 0, 0, 0, 0]]}', 422),
        (b'{"model": "labelled", "num_images": 1, "labels": [{"cat": NaN}]}', 422),
        (b'{"model": "labelled", "num_images": 1, "labels": [{"cat": 1e308, "dog": 1e308}]}', 422),
        (b'{"model": "labelled", "num_images": 1, "labels": [{"cat": -1}]}', 422),
        (b'{"model": "labelled", "num_images": 1, "labels": [true]}', 422),
        (b'{"model": "labelled", "num_images": 1, "labels": ["\\ud800"]}', 422),
        (b'{"model": "labelled", "num_images": 1, "labels": [{"\\ud800": 1}]}', 422),
        (b'{"model": "\\ud800"}', 422),
        (b'{"model": "digits", "\\ud800": 1}', 422),
        (b'{"model": "digits", "a/b~c": 1}', 422),
        (b'{"model": ""}', 422),
        (b'{"model": 7}', 422),
        (b"{}", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"digits"', 422),
        (b"", 422),
        (b'{"model": "digits"', 422),
        (b"model=digits", 422),
        (b'{"model": "digits"} {}', 422),
        (b'{"model": "dig\x00its"}', 422),
        (b'{"model": "digits\xff"}', 400),
        ('{"model": "ï"}'.encode("latin-1"), 400),
        (b"[" * 100_000, 400),
        (b'{"model": "digits", "latents": ' + b"[" * 900 + b"]" * 900 + b"}", 422),
        (b'{"a":' * 50_000, 400),
    ],
    ids=lambda value: value[:60].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_a_body_that_is_no_request_is_refused_and_never_a_bug(api: Api, content: bytes, status: int) -> None:
    problem = refusal(api.post("/generate", content=content, headers=JSON_TYPE), status)
    assert len(problem["detail"]) < 1000


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "//", ""])
def test_a_body_that_does_not_say_it_is_json_is_refused(api: Api, content_type: str) -> None:
    # what a form on another site's page can send without asking
    problem = refusal(api.post("/generate", content=b'{"model": "digits"}', headers={"content-type": content_type}), 415)
    assert "application/json is allowed" in problem["detail"]
    assert content_type in problem["detail"]


def test_a_body_without_a_content_type_is_refused(api: Api) -> None:
    request = api.build("POST", "/generate", content=b'{"model": "digits"}')
    assert "content-type" not in request.headers
    assert "of no stated type" in refusal(api.send(request), 415)["detail"]


def test_json_with_a_charset_or_of_a_kind_is_json(api: Api) -> None:
    for content_type in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"):
        assert api.post("/generate", content=b'{"model": "digits"}', headers={"content-type": content_type}).status_code == 200


# --- bodies that are too large ------------------------------------------------------------------------------------------------

LIMITS = [("/generate", 16 * 2**20), ("/interpolate", 16 * 2**20), ("/discriminate", 64 * 2**20), ("/train", 2**20)]


@pytest.mark.parametrize(("path", "limit"), LIMITS)
def test_a_body_that_says_it_is_too_large_is_refused(api: Api, path: str, limit: int) -> None:
    headers = JSON_TYPE | {"content-length": str(limit + 1)}
    problem = refusal(api.post(path, content=b"{}", headers=headers), 413)
    assert str(limit) in problem["detail"]
    assert str(limit + 1) in problem["detail"]


async def _endless(begin: bytes = b"") -> AsyncIterator[bytes]:
    yield begin
    while True:
        yield b" " * 2**20


@pytest.mark.parametrize(("path", "limit"), LIMITS)
def test_a_body_that_does_not_end_is_refused(api: Api, path: str, limit: int) -> None:
    problem = refusal(api.post(path, content=_endless(), headers=JSON_TYPE), 413)
    assert str(limit) in problem["detail"]


def test_a_form_that_does_not_end_is_refused(api: Api) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    begin = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    assert str(64 * 2**20) in refusal(api.post("/discriminate", content=_endless(begin), headers=headers), 413)["detail"]


def test_without_a_number_there_are_as_many_images_as_latents(api: Api) -> None:
    made = api.post("/generate", json={"model": "digits", "latents": [[0.0] * 128] * 3}, headers={"Accept": "application/json"})
    assert len(made.json()["images"]) == 3
