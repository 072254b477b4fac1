"""Where a request comes in and its answer goes out: what it may bring, how long that took, and what is told of it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Container

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Overloaded, problem_response
from app.metrics import Metrics
from app.rooms import Room
from app.schemas.common import MAX_UPLOAD_BYTES
from app.service import Service
from app.settings import Settings
from app.visits import Visit, deadline, visiting

STREAM_BYTES_PER_SECOND = 16_384  # a stream that is slower holds its place for nothing
_log = logging.getLogger(__name__)


class Reception:
    """ASGI middleware, outside of all others. A body is let in while there is room for its bytes: before a byte of it is read where it has
    a stated length, else as they come. One that goes to the disk as it comes takes no room, and may take its time."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, wanting_images: Container[str], streamed: Container[str] = ()
    ) -> None:
        """
        Args:
            streamed: paths whose bodies go to the disk.
            wanting_images: last words of the paths that do: where too many wait already, a refusal must cost next to nothing.
        """
        self._app = app
        self._settings = settings
        self._streamed = streamed
        self._wanting_images = wanting_images
        self._metrics = metrics
        self._bodies = Room("bodies", "bytes of requests are being worked on", settings.queue_megabytes * 10**6)
        metrics.watch("ganserve_body_bytes", "Bytes of the requests that are being worked on", lambda: self._bodies.amount)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit()
        telling = _telling(visit, send)
        try:
            with visiting(visit):
                try:
                    if scope["method"] == "POST" and scope["path"].rpartition("/")[2] in self._wanting_images:
                        _service(scope).batcher.refuse_while_full()  # before all else: under twice the load it is said to every second one
                    headers = Headers(scope=scope)
                    visit.deadline_seconds, visit.preference = deadline(headers.getlist("prefer"), self._settings.deadline_seconds)
                    is_streamed = scope["path"] in self._streamed
                    stated = 0 if is_streamed else _num_bytes(headers)
                    with self._bodies.holding(stated or 0) as hold:
                        coming = _counted(receive, hold) if stated is None else receive
                        await self._app(scope, self._in_time(visit, coming, STREAM_BYTES_PER_SECOND if is_streamed else math.inf), telling)
                except Overloaded as problem:  # refused at the door; all other problems are answered inside
                    await problem_response(problem, scope["path"])(scope, receive, telling)
        finally:
            self._tell(visit, scope)

    def _in_time(self, visit: Visit, receive: Receive, bytes_per_second: float) -> Receive:
        """A body that comes too slowly holds its room no longer than an answer may take, and than so many bytes may."""
        limit = self._settings.deadline_seconds
        until = None if limit is None else asyncio.get_running_loop().time() + limit

        async def receive_in_time() -> Message:
            nonlocal until
            if until is None:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                visit.refused = "slow-body"
                rate = "" if math.isinf(bytes_per_second) else f" and at {bytes_per_second:,} bytes/s"
                detail = f"the body was not here within {limit:g} s{rate}; send less, or over a faster connection"
                raise HTTPException(408, detail) from None
            until = until + len(message.get("body", b"")) / bytes_per_second if message.get("more_body") else None
            return message

        return receive_in_time

    def _tell(self, visit: Visit, scope: Scope) -> None:
        seconds = time.perf_counter() - visit.began
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.visit(visit, route, seconds)
        if self._settings.access_log:
            fields = {
                "method": scope["method"],
                "route": route,
                "status": visit.status,
                "milliseconds": round(1000 * seconds, 3),
                "model": visit.model or None,
                "version": int(visit.version) if visit.version else None,
            }
            told = " ".join(str(value) for value in fields.values() if value is not None)
            _log.info("%s", told, extra={"fields": fields})


def _service(scope: Scope) -> Service:
    service: Service = scope["app"].state.service
    return service


def _telling(visit: Visit, send: Send) -> Send:
    """Adds the headers that are known only when an answer begins."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            visit.status = message["status"]
            headers = MutableHeaders(scope=message)
            if visit.seconds:
                headers["Server-Timing"] = visit.server_timing
            if visit.applied is not None:
                headers["Preference-Applied"] = visit.applied
        await send(message)

    return tell


def _num_bytes(headers: Headers) -> int | None:
    """As many as the body says that it has, at most those that are ever read; None where it does not say."""
    stated = headers.get("content-length", "")
    if not stated.isdecimal():
        return None
    return min(int(stated), MAX_UPLOAD_BYTES) if len(stated) < 19 else MAX_UPLOAD_BYTES  # int() refuses thousands of digits


def _counted(receive: Receive, hold: Callable[[int], None]) -> Receive:
    """Room is found for what comes, as it comes."""

    async def receive_counted() -> Message:
        message = await receive()
        try:
            hold(len(message.get("body", b"")))
        except Overloaded as problem:
            raise HTTPException(503, problem.detail, headers=problem.headers) from None
        return message

    return receive_counted
