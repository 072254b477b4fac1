"""Pictures that are sent and that come back."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from PIL import Image

from app.schemas.inference import Pictures

Picture = Image.Image | Path | str | bytes  # a picture, the path of its file, or what is in it
_FORMATS = ("PNG",)  # that the server answers with
_PADDING, _BACKGROUND = 2, 48  # of a grid, as the server draws it


class Images(Sequence[Image.Image]):
    """Pillow's images, and what made them. `seeds`: one an image, which gives it again alone; None of a walk's frames, and where latents
    were given."""

    def __init__(self, images: Sequence[Image.Image], model: str, version: int, seeds: Sequence[int] | None) -> None:
        self._images = tuple(images)
        self.model = model
        self.version = version
        self.seeds = None if seeds is None else tuple(seeds)

    @classmethod
    def of(cls, answer: Pictures) -> "Images":
        return cls([opened(base64.b64decode(image)) for image in answer.images], answer.model, answer.version, answer.seeds)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image.Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        return self._images[index]

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self._images)

    def __repr__(self) -> str:
        return f"<{len(self)} images of {self.model} version {self.version}>"

    def grid(self, columns: int | None = None) -> Image.Image:
        """All of them in one picture, row by row, as the server lays them out; near square where no columns are given."""
        width, height = self._images[0].size
        columns = min(columns or math.isqrt(len(self) - 1) + 1, len(self))
        rows = -(-len(self) // columns)
        wide, tall = width + _PADDING, height + _PADDING
        mode = self._images[0].mode
        background = _BACKGROUND if mode == "L" else (_BACKGROUND,) * 3
        sheet = Image.new(mode, (columns * wide - _PADDING, rows * tall - _PADDING), background)
        for index, image in enumerate(self):
            sheet.paste(image, (index % columns * wide, index // columns * tall))
        return sheet


def opened(content: bytes) -> Image.Image:
    """A picture of the server's."""
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    image.load()
    return image


def file_of(picture: Picture, index: int) -> tuple[str, bytes]:
    """Name and bytes of a file to send; a picture without a file is sent as PNG.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(picture, Path | str):
        path = Path(picture)
        return path.name, path.read_bytes()
    if isinstance(picture, bytes):
        return f"{index}", picture
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"{index}.png", content.getvalue()
