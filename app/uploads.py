"""The body of /discriminate, in either of its two content types: files as multipart, or base64 in JSON."""

import asyncio
from dataclasses import dataclass

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile

from app import errors
from app.errors import BadRequest, FieldError, Invalid, UnsupportedMediaType, did_you_mean, pointer_of, show
from app.inference import Upload, from_base64
from app.schemas import MAX_FILES, DiscriminateRequest, ModelName

FIELDS = ["files", "model", "version"]
MULTIPART, JSON = "multipart/form-data", "application/json"

_NAME: TypeAdapter[str] = TypeAdapter(ModelName)  # a version's number or alias has the same length

REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"$ref": "#/components/schemas/DiscriminateRequest"}},
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["files", "model"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": MAX_FILES,
                            "description": "PNG, JPEG, WebP, BMP or GIF files, of any size and mode.",
                        },
                        "model": {"type": "string", "description": "A model of GET /models."},
                        "version": {"type": "string", "description": "A version's number or an alias."},
                    },
                }
            },
        },
    }
}


@dataclass(frozen=True)
class DiscriminateBody:
    """Whom to ask about which pictures."""

    model: str
    version: int | str | None
    uploads: list[Upload]


async def read_discriminate(request: Request) -> DiscriminateBody:
    """The body of a request to /discriminate.

    Raises:
        UnsupportedMediaType: neither multipart nor JSON.
        Invalid: a field that is missing, unknown or wrong.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == MULTIPART:
        async with request.form(max_files=MAX_FILES + 1, max_fields=16) as form:  # closes the files, which may be on disk
            return await _from_form(form)
    if content_type == JSON:
        return await asyncio.to_thread(_from_json, await request.body())  # megabytes of base64 would hold up the event loop
    raise UnsupportedMediaType(f"the body is {show(content_type or 'of no stated type')}; {MULTIPART} (field `files`) or {JSON} is allowed")


def _from_json(content: bytes) -> DiscriminateBody:
    try:
        given = from_json(content)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {error}") from error
    try:
        body = DiscriminateRequest.model_validate(given)
    except ValidationError as error:
        raise errors.invalid(error.errors(include_url=False), given, errors.fields_of(DiscriminateRequest)) from error
    return DiscriminateBody(body.model, body.version, from_base64(body.images))


async def _from_form(form: FormData) -> DiscriminateBody:
    for key in form:
        if key not in FIELDS:
            message = f"unknown field{did_you_mean(key, FIELDS) or '; allowed: ' + ', '.join(FIELDS)}"
            raise _wrong(key, message)
    files = form.getlist("files")
    if not 1 <= len(files) <= MAX_FILES:
        raise _wrong("files", f"1 to {MAX_FILES} files are allowed, and {len(files)} are given")
    uploads = []
    for index, file in enumerate(files):
        if not isinstance(file, UploadFile):
            raise _wrong("files", f"part {index} is a text field; send it as a file, as `curl -F files=@picture.png` does")
        uploads.append(Upload(file.filename or f"files[{index}]", f"/files/{index}", await file.read()))
    return DiscriminateBody(_model(form), _version(form), uploads)


def _model(form: FormData) -> str:
    given = form.getlist("model")
    if len(given) != 1:
        raise _wrong("model", f"one model is wanted, and {len(given)} are given; GET /models lists them")
    return _name("model", given[0])


def _version(form: FormData) -> int | str | None:
    given = form.getlist("version")
    if not given or given == [""]:  # Swagger UI sends an empty field for what is left out
        return None
    if len(given) > 1:
        raise _wrong("version", f"one version is wanted, and {len(given)} are given")
    return _name("version", given[0])  # digits are a number to the store, wherever they come from


def _name(field: str, given: object) -> str:
    try:
        return _NAME.validate_python(given)
    except ValidationError as error:
        raise _wrong(field, error.errors()[0]["msg"]) from error


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"{show(field)[1:-1]}: {message}", errors=(FieldError(pointer=pointer_of([field]), message=message),))
