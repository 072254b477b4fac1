"""What a client is told when it does not get what it asked for.

ClientError
|-- NoAnswer      nobody answers there, or not in time
|-- Refused       the server says why: its problem+json, field by field
|-- JobFailed     a job ended without a model, or is paused
`-- ImportFailed  an upload became no data set
"""

import httpx
from pydantic import ValidationError

from app.schemas.problems import FieldError, ProblemDocument
from app.schemas.training import Job


class ClientError(Exception):
    """The message is a sentence to show."""


class NoAnswer(ClientError):
    """No server answers at the address, or it does not in time."""


class Refused(ClientError):
    """The server refuses: `type`, `title`, `detail` and `errors` are those of its problem document (RFC 9457)."""

    def __init__(self, problem: ProblemDocument) -> None:
        super().__init__(problem.detail)
        self.status = problem.status
        self.type = problem.type
        self.title = problem.title
        self.detail = problem.detail
        self.errors: list[FieldError] = problem.errors


class JobFailed(ClientError):
    """A job that publishes nothing: it failed, was cancelled, or is paused. `log` is the end of its log."""

    def __init__(self, job: Job, log: str) -> None:
        said = f"job {job.id} {'is paused' if job.state == 'paused' else 'was cancelled' if job.state == 'cancelled' else 'failed'}"
        super().__init__(f"{said}: {job.message}" + (f"\n{log.rstrip()}" if log and job.state == "failed" else ""))
        self.job = job
        self.log = log


class ImportFailed(ClientError):
    """What was uploaded became no data set; the message is the server's reason."""


def refusal(response: httpx.Response) -> Refused:
    """The problem of a response that is no success; one in its form where something between us and the server has answered."""
    try:
        return Refused(ProblemDocument.model_validate_json(response.content))
    except ValidationError:
        detail = f"{response.request.url} answered {response.status_code} {response.reason_phrase}, which is no answer of ganserve's"
        return Refused(
            ProblemDocument(
                type="about:blank",
                title=response.reason_phrase,
                status=response.status_code,
                detail=detail,
                instance=response.request.url.path,
            )
        )


def no_answer(error: httpx.TransportError) -> NoAnswer:
    """In words, with the address."""
    url = error.request.url
    address = f"{url.scheme}://{url.netloc.decode()}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NoAnswer(f"nobody answers at {address} ({error}); is `ganserve serve` running there?")
    if isinstance(error, httpx.TimeoutException):
        return NoAnswer(f"{address} did not answer {error.request.method} {url.path} in time; ask for less, or allow more timeout_seconds")
    return NoAnswer(f"the connection to {address} was lost while it was asked for {url.path} ({error or type(error).__name__})")
