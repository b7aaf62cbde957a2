"""What a connection writes, and what was asked of its transport."""

import asyncio
from typing import Any


class FakeTransport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False
        self.aborted = False
        self.reads = True

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True


class Wire(FakeTransport):
    """A connection as a socket's transport has it, and what its caller does at the other end.

    What is sent while reading is paused waits and comes in as few reads as a socket would give. A protocol that writes
    after it has closed, or after the caller has gone, is noted in `faults`: what it raised would only be logged.
    """

    HIGH_WATER = 65_536

    def __init__(self, protocol: Any, peer: tuple[Any, ...] = ("192.0.2.7", 4711)) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.takes_answers = True
        self.lost = False
        self.closed_at = self.lost_at = -1.0
        self.unread = bytearray()
        self.unsent_bytes = 0
        self._writing_held = self._hung_up = self._notified = False
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self.protocol = protocol
        protocol.connection_made(self)

    # What the caller does.

    def send(self, data: bytes) -> None:
        """One segment: it is read at once if the protocol reads."""
        self.unread += data
        self._deliver()

    def send_slowly(self, data: bytes, size: int) -> None:
        for start in range(0, len(data), size):
            self.send(data[start : start + size])

    def hang_up(self) -> None:
        """The caller closes. That is noticed behind what is unread: not before the protocol reads."""
        self._hung_up = True
        self._deliver()

    def reset(self) -> None:
        self._end(ConnectionResetError())

    def take_answers(self) -> None:
        self.takes_answers = True
        self.unsent_bytes = 0
        if self._writing_held:
            self._writing_held = False
            self.protocol.resume_writing()
        if self.closed:
            self._lose(None)

    @property
    def received(self) -> bytes:
        return b"".join(self.writes)

    # What the protocol asks for.

    def write(self, data: bytes) -> None:
        if self.closed:
            if self._notified or not self._hung_up:
                self.faults.append(f"wrote {data[:50]!r} to a closed connection")
            return
        self.writes.append(data)
        if not self.takes_answers:
            self.unsent_bytes += len(data)
            if self.unsent_bytes > self.HIGH_WATER and not self._writing_held:
                self._writing_held = True
                self.protocol.pause_writing()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.closed_at = self._loop.time()
            if not self.unsent_bytes:
                self._lose(None)

    def abort(self) -> None:
        self.aborted = self.closed = True
        self._lose(None)

    def pause_reading(self) -> None:
        if not self.reads or self.closed:
            self.faults.append("paused what was not read")
        self.reads = False

    def resume_reading(self) -> None:
        if self.reads or self.closed:
            self.faults.append("resumed what was not paused")
        self.reads = True
        self._loop.call_soon(self._deliver)

    def get_extra_info(self, name: str) -> Any:
        return {"peername": self._peer, "sockname": ("127.0.0.1", 8080)}.get(name)

    def _deliver(self) -> None:
        while self.unread and self.reads and not self.closed:
            if hasattr(self.protocol, "get_buffer"):
                buffer = self.protocol.get_buffer(-1)
                size = min(len(buffer), len(self.unread))
                buffer[:size] = self.unread[:size]
                del self.unread[:size]
                self.protocol.buffer_updated(size)
                buffer[:size] = b"\xff" * size  # another connection's bytes: who still looks here reads them
            else:
                data = bytes(self.unread)
                self.unread.clear()
                self.protocol.data_received(data)
        if self._hung_up and self.reads and not self.unread:
            self._end()

    def _end(self, exc: Exception | None = None) -> None:
        if not self.closed:
            self._hung_up = self.closed = True
            self.closed_at = self._loop.time()
        self._lose(exc)

    def _lose(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self.lost_at = self._loop.time()
            self._loop.call_soon(self._notify, exc)

    def _notify(self, exc: Exception | None) -> None:
        self._notified = True
        self.protocol.connection_lost(exc)
