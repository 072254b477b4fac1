"""A client of the server for Python programs: `Client`, and `AsyncClient` for those that await. Imports neither torch nor FastAPI.

    with Client("http://127.0.0.1:8000") as client:
        client.generate("digits", num_images=16, seed=7).grid().save("digits.png")

Answers are the server's own documents. What goes wrong is a ClientError. The methods are written down once, as steps (app/client/steps.py);
the two clients differ in how a step is taken.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from app.client import inference, runs, sets
from app.client.errors import ClientError, ImportFailed, JobFailed, NoAnswer, Refused
from app.client.events import Event, Feed
from app.client.pictures import Images, Picture
from app.client.progress import bar
from app.client.steps import Call, Pause, Steps
from app.schemas.training import Job

__all__ = ["AsyncClient", "Client", "ClientError", "Event", "Images", "ImportFailed", "JobFailed", "NoAnswer", "Picture", "Refused", "bar"]

DEFAULT_ADDRESS = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def _blocking(make: Callable[Parameters, Steps[Answer]]) -> "Callable[Concatenate[Client, Parameters], Answer]":
    """The method of a Client that takes these steps."""

    @wraps(make)
    def method(client: "Client", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        return client.take(make(*args, **kwargs))

    return method


def _awaited(make: Callable[Parameters, Steps[Answer]]) -> "Callable[Concatenate[AsyncClient, Parameters], Coroutine[Any, Any, Answer]]":
    """The same of an AsyncClient."""

    @wraps(make)
    async def method(client: "AsyncClient", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        return await client.take(make(*args, **kwargs))

    return method


class Client:
    """Asks, and waits for the answer. A connection is kept; `close`, or a `with` block, ends it. May be used by several threads."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            api_key: the server's, where it wants one.
            timeout_seconds: how long to wait for a word of an answer.
            transport: in place of a connection, for a service within this process.
        """
        self._http = httpx.Client(
            base_url=_checked(address), headers=_headers(api_key), timeout=_timeout(timeout_seconds), transport=transport
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def take(self, steps: Steps[Answer]) -> Answer:
        """Take the steps, one after the other; what they return."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = self._http.send(_request(self._http, step, None if step.content is None else step.content()))
                except httpx.TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    def events(self, job: Job | str, *, after: int = 0) -> Iterator[Event]:
        """What happens to a job, from the event behind `after` on, until it ends; a lost connection is made again, and none is missed."""
        feed = Feed(runs.path_of(job), after)
        while not feed.is_over:
            lost = None
            try:
                response = self._http.send(_request(self._http, feed.call), stream=True)
                try:
                    if not response.is_success:
                        response.read()
                    feed.begin(response)
                    for line in response.iter_lines():
                        if (event := feed.take(line)) is not None:
                            yield event
                finally:
                    response.close()
            except httpx.TransportError as error:
                lost = error
            if not feed.is_over:
                time.sleep(feed.rest(lost))

    models = _blocking(inference.models)
    model = _blocking(inference.model)
    version = _blocking(inference.version)
    card = _blocking(inference.card)
    architectures = _blocking(inference.architectures)
    generate = _blocking(inference.generate)
    interpolate = _blocking(inference.interpolate)
    transform = _blocking(inference.transform)
    discriminate = _blocking(inference.discriminate)

    upload = _blocking(sets.upload)
    datasets = _blocking(sets.datasets)
    dataset = _blocking(sets.dataset)
    sheet = _blocking(sets.sheet)
    remove_dataset = _blocking(sets.remove_dataset)
    augment = _blocking(sets.augment)

    train = _blocking(runs.train)
    wait = _blocking(runs.wait)
    job = _blocking(runs.job)
    jobs = _blocking(runs.jobs)
    cancel = _blocking(runs.cancel)
    pause = _blocking(runs.pause)
    resume = _blocking(runs.resume)
    retry = _blocking(runs.retry)
    remove = _blocking(runs.remove)
    metrics = _blocking(runs.metrics)
    samples = _blocking(runs.samples)
    summary = _blocking(runs.summary)
    log = _blocking(runs.log)


class AsyncClient:
    """The same for programs that await: every method is a coroutine, and `events` an asynchronous iterator."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As of a Client."""
        self._http = httpx.AsyncClient(
            base_url=_checked(address), headers=_headers(api_key), timeout=_timeout(timeout_seconds), transport=transport
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.aclose()

    async def take(self, steps: Steps[Answer]) -> Answer:
        """Take the steps, one after the other; what they return."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = await self._http.send(
                        _request(self._http, step, None if step.content is None else _threaded(step.content()))
                    )
                except httpx.TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    async def events(self, job: Job | str, *, after: int = 0) -> AsyncIterator[Event]:
        """As of a Client."""
        feed = Feed(runs.path_of(job), after)
        while not feed.is_over:
            lost = None
            try:
                response = await self._http.send(_request(self._http, feed.call), stream=True)
                try:
                    if not response.is_success:
                        await response.aread()
                    feed.begin(response)
                    async for line in response.aiter_lines():
                        if (event := feed.take(line)) is not None:
                            yield event
                finally:
                    await response.aclose()
            except httpx.TransportError as error:
                lost = error
            if not feed.is_over:
                await asyncio.sleep(feed.rest(lost))

    models = _awaited(inference.models)
    model = _awaited(inference.model)
    version = _awaited(inference.version)
    card = _awaited(inference.card)
    architectures = _awaited(inference.architectures)
    generate = _awaited(inference.generate)
    interpolate = _awaited(inference.interpolate)
    transform = _awaited(inference.transform)
    discriminate = _awaited(inference.discriminate)

    upload = _awaited(sets.upload)
    datasets = _awaited(sets.datasets)
    dataset = _awaited(sets.dataset)
    sheet = _awaited(sets.sheet)
    remove_dataset = _awaited(sets.remove_dataset)
    augment = _awaited(sets.augment)

    train = _awaited(runs.train)
    wait = _awaited(runs.wait)
    job = _awaited(runs.job)
    jobs = _awaited(runs.jobs)
    cancel = _awaited(runs.cancel)
    pause = _awaited(runs.pause)
    resume = _awaited(runs.resume)
    retry = _awaited(runs.retry)
    remove = _awaited(runs.remove)
    metrics = _awaited(runs.metrics)
    samples = _awaited(runs.samples)
    summary = _awaited(runs.summary)
    log = _awaited(runs.log)


async def _threaded(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Files are read on a thread."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def _request(
    http: httpx.Client | httpx.AsyncClient, call: Call, content: Iterator[bytes] | AsyncIterator[bytes] | None = None
) -> httpx.Request:
    return http.build_request(
        call.method,
        call.path,
        params=call.params or None,
        headers=call.headers,
        json=call.json,
        data=call.form,
        files=call.files or None,
        content=content,
    )


def _checked(address: str) -> str:
    """Raises ValueError where it is none."""
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address} is no address: write http://{address}")
    return address


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=CONNECT_SECONDS)
