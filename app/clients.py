"""A client that leaves takes its queued work with it, and so does one whose time is over."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request

from app import visits
from app.errors import ClientLeft, DeadlineExceeded
from app.visits import Visit

Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result, where the client stays for it and the visit's deadline holds; its body must have been read.

    Raises:
        ClientLeft, DeadlineExceeded: the work is cancelled, and what of it waits in a queue never runs.
    """
    visit = visits.current()
    visit.applied = visit.preference
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, timeout=visit.deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            visit.refused = "left"
            raise ClientLeft("the client closed the connection before its answer was ready")
        visit.refused = "deadline"
        raise DeadlineExceeded(f"the answer was not ready within {visit.deadline_seconds:g} s; {_remedy(visit)}")
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError):
                if not task.done():
                    await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _remedy(visit: Visit) -> str:
    if visit.parameter:
        return f"allow more in {visit.parameter}"
    return f"allow more than the header Prefer: {visit.preference}" if visit.preference else "ask for less, or again when less is asked"
