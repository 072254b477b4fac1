"""Whom a command asks, and how long it waits for that."""

import asyncio

import httpx
import pytest

from ganserve.connection import wait_until_loaded
from training.contract import UserError


def wait(*answers: tuple[str, int, str]) -> list[str]:
    """Wait for a server that gives these answers; the paths that it was not asked for."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        path, status, text = left.pop(0)
        assert request.url.path == path
        return httpx.Response(status, text=text)

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server") as client:
            await wait_until_loaded(client)

    asyncio.run(main())
    return [path for path, _, _ in left]


LOADING = ("/readyz", 503, '{"status":"loading","device":"cpu","models":[],"loading":["digits"]}')


def test_a_server_that_loads_is_waited_for_and_nobody_else() -> None:
    assert wait(LOADING, ("/healthz", 200, ""), LOADING, ("/healthz", 200, ""), ("/readyz", 200, '{"status":"ready"}')) == []
    assert wait(("/readyz", 503, "<h1>no server is available</h1>")) == []


def test_a_server_whose_loading_has_died_is_not_waited_for() -> None:
    with pytest.raises(UserError, match="/healthz answered 500"):
        wait(LOADING, ("/healthz", 500, ""))
