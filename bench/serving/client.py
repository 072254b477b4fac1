"""Clients that do what wrk cannot: leave, come at moments of their own, look at each answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from running import HOST


class Answer(NamedTuple):
    """Header names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Connection:
    """A kept connection to a server on this machine; one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection(HOST, port))

    def send(self, path: str, body: str, method: str = "POST", headers: str = "") -> None:
        """
        Args:
            headers: lines, each with its end.
        """
        content = body.encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
        )
        self.writer.write(head.encode() + content)

    async def answer(self) -> Answer:
        """
        Raises:
            OSError, EOFError: the server has closed the connection.
        """
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, path: str, body: str, method: str = "POST", headers: str = "") -> Answer:
        self.send(path, body, method, headers)
        return await self.answer()

    def leave(self) -> None:
        """At once, and whatever was asked for."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """So many connections, and their end."""
    connections = await asyncio.gather(*(Connection.open(port) for _ in range(count)))
    try:
        yield connections
    finally:
        for connection in connections:
            connection.leave()
