"""One HTTP/1.1 connection with at most one request under way: what the generators of our own are made of.

As little Python as will do, for a generator that cannot keep up measures itself: it understands answers with a
Content-Length, and looks at nothing but the status and the body.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any, cast

from deploy.local.process import HOST

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """`answered` gets the connection, the status, and head and body of each answer; `broken` is called if it ends."""

    def __init__(
        self, answered: "Callable[[Connection, int, bytes], None]", broken: "Callable[[Connection], None]"
    ) -> None:
        self.request: Any = None
        self._answered = answered
        self._broken = broken
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken(self)

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + _length(data, end):
            self._received = data
            return
        self._received = b""
        self._answered(self, int(data[9:12]), data[end + 4 :])


async def connect(
    port: int,
    count: int,
    answered: Callable[[Connection, int, bytes], None],
    broken: Callable[[Connection], None],
) -> list[Connection]:
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(count):
        _, connection = await loop.create_connection(lambda: Connection(answered, broken), HOST, port)
        connections.append(connection)
    return connections


def _length(data: bytes, end: int) -> int:
    match = _LENGTH.search(data, 0, end)
    if match is None:
        raise ValueError(f"an answer without Content-Length: {data[:200]!r}")
    return int(match[1])
