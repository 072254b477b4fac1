"""The directory of an import, `<name>/`: an archive that was sent, and what becomes of it.

    request.json  the ImportRequest
    <name>.zip    the archive as it was sent, until the set is made or cannot be
    status.json   the ImportStatus, replaced whole
    log.txt       what the worker said
    lock          held by the worker as long as it lives
    .staging      the set, until it is whole

It is durable before anybody is told of it. Who takes it away ends the import: its worker finds nothing that it could make visible.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from training.contract import Document, Name, Sha256
from training.files.directories import write_atomically

REQUEST, STATUS, LOG = "request.json", "status.json", "log.txt"

DatasetKind = Literal["auto", "images", "pairs", "tiles"]
ImportState = Literal["importing", "ready", "failed"]


def _channels(number: int) -> int:
    if number not in (1, 3):
        raise ValueError("1 (grey) or 3 (colour) is allowed")
    return number


class DatasetOptions(Document):
    """How an archive is to become a data set."""

    name: Name = Field(description="Of the new data set.")
    size: Annotated[int, Field(ge=4, le=1024)] = Field(default=64, description="Pixels a side of every image.")
    channels: Annotated[int, AfterValidator(_channels), WithJsonSchema({"type": "integer", "enum": [1, 3]})] | None = Field(
        default=None, description="1 (grey) or 3 (colour); 1 where all pictures are grey files when left out."
    )
    kind: DatasetKind = Field(
        default="auto",
        description="images: sub-folders are classes. pairs: the folders source and target, or source and target side by side in each"
        " picture. tiles: each picture is cut into squares of its own size. auto: pairs where both folders are at the top, else images.",
    )
    swap: bool = Field(default=False, description="Of pairs, make the sources targets and the targets sources.")
    licence: Annotated[str, Field(min_length=1, max_length=1000)] = Field(default="not stated", description="Kept on the card.")

    @field_validator("swap")
    @classmethod
    def _has_an_effect(cls, swap: bool, others: ValidationInfo) -> bool:
        if swap and others.data.get("kind", "pairs") != "pairs":
            raise ValueError("it is for pairs: give kind=pairs too, or leave swap out")
        return swap


class ImportRequest(Document):
    """Who asked for what: the options, the archive's hash, and the client's own name for the request."""

    options: DatasetOptions
    archive_sha256: Sha256
    key: str | None
    created_at: str


class ImportStatus(Document):
    """How far an import is; `num_files` is None until the archive is looked through."""

    state: ImportState = "importing"
    num_files: int | None = None
    num_done: int = 0
    message: str = ""
    attempts: int = 0  # workers that were started for it


def archive(folder: Path) -> Path:
    return folder / archive_name(folder.name)


def archive_name(name: str) -> str:
    return f"{name}.zip"


def read_request(folder: Path) -> ImportRequest:
    return ImportRequest.model_validate_json((folder / REQUEST).read_bytes())


def write_request(folder: Path, request: ImportRequest) -> None:
    write_atomically(folder / REQUEST, request.model_dump_json(indent=2).encode())


def read_status(folder: Path) -> ImportStatus:
    return ImportStatus.model_validate_json((folder / STATUS).read_bytes())


def write_status(folder: Path, status: ImportStatus) -> None:
    write_atomically(folder / STATUS, status.model_dump_json(indent=2).encode())


def paths(folder: Path) -> list[Path]:
    """The imports below a folder, by name."""
    return sorted(path for path in folder.iterdir() if (path / STATUS).is_file()) if folder.is_dir() else []
