"""What is left behind by a client that closes its connection."""

import asyncio
import socket
from typing import Any

import httpx
import pytest
from fastapi import Request

from app.clients import while_connected
from app.errors import ClientLeft, DeadlineExceeded
from app.visits import Visit, visiting


def request_that(*messages: dict[str, Any]) -> Request:
    """A request whose connection brings these messages, and then nothing."""
    coming = list(messages)

    async def receive() -> dict[str, Any]:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def endless(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        ended.append("cancelled")
        raise


def test_a_client_that_stays_gets_the_result() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert asyncio.run(while_connected(request_that(), work())) == 7


def test_what_the_work_raises_is_raised() -> None:
    async def work() -> int:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        asyncio.run(while_connected(request_that({"type": "http.disconnect"}), work()))


def test_a_client_that_leaves_cancels_its_work() -> None:
    ended: list[str] = []
    with pytest.raises(ClientLeft):
        asyncio.run(while_connected(request_that({"type": "http.request", "body": b""}, {"type": "http.disconnect"}), endless(ended)))
    assert ended == ["cancelled"]


def test_work_that_takes_longer_than_it_may_is_cancelled() -> None:
    ended: list[str] = []
    visit = Visit(deadline_seconds=0.01)
    with visiting(visit), pytest.raises(DeadlineExceeded, match=r"^the answer was not ready within 0\.01 s"):
        asyncio.run(while_connected(request_that(), endless(ended)))
    assert (ended, visit.refused) == (["cancelled"], "deadline")


def test_a_timeout_of_the_work_is_no_deadline() -> None:
    async def work() -> int:
        raise TimeoutError("of its own")

    with visiting(Visit(deadline_seconds=60)), pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(while_connected(request_that(), work()))


def test_who_cancels_the_request_itself_cancels_it() -> None:
    """A server that stops, say; the client may have left too."""

    async def main(*messages: dict[str, Any]) -> bool:
        request = asyncio.create_task(while_connected(request_that(*messages), asyncio.Event().wait()))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        return request.cancelled()

    assert asyncio.run(main())
    assert asyncio.run(main({"type": "http.disconnect"}))


def test_a_real_server_goes_on_after_clients_that_hang_up(server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    body = b'{"model": "digits", "num_images": 256, "seed": 1}'
    head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
    assert httpx.post(f"{server}/generate", json={"model": "digits"}, timeout=60).status_code == 200
    assert httpx.get(f"{server}/healthz").status_code == 200
