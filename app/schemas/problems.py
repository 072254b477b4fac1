"""The body of every refusal, `application/problem+json` (RFC 9457)."""

from pydantic import BaseModel


class FieldError(BaseModel):
    """One field that is wrong: where (RFC 6901 pointer into the body), what is wrong, what was given."""

    pointer: str
    message: str
    given: str | None = None


class ProblemDocument(BaseModel):
    """The body of every answer that is not a success (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] = []
