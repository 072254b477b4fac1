"""POST /discriminate: scores, what they mean, and pictures of every kind."""

import base64
import io
import math
import struct
import zlib

import numpy as np
import pytest
from api_client import Api, Pixels, picture, png, pointers, refusal, singles
from PIL import Image

pytest_plugins = ["api_fixtures"]
ORIENTATION = 0x0112
UNDONE_BY = {  # what turns an upright picture into one that this orientation makes upright again
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
File = tuple[str, tuple[str, bytes]]


def file(content: bytes, name: str = "picture.png") -> File:
    return ("files", (name, content))


def scores(api: Api, files: list[File], model: str = "digits") -> list[dict[str, float]]:
    response = api.post("/discriminate", data={"model": model}, files=files)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["model"], answer["version"]) == (model, 1)
    found: list[dict[str, float]] = answer["scores"]
    return found


@pytest.fixture(scope="module")
def digits(api: Api) -> Pixels:
    """64 generated images, (64, 28, 28)."""
    return singles(api.post("/generate", {"model": "digits", "num_images": 64, "seed": 0}, headers={"accept": "application/x-npy"}))


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# --- scores -------------------------------------------------------------------------------------------------------------------


def test_multipart_and_json_give_the_same_scores_in_the_order_of_the_files(api: Api, digits: Pixels) -> None:
    contents = [png(image) for image in digits[:5]]
    form = scores(api, [file(content, f"{index}.png") for index, content in enumerate(contents)])
    body = {"model": "digits", "images": [base64.b64encode(content).decode() for content in contents]}
    answer = api.post("/discriminate", body).json()["scores"]
    assert [score["file"] for score in form] == [f"{index}.png" for index in range(5)]
    assert [score["file"] for score in answer] == [f"images[{index}]" for index in range(5)]
    assert [score["score"] for score in form] == [score["score"] for score in answer]
    assert len({score["score"] for score in form}) == 5


def test_the_images_of_the_json_answer_of_generate_can_be_sent_as_they_are(api: Api) -> None:
    made = api.post("/generate", {"model": "colour", "num_images": 3}, headers={"accept": "application/json"}).json()
    assert len(api.post("/discriminate", {"model": "colour", "images": made["images"]}).json()["scores"]) == 3


def test_a_logit_has_its_sigmoid_as_probability(api: Api, digits: Pixels) -> None:
    for model in ("digits", "colour", "labelled"):
        for score in scores(api, [file(png(image)) for image in digits[:8]], model):
            assert math.isclose(score["probability"], 1 / (1 + math.exp(-score["score"])), rel_tol=1e-9)


def test_a_critic_has_no_probability(api: Api, digits: Pixels) -> None:
    [score] = scores(api, [file(png(digits[0]))], "critic")
    assert score["probability"] is None
    assert score["percentile_real"] is not None


def test_percentiles_lie_within_0_and_100_and_rise_with_the_score(api: Api, digits: Pixels) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    found = scores(api, [file(png(image)) for image in (*digits[:30], *noise)])
    found.sort(key=lambda score: score["score"])
    for key in ("percentile_real", "percentile_generated"):
        values = [score[key] for score in found]
        assert values == sorted(values)
        assert 0 <= values[0] < values[-1] <= 100


@pytest.mark.parametrize("model", ["digits", "critic"])
def test_percentiles_are_the_shares_of_the_references_that_score_lower(api: Api, digits: Pixels, model: str) -> None:
    reference = api.get(f"/models/{model}/1").json()["manifest"]["score_reference"]
    assert reference["real"] != reference["generated"]
    for score in scores(api, [file(png(image)) for image in digits], model):
        for name in ("real", "generated"):
            lower = 100 * np.mean(np.array(reference[name]) < score["score"])
            assert abs(score[f"percentile_{name}"] - lower) <= 100 / len(reference[name]) + 0.1


def test_generated_images_lie_in_the_middle_of_generated_ones_and_noise_does_not(api: Api, digits: Pixels) -> None:
    percentiles = [score["percentile_generated"] for score in scores(api, [file(png(image)) for image in digits])]
    assert 25 < np.mean(percentiles) < 75
    [noise] = scores(api, [file(png(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)))])
    assert noise["percentile_real"] < 5


def test_a_file_has_the_same_bits_alone_and_among_63_others(api: Api, digits: Pixels) -> None:
    contents = [png(image) for image in digits]
    together = [score["score"] for score in scores(api, [file(content) for content in contents])]
    backwards = [score["score"] for score in scores(api, [file(content) for content in contents[::-1]])]
    assert backwards[::-1] == together
    for index in (0, 1, 31, 63):
        assert scores(api, [file(contents[index])])[0]["score"] == together[index]


# --- pictures of every kind ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> Image.Image:
    """A picture of 112 x 112 without hard edges, which every way of scaling keeps, and that looks another way from every side."""
    y, x = np.mgrid[0:112, 0:112] / 111
    return Image.fromarray((255 * np.clip(0.55 * x**2 + 0.35 * y + 0.1 * np.sin(7 * x * y), 0, 1)).astype(np.uint8))


def test_another_side_of_the_picture_scores_otherwise(api: Api, large: Image.Image) -> None:
    # so that the tests below would see a picture that was not turned, or turned too far
    found = scores(api, [file(saved(large)), *(file(saved(large.transpose(method))) for method in Image.Transpose)])
    assert min(abs(score["score"] - found[0]["score"]) for score in found[1:]) > 1


def converted(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA", "PA"):
        with_alpha = image.convert("LA" if mode == "LA" else "RGBA")
        with_alpha.putalpha(255)
        return with_alpha
    return image.convert(mode)


KINDS = "L.PNG L.BMP L.GIF L.JPEG L.WEBP LA.PNG P.PNG P.GIF RGB.PNG RGB.JPEG RGB.WEBP RGBA.PNG RGBA.WEBP CMYK.JPEG YCbCr.JPEG I;16.PNG"


@pytest.mark.parametrize("kind", KINDS.split())
def test_every_mode_and_format_of_one_picture_scores_nearly_the_same(api: Api, large: Image.Image, kind: str) -> None:
    mode, form = kind.split(".")
    options: dict[str, object] = {"quality": 100} if form in ("JPEG", "WEBP") else {}
    [wanted, found] = scores(api, [file(saved(large)), file(saved(converted(large, mode), form, **options))])
    assert abs(found["score"] - wanted["score"]) < 0.25


@pytest.mark.parametrize("orientation", UNDONE_BY)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_of_one_picture_scores_nearly_the_same(api: Api, large: Image.Image, orientation: int, form: str) -> None:
    method = UNDONE_BY[orientation]
    turned = large if method is None else large.transpose(method)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options: dict[str, object] = {} if form == "PNG" else {"quality": 100}
    [wanted, found] = scores(api, [file(saved(large)), file(saved(turned, form, exif=exif, **options))])
    assert abs(found["score"] - wanted["score"]) < 0.25


@pytest.mark.parametrize("size", [(56, 56), (224, 224), (300, 300), (112, 200), (200, 112), (1000, 112)])
def test_any_size_and_proportion_of_one_picture_scores_nearly_the_same(api: Api, large: Image.Image, size: tuple[int, int]) -> None:
    side = min(size)
    canvas = Image.new("L", size, 90)  # what lies beyond the centred square is cropped away
    canvas.paste(large.resize((side, side), Image.Resampling.LANCZOS), ((size[0] - side) // 2, (size[1] - side) // 2))
    [wanted, found] = scores(api, [file(saved(large)), file(saved(canvas))])
    assert abs(found["score"] - wanted["score"]) < 0.4


def test_a_picture_of_one_pixel_and_of_one_bit_are_read(api: Api) -> None:
    found = scores(
        api, [file(saved(Image.new("L", (1, 1), 0))), file(saved(Image.new("1", (28, 28), 0))), file(saved(Image.new("RGB", (3, 90))))]
    )
    assert len({score["score"] for score in found}) == 1, "three black pictures"


def test_transparency_is_laid_over_white(api: Api) -> None:
    clear, white = Image.new("RGBA", (28, 28), (255, 0, 0, 0)), Image.new("L", (28, 28), 255)
    [found, wanted] = scores(api, [file(saved(clear)), file(saved(white))])
    assert found["score"] == wanted["score"]


def test_the_first_frame_of_an_animation_is_read(api: Api, large: Image.Image) -> None:
    moving = saved(large, "GIF", save_all=True, append_images=[Image.new("L", large.size, 255)])
    [wanted, found] = scores(api, [file(saved(large)), file(moving)])
    assert abs(found["score"] - wanted["score"]) < 0.25


def test_a_file_of_many_megabytes_is_read(api: Api) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8)
    content = png(noise)
    assert len(content) > 2 * 2**20
    assert len(scores(api, [file(content)])) == 1


# --- files that are none ------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG of few bytes that says it has side x side pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def foreign(form: str) -> bytes:
    return saved(Image.new("L", (28, 28)), form)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        b"\x89PNG\r\n\x1a\n",
        png(np.zeros((28, 28), np.uint8))[:50],
        saved(Image.radial_gradient("L"), "JPEG")[:800],
        foreign("TIFF"),
        foreign("PPM"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"PK\x03\x04",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_bytes_that_are_no_picture_are_refused_and_the_file_is_named(api: Api, digits: Pixels, content: bytes) -> None:
    files = [file(png(digits[0]), "good.png"), file(content, "bad.png")]
    problem = refusal(api.post("/discriminate", data={"model": "digits"}, files=files), 422)
    assert pointers(problem) == ["/files/1"]
    assert "bad.png: " in problem["detail"]
    assert "PNG, JPEG, WebP, BMP or GIF" in problem["detail"]
    text = base64.b64encode(content).decode()
    answer = refusal(api.post("/discriminate", {"model": "digits", "images": [text]}), 422)
    assert pointers(answer) == ["/images/0"]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(api: Api) -> None:
    for side in (4097, 20_000, 2**31 - 1):
        problem = refusal(api.post("/discriminate", data={"model": "digits"}, files=[file(bomb(side), "bomb.png")]), 413)
        assert problem["type"] == "/problems/image-too-large"
        assert pointers(problem) == ["/files/0"]
        assert f"bomb.png: this picture has {side} x {side} pixels" in problem["detail"]


def test_a_name_of_a_file_cannot_break_the_answer(api: Api) -> None:
    for name in ("../../etc/passwd", "a\u202eb.png", 'quote".png', "ümlaut.png", "x" * 3000, "new\nline.png"):
        response = api.post("/discriminate", data={"model": "digits"}, files=[file(b"no picture", name)])
        refusal(response, 422)
        assert b"\n" not in response.content


def test_what_is_no_base64_is_refused(api: Api) -> None:
    for text in ("!", "data:image/png;base64,AAAA", "AAA", "ä", ""):
        assert pointers(refusal(api.post("/discriminate", {"model": "digits", "images": [text]}), 422)) == ["/images/0"]


# --- other bodies -------------------------------------------------------------------------------------------------------------


def test_1_to_64_files_are_allowed(api: Api, digits: Pixels) -> None:
    contents = [png(image) for image in digits]
    assert len(scores(api, [file(content) for content in contents])) == 64
    many = api.post("/discriminate", data={"model": "digits"}, files=[file(content) for content in (*contents, contents[0])])
    assert "1 to 64 files are allowed, and 65 are given" in refusal(many, 422)["detail"]
    texts = [base64.b64encode(content).decode() for content in (*contents, contents[0])]
    assert pointers(refusal(api.post("/discriminate", {"model": "digits", "images": texts}), 422)) == ["/images"]
    assert pointers(refusal(api.post("/discriminate", {"model": "digits", "images": []}), 422)) == ["/images"]


def test_a_hundred_files_are_refused_too(api: Api) -> None:
    response = api.post("/discriminate", data={"model": "digits"}, files=[file(b"x") for _ in range(100)])
    assert refusal(response, response.status_code)["status"] in (400, 422)


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    """A multipart body of (name, file name or None, content)."""
    lines = b""
    for name, file_name, content in parts:
        of_file = "" if file_name is None else f'; filename="{file_name}"'
        lines += f'--x\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n\r\n'.encode() + content + b"\r\n"
    return lines + b"--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}


PICTURE = png(np.zeros((28, 28), np.uint8))


@pytest.mark.parametrize(
    ("parts", "pointer", "message"),
    [
        ([("model", None, b"digits")], "/files", "1 to 64 files are allowed, and 0 are given"),
        ([("files", "a.png", b"x")], "/model", "one model is wanted, and 0 are given"),
        ([("files", "a.png", b"x"), ("model", None, b"a"), ("model", None, b"b")], "/model", "and 2 are given"),
        ([("files", "a.png", b"x"), ("model", None, b"")], "/model", "at least 1 character"),
        ([("files", "a.png", b"x"), ("model", None, b"m" * 64)], "/model", "at most 63 characters"),
        ([("files", "a.png", b"x"), ("model", "model.txt", b"digits")], "/model", "valid string"),
        ([("files", None, b"text"), ("model", None, b"digits")], "/files", "part 0 is a text field; send it as a file"),
        ([("file", "a.png", b"x"), ("model", None, b"digits")], "/file", "did you mean 'files'?"),
        (
            [("labels", None, b"3"), ("files", "a.png", PICTURE), ("model", None, b"digits")],
            "/labels",
            "the discriminator of digits takes no labels",
        ),
        ([("lobster", None, b"3"), ("files", "a.png", b"x"), ("model", None, b"digits")], "/lobster", "allowed: files, model, version"),
        ([("a/b~", None, b"3")], "/a~1b~0", "unknown field"),
        ([("files", "a.png", b"x"), ("model", None, b"digits"), ("version", None, b"9" * 5000)], "/version", "at most 63"),
        (
            [("files", "a.png", b"x"), ("model", None, b"digits"), ("version", None, b"1"), ("version", None, b"2")],
            "/version",
            "one version",
        ),
    ],
)
def test_a_form_that_is_wrong_is_pointed_at(api: Api, parts: list[tuple[str, str | None, bytes]], pointer: str, message: str) -> None:
    content, headers = form(*parts)
    problem = refusal(api.post("/discriminate", content=content, headers=headers), 422)
    assert pointers(problem) == [pointer]
    assert message in problem["detail"]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"--x", "multipart/form-data; boundary="),
        (b"nothing of the kind", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="mo', "multipart/form-data; boundary=x"),
        (b"--x\r\nno header\r\n\r\n", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + b"m" * 2**21 + b"\r\n--x--", "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--", "multipart/form-data; boundary=x"),
        (b"{", "application/json"),
        (b"", "application/json"),
        (b'{"model": "digits", "images": [NaN]}', "application/json"),
        (b'{"model": "digits", "images": ["\\ud800"]}', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"[]", "application/json"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else repr(value[:30]),
)
def test_a_body_that_is_no_form_is_refused_and_never_a_bug(api: Api, content: bytes, content_type: str) -> None:
    response = api.post("/discriminate", content=content, headers={"content-type": content_type})
    assert refusal(response, response.status_code)["status"] in (400, 422)


def test_another_content_type_is_refused_with_those_that_are_read(api: Api) -> None:
    for headers in ({"content-type": "image/png"}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": ""}):
        problem = refusal(api.post("/discriminate", content=b"model=digits", headers=headers), 415)
        assert "multipart/form-data (field `files`) or application/json" in problem["detail"]


def test_an_unknown_field_of_json_names_the_nearest_one(api: Api) -> None:
    problem = refusal(api.post("/discriminate", {"model": "digits", "image": ["AAAA"], "body": 1}), 422)
    assert set(pointers(problem)) == {"/image", "/images", "/body"}
    assert "did you mean 'images'?" in problem["detail"]


# --- models -------------------------------------------------------------------------------------------------------------------


def test_a_model_without_a_discriminator_is_refused(api: Api) -> None:
    problem = refusal(api.post("/discriminate", data={"model": "blind"}, files=[file(png(np.zeros((8, 8), np.uint8)))]), 422)
    assert "blind version 1 was published without a discriminator" in problem["detail"]


def test_an_unknown_model_or_version_is_refused_as_everywhere(api: Api, digits: Pixels) -> None:
    files = [file(png(digits[0]))]
    assert "did you mean 'digits'?" in refusal(api.post("/discriminate", data={"model": "digit"}, files=files), 404)["detail"]
    for version in ("7", "best", "0"):
        problem = refusal(api.post("/discriminate", data={"model": "digits", "version": version}, files=files), 404)
        assert "versions: 1" in problem["detail"]


def test_a_version_may_be_named_or_left_empty(api: Api, digits: Pixels) -> None:
    found = [
        api.post("/discriminate", data={"model": "digits", **more}, files=[file(png(digits[0]))]).json()
        for more in ({}, {"version": ""}, {"version": "1"})
    ]
    assert found[0] == found[1] == found[2]
    body = {"model": "digits", "images": [base64.b64encode(png(digits[0])).decode()]}
    assert api.post("/discriminate", body | {"version": 1}).json()["scores"][0]["score"] == found[0]["scores"][0]["score"]


def test_a_picture_of_its_own_grid_form_is_read_back_as_it_was(api: Api) -> None:
    alone = api.post("/generate", {"model": "colour", "num_images": 1, "seed": 2})
    assert scores(api, [file(alone.content)], "colour") == scores(api, [file(png(picture(alone)))], "colour")
