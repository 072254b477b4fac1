"""Concurrent requests become batches, and batches become answers.

One thread does all of torch's work; the event loop only moves futures. Nothing waits on a timer: when the thread is free, whatever is
queued for one module of one engine goes at once, as many images as its largest batch has. A request is cut into pieces, and pieces of
several requests take turns, so that 256 images do not hold up one; so do the tiles of a large picture.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.engine import Engine, ModuleName, num_rows
from app.errors import Overloaded

PIECE_ROWS = 16  # a turn of a request, while others wait
_MEMORY = 0.8  # weight of the past in the measured speed, a batch

Result = TypeVar("Result")


@dataclass(eq=False)
class _Request:
    inputs: Mapping[str, Tensor]
    count: int
    waiting: int  # rows that no batch has taken yet
    answer: asyncio.Future[Tensor]
    finished: int = 0
    output: Tensor | None = None  # made and filled by the engine's thread, read when all rows are in


@dataclass(frozen=True)
class _Piece:
    """Rows `start` to `stop` of a request."""

    request: _Request
    start: int
    stop: int


@dataclass(eq=False)
class _Batch:
    """Pieces for one forward pass."""

    engine: Engine
    module: ModuleName
    pieces: list[_Piece]
    count: int
    seconds: float = 0.0

    def run(self) -> None:
        """On the engine's thread: join, run, and put each row where it belongs."""
        begin = time.perf_counter()
        names = self.pieces[0].request.inputs
        inputs = {name: torch.cat([piece.request.inputs[name][piece.start : piece.stop] for piece in self.pieces]) for name in names}
        output = self.engine.run(self.module, inputs)
        offset = 0
        for piece in self.pieces:
            request, size = piece.request, piece.stop - piece.start
            if request.output is None:
                request.output = torch.empty((request.count, *output.shape[1:]), dtype=output.dtype)
            request.output[piece.start : piece.stop] = output[offset : offset + size]
            offset += size
        self.seconds = time.perf_counter() - begin

    def settle(self, ran: asyncio.Future[None]) -> None:
        error = ran.exception()
        for piece in self.pieces:
            request = piece.request
            request.finished += piece.stop - piece.start
            if request.answer.done():  # its client has left, or an earlier piece in this batch has told it of the error
                continue
            if error is not None:
                request.answer.set_exception(error)
            elif request.finished == request.count:
                assert request.output is not None
                request.answer.set_result(request.output)


@dataclass(eq=False)
class _Call:
    """Other work for the engine's thread, as long as so many images take."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    count: int = 0
    seconds: float = 0.0

    def run(self) -> Any:  # noqa: ANN401
        begin = time.perf_counter()
        result = self.work()
        self.seconds = time.perf_counter() - begin
        return result

    def settle(self, ran: asyncio.Future[Any]) -> None:
        error = ran.exception()
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(ran.result())


@dataclass
class _Queue:
    """What waits. Calls and batches take turns, among batches lanes do, and in a lane requests do."""

    lanes: dict[tuple[Engine, ModuleName], deque[_Request]] = field(default_factory=dict)
    calls: deque[_Call] = field(default_factory=deque)
    images: int = 0
    call_is_next: bool = True

    def add(self, engine: Engine, module: ModuleName, request: _Request) -> None:
        self.lanes.setdefault((engine, module), deque()).append(request)
        self.images += request.waiting

    def drop(self, request: _Request) -> None:
        """Count out what is left of a request; its place in the lane is passed over when its turn comes."""
        self.images -= request.waiting
        request.waiting = 0

    def take(self) -> _Call | _Batch | None:
        """The next work for the thread."""
        work = (self._call() or self._batch()) if self.call_is_next else (self._batch() or self._call())
        self.call_is_next = isinstance(work, _Batch)
        return work

    def _call(self) -> _Call | None:
        while self.calls:
            call = self.calls.popleft()
            if not call.answer.done():
                return call
        return None

    def _batch(self) -> _Batch | None:
        while self.lanes:
            key = next(iter(self.lanes))
            lane = self.lanes.pop(key)
            engine, module = key
            pieces = self._fill(lane, engine.max_rows(module))
            if lane:
                self.lanes[key] = lane  # to the end: the next lane's turn
            if pieces:
                return _Batch(engine, module, pieces, count=sum(piece.stop - piece.start for piece in pieces))
        return None

    def _fill(self, lane: deque[_Request], room: int) -> list[_Piece]:
        """Everything that fits."""
        pieces: list[_Piece] = []
        while room and lane:
            request = lane.popleft()
            if request.answer.done():  # its client has left, or another batch of it failed
                continue
            start, size = request.count - request.waiting, min(PIECE_ROWS, room, request.waiting)
            pieces.append(_Piece(request, start, start + size))
            request.waiting -= size
            self.images -= size
            room -= size
            if request.waiting:
                lane.append(request)
        return pieces


class Batcher:
    """Owns the one thread that runs torch. Used on one event loop."""

    def __init__(self, capacity_images: int = 4096, num_threads: int | None = None) -> None:
        """
        Args:
            capacity_images: how many may wait.
            num_threads: torch's threads inside one operation, its own choice when None. Another number may mean other last bits.
        """
        self.capacity_images = capacity_images
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine", initializer=_use_threads, initargs=(num_threads,))
        self._queue = _Queue()
        self._running: asyncio.Future[Any] | None = None
        self._closed = False
        self._speed = (0.0, 0.0)  # images and seconds, of the last few batches

    @property
    def queued_images(self) -> int:
        """Images that no batch has taken yet."""
        return self._queue.images

    async def submit(self, engine: Engine, module: ModuleName, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the engine gives for the rows of one request, in their order. Where the caller is cancelled, its queued rows never run.

        Args:
            inputs: every declared input, (N, *shape) float32 each, on the CPU, N >= 1.

        Returns:
            On the CPU: uint8 (N, C, H, W) of a generator, float32 (N,) of a discriminator.

        Raises:
            Overloaded: the queue is full, or the server stops.
        """
        count = num_rows(inputs)
        self._admit(count)
        request = _Request(inputs, count, waiting=count, answer=asyncio.get_running_loop().create_future())
        self._queue.add(engine, module, request)
        self._start_next()
        try:
            return await request.answer
        finally:
            self._queue.drop(request)

    async def run_on_thread(self, work: Callable[[], Result]) -> Result:
        """Run other work on the engine's thread, between batches; what it raises is raised here.

        Raises:
            Overloaded: the server stops.
        """
        return await self._call(work, 0)

    async def _call(self, work: Callable[[], Result], count: int) -> Result:
        self._admit(0)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.calls.append(_Call(work, answer, count))
        self._start_next()
        return await answer

    async def run_steps(self, steps: Generator[None, None, Result], num_images: int = 0) -> Result:
        """Run a long work on the engine's thread, and batches between its steps. Where the caller is cancelled, the other steps never run.

        Args:
            num_images: how many the work counts as in the queue; each step is one of them.

        Returns:
            What the generator returns.

        Raises:
            Overloaded: the queue is full, or the server stops.
        """
        self._admit(num_images)

        def step() -> list[Result]:
            try:
                next(steps)
            except StopIteration as end:
                return [end.value]
            return []

        waiting = num_images
        self._queue.images += waiting
        try:
            while True:
                taken = min(waiting, 1)
                result = await self._call(step, taken)
                waiting -= taken
                self._queue.images -= taken
                if result:
                    return result[0]
        finally:
            self._queue.images -= waiting

    async def aclose(self) -> None:
        """Finish the requests that have begun, refuse those that have not, end the thread."""
        self._closed = True
        answers: list[asyncio.Future[Any]] = [call.answer for call in self._queue.calls]
        answers += [request.answer for lane in self._queue.lanes.values() for request in lane if request.waiting == request.count]
        for answer in answers:
            if not answer.done():
                answer.set_exception(_closing())
        while self._running is not None:
            await asyncio.wait([self._running])
        self._thread.shutdown()

    def _admit(self, count: int) -> None:
        if self._closed:
            raise _closing()
        waiting = self._queue.images
        if not count or not waiting or waiting + count <= self.capacity_images:  # alone, any size is served
            return
        images, seconds = self._speed
        wait = max(1, math.ceil(waiting * seconds / images)) if images else 1
        raise Overloaded(
            f"{waiting} images wait and {count} more would pass the limit of {self.capacity_images}; ask again in {wait} s",
            headers={"Retry-After": str(wait)},
        )

    def _start_next(self) -> None:
        """Give the thread its next work, if it is free and there is any."""
        if self._running is not None or (work := self._queue.take()) is None:
            return
        self._running = asyncio.get_running_loop().run_in_executor(self._thread, work.run)
        self._running.add_done_callback(lambda ran: self._finish(work, ran))

    def _finish(self, work: _Call | _Batch, ran: asyncio.Future[Any]) -> None:
        self._running = None
        work.settle(ran)
        if work.count and ran.exception() is None:
            images, seconds = self._speed
            self._speed = (_MEMORY * images + work.count, _MEMORY * seconds + work.seconds)
        self._start_next()


def _use_threads(count: int | None) -> None:
    if count is not None:
        torch.set_num_threads(count)


def _closing() -> Overloaded:
    return Overloaded("the server stops; ask again in a moment", headers={"Retry-After": "1"})
