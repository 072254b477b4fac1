"""The forms in which images are answered: a grid as one picture, an animation, or single images in an archive, an array or JSON."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from app import encoders, pixels
from app.errors import FieldError, Invalid
from app.negotiation import choose
from app.schemas.inference import InterpolateRequest, Pictures

PNG, JPEG, WEBP, GIF = "image/png", "image/jpeg", "image/webp", "image/gif"
ZIP, JSON, NPY = "application/zip", "application/json", "application/x-npy"
PICTURES = (PNG, JPEG, WEBP)  # many images laid out in one
SINGLES = (ZIP, JSON, NPY)  # each image for itself
STILLS = (*PICTURES, *SINGLES)
ANIMATIONS = (GIF, WEBP)
DEFAULT_FRAMES_PER_SECOND = 12.0


@dataclass(frozen=True)
class Made:
    """Images and all that is told of them.

    images: uint8 (N, C, H, W), on the CPU.
    seeds: one an image; None where latents were given or lie between anchors.
    request: the request's body without its latents, as it will stand in a PNG's text.
    latents: by input name, (N, *shape); None unless asked for.
    columns: how many images belong in a row, where the request says nothing of it.
    """

    model: str
    version: int
    images: Tensor
    seeds: tuple[int, ...] | None
    request: str
    latents: Mapping[str, Tensor] | None = None
    columns: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        seed = {} if self.seeds is None else {"X-Seed": str(self.seeds[0])}
        return {"X-Model": self.model, "X-Version": str(self.version), **seed}

    def text(self, index: int | None = None) -> dict[str, str]:
        """Text chunks of the picture of all images, or of image `index`."""
        chunks = {"Software": "ganserve", "model": self.model, "version": str(self.version)}
        if self.seeds is not None:
            chunks["seed"] = str(self.seeds[index or 0])
        return chunks | {"request": self.request}


@dataclass(frozen=True)
class Layout:
    """How frames are answered: `columns` in a row, or one after the other in time where `frames_per_second` is set."""

    form: str
    columns: int | None = None
    frames_per_second: float | None = None


def choose_layout(body: InterpolateRequest, accept: str | None) -> Layout:
    """A strip, a grid or an animation, by the request's `layout`, else by what Accept likes best.

    Raises:
        NotAcceptable: no form of that layout is accepted.
        Invalid: a field that the layout has no room for.
    """
    if body.layout == "animation":
        form = choose(accept, ANIMATIONS)
    else:
        form = choose(accept, (*STILLS, GIF) if body.layout is None and body.columns is None else STILLS)
    moving = body.layout == "animation" or form == GIF
    refuse_without_effect(form, {"return_latents": body.return_latents or None})
    _refuse_in_layout(body, moving=moving)
    if moving:
        return Layout(form, frames_per_second=body.frames_per_second or DEFAULT_FRAMES_PER_SECOND)
    if form in SINGLES:
        refuse_without_effect(form, {"columns": body.columns, "layout": body.layout})
        return Layout(form)
    strip = body.layout == "strip" or (body.layout is None and body.columns is None)
    return Layout(form, columns=body.num_frames if strip else body.columns)


def _refuse_in_layout(body: InterpolateRequest, *, moving: bool) -> None:
    if moving and body.columns is not None:
        raise _without_effect("columns", "has no effect on an animation: leave it out, or ask for the layout grid")
    if body.layout == "strip" and body.columns is not None:
        raise _without_effect("columns", "has no effect on a strip: leave it out, or ask for the layout grid")
    if not moving and body.frames_per_second is not None:
        raise _without_effect("frames_per_second", "has no effect on a still: leave it out, or ask for the layout animation")


def laid_out(layout: Layout, made: Made) -> bytes:
    """The frames in the chosen layout and form."""
    if layout.frames_per_second is None:
        return still(layout.form, made, layout.columns)
    frames = _rows(made.images)
    encode = encoders.gif_animation if layout.form == GIF else encoders.webp_animation
    return encode(frames, layout.frames_per_second)


def still(form: str, made: Made, columns: int | None) -> bytes:
    """The images in one of STILLS."""
    if form in SINGLES:
        return _singles(form, made)
    sheet = pixels.grid(made.images, columns or made.columns)
    if form == PNG:
        return encoders.png(sheet, made.text())
    return encoders.jpeg(sheet) if form == JPEG else encoders.webp(sheet)


def _rows(images: Tensor) -> encoders.Pixels:
    """(N, C, H, W) -> (N, H, W, C)."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def _singles(form: str, made: Made) -> bytes:
    rows = _rows(made.images)
    if form == NPY:
        return encoders.npy(rows)
    pictures = [encoders.png(row, made.text(index)) for index, row in enumerate(rows)]
    if form == ZIP:
        names = [f"{index:03d}" if made.seeds is None else f"seed-{made.seeds[index]}" for index in range(len(rows))]
        files = [f"{made.model}-{made.version}-{name}.png" for name in names]
        return encoders.zip_of(list(zip(files, pictures, strict=True)))
    answer = Pictures(
        model=made.model,
        version=made.version,
        seeds=None if made.seeds is None else list(made.seeds),
        images=[base64.b64encode(picture).decode("ascii") for picture in pictures],
        latents=None if made.latents is None else {name: values.tolist() for name, values in made.latents.items()},
    )
    return json.dumps(answer.model_dump(exclude={"latents"} if made.latents is None else None)).encode("ascii")


def refuse_without_effect(form: str, fields: Mapping[str, object]) -> None:
    """A field that the chosen form has no room for is refused.

    Args:
        fields: by name; what is None was not given.

    Raises:
        Invalid: names the field and the forms that have room for it.
    """
    rooms = {"columns": PICTURES, "layout": PICTURES, "return_latents": (JSON,)}
    for name, value in fields.items():
        if value is not None and form not in rooms[name]:
            raise _without_effect(name, f"has no effect on {form}: leave it out, or accept {', '.join(rooms[name])}")


def _without_effect(name: str, message: str) -> Invalid:
    return Invalid(f"{name} {message}", errors=(FieldError(pointer=f"/{name}", message=message),))
