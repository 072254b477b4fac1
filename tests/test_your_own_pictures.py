"""docs/your-own-pictures.md with a tiny budget: from a ZIP of 2,000 pictures to a model that answers, over HTTP alone."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
from api_client import Pixels, cells, frames, picture, refusal
from PIL import Image, ImageDraw
from servers import Server

SIZE = 16
SHAPES = ("circle", "cross", "square")
NUM_EACH = 665
SECONDS = 120
TINY = {
    "name": "shapes",
    "architecture": "dcgan",
    "dataset": "shapes",
    "options": {"latent_size": 16, "generator_width": 8, "discriminator_width": 8},
    "diff_augment": ["color", "translation"],
    "total_images": 4800,
    "sample_images": 1600,
    "num_evaluated": 64,
}
Start = Callable[..., Server]


# --- the pictures -------------------------------------------------------------------------------------------------------------


def shape(kind: str, random: np.random.Generator) -> Image.Image:
    """A coloured shape somewhere on a dark ground, with noise; no two are alike."""
    image = Image.new("RGB", (24, 20), (30, 30, 40))
    left, top, size = (int(random.integers(*bounds)) for bounds in ((3, 9), (1, 7), (8, 13)))
    box, colour = (left, top, left + size, top + size), tuple(int(value) for value in random.integers(90, 256, 3))
    draw = ImageDraw.Draw(image)
    if kind == "circle":
        draw.ellipse(box, colour)
    elif kind == "square":
        draw.rectangle(box, colour)
    else:
        draw.line(box, colour, 3)
        draw.line((box[0], box[3], box[2], box[1]), colour, 3)
    return Image.fromarray((np.asarray(image) + random.integers(0, 20, (20, 24, 3))).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def odd_ones() -> Iterator[tuple[str, bytes]]:
    """Five pictures in forms that folders of pictures have, in the order of their names; the half above is bright once they are upright."""
    upright = Image.new("RGB", (SIZE, SIZE), "black")
    upright.paste((0, 200, 0), (0, 0, SIZE, SIZE // 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn a quarter, clockwise
    yield "odd/a-turned.JPG", saved(upright.rotate(90), "JPEG", exif=exif, quality=95)
    yield "odd/b-palette.png", saved(upright.quantize(4))
    yield "odd/c-large.bmp", saved(upright.resize((300, 200), Image.Resampling.NEAREST), "BMP")
    clear = upright.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, SIZE, SIZE // 2))
    yield "odd/d-clear.webp", saved(clear, "WEBP", lossless=True)
    yield "odd/e-grey.png", saved(upright.convert("L"))


def archive() -> bytes:
    """2,000 pictures, one of them twice, and what else lies in such a folder."""
    random, file = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for kind in SHAPES:
            for number in range(NUM_EACH):
                content = saved(shape(kind, random), compress_level=1)
                made.writestr(f"shapes/{kind}/{number:04}.png", content)
        for name, odd in odd_ones():
            made.writestr(f"shapes/{name}", odd)
        made.writestr("shapes/square/0000 (copy).png", content)
        made.writestr("shapes/cross/damaged.png", content[: len(content) // 2])
        made.writestr("shapes/notes.txt", "where these came from")
        made.writestr("__MACOSX/shapes/cross/._0000.png", b"what a system left behind")
    return file.getvalue()


# --- the way ------------------------------------------------------------------------------------------------------------------


def add(client: httpx.Client) -> dict[str, Any]:
    """The set as it is listed once it is ready."""
    answer = client.post(
        "/datasets",
        params={"name": "shapes", "size": SIZE, "licence": "CC0-1.0"},
        content=archive(),
        headers={"Content-Type": "application/zip"},
    )
    assert (answer.status_code, answer.headers.get("location")) == (202, "/datasets/shapes"), answer.text
    until = time.monotonic() + SECONDS
    while (found := client.get("/datasets/shapes").json())["state"] == "importing":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert found["state"] == "ready", found["message"]
    return dict(found)


def events(client: httpx.Client, job: str) -> list[tuple[int | None, str, dict[str, Any]]]:
    """Number, kind and data of each, until the server ends the stream."""
    heard = []
    with client.stream("GET", f"/jobs/{job}/events", timeout=SECONDS) as response:
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                heard.append((int(fields["id"]) if "id" in fields else None, fields["event"], json.loads(fields["data"])))
                fields = {}
    return heard


def test_a_zip_of_two_thousand_pictures_becomes_a_dcgan_that_answers(start: Start) -> None:
    with httpx.Client(base_url=start().url, timeout=60) as client:
        card = add(client)["card"]
        the_card_says_what_became_of_every_file(card)
        the_sheet_shows_every_class_and_the_odd_ones_upright(client)
        job = train_once(client)
        assert client.get("/datasets/shapes").json()["used_by"] == [job]
        assert f"is used by {job}" in refusal(client.delete("/datasets/shapes"), 409)["detail"]
        the_events_lead_to_a_version(client, job)
        what_was_written_meanwhile_can_be_looked_at(client, job)
        the_model_answers(client, job, card["content_sha256"])
        assert client.delete("/datasets/shapes").status_code == 204
        refusal(client.get("/datasets/shapes"), 404)
        assert client.post("/generate", json={"model": "shapes", "num_images": 1}).status_code == 200, "the model stays"


def the_card_says_what_became_of_every_file(card: dict[str, Any]) -> None:
    assert (card["num_images"], card["shape"], card["num_duplicates"]) == (2001, [3, SIZE, SIZE], 1)
    assert dict(zip(card["class_names"], card["class_counts"], strict=True)) == {"circle": 665, "cross": 665, "odd": 5, "square": 666}
    assert card["original_sizes"] == {"smallest": [16, 16], "median": [24, 20], "largest": [300, 200]}
    assert card["licence"] == "CC0-1.0"
    reasons = sorted(card["skipped"])
    assert [reason.split(": ")[0] for reason in reasons] == ["__MACOSX", "cross/damaged.png", "notes.txt"]
    assert "damaged or cut off" in reasons[1]
    assert "no picture" in reasons[2]


def the_sheet_shows_every_class_and_the_odd_ones_upright(client: httpx.Client) -> None:
    assert picture(client.get("/datasets/shapes/sheet.png?num_images=24")).ndim == 3
    odd = cells(picture(client.get("/datasets/shapes/sheet.png?label=odd")), 5, 8, SIZE)
    green, white, grey = (0, 200, 0), (255, 255, 255), (117, 117, 117)
    above = odd[:, 2:6].mean(axis=(1, 2))
    assert np.abs(above - [green, green, green, white, grey]).max() < 6
    assert odd[:, -6:-2].max() < 12, "below all are black"


def train_once(client: httpx.Client) -> str:
    """The job's id; asked for twice, since a client cannot know whether the first request was heard."""
    answers = [client.post("/train", json=TINY, headers={"Idempotency-Key": "shapes, first try"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202], answers[0].text
    (id,) = {answer.json()["id"] for answer in answers}
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == [id]
    return str(id)


def the_events_lead_to_a_version(client: httpx.Client, job: str) -> None:
    heard = events(client, job)
    numbered = [(number, kind, data) for number, kind, data in heard if number is not None]
    assert [number for number, _, _ in numbered] == list(range(1, len(numbered) + 1))
    states = [data["state"] for _, kind, data in numbered if kind == "state"]
    assert (states[0], states[-1]) == ("queued", "succeeded"), numbered[-1]
    assert (numbered[-1][2]["model"], numbered[-1][2]["version"]) == ("shapes", 1)
    assert {kind for _, kind, _ in numbered} >= {"state", "metrics", "sample"}
    assert heard[-1][1] == "end"
    assert events(client, job) == [event for event in heard if event[1] != "progress"], "who comes later hears the same"


def what_was_written_meanwhile_can_be_looked_at(client: httpx.Client, job: str) -> None:
    status = client.get(f"/jobs/{job}").json()
    assert (status["state"], status["progress"]["percent"]) == ("succeeded", 100)
    measured = client.get(f"/jobs/{job}/metrics").json()
    assert measured["metrics"][-1]["images"] == 4800
    assert any("kid_efficientnet_lite0" in line["evaluation"] for line in measured["metrics"])
    grids = [picture(client.get(f"/jobs/{job}/samples/{images}.png")) for images in measured["samples"]]
    assert measured["samples"][-1] == 4800
    assert np.array_equal(grids[-1], picture(client.get(f"/jobs/{job}/samples.png")))
    assert len(frames(client.get(f"/jobs/{job}/progress.gif"))) == len(grids) > 2
    assert picture(client.get(f"/jobs/{job}/summary.png")).size
    assert "shapes version 1" in client.get(f"/jobs/{job}/log").text


def the_model_answers(client: httpx.Client, job: str, content: str) -> None:
    def generated(seed: int) -> Pixels:
        return picture(client.post("/generate", json={"model": "shapes", "num_images": 4, "seed": seed}))

    assert generated(5).shape == (2 * SIZE + 2, 2 * SIZE + 2, 3)
    assert np.array_equal(generated(5), generated(5))
    assert not np.array_equal(generated(5), generated(9))
    walk = client.post("/interpolate", json={"model": "shapes", "anchors": [{"seed": 5}, {"seed": 6}], "steps": 4})
    assert picture(walk).shape[0] == SIZE
    files = [("files", (name, pixels)) for name, pixels in odd_ones()]
    scores = client.post("/discriminate", data={"model": "shapes"}, files=files).json()["scores"]
    assert [score["file"] for score in scores] == [name for name, _ in odd_ones()]
    assert all(0 <= score[which] <= 100 for score in scores for which in ("percentile_real", "percentile_generated"))
    manifest = client.get("/models/shapes/1").json()["manifest"]
    assert (manifest["dataset"]["content_sha256"], manifest["dataset"]["num_images"]) == (content, 2001)
    told = client.get("/models/shapes/1/card").text
    assert "dcgan" in told
    assert "CC0-1.0" in told
    assert picture(client.get("/models/shapes/latest/samples.png")).ndim == 3
