"""uvicorn's HTTP protocol, mended and bounded.

- At most CONNECTIONS_MAX connections a worker; one more is told 503 and closed.
- A request must be there, to its last byte, REQUEST_S_MAX after its first one (for a connection's first request: after
  the connection), and its head be no longer than HEAD_BYTES_MAX: 408 and 431. How long a body may be is for
  `gateway.body` to say.
- What is not HTTP is answered (400) in the error envelope.
- An answer's head and body are one write to the socket: uvicorn makes two of them, and the second costs a single event
  a tenth of all that is done for it.
- An offer to upgrade is not seen: httptools takes the body of a request that makes one for another protocol's
  bytes, so that events of Java's HTTP client, which offers h2c with every request, would arrive empty
  (github.com/Kludex/uvicorn/issues/2722).
"""

import asyncio
import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import BadRequest, GatewayError, HeadTooLarge, RequestTimeout, Unavailable

CONNECTIONS_MAX = 10_000
REQUEST_S_MAX = 20.0
HEAD_BYTES_MAX = 65_536

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)  # in no JSON: a string has no bare line break
_IGNORED = b"\r\nignored:"  # as long, so that a body's length stays true
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Unavailable"}


class OneWrite:
    """A transport that keeps an answer's head back until its body comes, or until nothing more comes.

    Only what uvicorn's protocol and flow control call is here.
    """

    __slots__ = ("_head", "_transport", "get_extra_info", "is_closing", "pause_reading", "resume_reading")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        if self._head:
            self._transport.write(self._head + data)
            self._head = b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        self.flush()
        self._transport.close()


class HttpProtocol(HttpToolsProtocol):
    _arriving = False
    _in_head = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._one_write = OneWrite(transport)
        super().connection_made(self._one_write)  # type: ignore[arg-type]
        if len(self.connections) > CONNECTIONS_MAX:
            self._refuse(Unavailable("Too many connections", code="too_many_connections"))
        else:
            self._timer = self.loop.call_later(REQUEST_S_MAX, self._request_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """An upgrade header whose name two segments share is missed: then the body is empty, and the answer 422."""
        if b"pgrade:" in data or b"PGRADE:" in data:
            data = _UPGRADE.sub(_IGNORED, data)
        super().data_received(data)
        if self._arriving:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES_MAX:
                    self._refuse(HeadTooLarge(HEAD_BYTES_MAX))
                    return
            if self._timer is None:
                self._timer = self.loop.call_later(REQUEST_S_MAX, self._request_is_late)
        elif self._timer is not None:
            self._stop_timer()

    def on_message_begin(self) -> None:
        self._arriving = self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._arriving = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._one_write.flush()  # of an answer without a body
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest(msg))

    def _request_is_late(self) -> None:
        self._timer = None
        if self.cycle is not None and self.cycle.response_started and self._arriving and not self._in_head:
            self.transport.close()  # it has its answer, and still sends the body that nobody reads
        else:
            self._refuse(RequestTimeout(f"The request did not arrive within {REQUEST_S_MAX:.0f} s"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: GatewayError) -> None:
        """Answer before there is a request, and hang up."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = error.body()
        head = [b"HTTP/1.1 %d %b" % (error.status, _REASONS[error.status])]
        head += [b"%b: %b" % header for header in error.headers if header[0] != b"connection"]
        head += [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close"]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        self.transport.close()
