"""The mistakes that a client can mend, and their form on the wire: `application/problem+json` (RFC 9457).

    Problem
    |-- BadRequest            400  the request cannot be read as HTTP, JSON or multipart
    |-- Unauthenticated       401  no key, or not the right one
    |-- CrossOrigin           403  a page of another site asks for a change
    |-- NotFound              404
    |   |-- UnknownModel           names the known ones
    |   |-- UnknownVersion         names the versions and aliases
    |   |-- UnknownJob
    |   `-- UnknownDataset         names the known ones
    |-- MethodNotAllowed      405
    |-- NotAcceptable         406  no form that the client accepts
    |-- SlowBody              408  the body did not arrive in time
    |-- Conflict              409  the state does not allow it
    |-- PayloadTooLarge       413
    |   `-- ImageTooLarge          too many pixels
    |-- UnsupportedMediaType  415
    |-- Misdirected           421  a Host that this server does not answer to
    |-- Invalid               422  read, and not allowed: `errors` points at each field
    |   |-- ImageInvalid           the bytes are no picture
    |   `-- ArchiveInvalid         the bytes are no ZIP archive
    |-- ClientLeft            499  it closed the connection; nobody reads this answer
    |-- NotServed             501  this process cannot do it (no trainer installed)
    |-- Overloaded            503  full; `Retry-After` says when to come back
    |-- IndexUnavailable      503  the database of the jobs is away; models answer
    |   `-- IndexDamaged
    |-- DeadlineExceeded      504  the answer was not ready in time; what was not done of it will not be
    `-- InsufficientStorage   507  the disk has no room for what is sent

Every message says what was given, what is allowed and what to do. Anything that is no Problem is our own mistake: 500.
Under /v2 the statuses and messages are the same, in the form that the Open Inference Protocol has for them: `{"error": message}`.
"""

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import ClassVar, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, JsonValue
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY

from app.schemas.problems import FieldError as FieldError  # noqa: PLC0414 -- whoever raises a problem has it from here

MEDIA_TYPE = "application/problem+json"
PROTOCOL = "/v2"  # the routes of the Open Inference Protocol


class Problem(Exception):
    """A mistake of the client's, or a state of the server's that the client must know."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, errors: tuple[FieldError, ...] = (), headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})


class BadRequest(Problem):
    status, kind, title = 400, "bad-request", "The request cannot be read"


class Unauthenticated(Problem):
    status, kind, title = 401, "unauthenticated", "A key is needed"


class CrossOrigin(Problem):
    status, kind, title = 403, "cross-origin", "Asked from another site's page"


class NotFound(Problem):
    status, kind, title = 404, "not-found", "Not found"


class UnknownModel(NotFound):
    kind, title = "unknown-model", "Unknown model"


class UnknownVersion(NotFound):
    kind, title = "unknown-version", "Unknown version"


class UnknownJob(NotFound):
    kind, title = "unknown-job", "Unknown job"


class UnknownDataset(NotFound):
    kind, title = "unknown-dataset", "Unknown data set"


class MethodNotAllowed(Problem):
    status, kind, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(Problem):
    status, kind, title = 406, "not-acceptable", "No acceptable form"


class SlowBody(Problem):
    status, kind, title = 408, "slow-body", "The body came too slowly"


class Conflict(Problem):
    status, kind, title = 409, "conflict", "Not possible in this state"


class PayloadTooLarge(Problem):
    status, kind, title = 413, "payload-too-large", "Body too large"


class ImageTooLarge(PayloadTooLarge):
    kind, title = "image-too-large", "Image too large"


class UnsupportedMediaType(Problem):
    status, kind, title = 415, "unsupported-media-type", "Unsupported media type"


class Misdirected(Problem):
    status, kind, title = 421, "misdirected-request", "Not this server's name"


class Invalid(Problem):
    status, kind, title = 422, "invalid-request", "Invalid request"


class ImageInvalid(Invalid):
    kind, title = "image-invalid", "Not a picture"


class ArchiveInvalid(Invalid):
    kind, title = "archive-invalid", "Not an archive"


class ClientLeft(Problem):
    status, kind, title = 499, "client-left", "The client has left"


class NotServed(Problem):
    status, kind, title = 501, "not-served", "Not available in this process"


class Overloaded(Problem):
    status, kind, title = 503, "overloaded", "The server is full"


class IndexUnavailable(Problem):
    status, kind, title = 503, "index-unavailable", "The index of jobs does not answer"


class IndexDamaged(IndexUnavailable):
    kind, title = "index-damaged", "The index of jobs is damaged"


class DeadlineExceeded(Problem):
    status, kind, title = 504, "deadline-exceeded", "Not ready in time"


class InsufficientStorage(Problem):
    status, kind, title = 507, "insufficient-storage", "No room on the disk"


def show(value: object, limit: int = 80) -> str:
    """A value as it may stand in a message: its repr, printable ASCII, at most `limit` characters."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def did_you_mean(given: str, allowed: list[str]) -> str:
    """`; did you mean 'num_images'?`, or nothing where no allowed word is near."""
    near = get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def pointer_of(location: Sequence[str | int]) -> str:
    """RFC 6901: ("anchors", 0, "seed") is /anchors/0/seed."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


def is_protocol(path: str) -> bool:
    """Whether a path is of the Open Inference Protocol, whose clients know one form of refusal."""
    return path == PROTOCOL or path.startswith(f"{PROTOCOL}/")


def problem_response(problem: Problem, instance: str) -> Response:
    """The answer for a problem. It cannot fail: ASCII only, no number that is not finite."""
    if is_protocol(instance):
        content = json.dumps({"error": problem.detail}, ensure_ascii=True).encode("ascii")
        return Response(content, status_code=problem.status, media_type="application/json", headers=problem.headers)
    body: dict[str, JsonValue] = {
        "type": f"/problems/{problem.kind}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
    }
    if problem.errors:
        body["errors"] = [error.model_dump(exclude_none=True) for error in problem.errors]
    content = json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")
    return Response(content, status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


def _field_error(error: Mapping[str, object], allowed_fields: Mapping[str, list[str]], body: object) -> FieldError:
    location = error["loc"]
    assert isinstance(location, tuple)
    kind, message, given = str(error["type"]), str(error["msg"]), error.get("input")
    path = _within(location, body, last_is_missing=kind == "missing")
    pointer = pointer_of(path)
    if kind == "extra_forbidden":
        allowed = allowed_fields.get(pointer_of(["*" if isinstance(part, int) else part for part in path[:-1]]), [])
        message = f"unknown field{did_you_mean(str(path[-1]), allowed)}"
        if allowed:
            message += f" Allowed: {', '.join(allowed)}." if message.endswith("?") else f"; allowed: {', '.join(allowed)}"
        return FieldError(pointer=pointer, message=message)
    if kind == "missing":
        return FieldError(pointer=pointer, message="this field is required")
    if kind == "json_invalid":
        context = error.get("ctx")
        reason = context.get("error", message) if isinstance(context, Mapping) else message
        return FieldError(pointer="", message=f"the body is no JSON: {reason}")
    message = message.removeprefix("Value error, ")
    return FieldError(pointer=pointer, message=message[:1].lower() + message[1:], given=_given(given))


def _within(location: Sequence[str | int], body: object, *, last_is_missing: bool) -> list[str | int]:
    """Where in the body an error is. Pydantic puts names of union members and validators among the fields; they are left out."""
    path: list[str | int] = []
    for part in location:
        keys: Container[str | int] = range(len(body)) if isinstance(body, list) else body if isinstance(body, Mapping) else ()
        if part in keys:
            path.append(part)
            body = body[part]  # type: ignore[index]
    return [*path, location[-1]] if last_is_missing and location else path


def _merged(fields: Iterable[FieldError]) -> tuple[FieldError, ...]:
    """One error a place: every member of a union has its own to tell."""
    merged: dict[str, FieldError] = {}
    for field in fields:
        before = merged.get(field.pointer)
        message = field.message if before is None else f"{before.message}, or {field.message}"
        merged[field.pointer] = field.model_copy(update={"message": message})
    return tuple(merged.values())


def _given(value: JsonValue | object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return show(value)


def invalid(errors: Iterable[Mapping[str, object]], body: object, allowed_fields: Mapping[str, list[str]] | None = None) -> Invalid:
    """A 422 that points at each wrong field.

    Args:
        errors: as pydantic lists them.
        body: what was validated, as Python objects.
        allowed_fields: the known field names of each object in the body, by its pointer ("" is the body itself, `*` any item of a list).
    """
    fields = _merged(_field_error(error, allowed_fields or {}, body) for error in errors)
    detail = "; ".join(_place(field.pointer) + (f" is {field.given}" if field.given else "") + f": {field.message}" for field in fields[:5])
    more = f" (and {len(fields) - 5} more)" if len(fields) > 5 else ""
    return Invalid(detail + more, errors=fields)


def _place(pointer: str, limit: int = 80) -> str:
    """A pointer as words."""
    text = pointer.lstrip("/").replace("/", ".") or "body"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _allowed_fields(request: Request) -> dict[str, list[str]]:
    """The field names of the route's body model and of the models within, by pointer."""
    route = request.scope.get("route")
    field = getattr(route, "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    return fields_of(model) if isinstance(model, type) and issubclass(model, BaseModel) else {}


def fields_of(model: type[BaseModel], pointer: str = "") -> dict[str, list[str]]:
    """Field names by the pointer of the object that holds them, for a model and the models that are its fields, or items of its lists."""
    named = {info.alias or name: info for name, info in model.model_fields.items()}
    fields = {pointer: list(named)}
    for name, info in named.items():
        for place, kind in [(f"{pointer}/{name}", info.annotation), *((f"{pointer}/{name}/*", item) for item in get_args(info.annotation))]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                fields |= fields_of(kind, place)
    return fields


def install(app: FastAPI) -> None:
    """Answer every refusal as problem+json."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, error: Problem) -> Response:
        return problem_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return problem_response(_from_validation(request, error), request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        return problem_response(_from_http(request, error), request.url.path)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, _: Exception) -> Response:
        return problem_response(Problem("this is a bug of the server; its log has the traceback"), request.url.path)


def _from_validation(request: Request, error: RequestValidationError) -> Problem:
    if isinstance(error.body, bytes) and error.body:  # FastAPI parses what says that it is JSON, and passes on all else as it came
        given = show(request.headers.get("content-type") or "of no stated type")
        return UnsupportedMediaType(f"the body is {given}; application/json is allowed")
    named = {**request.path_params, **request.query_params}
    body = named if error.body is None else named | error.body if isinstance(error.body, dict) else error.body
    # FastAPI puts before each location what it is in: body, path or query
    return invalid([{**item, "loc": item["loc"][1:]} for item in error.errors()], body, _allowed_fields(request))


# what the reception has to tell while FastAPI reads a body, which lets no other kind of exception through
_WHILE_READING: Mapping[int, type[Problem]] = {SlowBody.status: SlowBody, Overloaded.status: Overloaded}


def _from_http(request: Request, error: HTTPException) -> Problem:
    method, path, headers = request.method, show(request.url.path), error.headers
    if error.status_code == 404:
        return NotFound(f"there is no {method} {path}; /docs lists every route")
    if error.status_code == 405:
        allowed = (headers or {}).get("Allow", "other methods")
        return MethodNotAllowed(f"{path} does not take {method}; it takes {allowed}", headers=headers)
    if kind := _WHILE_READING.get(error.status_code):
        return kind(str(error.detail), headers=headers)
    if error.status_code == 413:
        limit = request.scope.get(MAX_BODY_SIZE_SCOPE_KEY, "fewer")
        return PayloadTooLarge(f"the body is longer than the {limit} bytes that are allowed on {request.url.path}", headers=headers)
    if error.detail == "There was an error parsing the body":
        return BadRequest("the body cannot be parsed: JSON in UTF-8 is allowed, nested less deep and with shorter numbers", headers=headers)
    return BadRequest(str(error.detail), headers=headers)
