"""Threads for what would hold up the event loop, where small work does not wait for large work, nor large work for ever."""

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from itertools import count
from threading import Lock
from typing import Any, Self, TypeVar

NICENESS = 5  # of threads that compute, above the event loop's
SIZE_OF_A_TURN = 8  # for each so many of its size, a work lets one smaller pass that came later

Result = TypeVar("Result")


class Pool:
    """Used on one event loop. Work whose caller is cancelled before its turn never runs."""

    def __init__(self, name: str, num_threads: int) -> None:
        self.size = 0  # of all that waits or runs
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=give_way)
        self._lock = Lock()
        self._waiting: list[tuple[int, int, Callable[[], Any], asyncio.Future[Any]]] = []  # a heap: by turn, of equals the first
        self._numbers = count()
        self._followers: list[Callable[[], None]] = []

    async def run(self, work: Callable[[], Result], size: int = 1) -> Result:
        """What the work returns or raises.

        Args:
            size: how large it is, in images say; the same measure for all that comes here.
        """
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        with self._lock:
            heappush(self._waiting, (number + size // SIZE_OF_A_TURN, number, work, answer))
        self._threads.submit(self._run_next)
        self.size += size
        try:
            return await answer
        finally:
            self.size -= size
            for follow in self._followers:
                follow()

    def when_done(self, follow: Callable[[], None]) -> None:
        """Call it each time that a work is done or given up."""
        self._followers.append(follow)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads, once all that waits is done."""
        self._threads.shutdown()

    def _run_next(self) -> None:
        """On a thread, as often as there is work: whatever has its turn now, without a word from the event loop."""
        with self._lock:
            _, _, work, answer = heappop(self._waiting)
        if answer.cancelled():  # its caller has left
            return
        try:
            result = work()
        except BaseException as error:
            _tell(answer, answer.set_exception, error)
            raise
        _tell(answer, answer.set_result, result)


def give_way() -> None:
    """From now on, where threads wait for a core, the event loop goes before this one: who must be refused is refused at once, and every
    connection has its turn, however much there is to compute. On Linux, where a thread has a niceness of its own."""
    if sys.platform == "linux":
        os.nice(NICENESS)


def _tell(answer: asyncio.Future[Any], tell: Callable[[Any], None], what: object) -> None:
    """On the answer's own event loop, where its caller still waits for it."""

    def told() -> None:
        if not answer.done():
            tell(what)

    answer.get_loop().call_soon_threadsafe(told)
