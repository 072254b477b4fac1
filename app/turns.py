"""Who goes next to the engine's thread: pieces of requests together as batches, and other work between them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from app.engine import Engine, ModuleName
from app.rooms import Room

PIECE_ROWS = 16  # a turn of a request, while others wait


@dataclass(eq=False)
class Request:
    inputs: Mapping[str, Tensor]
    count: int
    waiting: int  # rows that no batch has taken yet
    answer: asyncio.Future[Tensor]
    began: float = field(default_factory=time.perf_counter)
    finished: int = 0
    seconds: float = 0.0  # of the batches that held rows of it
    has_failed: bool = False  # known on the engine's thread, before the event loop hears of it
    output: Tensor | None = None  # made and filled by the engine's thread, read when all rows are in


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a request."""

    request: Request
    start: int
    stop: int


@dataclass(eq=False)
class Batch:
    """Pieces for one forward pass."""

    engine: Engine
    module: ModuleName
    pieces: list[Piece]
    count: int
    seconds: float = 0.0

    @property
    def began(self) -> float:
        return min(piece.request.began for piece in self.pieces)

    @property
    def padding(self) -> int:
        """Rows that fill it up to a size that the module runs in."""
        return min(size for size in self.engine.buckets[self.module] if size >= self.count) - self.count

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

    def fail(self) -> None:
        """What else there is of its requests need not run."""
        for piece in self.pieces:
            piece.request.has_failed = True

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.pieces[0].request.answer.get_loop()

    def settle(self, ran: Future[None]) -> None:
        """On the event loop: answer whoever has all his rows."""
        error = ran.exception()
        for request in {piece.request for piece in self.pieces}:
            request.seconds += self.seconds
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
class Call:
    """Other work for the engine's thread, as long as so many images take."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    count: int = 0
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def run(self) -> Any:  # noqa: ANN401
        begin = time.perf_counter()
        result = self.work()
        self.seconds = time.perf_counter() - begin
        return result

    def fail(self) -> None:
        """It has no other parts."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.answer.get_loop()

    def settle(self, ran: Future[Any]) -> None:
        error = ran.exception()
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(ran.result())


@dataclass
class Lane:
    """What waits for one module of one engine. Requests that had no turn yet and those that had share each batch, half and half where
    there is much of both: so one image goes with the next batch, however many wait that have begun, and these go on however many come.
    Where a request is larger than a turn, batches are no larger than that, nor than twice what is fresh: few rows do not wait for many."""

    fresh: deque[Request] = field(default_factory=deque)
    begun: deque[Request] = field(default_factory=deque)

    def fill(self, sizes: Sequence[int], turn_rows: int) -> list[Piece]:
        """Everything that fits into a batch.

        Args:
            sizes: that a batch may have, ascending.
            turn_rows: of a batch with rows of a larger request: whoever comes while it runs must wait for its end.
        """
        pieces: list[Piece] = []
        room = self._room(sizes, turn_rows)
        for_fresh = room // 2  # rows, or more where nobody else wants them
        while room and self:
            is_fresh = bool(self.fresh) and (for_fresh > 0 or not self.begun)
            request = (self.fresh if is_fresh else self.begun).popleft()
            if request.has_failed or request.answer.done():  # or its client has left
                continue
            start, size = request.count - request.waiting, min(PIECE_ROWS, room, request.waiting)
            pieces.append(Piece(request, start, start + size))
            request.waiting -= size
            room -= size
            for_fresh -= size if is_fresh else 0
            if request.waiting:
                self.begun.append(request)
        return pieces

    def _room(self, sizes: Sequence[int], turn_rows: int) -> int:
        if turn_rows == sizes[-1] or all(request.waiting <= turn_rows for request in self):
            return sizes[-1]
        if not (self.fresh and self.begun):
            return turn_rows
        fresh = sum(min(request.waiting, PIECE_ROWS) for request in self.fresh)
        return min(turn_rows, next((size for size in sizes if size >= 2 * fresh), turn_rows))  # half of it is theirs

    def __bool__(self) -> bool:
        return bool(self.fresh or self.begun)

    def __iter__(self) -> Iterator[Request]:
        yield from self.fresh
        yield from self.begun


@dataclass
class Queue:
    """What waits. Calls and batches take turns, among batches lanes do, and in a lane requests do."""

    room: Room  # in images that no batch has taken yet
    lanes: dict[tuple[Engine, ModuleName], Lane] = field(default_factory=dict)
    calls: deque[Call] = field(default_factory=deque)
    call_is_next: bool = True

    def add(self, engine: Engine, module: ModuleName, request: Request) -> None:
        """Room for it is taken already."""
        self.lanes.setdefault((engine, module), Lane()).fresh.append(request)

    def drop(self, request: Request) -> None:
        """Count out what is left of a request; its place in the lane is passed over when its turn comes."""
        self.room.leave(request.waiting)
        request.waiting = 0

    def take(self) -> Call | Batch | None:
        """The next work for the thread."""
        work = (self._call() or self._batch()) if self.call_is_next else (self._batch() or self._call())
        self.call_is_next = isinstance(work, Batch)
        return work

    def _call(self) -> Call | None:
        while self.calls:
            call = self.calls.popleft()
            if not call.answer.done():
                return call
        return None

    def _batch(self) -> Batch | None:
        while self.lanes:
            key = next(iter(self.lanes))
            lane = self.lanes.pop(key)
            engine, module = key
            pieces = lane.fill(engine.buckets[module], engine.turn_rows(module))
            if lane:
                self.lanes[key] = lane  # to the end: the next lane's turn
            if pieces:
                batch = Batch(engine, module, pieces, count=sum(piece.stop - piece.start for piece in pieces))
                self.room.leave(batch.count)
                return batch
        return None
