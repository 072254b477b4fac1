"""Pixels become bytes: PNG, JPEG, WebP, animated GIF and WebP, ZIP, NPY. The same input gives the same bytes.

Pictures are uint8, (H, W, C) with C = 1 (grey) or 3 (RGB), none of the sizes 0. Everything that takes long runs outside Python's lock,
so these functions may run in threads beside the event loop.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image

from app.errors import Invalid

try:
    from isal import isal_zlib as fast_zlib
except ImportError:  # no wheel for this platform: the same pictures, in larger files and more slowly
    import zlib as fast_zlib  # type: ignore[no-redef]

Pixels = NDArray[np.uint8]

_BAND_BYTES = 1 << 18  # the filters' work on one band stays in the processor's cache
_MAX_SIDE = {"JPEG": 65_500, "WebP": 16_383, "GIF": 65_535}
_SHORTEST_FRAME_MS = 20  # browsers show a frame that claims less for 100 ms
_GREYS = bytes(value for value in range(256) for _ in "RGB")


# --- PNG ----------------------------------------------------------------------------------------------------------------------


def png(pixels: Pixels, text: Mapping[str, str] | None = None) -> bytes:
    """A lossless picture, with text chunks in the order given: `tEXt`, or `iTXt` where the text is not Latin-1.

    Raises:
        ValueError: a text's name is not 1 to 79 Latin-1 characters, or a NUL stands in a name or text.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_text_chunk(name, value) for name, value in (text or {}).items()]
    chunks += [_chunk(b"IDAT", _deflate(_filtered(pixels))), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


def _text_chunk(name: str, text: str) -> bytes:
    if not 1 <= len(name) <= 79 or "\0" in name + text:
        raise ValueError(f"PNG text has a name of 1 to 79 characters and holds no NUL; the name is {name!r}")
    keyword = name.encode("latin-1") + b"\0"
    try:
        return _chunk(b"tEXt", keyword + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", keyword + bytes(4) + text.encode())  # not compressed, no language, no translated name


def _filtered(pixels: Pixels) -> bytes:
    """The rows as PNG compresses them: each one's filter type, then the filtered bytes."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    num = max(1, _BAND_BYTES // rows.shape[1])
    above = np.concatenate((np.zeros_like(rows[:1]), rows[num - 1 : -1 : num]))  # the row before each band
    return b"".join(_filtered_band(rows[start : start + num], above[start // num], channels) for start in range(0, height, num))


def _filtered_band(rows: Pixels, above: Pixels, channels: int) -> bytes:
    """Each row by None, Sub or Up: the least sum of absolute differences, PNG specification section 12.7.

    Paeth is left out: it takes several times as long as the three together and makes files 1 to 2 % smaller.
    """
    num, size = rows.shape
    ways = np.empty((3, num, 1 + size), np.uint8)
    ways[:, :, 0] = np.arange(3)[:, np.newaxis]
    none, sub, up = ways[:, :, 1:]
    none[:] = rows
    sub[:, :channels] = rows[:, :channels]
    np.subtract(rows[:, channels:], rows[:, :-channels], out=sub[:, channels:])
    np.subtract(rows[0], above, out=up[0])
    np.subtract(rows[1:], rows[:-1], out=up[1:])
    costs = np.abs(ways.view(np.int8)).view(np.uint8).sum(axis=2, dtype=np.uint32)
    chosen: Pixels = ways[costs.argmin(axis=0), np.arange(num)]
    return chosen.tobytes()


def _deflate(data: bytes) -> bytes:
    fast = fast_zlib.compress(data, 1)
    if len(fast) * 16 > len(data):
        return fast
    return min(fast, zlib.compress(data, 4), key=len)  # flat pictures: here a thorough search costs little and gains a third


# --- other stills -------------------------------------------------------------------------------------------------------------


def jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    """A lossy picture. Colours keep their full resolution (4:4:4): generated pictures are small, and halved colours show on them.

    Raises:
        Invalid: a side is longer than JPEG can hold.
    """
    _check_sides(pixels.shape, "JPEG")
    file = io.BytesIO()
    _image(pixels).save(file, "JPEG", quality=quality, subsampling="4:4:4")
    return file.getvalue()


def webp(pixels: Pixels) -> bytes:
    """A lossy picture of quality 90; who wants every pixel takes PNG.

    Raises:
        Invalid: a side is longer than WebP can hold.
    """
    _check_sides(pixels.shape, "WebP")
    file = io.BytesIO()
    _image(pixels).save(file, "WEBP", quality=90, method=2)  # against the default method 4: half the time, 3 % larger
    return file.getvalue()


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _check_sides(shape: tuple[int, ...], form: str) -> None:
    height, width, _ = shape
    if max(height, width) > _MAX_SIDE[form]:
        raise Invalid(
            f"this picture has {width} x {height} pixels and a {form} holds at most {_MAX_SIDE[form]} a side; "
            "ask for image/png, or for a smaller picture"
        )


# --- animations ---------------------------------------------------------------------------------------------------------------
# Pillow's writers join equal neighbours into one frame. A frame that was asked for must be there, so the containers are written here.


def gif_animation(frames: Pixels, frames_per_second: float) -> bytes:
    """An endless animation that keeps every frame. Grey is exact; each RGB frame has its own palette of at most 256 colours.

    GIF counts time in 10 ms: frames differ by one such unit where the rate asks for it, so that the whole lasts as long as it should.
    Above 50 frames a second it plays at 50.

    Args:
        frames: (T, H, W, C).

    Raises:
        Invalid: a side is longer than GIF can hold.
    """
    _check_sides(frames.shape[1:], "GIF")
    num, height, width, _ = frames.shape
    parts = [struct.pack("<6sHHBBB", b"GIF89a", width, height, 0, 0, 0), b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"]
    for frame, duration in zip(frames, _durations_ms(num, frames_per_second, unit_ms=10), strict=True):
        parts += GifImagePlugin.getdata(_with_palette(frame), duration=duration, include_color_table=True)
    return b"".join([*parts, b";"])


def _with_palette(frame: Pixels) -> Image.Image:
    image = _image(frame)
    if image.mode == "RGB":
        return image.quantize(256)  # by median cut; no dithering, which would crawl from frame to frame
    image.putpalette(_GREYS)
    return image


def webp_animation(frames: Pixels, frames_per_second: float) -> bytes:
    """An endless animation that keeps every frame, each as `webp` writes a still. Above 50 frames a second it plays at 50.

    Args:
        frames: (T, H, W, C).

    Raises:
        Invalid: a side is longer than WebP can hold.

    Source: the container's specification, developers.google.com/speed/webp/docs/riff_container.
    """
    num, height, width, _ = frames.shape
    size = _uint24(width - 1) + _uint24(height - 1)
    parts = [b"WEBP", _riff(b"VP8X", b"\x02\0\0\0" + size), _riff(b"ANIM", bytes(6))]  # it moves; black behind, endless
    for frame, duration in zip(frames, _durations_ms(num, frames_per_second, unit_ms=1), strict=True):
        still = webp(frame)[12:]  # without the head of the file
        parts.append(_riff(b"ANMF", bytes(6) + size + _uint24(duration) + b"\x02" + still))  # at (0, 0), not blended
    return _riff(b"RIFF", b"".join(parts))


def _uint24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data  # no padding: every size here is even


def _durations_ms(num: int, frames_per_second: float, unit_ms: int) -> list[int]:
    times = [round(index * 1000 / frames_per_second / unit_ms) * unit_ms for index in range(num + 1)]
    return [max(end - start, _SHORTEST_FRAME_MS) for start, end in pairwise(times)]


# --- many files, and numbers --------------------------------------------------------------------------------------------------


def zip_of(files: Sequence[tuple[str, bytes]]) -> bytes:
    """An archive of named files, stored as they are (pictures do not compress again), dated 1980-01-01."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, data in files:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same bytes on every system
            writer.writestr(info, data)
    return archive.getvalue()


def npy(array: NDArray[np.generic]) -> bytes:
    """NumPy's own format, version 1.0, in row-major order."""
    file = io.BytesIO()
    np.save(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()
