"""Swagger UI from the package's own files, so that it works with no internet, and an OpenAPI document whose examples run as they stand."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, RedirectResponse

from app import examples
from app.errors import MEDIA_TYPE, is_protocol
from app.protocol.documents import InferRequest, ProtocolError
from app.schemas.inference import DiscriminateRequest, GenerateRequest, InterpolateRequest, Pictures, TransformRequest
from app.schemas.models import AliasRequest
from app.schemas.problems import ProblemDocument
from training.contract import TrainConfig
from training.files import runs

router = APIRouter(include_in_schema=False)
BUILT_IN: str = TrainConfig.model_fields["dataset"].default
QUERIES = {"name": "my-pictures"}  # what nobody has yet
METHODS = ("get", "post", "put", "delete")


@router.get("/")
async def home() -> RedirectResponse:
    return RedirectResponse("/docs")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="ganserve",
        swagger_js_url="/_swagger/swagger-ui-bundle.js",
        swagger_css_url="/_swagger/swagger-ui.css",
        swagger_favicon_url="/_swagger/favicon-32x32.png",
        swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True, "defaultModelsExpandDepth": 0},
    )


def install(app: FastAPI) -> None:
    """Make the OpenAPI document anew at each request: its examples name the models and jobs that are here now."""

    def openapi() -> dict[str, Any]:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _complete(schema)
        _fill_examples(schema, app)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [path[method] for path in schema["paths"].values() for method in METHODS if method in path]


def _complete(schema: dict[str, Any]) -> None:
    """Every refusal is a problem document, where FastAPI would describe its own form of 422; and what is named must be there."""
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    # named by reference only, so FastAPI does not know of them
    for model in (ProblemDocument, ProtocolError, Pictures, DiscriminateRequest, TransformRequest, InferRequest):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= described.pop("$defs", {})
        components[model.__name__] = described
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    protocol_content = {"application/json": {"schema": {"$ref": "#/components/schemas/ProtocolError"}}}
    for path, operations in schema["paths"].items():
        refused = protocol_content if is_protocol(path) else content
        for operation in (operations[method] for method in METHODS if method in operations):
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "What was given, what is allowed, what to do", "content": refused}


def _fill_examples(schema: dict[str, Any], app: FastAPI) -> None:
    service = app.state.service
    job = service.jobs.newest_id
    grids = runs.sample_images(service.settings.jobs / job) if job else []
    values: dict[str, str | None] = {"id": job, "images": str(grids[-1] if grids else 0), "dataset": BUILT_IN}
    for name in service.store.names[:1]:
        manifest = service.store.manifest(name)
        values |= {"name": name, "version": str(manifest.version), "file": manifest.samples.file, "alias": "best"}
    for operation in _operations(schema):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path" and values.get(parameter["name"]) is not None:
                parameter["example"] = values[parameter["name"]]
            elif parameter["in"] == "query" and parameter["required"]:
                parameter["example"] = QUERIES[parameter["name"]]
    sampling = examples.sampling(service.store)
    found = {
        GenerateRequest: sampling,
        InterpolateRequest: sampling,
        DiscriminateRequest: examples.judging(service.store),
        TransformRequest: examples.transforming(service.store),
        AliasRequest: {"version": int(values.get("version") or 1)},
    }
    for model, example in found.items():
        schema["components"]["schemas"][model.__name__]["example"] |= example or {}
