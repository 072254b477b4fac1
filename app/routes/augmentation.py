"""Labelled images of a model's, for a data set."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse

from app.clients import while_connected
from app.forms import JSON, ZIP
from app.negotiation import choose
from app.schemas.augmentation import AugmentRequest
from app.schemas.common import MAX_JSON_BYTES
from app.service import Service, ServiceOf
from training.contract import DatasetCard

if TYPE_CHECKING:
    from app.augmentation import Plan

router = APIRouter(tags=["datasets"])
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}, "description": "The images, without `save_as`"},
    201: {"model": DatasetCard, "description": "The card of the new data set, with `save_as`"},
}


@router.post(
    "/datasets/{dataset}/augment",
    response_class=Response,
    responses=_ANSWERS,
    max_body_size=MAX_JSON_BYTES,
    summary="Make labelled images for a data set",
)
async def augment(
    dataset: Annotated[str, Path(max_length=63)],
    body: AugmentRequest,
    request: Request,
    service: ServiceOf,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Images of a model of classes, for the classes of a data set: the same names, in any order, and images of the same shape.

    An archive is sent while it is made: `<class>/<seed>.png`, and `metadata.jsonl` with `file_name`, `label`, `seed`, `model` and `version`
    of each. With `save_as`, they become a data set in place of it, whose card says where they come from. Each image's seed gives the same
    image again by /generate, with its class as the label.
    """
    service.expect_trainer()
    from app import augmentation

    choose(accept, (ZIP,) if body.save_as is None else (JSON,))
    plan = await while_connected(request, augmentation.plan(service, dataset, body))
    if body.save_as is None:
        return await _archive(request, service, plan)
    card = await while_connected(request, augmentation.registered(service, plan))
    return Response(card.model_dump_json(), 201, {"Location": f"/datasets/{card.name}"}, JSON)


async def _archive(request: Request, service: Service, plan: "Plan") -> Response:
    """It begins once there is something to send: until then, a refusal is one."""
    from app import augmentation

    pieces = augmentation.zipped(service, plan)
    first = await while_connected(request, anext(pieces))

    async def sent() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    manifest, name = plan.manifest, f"{plan.dataset.card.name}-augmented.zip"
    headers = {"X-Model": manifest.name, "X-Version": str(manifest.version), "X-Seed": str(plan.seed)}
    return StreamingResponse(sent(), 200, headers | {"Content-Disposition": f'attachment; filename="{name}"'}, ZIP)
