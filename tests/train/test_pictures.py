"""Picture files of every kind become the pixels that a model knows, or are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.files.pictures import MAX_PIXELS, PictureError, PictureTooLargeError, read_picture

Pixels = NDArray[np.uint8]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(data: bytes, channels: int = 3, height: int = 8, width: int = 8) -> Pixels:
    return read_picture(io.BytesIO(data), (channels, height, width))


def random_image(height: int = 8, width: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chw(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def nearly(pixels: Pixels, colour: tuple[int, int, int], tolerance: int = 16) -> bool:
    """Whether every pixel has the colour; the filter reads a little beyond the crop, so its edge may differ."""
    return bool((np.abs(pixels.reshape(3, -1).T.astype(int) - colour) <= tolerance).all())


def png_of(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """A PNG built by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)


# --- formats and modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_rgb_pixels_are_read_exactly(form: str) -> None:
    image = random_image()
    assert np.array_equal(read(saved(image, form)), chw(image))


def test_a_lossless_webp_is_read_exactly() -> None:
    image = random_image()
    assert np.array_equal(read(saved(image, "WEBP", lossless=True)), chw(image))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_lossy_files_come_near(form: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 30, 90))
    assert np.abs(read(saved(image, form)).astype(int) - chw(image)).max() < 8


def test_the_content_counts_and_not_what_a_file_calls_itself() -> None:
    file = io.BytesIO(saved(Image.new("RGB", (8, 8), RED)))
    file.name = "picture.jpg"
    assert tuple(read_picture(file, (3, 8, 8))[:, 0, 0]) == RED


def test_a_picture_is_writable_contiguous_and_of_the_wanted_shape() -> None:
    for channels in (1, 3):
        pixels = read(saved(random_image()), channels)
        assert pixels.shape == (channels, 8, 8)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable


def test_one_bit_pictures_are_black_and_white() -> None:
    image = Image.new("1", (8, 8), 1)
    image.putpixel((3, 2), 0)
    for data in (saved(image), saved(image, "BMP")):
        pixels = read(data, 1)
        assert pixels[0, 2, 3] == 0
        assert np.count_nonzero(pixels == 255) == 63


def test_grey_becomes_three_equal_channels() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert np.array_equal(read(saved(image)), np.repeat(chw(image), 3, axis=0))
    assert np.array_equal(read(saved(image), 1), chw(image))


def test_colours_become_grey_by_luma() -> None:
    greys = [int(read(saved(Image.new("RGB", (8, 8), colour)), 1)[0, 0, 0]) for colour in (RED, GREEN, BLUE, WHITE)]
    assert greys == [76, 150, 29, 255]


def test_grey_with_alpha_lies_over_white() -> None:
    image = Image.new("LA", (8, 8), (0, 0))
    image.putpixel((1, 0), (40, 255))
    image.putpixel((2, 0), (0, 128))
    assert read(saved(image), 1)[0, 0, :3].tolist() == [255, 40, 127]


def test_colour_with_alpha_lies_over_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.putpixel((2, 0), (*RED, 51))
    for data in (saved(image), saved(image, "WEBP", lossless=True, exact=True)):
        assert read(data)[:, 0, :3].T.tolist() == [list(WHITE), list(RED), [255, 204, 204]]


def test_alpha_does_not_bleed_dark_edges_when_resized() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (16, 16, 48, 48))
    assert (read(saved(image)) == 255).all()


def test_a_palette_gives_its_colours() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((0, 0), 2)
    for form in ("PNG", "GIF", "BMP"):
        assert read(saved(image, form))[:, 0, :2].T.tolist() == [list(BLUE), list(GREEN)]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(form: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((0, 0), 2)
    assert read(saved(image, form, transparency=2))[:, 0, :2].T.tolist() == [list(WHITE), list(GREEN)]


def test_a_palette_with_many_alphas_lies_over_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((0, 0), 0)
    assert read(saved(image, transparency=bytes([51, 255, 0])))[:, 0, :2].T.tolist() == [[255, 204, 204], list(GREEN)]


@pytest.mark.parametrize(("colour", "row", "transparent"), [(0, bytes(range(8)), (3,)), (2, bytes(range(24)), (9, 10, 11))])
def test_the_transparent_value_of_a_png_without_palette_is_white(colour: int, row: bytes, transparent: tuple[int, ...]) -> None:
    pixels = read(png_of(8, 8, 8, colour, (b"\0" + row) * 8, (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))))
    assert np.argwhere((pixels[:, 0] == 255).all(axis=0)).tolist() == [[3]]


def test_16_bit_greys_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    assert np.array_equal(read(saved(Image.fromarray(values)), 1)[0], values // 257)


def test_the_transparent_value_of_16_bit_greys_is_white() -> None:
    row = b"\0" + struct.pack(">8H", 0, 1000, 1001, 3000, 40000, 50000, 60000, 65535)
    pixels = read(png_of(8, 8, 16, 0, row * 8, (b"tRNS", struct.pack(">H", 1000))), 1)
    assert pixels[0, 0].tolist() == [0, 255, 3, 11, 155, 194, 233, 255]


def test_16_bit_colours_keep_their_upper_8_bits() -> None:
    row = b"\0" + struct.pack(">24H", *(value * 257 for value in range(24)))
    assert read(png_of(8, 8, 16, 2, row * 8))[:, 0, 1].tolist() == [3, 4, 5]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cmyk_jpeg_has_the_colours_that_people_see(channels: int) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow ink: red
    seen = read(saved(image, "JPEG", quality=100), channels)[:, 4, 4].astype(int)
    assert np.abs(seen - (RED if channels == 3 else 76)).max() < 6


def test_an_interlaced_png_is_read_like_a_plain_one() -> None:
    picture = np.asarray(random_image())
    rows = b""
    for top, left, down, right in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)):
        rows += b"".join(b"\0" + row.tobytes() for row in picture[top::down, left::right])  # Adam7
    assert np.array_equal(read(png_of(8, 8, 8, 2, rows, interlaced=True)), picture.transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
    assert nearly(read(data), RED, 0)


def test_a_jpeg_with_more_pictures_behind_it_is_its_first_one() -> None:
    data = saved(Image.new("RGB", (8, 8), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)])
    assert np.abs(read(data)[:, 4, 4].astype(int) - RED).max() < 6


# --- EXIF -------------------------------------------------------------------------------------------------------------------

# how a camera stores the upright picture, by the orientation that it then writes (EXIF 2.3, tag 0x0112)
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: np.rot90,  # it is turned clockwise to be shown
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation: int, form: str) -> None:
    upright = np.asarray(random_image(6, 10))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(read(data, 3, 6, 10), upright.transpose(2, 0, 1))


def test_a_turned_jpeg_is_upright() -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16] = RED
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = read(saved(Image.fromarray(np.rot90(upright).copy()), "JPEG", exif=exif), 3, 16, 32).astype(int)
    assert np.abs(pixels - upright.transpose(2, 0, 1))[:, :, [2, 29]].max() < 12


def test_a_turned_palette_with_transparency_lies_over_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((0, 0), 2)
    exif = Image.Exif()
    exif[0x0112] = 3
    assert read(saved(image, exif=exif, transparency=2))[:, 7, 6:].T.tolist() == [list(GREEN), list(WHITE)]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("exif", [b"garbage", b"MM\0*", b"", b"II*\0\x08\0\0\0\0\0"])
def test_a_picture_whose_exif_cannot_be_read_is_shown_as_it_lies(exif: bytes) -> None:
    image = random_image()
    assert np.array_equal(read(saved(image, exif=exif)), chw(image))


def test_an_orientation_that_is_none_is_passed_over() -> None:
    image, exif = random_image(), Image.Exif()
    exif[0x0112] = 9
    assert np.array_equal(read(saved(image, exif=exif)), chw(image))


def test_odd_exif_tags_do_not_keep_a_picture_from_being_turned() -> None:
    # the camera's name (0x010f) as a fraction, which cannot be written anew
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 3, 0) + struct.pack(">HHII", 0x010F, 5, 1, 38)
    exif = b"MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4) + struct.pack(">II", 1, 2)
    image = random_image()
    assert np.array_equal(read(saved(image, exif=exif)), chw(image)[:, ::-1, ::-1])


# --- size -------------------------------------------------------------------------------------------------------------------


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    image = random_image(5, 9)
    assert np.array_equal(read(saved(image), 3, 5, 9), chw(image))


def test_a_wide_picture_loses_its_left_and_right() -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:32], pixels[:, 32:] = RED, GREEN, BLUE
    assert nearly(read(saved(Image.fromarray(pixels))), GREEN)


def test_a_tall_picture_loses_its_top_and_bottom() -> None:
    pixels = np.zeros((48, 16, 3), np.uint8)
    pixels[:16], pixels[16:32], pixels[32:] = RED, GREEN, BLUE
    assert nearly(read(saved(Image.fromarray(pixels))), GREEN)


def test_the_crop_has_the_wanted_proportions() -> None:
    pixels = np.zeros((30, 30, 3), np.uint8)
    pixels[10:20] = GREEN
    assert nearly(read(saved(Image.fromarray(pixels)), 3, 4, 12), GREEN)


def test_a_fine_pattern_is_averaged_and_not_picked_from() -> None:
    checkers = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(read(saved(Image.fromarray(checkers)), 1).astype(int) - 127).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_picture_of_one_pixel_fills_the_whole(form: str) -> None:
    pixels = read(saved(Image.new("RGB", (1, 1), (250, 250, 250)), form), 1, 28, 28)
    assert np.abs(pixels.astype(int) - 250).max() <= 2


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (16_000, 3)])
def test_an_extreme_aspect_is_cropped_to_its_middle(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 3, size[1] // 3, size[0] - size[0] // 3, size[1] - size[1] // 3))
    assert read(saved(image))[1].max() > 200


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_file_cut_off_at_any_tenth_is_refused(form: str) -> None:
    data = saved(random_image(40, 40), form)
    for tenth in range(10):
        with pytest.raises(PictureError, match=r"no picture that can be read|damaged or cut off"):
            read(data[: len(data) * tenth // 10])


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is text\n" * 50, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", bytes(1000)]
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(PictureError, match="no picture that can be read; a whole PNG, JPEG, WebP, BMP or GIF"):
        read(data)


def test_an_axis_that_is_free_stays_as_long_as_the_upright_picture_has_it() -> None:
    image = random_image(12, 20)
    assert np.array_equal(read(saved(image), 3, -1, -1), chw(image))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(saved(image, exif=exif), 3, -1, -1)
    assert np.array_equal(turned, chw(image.transpose(Image.Transpose.ROTATE_270)))
    assert read(saved(image), 1, -1, -1).shape == (1, 12, 20)
    assert read(saved(image), 3, -1, 10).shape == (3, 12, 10)
    assert read(saved(image), 3, 6, -1).shape == (3, 6, 20)


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO", "TGA", "AVIF", "JPEG2000", "PCX"])
def test_formats_that_are_not_listed_are_refused(form: str) -> None:
    with pytest.raises(PictureError, match="PNG, JPEG, WebP, BMP or GIF"):
        read(saved(random_image(32, 32), form))


def test_a_wrong_checksum_is_refused() -> None:
    data = bytearray(saved(random_image()))
    data[data.index(b"IDAT") + 8] ^= 1
    with pytest.raises(PictureError, match="damaged"):
        read(bytes(data))


def bombs() -> dict[str, bytes]:
    """Small files that claim 65535 x 65535 pixels or so; their pixels are damaged, so whoever decodes first says so."""
    size, palette = struct.pack("<HH", 65535, 65535), b"\x80\0\0\0\0\0\xff\xff\xff"
    still = saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    frame = b"ANMF" + struct.pack("<I", 16 + len(still)) + bytes(6) + (15).to_bytes(3, "little") * 2 + b"\x64\0\0\0" + still
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (16382).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frame
    return {
        "PNG": png_of(65535, 65535, 8, 2, b"\7"),
        "GIF by its screen": b"GIF89a" + size + palette + b",\0\0\0\0\1\0\1\0\0\2\1\xff\0;",
        "GIF by its frame": b"GIF89a\1\0\1\0" + palette + b",\0\0\0\0" + size + b"\0\2\1\xff\0;",
        "BMP": saved(Image.new("RGB", (4, 4)), "BMP").replace(struct.pack("<II", 4, 4), struct.pack("<II", 65535, 65535)),
        "WebP": b"RIFF" + struct.pack("<I", len(body)) + body,
        "JPEG": saved(Image.new("RGB", (4, 4)), "JPEG").replace(struct.pack(">HH", 4, 4), struct.pack(">HH", 65500, 65500), 1),
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_before_it_is_decoded(name: str) -> None:
    with pytest.raises(PictureTooLargeError, match=r"this picture has \d{5} x \d{5} pixels; .* at most 16,777,216 pixels"):
        read(bombs()[name])


def test_the_largest_picture_is_read_and_one_row_more_is_not() -> None:
    height = MAX_PIXELS // 1024
    assert (read(saved(Image.new("1", (1024, height), 1)), 1) == 255).all()
    with pytest.raises(PictureTooLargeError, match=f"1024 x {height + 1} pixels"):
        read(saved(Image.new("1", (1024, height + 1))), 1)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_picture_with_flipped_bytes_is_read_or_refused_and_nothing_else() -> None:
    random = np.random.default_rng(5)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = [saved(random_image(12, 12), form, exif=exif) for form in ("PNG", "JPEG", "WEBP")]
    whole += [saved(random_image(12, 12), form) for form in ("BMP", "GIF")]
    refused = 0
    for turn in range(1500):
        data = np.frombuffer(whole[turn % 5], np.uint8).copy()
        data[random.integers(0, len(data), random.integers(1, 6))] = random.integers(0, 256)
        try:
            assert read(data.tobytes()).shape == (3, 8, 8)
        except PictureError:
            refused += 1
    assert refused
