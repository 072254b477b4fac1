"""The bodies that bring pictures, in either of their two content types: files as multipart, or base64 in JSON."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile

from app import errors
from app.errors import BadRequest, FieldError, Invalid, UnsupportedMediaType, did_you_mean, pointer_of, show
from app.pictures import Upload, from_base64, one_from_base64
from app.schemas.common import ModelName
from app.schemas.inference import MAX_FILES, DiscriminateRequest, Labels, TransformRequest

MULTIPART, JSON = "multipart/form-data", "application/json"

_NAME: TypeAdapter[str] = TypeAdapter(ModelName)  # a version's number or alias has the same length
Given = TypeVar("Given", bound=BaseModel)
Body = TypeVar("Body")


@dataclass(frozen=True)
class DiscriminateBody:
    """Whom to ask about which pictures; `labels` and `sources` are None where they were not given."""

    model: str
    version: int | str | None
    uploads: list[Upload]
    labels: Labels | None
    sources: list[Upload] | None


@dataclass(frozen=True)
class TransformBody:
    """Whom to ask for a picture of which picture."""

    model: str
    version: int | str | None
    upload: Upload


async def read_discriminate(request: Request) -> DiscriminateBody:
    """The body of a request to /discriminate.

    Raises:
        UnsupportedMediaType: neither multipart nor JSON.
        Invalid: a field that is missing, unknown or wrong.
    """
    return await _read(request, "files", _discriminate_from_json, _discriminate_from_form)


async def read_transform(request: Request) -> TransformBody:
    """The body of a request to /transform; raises as `read_discriminate` does."""
    return await _read(request, "file", _transform_from_json, _transform_from_form)


async def _read(
    request: Request, field: str, from_content: Callable[[bytes], Body], from_form: Callable[[FormData], Awaitable[Body]]
) -> Body:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == MULTIPART:
        # closes the files, which may be on disk
        async with request.form(max_files=2 * MAX_FILES + 1, max_fields=MAX_FILES + 16) as form:
            return await from_form(form)
    if content_type == JSON:
        return await asyncio.to_thread(from_content, await request.body())  # megabytes of base64 would hold up the event loop
    given = show(content_type or "of no stated type")
    raise UnsupportedMediaType(f"the body is {given}; {MULTIPART} (field `{field}`) or {JSON} is allowed")


# --- JSON ---------------------------------------------------------------------------------------------------------------------


def _discriminate_from_json(content: bytes) -> DiscriminateBody:
    body = _validated(content, DiscriminateRequest)
    sources = None if body.sources is None else from_base64("sources", body.sources)
    return DiscriminateBody(body.model, body.version, from_base64("images", body.images), body.labels, sources)


def _transform_from_json(content: bytes) -> TransformBody:
    body = _validated(content, TransformRequest)
    return TransformBody(body.model, body.version, one_from_base64("image", body.image))


def _validated(content: bytes, model: type[Given]) -> Given:
    try:
        given = from_json(content)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {error}") from error
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise errors.invalid(error.errors(include_url=False), given, errors.fields_of(model)) from error


# --- forms --------------------------------------------------------------------------------------------------------------------


async def _discriminate_from_form(form: FormData) -> DiscriminateBody:
    _check_fields(form, ["files", "model", "version", "labels", "sources"])
    uploads, sources = await _files(form, "files"), await _files(form, "sources")
    if not 1 <= len(uploads) <= MAX_FILES:
        raise _wrong("files", f"1 to {MAX_FILES} files are allowed, and {len(uploads)} are given")
    return DiscriminateBody(_model(form), _version(form), uploads, _labels(form), sources or None)


async def _transform_from_form(form: FormData) -> TransformBody:
    _check_fields(form, ["file", "model", "version"])
    uploads = await _files(form, "file")
    if len(uploads) != 1:
        raise _wrong("file", f"one file is wanted, and {len(uploads)} are given")
    return TransformBody(_model(form), _version(form), replace(uploads[0], pointer="/file"))


def _check_fields(form: FormData, allowed: list[str]) -> None:
    for key in form:
        if key not in allowed:
            raise _wrong(key, f"unknown field{did_you_mean(key, allowed) or '; allowed: ' + ', '.join(allowed)}")


def _given(form: FormData, field: str) -> list[UploadFile | str]:
    given = form.getlist(field)
    return [] if given == [""] else given  # Swagger UI sends an empty field for what is left out


async def _files(form: FormData, field: str) -> list[Upload]:
    uploads = []
    for index, file in enumerate(_given(form, field)):
        if not isinstance(file, UploadFile):
            raise _wrong(field, f"part {index} is a text field; send it as a file, as `curl -F {field}=@picture.png` does")
        uploads.append(Upload(file.filename or f"{field}[{index}]", f"/{field}/{index}", await file.read()))
    return uploads


def _labels(form: FormData) -> Labels | None:
    labels: Labels = []
    for index, label in enumerate(_given(form, "labels")):
        if not isinstance(label, str):
            raise _wrong("labels", f"part {index} is a file; a class is named in a text field, as `curl -F labels=name` does")
        labels.append(label)
    return labels or None


def _model(form: FormData) -> str:
    given = form.getlist("model")
    if len(given) != 1:
        raise _wrong("model", f"one model is wanted, and {len(given)} are given; GET /models lists them")
    return _name("model", given[0])


def _version(form: FormData) -> int | str | None:
    given = _given(form, "version")
    if len(given) > 1:
        raise _wrong("version", f"one version is wanted, and {len(given)} are given")
    return _name("version", given[0]) if given else None  # digits are a number to the store, wherever they come from


def _name(field: str, given: object) -> str:
    try:
        return _NAME.validate_python(given)
    except ValidationError as error:
        raise _wrong(field, error.errors()[0]["msg"]) from error


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"{show(field)[1:-1]}: {message}", errors=(FieldError(pointer=pointer_of([field]), message=message),))


# --- what OpenAPI is told -----------------------------------------------------------------------------------------------------

Schema = Mapping[str, object]
_FILE = {"type": "string", "format": "binary"}
_KINDS = "PNG, JPEG, WebP, BMP or GIF"
_WHOM = {
    "model": {"type": "string", "description": "A model of GET /models."},
    "version": {"type": "string", "description": "A version's number or an alias."},
}


def _body(model: type[BaseModel], required: list[str], properties: Mapping[str, Schema]) -> dict[str, Any]:
    form = {"type": "object", "required": required, "properties": {**properties, **_WHOM}}
    content = {JSON: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}, MULTIPART: {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


DISCRIMINATE_BODY = _body(
    DiscriminateRequest,
    ["files", "model"],
    {
        "files": {
            "type": "array",
            "items": _FILE,
            "minItems": 1,
            "maxItems": MAX_FILES,
            "description": f"{_KINDS} files, of any size and mode.",
        },
        "labels": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Where the discriminator judges labels too: a class's name or index, one for all files or one for each.",
        },
        "sources": {
            "type": "array",
            "items": _FILE,
            "description": "Where the discriminator judges pairs: the picture that each file was made of, in the same order.",
        },
    },
)
TRANSFORM_BODY = _body(TransformRequest, ["file", "model"], {"file": {**_FILE, "description": f"A {_KINDS} file."}})
