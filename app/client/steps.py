"""What a client does, without doing it: a generator of steps is given what came of each, and returns what the method returns.

So there is one account of every request and of its answer, and two drivers of a few lines: one that blocks and one that awaits.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from pydantic import BaseModel

from app.client.errors import no_answer, refusal

NUM_TRIES = 5  # of one request
LONGEST_PAUSE_SECONDS = 60.0
SECONDS_AFTER_LOSS = 1.0  # before a request is sent again whose connection was lost
SECONDS_WITHOUT_SERVER = 60.0  # while a job is watched, its server may be started anew

Answer = TypeVar("Answer")
Document = TypeVar("Document", bound=BaseModel)
File = tuple[str, tuple[str, bytes]]  # of a form: the field, and the file's name and bytes


@dataclass(frozen=True)
class Call:
    """One request.

    content: begins a stream of a body's bytes, anew each time that the request is sent.
    repeatable: whether it may be sent again where nobody knows whether it was heard.
    """

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: object = None
    form: Mapping[str, str | list[str]] | None = None
    files: Sequence[File] = ()
    content: Callable[[], Iterator[bytes]] | None = None
    repeatable: bool = True


@dataclass(frozen=True)
class Pause:
    """Nothing, for so long."""

    seconds: float


Step = Call | Pause
Steps = Generator[Step, httpx.Response | None, Answer]  # a Call is answered with its response, or with a transport's error


def ask(call: Call) -> Steps[httpx.Response]:
    """A success. While the server is full, and where the connection is lost, it is asked again, a few times.

    Raises:
        Refused, NoAnswer.
    """
    tries = 0
    while True:
        tries += 1
        again = call.repeatable and tries < NUM_TRIES
        try:
            response = yield call
        except (httpx.ConnectError, httpx.TimeoutException) as error:
            raise no_answer(error) from error
        except httpx.TransportError as error:
            if not again:
                raise no_answer(error) from error
            yield Pause(SECONDS_AFTER_LOSS)
            continue
        assert response is not None, "a call is answered"
        if response.is_success:
            return response
        if not (again and response.status_code == httpx.codes.SERVICE_UNAVAILABLE and "Retry-After" in response.headers):
            raise refusal(response)
        yield Pause(_seconds(response.headers["Retry-After"]))


def read(document: type[Document], call: Call) -> Steps[Document]:
    """The document that it is answered with, whatever else a newer server says in it; raises as `ask` does."""
    response = yield from ask(call)
    return document.model_validate_json(response.content, extra="ignore")


def _seconds(retry_after: str) -> float:
    """As our server says it; the form with a date is not worth its code."""
    return min(float(retry_after), LONGEST_PAUSE_SECONDS) if retry_after.isdecimal() else SECONDS_AFTER_LOSS
