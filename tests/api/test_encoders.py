"""Every form that pixels are sent in, read back by another reader."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, features

from app.encoders import gif_animation, jpeg, npy, png, webp, webp_animation, zip_of
from app.errors import Invalid

Pixels = NDArray[np.uint8]
quick = settings(max_examples=60)


def random_pixels(*shape: int) -> Pixels:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def sheet(pictures: Pixels, columns: int) -> Pixels:
    """(N, H, W, C) side by side with two dark pixels between, as grids are sent."""
    num, height, width, channels = pictures.shape
    padded = np.full((num, height + 2, width + 2, channels), 48, np.uint8)
    padded[:, :height, :width] = pictures
    rows = padded.reshape(num // columns, columns, height + 2, width + 2, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(rows.reshape(num // columns * (height + 2), columns * (width + 2), channels))


def smooth(num: int, size: int, channels: int, grain: float) -> Pixels:
    """Soft shapes on black with a grain, as a trained generator draws them."""
    random = np.random.default_rng(num + size + channels)
    y, x = np.mgrid[:size, :size] / size
    waves = random.uniform(0, 9, (6, num, 1, 1, channels))
    shade = np.sin(waves[0] * x[..., None] + waves[1]) + np.sin(waves[2] * y[..., None] + waves[3] * x[..., None] + waves[4])
    inside = ((x - 0.5) ** 2 + (y - 0.5) ** 2)[..., None] < 0.03 + waves[5] / 60
    pixels = np.where(inside, 128 + 60 * shade, 0) + random.normal(0, grain, (num, size, size, channels))
    return pixels.clip(0, 255).round().astype(np.uint8)


def sprites(num: int) -> Pixels:
    """64 x 64 drawings of 16 x 16 flat squares in two colours."""
    random = np.random.default_rng(num)
    half = random.integers(0, 2, (num, 16, 8))
    index = np.concatenate((half, half[:, :, ::-1]), axis=2)
    colours = random.integers(0, 256, (num, 2, 3), dtype=np.uint8)
    return colours[np.arange(num)[:, None, None], index].repeat(4, axis=1).repeat(4, axis=2)


def digits(num: int) -> Pixels:
    """28 x 28 white strokes with soft edges on black."""
    random = np.random.default_rng(num)
    y, x = np.mgrid[:28, :28]
    ends = random.uniform(6, 22, (num, 3, 4, 1, 1))
    strokes = [abs((x - a) * (d - b) - (y - b) * (c - a)) / (1 + np.hypot(c - a, d - b)) for a, b, c, d in ends.transpose(1, 2, 0, 3, 4)]
    box = (x > 5) & (x < 22) & (y > 4) & (y < 23)
    return (box * (255 - 110 * np.minimum.reduce(strokes)).clip(0, 255)).round().astype(np.uint8)[..., None]


PICTURES = {
    "one grey picture": smooth(1, 28, 1, 1)[0],
    "grey pictures": sheet(smooth(64, 28, 1, 1), 8),
    "grainy grey pictures": sheet(smooth(16, 64, 1, 4), 4),
    "digits": sheet(digits(64), 8),
    "one colour picture": smooth(1, 64, 3, 1)[0],
    "colour pictures": sheet(smooth(64, 64, 3, 1), 8),
    "grainy colour pictures": sheet(smooth(64, 32, 3, 4), 8),
    "one sprite": sprites(1)[0],
    "sprites": sheet(sprites(64), 8),
    "grainy sprites": (sheet(sprites(64), 8) // 2 + random_pixels(528, 528, 3) // 48).astype(np.uint8),
    "black": np.zeros((530, 530, 3), np.uint8),
    "noise": random_pixels(300, 300, 3),
}


def decoded(data: bytes, form: str) -> Pixels:
    image = Image.open(io.BytesIO(data))
    assert image.format == form
    pixels = np.asarray(image)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and data of a PNG's chunks, lengths and checksums proved."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    found, start = [], 8
    while start < len(data):
        (size,) = struct.unpack_from(">I", data, start)
        body = data[start + 4 : start + 8 + size]
        assert struct.unpack_from(">I", data, start + 8 + size) == (zlib.crc32(body),)
        found.append((body[:4], body[4:]))
        start += size + 12
    return found


# --- PNG --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_a_png_has_the_same_pixels(name: str) -> None:
    assert np.array_equal(decoded(png(PICTURES[name]), "PNG"), PICTURES[name])


@pytest.mark.parametrize("name", PICTURES)
def test_a_png_is_at_most_a_quarter_larger_than_pillows(name: str) -> None:
    pixels, file = PICTURES[name], io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    assert len(png(pixels)) <= 1.25 * len(file.getvalue())


@quick
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_any_png_has_the_same_pixels(pixels: Pixels) -> None:
    assert np.array_equal(decoded(png(pixels), "PNG"), pixels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (700, 1000, 3), (3, 90_000, 3), (90_000, 3, 1), (1, 300_000, 1), (257, 1023, 1)])
def test_a_png_of_many_or_long_rows_has_the_same_pixels(shape: tuple[int, int, int]) -> None:
    pixels = random_pixels(*shape) // 32
    pixels[: shape[0] // 2] = pixels[:1]  # so that all three filters are the best one somewhere
    assert np.array_equal(decoded(png(pixels), "PNG"), pixels)


def test_each_row_takes_the_filter_that_suits_it() -> None:
    specks, ramp = np.tile(np.array([9, 0, 0, 0, 0], np.uint8), 10), np.arange(0, 250, 5, dtype=np.uint8)
    pixels = np.stack([specks, ramp, ramp])[:, :, np.newaxis]
    rows = zlib.decompress(dict(chunks(png(pixels)))[b"IDAT"])
    assert [rows[start] for start in range(0, len(rows), 51)] == [0, 1, 2]


def test_a_view_with_gaps_in_memory_is_encoded_as_it_reads() -> None:
    pixels = random_pixels(40, 60, 3)[::2, 10:50:3]
    assert np.array_equal(decoded(png(pixels), "PNG"), pixels)


def test_chunks_of_a_png_stand_in_order_with_right_checksums() -> None:
    found = chunks(png(random_pixels(4, 3, 3), {"model": "digits", "title": "日"}))
    assert [kind for kind, _ in found] == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]
    assert found[0][1] == struct.pack(">IIBBBBB", 3, 4, 8, 2, 0, 0, 0)


def test_text_is_read_back_as_it_was_given() -> None:
    text = {"model": "fashion", "seed": "42", "size": "3 × 4 µm", "title": "日本語 🙂", "empty": "", "lines": "a\nb"}
    image = Image.open(io.BytesIO(png(random_pixels(2, 2, 1), text)))
    assert image.text == text
    assert list(image.text) == list(text)


@pytest.mark.parametrize("text", [{"": "x"}, {"n" * 80: "x"}, {"a\0b": "x"}, {"name": "a\0b"}, {"日": "x"}, {"name": "\ud800"}])
def test_text_that_png_cannot_hold_is_refused(text: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"NUL|codec"):
        png(random_pixels(2, 2, 1), text)


def test_without_isal_a_png_has_the_same_pixels() -> None:
    script = """if True:
        import sys
        sys.modules["isal"] = None
        from app.encoders import fast_zlib, png
        import numpy as np
        assert fast_zlib.__name__ == "zlib"
        pixels = np.random.default_rng(0).integers(0, 9, (90, 70, 3), dtype=np.uint8)
        sys.stdout.buffer.write(png(pixels))
    """
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, check=True)
    assert np.array_equal(decoded(run.stdout, "PNG"), np.random.default_rng(0).integers(0, 9, (90, 70, 3), dtype=np.uint8))


# --- JPEG and WebP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grey pictures", "colour pictures"])
@pytest.mark.parametrize(("encode", "form"), [(jpeg, "JPEG"), (webp, "WEBP")])
def test_a_lossy_still_is_near_and_smaller_than_png(encode: Callable[[Pixels], bytes], form: str, name: str) -> None:
    pixels = PICTURES[name]
    data = encode(pixels)
    back = decoded(data, form)
    assert back.shape[:2] == pixels.shape[:2]
    assert np.abs(back.astype(int) - pixels).mean() < 5
    assert len(data) < len(png(pixels))


def test_a_grey_jpeg_stays_grey_and_a_coloured_one_keeps_its_full_colours() -> None:
    assert Image.open(io.BytesIO(jpeg(PICTURES["one grey picture"]))).mode == "L"
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255
    assert np.abs(decoded(jpeg(stripes), "JPEG").astype(int) - stripes).max() < 20


def test_a_lower_quality_makes_a_smaller_jpeg() -> None:
    assert len(jpeg(PICTURES["colour pictures"], quality=40)) < len(jpeg(PICTURES["colour pictures"]))


def test_a_side_that_a_form_cannot_hold_is_refused_with_the_way_out() -> None:
    tall = np.zeros((65_536, 1, 1), np.uint8)
    for encode, limit in ((jpeg, 65_500), (webp, 16_383), (lambda pixels: gif_animation(pixels[np.newaxis], 10), 65_535)):
        with pytest.raises(Invalid, match=rf"1 x 65536 pixels and a \w+ holds at most {limit} a side; ask for image/png"):
            encode(tall)
        assert encode(tall[:limit])
    with pytest.raises(Invalid, match="WebP holds at most 16383"):
        webp_animation(tall[np.newaxis], 10)
    assert decoded(png(tall), "PNG").shape == tall.shape


# --- animations -------------------------------------------------------------------------------------------------------------


def film(num: int = 6, channels: int = 3) -> Pixels:
    """Few colours, so that a palette holds them all; frames 2 and 3 are equal, and so are the last two."""
    frames = random_pixels(num, 9, 12, channels) // 64 * 80
    frames[3], frames[-1] = frames[2], frames[-2]
    return frames


def played(data: bytes) -> tuple[list[Pixels], list[int]]:
    image = Image.open(io.BytesIO(data))
    frames, durations = [], []
    for index in range(image.n_frames):
        image.seek(index)
        image.load()
        frames.append(np.asarray(image.convert("RGB")))
        durations.append(image.info["duration"])
    return frames, durations


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_keeps_every_frame_exactly(channels: int) -> None:
    frames = film(channels=channels)
    back, durations = played(gif_animation(frames, 10))
    assert durations == [100] * 6
    assert all(np.array_equal(got, np.broadcast_to(frame, (9, 12, 3))) for got, frame in zip(back, frames, strict=True))


def test_a_grey_gif_holds_all_256_greys() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(played(gif_animation(frames, 10))[0][0][:, :, :1], frames[0])


def test_a_gif_of_many_colours_stays_near() -> None:
    frames = smooth(2, 64, 3, 1)
    back, _ = played(gif_animation(frames, 10))
    assert np.abs(np.stack(back).astype(int) - frames).mean() < 4


def test_a_webp_animation_keeps_every_frame_as_its_still() -> None:
    frames = np.concatenate([smooth(3, 33, 3, 1), smooth(3, 33, 3, 1)[-1:]])
    back, durations = played(webp_animation(frames, 25))
    assert durations == [40] * 4
    for got, frame in zip(back, frames, strict=True):
        assert np.array_equal(got, np.asarray(Image.open(io.BytesIO(webp(frame))).convert("RGB")))


def test_a_grey_webp_animation_plays() -> None:
    back, _ = played(webp_animation(film(channels=1), 10))
    assert [frame.shape for frame in back] == [(9, 12, 3)] * 6


@pytest.mark.parametrize("encode", [gif_animation, webp_animation])
def test_animations_loop_for_ever(encode: Callable[[Pixels, float], bytes]) -> None:
    assert Image.open(io.BytesIO(encode(film(), 10))).info["loop"] == 0


@pytest.mark.parametrize("encode", [gif_animation, webp_animation])
def test_one_frame_is_an_animation_too(encode: Callable[[Pixels, float], bytes]) -> None:
    back, _ = played(encode(film()[:1], 10))
    assert len(back) == 1


def test_a_gif_spreads_the_rounding_to_10_ms_over_its_frames() -> None:
    _, durations = played(gif_animation(np.repeat(film(), 5, axis=0), 30))
    assert durations[:6] == [30, 40, 30, 30, 40, 30]
    assert sum(durations) == 1000


def test_a_webp_animation_spreads_the_rounding_to_1_ms() -> None:
    _, durations = played(webp_animation(film(), 30))
    assert durations == [33, 34, 33, 33, 34, 33]


@pytest.mark.parametrize("encode", [gif_animation, webp_animation])
def test_rates_above_50_frames_a_second_play_at_50(encode: Callable[[Pixels, float], bytes]) -> None:
    assert played(encode(film(), 400))[1] == [20] * 6


@pytest.mark.parametrize("encode", [gif_animation, webp_animation])
def test_slow_rates_below_one_frame_a_second_are_kept(encode: Callable[[Pixels, float], bytes]) -> None:
    assert played(encode(film()[:2], 0.4))[1] == [2500, 2500]


# --- ZIP, NPY, and all forms ------------------------------------------------------------------------------------------------


def test_a_zip_holds_its_files_in_order_and_as_they_are() -> None:
    files = [("000_seed-7.png", png(random_pixels(3, 3, 1))), ("scores.json", b"{}"), ("größe.txt", b"")]
    archive = zipfile.ZipFile(io.BytesIO(zip_of(files)))
    assert archive.testzip() is None
    assert [(info.filename, archive.read(info)) for info in archive.infolist()] == files
    assert all(info.compress_type == zipfile.ZIP_STORED and info.date_time == (1980, 1, 1, 0, 0, 0) for info in archive.infolist())


def test_a_zip_of_nothing_can_be_opened() -> None:
    assert zipfile.ZipFile(io.BytesIO(zip_of([]))).namelist() == []


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_an_npy_is_read_back_bit_by_bit(dtype: type[np.generic]) -> None:
    array = random_pixels(2, 3, 4).astype(dtype)
    back = np.load(io.BytesIO(npy(array)), allow_pickle=False)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_the_layout_in_memory_changes_no_byte_of_an_npy() -> None:
    array = random_pixels(3, 4)
    assert npy(np.asfortranarray(array)) == npy(array)


def test_the_same_input_gives_the_same_bytes_in_every_form_and_process() -> None:
    script = """if True:
        import hashlib, sys
        import numpy as np
        from app.encoders import gif_animation, jpeg, npy, png, webp, webp_animation, zip_of
        frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
        forms = [png(frames[0], {"seed": "1"}), jpeg(frames[0]), webp(frames[0]), gif_animation(frames, 24)]
        forms += [webp_animation(frames, 24), zip_of([("a", b"b")]), npy(frames)]
        print([hashlib.sha256(form).hexdigest() for form in forms])
    """
    runs = {subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert runs.pop().count(b"'") == 14


def test_pillow_was_built_with_every_form_that_is_sent() -> None:
    assert all(features.check(name) for name in ("jpg", "webp", "zlib"))
