"""Data sets: uploaded, looked at, removed, and made of a model's images."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import quote
from uuid import uuid4

from PIL import Image

from app.client.archives import stream_of
from app.client.errors import ImportFailed
from app.client.pictures import opened
from app.client.steps import Call, Pause, Steps, ask, read
from app.schemas.datasets import Dataset, Datasets
from training.contract import DatasetCard

SECONDS_BETWEEN_LOOKS = 0.5


def upload(
    source: Path | str,
    name: str,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    kind: Literal["auto", "images", "pairs", "tiles"] = "auto",
    licence: str | None = None,
    wait: bool = True,
    progress: Callable[[Dataset], None] | None = None,
    key: str | None = None,
) -> Steps[Dataset]:
    """Send a folder of pictures, or a ZIP of one, to be a data set of this name, and wait until it can be trained on.

    Args:
        source: sub-folders are classes. It is sent as it is read, a piece in memory at a time.
        size, channels, kind, licence: as `ganserve datasets add` takes them.
        wait: whether to return only when the set is ready.
        progress: told of the set each time that it is looked at.
        key: a name of your own for this upload: sent again with it, it is the same upload.

    Raises:
        ValueError: the source is neither.
        ImportFailed: it became no data set.
    """
    given = {"name": name, "size": size, "channels": channels, "kind": kind, "licence": licence}
    call = Call(
        "POST",
        "/datasets",
        params={field: value for field, value in given.items() if value is not None},
        headers={"Content-Type": "application/zip", "Idempotency-Key": key or uuid4().hex},
        content=stream_of(Path(source)),
    )
    yield from ask(call)
    found = yield from dataset(name)
    while wait and found.state == "importing":
        if progress is not None:
            progress(found)
        yield Pause(SECONDS_BETWEEN_LOOKS)
        found = yield from dataset(name)
    if progress is not None:
        progress(found)
    if found.state == "failed":
        raise ImportFailed(f"{source} became no data set: {found.message}")
    return found


def datasets() -> Steps[Datasets]:
    """Every data set, and what is broken."""
    return (yield from read(Datasets, Call("GET", "/datasets")))


def dataset(name: str) -> Steps[Dataset]:
    """One of them: its card, or how far its import is."""
    return (yield from read(Dataset, Call("GET", _path(name))))


def sheet(name: str, *, num_images: int | None = None, label: str | None = None) -> Steps[Image.Image]:
    """Images of a set, or of one of its classes, spread evenly over it, as one picture."""
    given: dict[str, str | int | None] = {"num_images": num_images, "label": label}
    asked = {field: value for field, value in given.items() if value is not None}
    response = yield from ask(Call("GET", f"{_path(name)}/sheet.png", params=asked))
    return opened(response.content)


def remove_dataset(name: str) -> Steps[None]:
    """Take a set from the server's disk."""
    yield from ask(Call("DELETE", _path(name)))


def augment(
    name: str,
    model: str,
    *,
    save_as: str,
    version: int | str | None = None,
    num_images: int | None = None,
    images_per_class: int | None = None,
    seed: int | None = None,
    truncation: float | None = None,
    best_of: int | None = None,
    include_real: bool = False,
) -> Steps[DatasetCard]:
    """Register a data set of a conditional model's images, for the classes of another; where nothing is said of how many, each class gets
    what it lacks to be as large as the largest."""
    body = {
        "model": model,
        "save_as": save_as,
        "version": version,
        "num_images": num_images,
        "images_per_class": images_per_class,
        "seed": seed,
        "truncation": truncation,
        "best_of": best_of,
        "include_real": include_real,
    }
    asked = {field: value for field, value in body.items() if value is not None}
    return (yield from read(DatasetCard, Call("POST", f"{_path(name)}/augment", json=asked, repeatable=False)))


def _path(name: str) -> str:
    return f"/datasets/{quote(name, safe='')}"
