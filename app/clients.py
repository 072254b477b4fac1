"""A client that leaves takes its queued work with it, and so does one whose time is over."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from app import visits
from app.errors import ClientLeft, DeadlineExceeded
from app.visits import Visit

Result = TypeVar("Result")


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The work's result, where the client stays for it and the visit's deadline holds; its body must have been read.

    Raises:
        ClientLeft, DeadlineExceeded: the work is cancelled, and what of it waits in a queue never runs.
    """
    visit = visits.current()
    visit.applied = visit.preference
    working = asyncio.current_task()
    assert working is not None, "a coroutine runs in a task"
    has_left = False

    async def leave() -> None:
        nonlocal has_left
        await _left(request)
        has_left = True
        working.cancel()

    leaving = asyncio.create_task(leave())
    try:
        async with asyncio.timeout(visit.deadline_seconds) as limit:
            return await work
    except asyncio.CancelledError:
        if not has_left or working.uncancel():  # somebody else has cancelled it too
            raise
        visit.refused = "left"
        raise ClientLeft("the client closed the connection before its answer was ready") from None
    except TimeoutError:
        if not limit.expired():
            raise
        visit.refused = "deadline"
        raise DeadlineExceeded(f"the answer was not ready within {visit.deadline_seconds:g} s; {_remedy(visit)}") from None
    finally:
        leaving.cancel()  # and not waited for: the answer goes out at once


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _remedy(visit: Visit) -> str:
    if visit.parameter:
        return f"allow more in {visit.parameter}"
    return f"allow more than the header Prefer: {visit.preference}" if visit.preference else "ask for less, or again when less is asked"
