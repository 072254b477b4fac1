"""Send sets of images, look at them, remove them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.errors import UnsupportedMediaType, show
from app.schemas.common import MAX_ARCHIVE_BYTES
from app.schemas.datasets import Dataset, Datasets, UploadOptions
from app.service import ADMINISTRATIVE, ServiceOf

PNG = "image/png"
ZIP = ("application/zip", "application/x-zip-compressed", "application/octet-stream")  # what browsers of one system or another say
UPLOAD = "/datasets"

router = APIRouter(tags=["datasets"])
Key = Annotated[str | None, Header(min_length=1, max_length=255, description="A name of the client's own for this request.")]
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {ZIP[0]: {"schema": {"type": "string", "format": "binary"}}}}}


async def _expect_zip(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in ZIP:
        raise UnsupportedMediaType(
            f"the body is {show(given or 'of no stated type')}; {ZIP[0]} is allowed, the archive alone and as it is:"
            f" curl -X POST -T pets.zip -H 'Content-Type: {ZIP[0]}' '<server>{UPLOAD}?name=pets'"
        )


@router.post(
    UPLOAD,
    status_code=202,
    dependencies=[Depends(_expect_zip)],
    openapi_extra=_BODY,
    max_body_size=MAX_ARCHIVE_BYTES,
    summary="Send a set of images",
)
async def add(
    options: Annotated[UploadOptions, Query()], request: Request, service: ServiceOf, response: Response, idempotency_key: Key = None
) -> Dataset:
    """The body is a ZIP archive of pictures. The answer says that it is on the disk; the set is made in the background.

    Two or more folders in it are classes, the folders `source` and `target` pairs of equal names. A `metadata.jsonl` or `metadata.csv` at
    its top (`file_name` with `label`, `text` or both) gives labels in place of folders, and captions. What is left out is said on the card.
    A set never changes. The same request with the same `Idempotency-Key` is answered with the same set.
    """
    stated = request.headers.get("content-length", "")
    num_bytes = int(stated) if stated.isdecimal() and len(stated) < 19 else None
    found = await service.datasets.submit(options.options(), idempotency_key, request.stream(), num_bytes)
    response.headers["Location"] = f"{UPLOAD}/{found.name}"
    return found


@router.get(UPLOAD, dependencies=[ADMINISTRATIVE], summary="List the sets of images")
async def list_datasets(service: ServiceOf) -> Datasets:
    """Those that are built in, those that were added, those that are being made or could not be, and those that are damaged."""
    return await service.datasets.listing()


@router.get("/datasets/{dataset}", dependencies=[ADMINISTRATIVE], summary="Look at a set of images")
async def show_dataset(dataset: str, service: ServiceOf) -> Dataset:
    """Its card: images, sizes, classes, duplicates, what was left out and why, licence, content hash; or how far it is."""
    return await service.datasets.get(dataset)


@router.get(
    "/datasets/{dataset}/sheet.png",
    dependencies=[ADMINISTRATIVE],
    response_class=Response,
    responses={200: {"content": {PNG: {}}}},
    summary="Some images of a set",
)
async def sheet(
    dataset: str,
    service: ServiceOf,
    num_images: Annotated[int, Query(ge=1, le=256, description="At most so many.")] = 64,
    label: Annotated[str | None, Query(max_length=1000, description="Of one class alone.")] = None,
) -> Response:
    """A contact sheet, spread evenly over the set: each class begins a row, and sources lie on the left of their images."""
    return Response(await service.datasets.sheet(dataset, num_images, label), media_type=PNG)


@router.delete("/datasets/{dataset}", status_code=204, dependencies=[ADMINISTRATIVE], summary="Remove a set of images")
async def remove(dataset: str, service: ServiceOf) -> None:
    """From the disk, for good; or end an import, or clear one away that failed. Models that were trained on it stay."""
    await service.datasets.remove(dataset)
