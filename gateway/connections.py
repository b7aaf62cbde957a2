"""What all connections of a server share: where they read to, and when they write."""

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

from gateway.asgi import Header
from gateway.exchange import ok_head

READ_BYTES_MAX = 65_536  # at once; of the shortest requests that is 3 MB to hold while they wait for their turn


class Shared:
    """`buffer` is where connections read to: what comes is parsed before anything else is read.

    Answers wait in a queue until all that the loop has to do in this turn is done, and leave together: the answers to a
    Kafka batch, one behind the other, wake a caller who has many connections once, and not once each.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.buffer = bytearray(READ_BYTES_MAX)
        self.view = memoryview(self.buffer)
        self._loop = loop
        self._queue: deque[tuple[asyncio.Transport, bytes]] = deque()
        self._server_headers: list[Header] | None = None
        self._ok_head = b""

    def ok_head(self, server_headers: list[Header]) -> bytes:
        """As in `gateway.exchange`. uvicorn makes a new list every second, for the date."""
        if server_headers is not self._server_headers:
            self._ok_head = ok_head(server_headers)
            self._server_headers = server_headers
        return self._ok_head

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        if not self._queue:
            self._loop.call_soon(self.flush)
        self._queue.append((transport, data))

    def flush(self) -> None:
        queue = self._queue
        try:
            while queue:
                transport, data = queue.popleft()
                if not transport.is_closing():
                    transport.write(data)
        finally:
            if queue:  # one that fails must not keep the others' answers
                self._loop.call_soon(self.flush)


_shared: WeakKeyDictionary[ServerState, Shared] = WeakKeyDictionary()


def shared_by(connections_of: ServerState, loop: asyncio.AbstractEventLoop) -> Shared:
    """The same for all connections of a server; uvicorn has no place for it."""
    shared = _shared.get(connections_of)
    if shared is None:
        shared = _shared[connections_of] = Shared(loop)
    return shared
