"""The work that every server of the comparison does, and how a peer's adapter is told what to serve.

The draws, the pixels and the grid are the very functions of our own service; the PNG is Pillow's as it comes.
"""

import io
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from app import latents, pixels
from training.contract import TensorSpec

warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)
FOLDER, PORT, MAX_BATCH, WAIT_MS = "BENCH_MODEL", "BENCH_PORT", "BENCH_MAX_BATCH", "BENCH_WAIT_MS"


class Ask(NamedTuple):
    """What one request wants: a grid of so many images, of the seeds from `seed` on."""

    seed: int
    num_images: int

    @classmethod
    def parse(cls, body: bytes) -> "Ask":
        """The body that our own /generate takes."""
        given = json.loads(body)
        return cls(given["seed"], given["num_images"])


@dataclass(frozen=True)
class Generator:
    """A version's generator, as anybody would load it."""

    module: torch.jit.ScriptModule
    inputs: tuple[TensorSpec, ...]

    @classmethod
    def load(cls, folder: Path) -> "Generator":
        torch.set_num_threads(1)
        spec = json.loads((folder / "manifest.json").read_bytes())["generator"]
        module = torch.jit.load(folder / spec["files"]["torchscript"]["file"]).eval()  # type: ignore[no-untyped-call]
        generator = cls(module, tuple(TensorSpec.model_validate(tensor) for tensor in spec["inputs"]))
        for count in (1, 4, 16):  # TorchScript looks at its first runs, and then compiles
            for _ in range(3):
                render(generator, [Ask(0, count)])
        return generator


def render(generator: Generator, asked: Sequence[Ask]) -> list[bytes]:
    """One forward pass for all, one PNG for each."""
    seeds = [ask.seed + index for ask in asked for index in range(ask.num_images)]
    with torch.inference_mode():
        images = pixels.to_uint8(generator.module(**latents.draw(generator.inputs, seeds)))
    return [png(pixels.grid(part)) for part in torch.split(images, [ask.num_images for ask in asked])]


def png(sheet: pixels.Pixels, _text: object = None) -> bytes:
    """Pillow's, with what it chooses itself."""
    file = io.BytesIO()
    Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Setup:
    """What an adapter is started with.

    max_batch: requests that may share a forward pass.
    wait_ms: how long one may wait for others.
    """

    folder: Path
    port: int
    max_batch: int
    wait_ms: float

    @classmethod
    def given(cls) -> "Setup":
        values = os.environ
        return cls(Path(values[FOLDER]), int(values[PORT]), int(values[MAX_BATCH]), float(values[WAIT_MS]))

    def environment(self) -> dict[str, str]:
        return {FOLDER: str(self.folder), PORT: str(self.port), MAX_BATCH: str(self.max_batch), WAIT_MS: str(self.wait_ms)}
