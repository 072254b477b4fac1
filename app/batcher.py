"""Concurrent requests become batches, and batches become answers.

One thread does all of torch's work; the event loop only moves futures. Nothing waits on a timer: when the thread is free, whatever is
queued for one module of one engine goes at once, as many images as its largest batch has; what comes in one turn of the event loop goes
together. A request is cut into pieces, and pieces of several requests take turns, so that 256 images do not hold up one; so do the tiles of
a large picture.

What waits is bounded in images. What is made waits for its encoding, and is bounded too: while much of it does, the thread rests.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor

from app import visits
from app.engine import Engine, ModuleName, num_rows
from app.errors import Overloaded
from app.metrics import Metrics
from app.pools import Pool, give_way
from app.rooms import Room
from app.turns import Batch, Call, Queue, Request

MAX_IMAGES_AHEAD = 1024  # of the pool that encodes them

Result = TypeVar("Result")


class Batcher:
    """Owns the one thread that runs torch. Used on one event loop."""

    def __init__(
        self,
        capacity_images: int = 4096,
        num_threads: int | None = None,
        *,
        encoders: Pool | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """
        Args:
            capacity_images: how many may wait.
            num_threads: torch's threads inside one operation, its own choice when None. Another number may mean other last bits.
            encoders: where the images go from here.
        """
        self._metrics = metrics or Metrics()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine", initializer=_begin, initargs=(num_threads,))
        self._queue = Queue(Room("images", "images wait", capacity_images))
        self._lock = RLock()  # of the queue, which the thread takes its next work from, and of what follows
        self._is_running = False
        self._is_starting = False  # at the end of the event loop's turn
        self._rested = asyncio.Event()
        self._closed = False
        self._ended = 0.0  # when the last work did
        self._encoders = encoders
        if encoders is not None:
            encoders.when_done(self._start_next)
        self._metrics.watch("ganserve_queue_images", "Images that no batch has taken yet", lambda: self.queued_images)

    @property
    def queued_images(self) -> int:
        """Images that no batch has taken yet."""
        return self._queue.room.amount

    def refuse_while_full(self) -> None:
        """Raises Overloaded, where a request that found no room would find none again."""
        self._queue.room.refuse_while_full()

    @contextmanager
    def holding(self, engine: Engine, num_images: int) -> Iterator[None]:
        """Room in the queue for what is made ready and submitted in the block: a full queue refuses it before the work. What the visit
        submits takes that room, and where it is more, it is let in all the same: nothing is refused half-way.

        Raises:
            Overloaded: the queue is full, or the server stops.
        """
        visit = visits.current()
        visit.asks(engine.manifest)
        self._refuse_if_closed()
        with self._lock:
            self._queue.room.enter(num_images)
        visit.held = num_images
        try:
            with visits.visiting(visit):  # where there was none, it is one for the block
                yield
        finally:
            with self._lock:
                self._queue.room.leave(visit.held)
            visit.held = None

    def _enter(self, num_images: int) -> None:
        """Into the room, with the lock."""
        visit, room = visits.current(), self._queue.room
        if visit.held is None:
            room.enter(num_images)
        else:
            taken = min(visit.held, num_images)
            visit.held -= taken
            room.admit(num_images - taken)

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
        visit = visits.current()
        visit.asks(engine.manifest)
        self._refuse_if_closed()
        request = Request(inputs, count, waiting=count, answer=asyncio.get_running_loop().create_future())
        with self._lock:
            self._enter(count)
            self._queue.add(engine, module, request)
        if not self._is_starting:
            self._is_starting = True
            asyncio.get_running_loop().call_soon(self._start_all)
        try:
            return await request.answer
        finally:
            with self._lock:
                self._queue.drop(request)
            visit.spend("queue", time.perf_counter() - request.began - request.seconds)
            visit.spend("run", request.seconds)

    async def run_on_thread(self, work: Callable[[], Result]) -> Result:
        """Run other work on the engine's thread, between batches; what it raises is raised here.

        Raises:
            Overloaded: the server stops.
        """
        return await self._call(work, 0)

    async def _call(self, work: Callable[[], Result], count: int) -> Result:
        self._refuse_if_closed()
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        call = Call(work, answer, count)
        with self._lock:
            self._queue.calls.append(call)
        self._start_next()
        try:
            return await answer
        finally:
            if count:
                visit = visits.current()
                visit.spend("queue", time.perf_counter() - call.began - call.seconds)
                visit.spend("run", call.seconds)

    async def run_steps(self, steps: Generator[None, None, Result], num_images: int = 0) -> Result:
        """Run a long work on the engine's thread, and batches between its steps. Where the caller is cancelled, the other steps never run.

        Args:
            num_images: how many the work counts as in the queue; each step is one of them.

        Returns:
            What the generator returns.

        Raises:
            Overloaded: the queue is full, or the server stops.
        """

        def step() -> list[Result]:
            try:
                next(steps)
            except StopIteration as end:
                return [end.value]
            return []

        self._refuse_if_closed()
        room, waiting = self._queue.room, num_images
        with self._lock:
            self._enter(waiting)
        try:
            while True:
                taken = min(waiting, 1)
                result = await self._call(step, taken)
                waiting -= taken
                with self._lock:
                    room.leave(taken)
                if result:
                    return result[0]
        finally:
            with self._lock:
                room.leave(waiting)

    async def aclose(self) -> None:
        """Finish the requests of which a batch has run; refuse all else that waits, other work and its later steps too; end the thread."""
        self._closed = True
        with self._lock:
            answers: list[asyncio.Future[Any]] = [call.answer for call in self._queue.calls]
            answers += [request.answer for lane in self._queue.lanes.values() for request in lane if request.waiting == request.count]
            for answer in answers:
                if not answer.done():
                    answer.set_exception(_closing())
            self._start_next()  # it may rest
            is_running = self._is_running
        if is_running:
            await self._rested.wait()
        self._thread.shutdown()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            visits.current().refused = "stopping"
            raise _closing()

    @property
    def _rests(self) -> bool:
        return not self._closed and self._encoders is not None and self._encoders.size > MAX_IMAGES_AHEAD

    def _start_all(self) -> None:
        """What has come in this turn of the event loop; the first alone would go without the others."""
        self._is_starting = False
        self._start_next()

    def _start_next(self) -> None:
        """Give the thread its next work, if it is free and there is any."""
        with self._lock:
            if self._is_running or self._rests or (work := self._queue.take()) is None:
                return
            self._is_running = True
            self._thread.submit(work.run).add_done_callback(lambda ran: self._finish(work, ran))

    def _finish(self, work: Call | Batch, ran: Future[Any]) -> None:
        """On the thread, which goes on at once: it never waits for an event loop that has much to do. (On the loop, where the work was done
        before this could be asked for.)"""
        ended = time.perf_counter()
        try:
            with self._lock:
                if ran.exception() is not None:
                    work.fail()
                self._is_running = False
                self._start_next()
        finally:  # whatever befalls the next work, these callers are answered
            work.loop.call_soon_threadsafe(self._settle, work, ran, ended)

    def _settle(self, work: Call | Batch, ran: Future[Any], ended: float) -> None:
        work.settle(ran)
        before, self._ended = self._ended, ended
        if work.count and ran.exception() is None:
            self._queue.room.note(work.count, ended - max(before, work.began))  # rests are in it, other work is not
            if isinstance(work, Batch):
                self._metrics.batch(work.engine.manifest, work.count, work.padding)
        if self._closed and not self._is_running:
            self._rested.set()


def _begin(count: int | None) -> None:
    """On the thread."""
    give_way()
    if count is not None:
        torch.set_num_threads(count)


def _closing() -> Overloaded:
    return Overloaded("the server stops; ask again in a moment", headers={"Retry-After": "1"})
