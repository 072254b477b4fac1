"""POST /transform: a picture of a picture, its size, its forms, and everything that is refused."""

import asyncio
import base64
import io
from collections.abc import Generator

import httpx
import numpy as np
import pytest
import torch
from api_client import Api, Pixels, picture, png, pointers, refusal
from PIL import Image
from tiny_versions import enlarging, normalising, publish

from app import pixels, tiles
from app.batcher import Batcher
from app.engine import Engine
from app.errors import Overloaded
from app.pictures import MAX_OUTPUT_PIXELS, MAX_WHOLE_PIXELS

pytest_plugins = ["api_fixtures"]


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    drawn: Pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return drawn[..., 0] if channels == 1 else drawn


def ask(api: Api, content: bytes, model: str = "enlarge", accept: str = "image/png", **more: str) -> httpx.Response:
    file = ("file", ("photo.png", content))
    return api.post("/transform", data={"model": model, **more}, files=[file], headers={"accept": accept})


def flat(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def expected(module: torch.nn.Module, image: Pixels) -> Pixels:
    """What the network gives for the whole picture."""
    rows = image[..., np.newaxis] if image.ndim == 2 else image
    with torch.inference_mode():
        made = module(pixels.from_uint8(rows.transpose(2, 0, 1).copy()).unsqueeze(0))[0]
    found: Pixels = pixels.to_uint8(made).permute(1, 2, 0).numpy()
    return found[..., 0] if found.shape[2] == 1 else found


def nearly(found: Pixels, wanted: Pixels) -> bool:
    apart = np.abs(found.astype(int) - wanted.astype(int))
    return found.shape == wanted.shape and bool(apart.max() <= 1 and apart.mean() < 1e-3)


# --- answers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (17, 31), (128, 128), (129, 257), (300, 200)])
def test_a_picture_of_any_size_becomes_what_the_network_makes_of_the_whole(kinds: Api, height: int, width: int) -> None:
    image = noise(height, width)
    made = picture(ask(kinds, png(image)))
    assert made.shape == (2 * height, 2 * width, 3)
    assert nearly(made, expected(enlarging().network, image))


@pytest.mark.parametrize(("model", "side"), [("whole", 200), ("fixed", 8)])
def test_a_picture_that_must_be_seen_whole_is(kinds: Api, model: str, side: int) -> None:
    image = noise(side, side, 1)
    assert nearly(picture(ask(kinds, png(image), model)), expected(normalising().network, image))


def test_multipart_and_json_give_the_same_bytes_each_time(kinds: Api) -> None:
    content = png(noise(150, 140))
    first, second = (ask(kinds, content).content for _ in range(2))
    body = {"model": "enlarge", "version": 1, "image": base64.b64encode(content).decode()}
    assert first == second == kinds.post("/transform", body).content


@pytest.mark.parametrize(("accept", "form"), [("image/jpeg", "JPEG"), ("image/webp", "WEBP"), ("*/*", "PNG")])
def test_accept_chooses_the_form_and_headers_name_the_model(kinds: Api, accept: str, form: str) -> None:
    response = ask(kinds, png(noise(20, 30)), accept=accept, version="1")
    assert Image.open(io.BytesIO(response.content)).format == form
    assert (response.headers["X-Model"], response.headers["X-Version"]) == ("enlarge", "1")
    assert "X-Seed" not in response.headers
    assert picture(response).shape[:2] == (40, 60)


def test_a_png_carries_what_made_it(kinds: Api) -> None:
    text = Image.open(io.BytesIO(ask(kinds, png(noise(4, 4))).content)).text
    assert (text["Software"], text["model"], text["version"]) == ("ganserve", "enlarge", "1")
    assert "seed" not in text


def test_a_picture_is_turned_upright_laid_over_white_and_made_colour(kinds: Api) -> None:
    grey = noise(6, 10, 1)
    colour = picture(ask(kinds, png(np.repeat(grey[..., np.newaxis], 3, 2))))
    exif = Image.Exif()
    exif[0x0112] = 8  # shown a quarter turn to the left
    turned, clear = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.rot90(grey, -1).copy()).save(turned, "PNG", exif=exif)
    Image.new("RGBA", (10, 6), (0, 0, 0, 0)).save(clear, "PNG")
    assert np.array_equal(picture(ask(kinds, png(grey))), colour)
    assert np.array_equal(picture(ask(kinds, turned.getvalue())), colour)
    white = picture(ask(kinds, png(np.full((6, 10), 255, np.uint8))))
    assert np.array_equal(picture(ask(kinds, clear.getvalue())), white)


# --- sizes --------------------------------------------------------------------------------------------------------------------


def test_another_size_than_a_fixed_one_is_refused_with_the_rule(kinds: Api) -> None:
    problem = refusal(ask(kinds, png(noise(60, 80)), "fixed"), 422)
    wanted = "photo.png: this picture is 80 wide and 60 high; width and height must be 8 x 8: crop or resize it, to 8 x 8 say"
    assert problem["detail"] == wanted
    assert pointers(problem) == ["/file"]


@pytest.mark.parametrize(("height", "width", "wanted"), [(60, 81, "80 x 60"), (1, 3, "2 x 2"), (61, 80, "80 x 60")])
def test_sides_that_are_no_multiples_are_refused_with_the_rule(kinds: Api, height: int, width: int, wanted: str) -> None:
    detail = refusal(ask(kinds, png(noise(height, width)), "whole"), 422)["detail"]
    assert "the width must be a multiple of 2 and the height must be a multiple of 2: " in detail
    assert detail.endswith(f"crop or resize it, to {wanted} say")


def test_more_pixels_than_the_answer_may_have_are_refused_with_the_limit(kinds: Api) -> None:
    problem = refusal(ask(kinds, flat(2049, 2048)), 413)
    assert problem["type"] == "/problems/image-too-large"
    assert f"at most {MAX_OUTPUT_PIXELS // 4:,} pixels are allowed, since each side becomes 2 times as long" in problem["detail"]
    assert f"an answer has at most {MAX_OUTPUT_PIXELS:,}" in problem["detail"]


def test_more_pixels_than_can_be_seen_whole_are_refused_with_the_limit(kinds: Api) -> None:
    assert ask(kinds, flat(1024, 1024), "whole").status_code == 200
    detail = refusal(ask(kinds, flat(1026, 1024), "whole"), 413)["detail"]
    assert f"at most {MAX_WHOLE_PIXELS:,} pixels are allowed, since this model must see a picture whole" in detail


# --- refusals -----------------------------------------------------------------------------------------------------------------


def test_a_model_that_takes_something_else_is_refused_with_what_it_takes(kinds: Api) -> None:
    detail = refusal(ask(kinds, png(noise(8, 8)), "classes"), 422)["detail"]
    assert detail.startswith("classes makes images of latent, label, and this route wants a model that takes one picture and nothing else")
    assert detail.endswith("ask /generate for its images")
    assert "latent, image" in refusal(ask(kinds, png(noise(8, 8)), "beside"), 422)["detail"]


def test_other_routes_refuse_a_model_that_makes_pictures_of_pictures(kinds: Api) -> None:
    walk = {"anchors": [{"seed": 1}, {"seed": 2}]}
    for path, more in (("/generate", {}), ("/interpolate", walk)):
        detail = refusal(kinds.post(path, {"model": "enlarge", **more}), 422)["detail"]
        assert detail == "enlarge makes its images of a picture, which this route cannot bring: send it to /transform"
        assert refusal(kinds.post(path, {"model": "beside", **more}), 422)["detail"].endswith("this route cannot bring")


@pytest.mark.parametrize(
    ("files", "data", "pointer", "message"),
    [
        ([], {"model": "enlarge"}, "/file", "one file is wanted, and 0 are given"),
        (["file", "file"], {"model": "enlarge"}, "/file", "one file is wanted, and 2 are given"),
        (["files"], {"model": "enlarge"}, "/files", "unknown field; did you mean 'file'?"),
        (["file"], {}, "/model", "one model is wanted, and 0 are given"),
        (["file"], {"model": "enlarge", "scale": "4"}, "/scale", "unknown field; allowed: file, model, version"),
        ([], {"model": "enlarge", "file": "text"}, "/file", "part 0 is a text field; send it as a file, as `curl -F file=@picture.png`"),
    ],
)
def test_a_form_that_is_wrong_is_pointed_at(kinds: Api, files: list[str], data: dict[str, str], pointer: str, message: str) -> None:
    parts = [(name, ("a.png", png(noise(4, 4)))) for name in files] or [("version", (None, b""))]
    problem = refusal(kinds.post("/transform", data=data, files=parts), 422)
    assert pointers(problem) == [pointer]
    assert message in problem["detail"]


def test_json_that_is_wrong_is_pointed_at(kinds: Api) -> None:
    for image, pointer in (("!", "/image"), (base64.b64encode(b"no picture").decode(), "/image")):
        assert pointers(refusal(kinds.post("/transform", {"model": "enlarge", "image": image}), 422)) == [pointer]
    assert pointers(refusal(kinds.post("/transform", {"model": "enlarge", "images": []}), 422)) == ["/image", "/images"]
    assert "multipart/form-data (field `file`)" in refusal(kinds.post("/transform", content=b"x"), 415)["detail"]


def test_a_form_that_holds_many_images_cannot_be_had(kinds: Api) -> None:
    for accept in ("application/zip", "application/json", "image/gif"):
        assert "image/png, image/jpeg, image/webp" in refusal(ask(kinds, png(noise(4, 4)), accept=accept), 406)["detail"]


# --- in company ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    repository = tmp_path_factory.mktemp("tiles")
    return Engine.load(repository / "enlarge/1", publish(repository, "enlarge", enlarging()), torch.device("cpu"))


LARGE = np.zeros((3, 1024, 1024), np.uint8)
NUM_TILES = 64


def test_others_take_turns_between_the_tiles_of_a_large_picture(engine: Engine) -> None:
    async def main() -> None:
        batcher = Batcher(num_threads=1)
        large = asyncio.create_task(batcher.run_steps(engine.transforming(LARGE), NUM_TILES))
        served = 0
        while not large.done():
            await batcher.submit(engine, "generator", {"image": torch.zeros(1, 3, 8, 8)})
            served += 1
        await batcher.aclose()
        assert large.result().shape == (3, 2048, 2048)
        assert served >= NUM_TILES - 2

    assert len(tiles.plan(engine.manifest.generator.inputs[0], 1024, 1024)) == NUM_TILES
    asyncio.run(main())


def test_two_large_pictures_take_turns(engine: Engine) -> None:
    async def main() -> None:
        batcher = Batcher(num_threads=1)
        order: list[str] = []

        async def one(name: str) -> None:
            steps = engine.transforming(LARGE[:, :, :256])

            def noted() -> Generator[None, None, None]:
                while True:
                    order.append(name)
                    try:
                        next(steps)
                    except StopIteration:
                        return
                    yield

            await batcher.run_steps(noted(), 16)

        await asyncio.gather(one("a"), one("b"))
        await batcher.aclose()
        assert order == ["a", "b"] * 16

    asyncio.run(main())


def test_tiles_count_in_the_queue_and_leave_it_one_by_one_or_with_their_client(engine: Engine) -> None:
    async def main() -> None:
        batcher = Batcher(num_threads=1)
        work = asyncio.create_task(batcher.run_steps(engine.transforming(LARGE), NUM_TILES))
        await asyncio.sleep(0)
        assert batcher.queued_images == NUM_TILES
        await batcher.submit(engine, "generator", {"image": torch.zeros(1, 3, 8, 8)})
        assert 0 < batcher.queued_images < NUM_TILES
        work.cancel()
        await asyncio.wait([work])
        assert batcher.queued_images == 0
        await batcher.aclose()

    asyncio.run(main())


def test_a_queue_that_is_full_of_tiles_refuses(engine: Engine) -> None:
    async def main() -> None:
        batcher = Batcher(capacity_images=NUM_TILES, num_threads=1)
        work = asyncio.create_task(batcher.run_steps(engine.transforming(LARGE), NUM_TILES))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="64 images wait and 64 more would pass the limit of 64"):
            await batcher.run_steps(engine.transforming(LARGE), NUM_TILES)
        work.cancel()
        await batcher.aclose()

    asyncio.run(main())
