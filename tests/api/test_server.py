"""The listening socket; all else of the real server is in test_end_to_end."""

import asyncio
import socket

import pytest

from app.server import listen
from app.settings import Settings, SettingsError


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
def test_answers_are_not_held_back_for_a_delayed_acknowledgement(host: str) -> None:
    async def no_delay() -> int:
        seen: list[int] = []

        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen(Settings(host=host, port=0))
        async with await asyncio.start_server(serve, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            await reader.read()
            writer.close()
            await writer.wait_closed()
        return seen[0]

    assert asyncio.run(no_delay()) == 1


def test_an_address_that_is_taken_is_refused_with_a_sentence() -> None:
    with listen(Settings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port"):
            listen(Settings(port=port))


def test_an_address_of_another_machine_is_refused_with_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1 port 0: Cannot assign requested address"):
        listen(Settings(host="192.0.2.1", port=0))
