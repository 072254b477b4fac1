"""What was chosen for this machine by measurement, `<state>/serving.json`: how many threads, and how each module is run.

Another choice means other last bits of every image, so nothing of it changes unless a user asks for it.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from training.contract import Document, Name
from training.files.directories import write_atomically

# how a module is run: see app/backends.py
Backend = Literal[
    "torchscript",
    "torchscript-frozen",
    "torchscript-channels-last",
    "torchscript-cuda-graphs",
    "torchscript-float16",
    "torchscript-bfloat16",
    "onnxruntime",
]
DEFAULT: Backend = "torchscript"
FILE = "serving.json"


class Choice(Document):
    """How one module is run."""

    backend: Backend = DEFAULT
    max_rows: Annotated[int, Field(ge=1)] | None = None  # of a batch, where larger ones take longer an image


class Choices(Document):
    """`serving.json`; replaced whole, by one rename. What it does not name is run as usual."""

    schema_version: Literal[1] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    models: dict[Name, dict[str, Choice]] = Field(default={})  # by module
    created_at: str = ""

    def of(self, model: str, module: str) -> Choice:
        return self.models.get(model, {}).get(module, Choice())

    @property
    def backends(self) -> set[Backend]:
        """All that it names."""
        return {choice.backend for modules in self.models.values() for choice in modules.values()}


def as_published(_module: str) -> Choice:
    return Choice()


def read(state: Path) -> Choices:
    """What was chosen; nothing where nothing was.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    try:
        return Choices.model_validate_json((state / FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return Choices()


def write(state: Path, choices: Choices) -> None:
    """Raises OSError."""
    state.mkdir(parents=True, exist_ok=True)
    write_atomically(state / FILE, choices.model_dump_json(indent=2).encode() + b"\n")


def forget(state: Path) -> bool:
    """Whether there was anything to forget; raises OSError."""
    try:
        (state / FILE).unlink()
    except FileNotFoundError:
        return False
    return True
