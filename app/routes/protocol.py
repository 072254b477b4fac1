"""The Open Inference Protocol, version 2, for clients that speak it already: tensors in, tensors out."""

from importlib.metadata import version as version_of
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from app import visits
from app.clients import while_connected
from app.errors import UnsupportedMediaType, show
from app.protocol import index, inference, tensors
from app.protocol.documents import (
    IndexEntry,
    IndexRequest,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerHealth,
    ServerMetadata,
)
from app.schemas.common import MAX_JSON_BYTES, MAX_UPLOAD_BYTES
from app.service import ADMINISTRATIVE, ServiceOf

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
inference_router = APIRouter(prefix="/v2", tags=["open inference protocol"])
Name = Annotated[str, Path(max_length=127, description="A model of GET /models, or `model:discriminator`, or `model:part`.")]
Version = Annotated[str, Path(max_length=63)]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{InferRequest.__name__}"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


async def _read(request: Request, service: ServiceOf) -> tensors.Request:
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise UnsupportedMediaType(f"the body is compressed by {show(encoding)}; send it as it is")
    content, header_length = await request.body(), request.headers.get(tensors.HEADER_LENGTH)
    given = await service.in_pool(lambda: tensors.read(content, header_length), "prepare")
    if (timeout := given.document.parameters.timeout) is not None:
        visits.current().shorten(timeout / 1e6, "parameters.timeout")
    return given


Given = Annotated[tensors.Request, Depends(_read)]


@router.get("", summary="Who answers?")
@router.get("/", include_in_schema=False)
async def server() -> ServerMetadata:
    """The server's name and version, and which extensions of the protocol it knows."""
    return ServerMetadata(name="ganserve", version=version_of("ganserve"), extensions=["binary_tensor_data"])


@router.get("/health/live", summary="Is the process alive?")
async def live(service: ServiceOf) -> ServerHealth:
    """As /healthz."""
    service.check_alive()
    return ServerHealth(ready=service.store.is_ready)


@router.get("/health/ready", summary="Are the models loaded?")
async def ready(service: ServiceOf, response: Response) -> ServerHealth:
    """As /readyz: 503 until every model that is to be loaded is."""
    response.status_code = 200 if service.store.is_ready else 503
    return ServerHealth(ready=service.store.is_ready)


@router.get("/models/{name}", summary="What does a model take and give?")
async def model(name: Name, service: ServiceOf) -> ModelMetadata:
    """The inputs and outputs of the version that answers where none is named; `seed` can take the place of every latent."""
    return index.metadata(service.store, name, None)


@router.get("/models/{name}/versions/{version}", summary="What does a version take and give?")
async def model_version(name: Name, version: Version, service: ServiceOf) -> ModelMetadata:
    """The same of a version, by number or alias."""
    return index.metadata(service.store, name, version)


@router.get("/models/{name}/ready", summary="Does a model answer?")
async def model_ready(name: Name, service: ServiceOf, response: Response) -> ModelReady:
    """404 where it is unknown or broken, 503 while it is loaded for the first time; who asks it then waits."""
    return _told(index.readiness(service.store, name, None), response)


@router.get("/models/{name}/versions/{version}/ready", summary="Does a version answer?")
async def version_ready(name: Name, version: Version, service: ServiceOf, response: Response) -> ModelReady:
    """The same of a version, by number or alias; one that was not loaded yet is loaded when it is asked."""
    return _told(index.readiness(service.store, name, version), response)


def _told(ready: ModelReady, response: Response) -> ModelReady:
    response.status_code = 200 if ready.ready else 503
    return ready


@inference_router.post(
    "/models/{name}/infer",
    response_model=InferResponse,
    openapi_extra=_BODY,
    max_body_size=MAX_UPLOAD_BYTES,
    summary="Tensors in, tensors out",
)
async def infer(name: Name, given: Given, request: Request, service: ServiceOf) -> Response:
    """JSON, or JSON and behind it the bytes of tensors, as the binary tensor data extension has it, both ways.

    Pixels are UINT8 (N, H, W, C); as an input also BYTES of picture files, as an output also BYTES of `png` files. Row i of each output
    depends on row i of the inputs alone, to the bit. Without `outputs`, `png` is left out.
    """
    return _response(await while_connected(request, inference.infer(service, name, None, given)))


@inference_router.post(
    "/models/{name}/versions/{version}/infer",
    response_model=InferResponse,
    openapi_extra=_BODY,
    max_body_size=MAX_UPLOAD_BYTES,
    summary="Tensors in, tensors out, by a version",
)
async def version_infer(name: Name, version: Version, given: Given, request: Request, service: ServiceOf) -> Response:
    """The same by a version, by number or alias."""
    return _response(await while_connected(request, inference.infer(service, name, version, given)))


def _response(answer: tensors.Answer) -> Response:
    return Response(answer.content, media_type=answer.media_type, headers=answer.headers)


@router.post("/repository/index", dependencies=[ADMINISTRATIVE], max_body_size=MAX_JSON_BYTES, summary="List the versions of all models")
async def repository_index(service: ServiceOf, body: IndexRequest | None = None) -> list[IndexEntry]:
    """Every version that answers when it is asked, and, unless `ready`, every one that is left out, with the reason."""
    return index.entries(service.store, ready=body is not None and body.ready)
