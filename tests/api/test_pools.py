"""Small work passes large work, but not for ever; what nobody waits for never runs."""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable

import pytest

from app.batcher import Batcher
from app.pools import NICENESS, SIZE_OF_A_TURN, Pool


def run(main: Callable[[Pool], Awaitable[None]]) -> None:
    async def whole() -> None:
        with Pool("test", 1) as pool:
            await main(pool)

    asyncio.run(whole())


def order_of(sizes: list[int]) -> list[int]:
    """The order in which works of these sizes ran, that all came while one ran; by their places."""
    ran: list[int] = []

    async def main(pool: Pool) -> None:
        gate = threading.Event()
        first = asyncio.create_task(pool.run(lambda: gate.wait(60), 0))
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(pool.run(lambda place=place: ran.append(place), size)) for place, size in enumerate(sizes)]  # type: ignore[misc]
        await asyncio.sleep(0)
        assert pool.size == sum(sizes)
        gate.set()
        await asyncio.gather(first, *tasks)
        assert pool.size == 0

    run(main)
    return ran


def test_works_of_one_size_run_in_their_order() -> None:
    assert order_of([1] * 20) == list(range(20))
    assert order_of([256] * 20) == list(range(20))


def test_a_small_work_passes_large_ones_and_a_large_one_lets_few_pass() -> None:
    assert order_of([256, 256, 1])[0] == 2
    ran = order_of([64] + [1] * 20)
    assert ran.index(0) == 64 // SIZE_OF_A_TURN - 1
    assert [place for place in ran if place] == list(range(1, 21))


def test_what_a_work_raises_is_raised_to_its_caller_and_the_next_one_runs() -> None:
    def fail() -> None:
        raise LookupError("on purpose")

    async def main(pool: Pool) -> None:
        with pytest.raises(LookupError, match="on purpose"):
            await pool.run(fail)
        assert await pool.run(lambda: threading.current_thread().name) == "test_0"

    run(main)


def test_work_whose_caller_has_left_never_runs_and_its_followers_hear_of_it() -> None:
    ran: list[str] = []
    sizes: list[int] = []

    async def main(pool: Pool) -> None:
        pool.when_done(lambda: sizes.append(pool.size))
        gate = threading.Event()
        first = asyncio.create_task(pool.run(lambda: gate.wait(60)))
        await asyncio.sleep(0)
        stays, leaves = (asyncio.create_task(pool.run(lambda name=name: ran.append(name), 10)) for name in ("stays", "leaves"))  # type: ignore[misc]
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.wait([leaves])
        gate.set()
        await asyncio.gather(first, stays)

    run(main)
    assert ran == ["stays"]
    assert sizes == [11, 10, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a niceness of its own on Linux alone")
def test_what_computes_gives_way_to_the_event_loop() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    async def main(pool: Pool) -> None:
        batcher = Batcher(num_threads=1)
        assert await pool.run(niceness) == await batcher.run_on_thread(niceness) == niceness() + NICENESS
        await batcher.aclose()

    run(main)
