"""Uploaded files become pixels: what a client calls them, whether they are pictures, and whether they have a size that a model takes."""

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import FieldError, ImageInvalid, ImageTooLarge, Invalid, Problem
from app.pixels import Pixels
from training.contract import TensorSpec
from training.files.pictures import PictureError, PictureTooLargeError, read_picture

MAX_OUTPUT_PIXELS = 16_777_216
MAX_WHOLE_PIXELS = 2**20  # of a picture that cannot be tiled: all of its activations are in memory at once


@dataclass(frozen=True)
class Upload:
    """A file as it came: what the client calls it, where it stands in the body, and its bytes."""

    name: str
    pointer: str
    content: bytes

    def refusal(self, kind: type[Problem], message: str) -> Problem:
        return kind(f"{self.name}: {message}", errors=(FieldError(pointer=self.pointer, message=message),))


def from_base64(field: str, texts: Sequence[str]) -> list[Upload]:
    """Pictures out of a list in a JSON body.

    Raises:
        ImageInvalid: what is no base64.
    """
    return [_decoded(f"{field}[{index}]", f"/{field}/{index}", text) for index, text in enumerate(texts)]


def one_from_base64(field: str, text: str) -> Upload:
    """A picture out of a JSON body; raises as `from_base64` does."""
    return _decoded(field, f"/{field}", text)


def _decoded(name: str, pointer: str, text: str) -> Upload:
    try:
        return Upload(name, pointer, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        message = f"{name} is no base64 ({error}); the base64 of a PNG, JPEG, WebP, BMP or GIF file is allowed"
        raise ImageInvalid(message, errors=(FieldError(pointer=pointer, message=message),)) from error


def read(upload: Upload, shape: tuple[int, ...]) -> Pixels:
    """The pixels, uint8 of that shape, by the steps of training.files.pictures; an axis of -1 stays as long as it is.

    Raises:
        ImageInvalid, ImageTooLarge: the message names the file.
    """
    channels, height, width = shape
    try:
        return read_picture(io.BytesIO(upload.content), (channels, height, width))
    except PictureError as error:
        raise upload.refusal(ImageTooLarge if isinstance(error, PictureTooLargeError) else ImageInvalid, str(error)) from error


def read_exactly(upload: Upload, spec: TensorSpec) -> Pixels:
    """The pixels of a picture that must have a size that the input takes, as it is: nothing is cropped and nothing is resized.

    Raises:
        Invalid, ImageTooLarge: another size; the message states the rule.
        ImageInvalid: no picture.
    """
    pixels = read(upload, (spec.shape[0], -1, -1))
    check_size(upload, spec, *pixels.shape[1:])
    return pixels


def check_size(upload: Upload, spec: TensorSpec, height: int, width: int) -> None:
    """Raises Invalid or ImageTooLarge as `read_exactly` does."""
    axes = spec.shape[1:]
    given = f"this picture is {width} wide and {height} high"
    multiple = spec.size_multiple
    if any(side != size if size != -1 else side % multiple for side, size in zip((height, width), axes, strict=True)):
        tall, wide = (_nearest(side, multiple) if size == -1 else size for side, size in zip((height, width), axes, strict=True))
        raise upload.refusal(Invalid, f"{given}; {_rule(spec)}: crop or resize it, to {wide} x {tall} say")
    if height * width > (limit := max_pixels(spec)):
        raise upload.refusal(ImageTooLarge, f"{given}; at most {limit:,} pixels are allowed, since {_reason(spec)}")


def max_pixels(spec: TensorSpec) -> int:
    """Of an input of free size."""
    limit = MAX_OUTPUT_PIXELS // spec.scale**2
    return limit if spec.halo is not None or -1 not in spec.shape else min(limit, MAX_WHOLE_PIXELS)


def _nearest(side: int, multiple: int) -> int:
    return max(multiple, side // multiple * multiple)


def _rule(spec: TensorSpec) -> str:
    _, height, width = spec.shape
    if -1 not in (height, width):
        return f"width and height must be {width} x {height}"
    rules = (
        f"the {name} must be {f'a multiple of {spec.size_multiple}' if size == -1 else size}"
        for name, size in (("width", width), ("height", height))
    )
    return " and ".join(rules)


def _reason(spec: TensorSpec) -> str:
    if max_pixels(spec) < MAX_OUTPUT_PIXELS // spec.scale**2:
        return "this model must see a picture whole"
    return f"each side becomes {spec.scale} times as long and an answer has at most {MAX_OUTPUT_PIXELS:,}"
