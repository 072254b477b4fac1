"""A picture file becomes the pixels that a model knows: one way, for data sets and for uploads.

The steps, in order:
1. decoded as PNG, JPEG, WebP, BMP or GIF (its first frame), whatever the file calls itself;
2. turned upright by its EXIF orientation (EXIF that cannot be read is none);
3. brought to 8 bits a channel (16-bit greys are scaled, not clipped);
4. laid over white where it is transparent;
5. converted to grey (ITU-R 601 luma) or to RGB;
6. cropped at its centre to the wanted proportions, and resized with an antialiasing Lanczos filter; a picture of the right size is not
   resampled, nor is one that may keep its own.
"""

import struct
import warnings
import zlib
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 16_777_216

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # of odd EXIF, which any upload may hold
Image.MAX_IMAGE_PIXELS = None  # Pillow only warns below 179 megapixels; `_decode` refuses above MAX_PIXELS before anything is decoded

# What Pillow's decoders raise on damaged files. Anything else is a bug and may crash.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """The bytes are no picture that can be read; the message says what was given and what is allowed."""


class PictureTooLargeError(PictureError):
    """The picture has more than MAX_PIXELS pixels."""


def read_picture(file: BinaryIO, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The pixels of a picture file, by the steps at the head of this module.

    Args:
        shape: (channels, height, width) that is wanted; channels is 1 or 3, and an axis of -1 stays as long as the picture has it.

    Returns:
        uint8, of that shape, writable.

    Raises:
        PictureError: no picture, a format that is not read, or damaged.
    """
    channels, height, width = shape
    try:
        image = _upright(_decode(file))
        image = _over_white(_to_8_bits(image)).convert("L" if channels == 1 else "RGB")
        size = (image.width if width == -1 else width, image.height if height == -1 else height)
        if image.size != size:
            image = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
    except PictureError:
        raise
    except _DECODER_ERRORS as error:
        raise PictureError(f"this picture is damaged or cut off ({type(error).__name__}); {_ALLOWED}") from error
    pixels = np.array(image, dtype=np.uint8)  # a copy: Pillow's own buffer is read-only
    return pixels[np.newaxis] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


_ALLOWED = f"a whole PNG, JPEG, WebP, BMP or GIF of at most {MAX_PIXELS:,} pixels is allowed"


def _decode(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise PictureError(f"this is no picture that can be read; {_ALLOWED}") from error
    if image.width * image.height > MAX_PIXELS:
        raise PictureTooLargeError(f"this picture has {image.width} x {image.height} pixels; {_ALLOWED}")
    image.load()
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture that is opened and not decoded, as it will be upright."""
    is_turned = "exif" in image.info and _orientation(image) >= 5  # where EXIF lies behind the pixels, it would be decoded for it
    return (image.height, image.width) if is_turned else image.size


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where there is none that can be read."""
    # ImageOps.exif_transpose also writes the EXIF anew, which fails on odd tags that we do not need
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _to_8_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)  # 16-bit greys: I;16, I;16B, or I with values up to 65535
    grey = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return white
