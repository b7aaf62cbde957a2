"""HTTP/1.1 for uvicorn's server: httptools reads it, `gateway.exchange` answers. uvicorn starts, stops and listens.

uvicorn's own protocol does all of this too, for three times the CPU time: DESIGN.md has the figures. What is here:

- At most CONNECTIONS_MAX connections a worker; one more is told 503 and closed.
- A request must be there, to its last byte, REQUEST_S_MAX after its first one (a connection's first byte: after the
  connection), and its head be no longer than HEAD_BYTES_MAX: 408 and 431. How long a body may be is for
  `gateway.body` to say. A connection without a request is closed after KEEP_ALIVE_S, one that does not take its last
  answer REQUEST_S_MAX later.
- What is not HTTP is answered (400) in the error envelope.
- Requests that come before the answer to the last one wait for it; what one read of the socket brings, and no more.
- An offer to upgrade is not seen: httptools takes the body of a request that makes one for another protocol's
  bytes, so that events of Java's HTTP client, which offers h2c with every request, would arrive empty
  (github.com/Kludex/uvicorn/issues/2722).
"""

import asyncio
import math
import re
from collections import deque
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway import scopes
from gateway.asgi import JSON, SAME_HEAD, WHOLE, Header
from gateway.connections import shared_by
from gateway.errors import BadRequest, GatewayError, HeadTooLarge, RequestTimeout, Unavailable
from gateway.exchange import Answered, Exchange, head_of_answer
from gateway.same_head import Repetition

CONNECTIONS_MAX = 10_000
REQUEST_S_MAX = 20.0
KEEP_ALIVE_S = 5.0
HEAD_BYTES_MAX = 65_536

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)  # in no JSON: a string has no bare line break
_IGNORED = b"\r\nignored:"  # as long, so that a body's length stays true


class HttpProtocol(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn makes it."""
        self._app = config.loaded_app
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._shared = shared_by(server_state, self._loop)
        self._parser = httptools.HttpRequestParser(self)
        self._in_head = self._in_message = self._has_begun = False
        self._read_bytes = 0  # by the last read
        self._foreign_bytes = 0  # of those, at most: of messages before the next one that begins
        self._idle_bytes = 0  # of a head or of trailers, at least
        self._url = b""
        self._headers: list[Header] = []
        self._arriving: Exchange | None = None
        self._running: Exchange | Repetition | None = None
        self._waiting: deque[Exchange] = deque()
        self._repetition = Repetition(self)
        self._refusal: GatewayError | None = None  # waits for the answers before it
        self._reading_held = self._writing_held = self._shutting_down = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._scope = scopes.of_connection(transport, {WHOLE: {}, SAME_HEAD: self._repetition.offer})
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._deadline = self._loop.time() + REQUEST_S_MAX
        self._set_timer(self._loop.time())
        if len(self._state.connections) > CONNECTIONS_MAX:
            self._refuse(Unavailable("Too many connections", code="too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._timer.cancel()
        self._cut_off()
        self._arriving = None
        self._scope["extensions"].clear()  # like the parser, they refer to us
        del self._parser, self._repetition

    @property
    def server_headers(self) -> list[Header]:
        return self._state.default_headers

    @property
    def ok_head(self) -> bytes:
        return self._shared.ok_head(self._state.default_headers)

    @property
    def goes_on(self) -> bool:
        return not self._shutting_down or bool(self._waiting)

    def write(self, data: bytes) -> None:
        self._shared.write(self._transport, data)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._shared.buffer

    def buffer_updated(self, size: int) -> None:
        """An upgrade header whose name two segments share is missed: then the body is empty, and the answer 422."""
        is_idle = self._running is None and not self._in_message and not self._writing_held
        if is_idle and self._repeat(size):
            return
        self._read_bytes = size
        self._foreign_bytes = size if self._in_message else 0
        try:
            self._parser.feed_data(self._without_upgrade(size))
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback has raised
            self._refuse(cause if isinstance(cause, GatewayError) else BadRequest("Invalid HTTP request received."))
            return
        except httptools.HttpParserUpgrade:
            if (last := self._waiting[-1] if self._waiting else self._running) is not None:
                last.keep_alive = False  # httptools reads no more requests
        if self._in_message:
            self._idle_bytes += size
            if self._idle_bytes > HEAD_BYTES_MAX:
                self._refuse(HeadTooLarge(HEAD_BYTES_MAX))
        running = self._running if is_idle and not (self._in_message or self._waiting) else None
        is_request = running is not None and running.keep_alive
        self._repetition.saw(self._shared.buffer, size, begins=is_idle, is_request=is_request)
        if self._repetition.is_hopeless:
            self._scope["extensions"].pop(SAME_HEAD, None)

    def _without_upgrade(self, size: int) -> memoryview | bytes:
        """What was read, less the offers to upgrade in it. To look for them in a body, too, would cost an event in a
        batch 0.2 microseconds: where no line ends, as in most JSON, there is no header."""
        data = self._shared.view[:size]
        find = self._shared.buffer.find
        body_at = 0 if self._in_message and not self._in_head else find(b"\r\n\r\n", 0, size) + 4
        # 3: no head ends here.
        heads_end = size if body_at == 3 or find(b"\r", body_at, size) >= 0 else body_at
        if find(b"pgrade:", 0, heads_end) >= 0 or find(b"PGRADE:", 0, heads_end) >= 0:
            return _UPGRADE.sub(_IGNORED, data)
        return data

    def _repeat(self, size: int) -> bool:
        """Whether that was a request with the head of the one before, and is answered as such."""
        repetition = self._repetition
        body_at = repetition.body_at(self._shared.buffer, size)
        if not body_at:
            return False
        self._running = repetition
        self._deadline = math.inf
        if not repetition.begin(bytes(self._shared.view[body_at:size])):
            self._running = None
            return False
        return True

    def on_message_begin(self) -> None:
        self._in_head = self._in_message = self._has_begun = True
        self._idle_bytes = -self._foreign_bytes
        self._foreign_bytes = self._read_bytes
        self._url = b""
        self._headers = []
        self._deadline = self._loop.time() + REQUEST_S_MAX

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers prove nothing: proxies set their headers in front of the body
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._idle_bytes > 0:  # it took several reads, or else it is no longer than one
            length = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if length > HEAD_BYTES_MAX:
                raise HeadTooLarge(HEAD_BYTES_MAX)
        parser = self._parser
        version = parser.get_http_version()
        scope = scopes.of_request(self._scope, parser.get_method(), self._url, version, self._headers)
        self._arriving = exchange = Exchange(self, scope, version != "1.0" and parser.should_keep_alive())
        if self._running is None and not self._waiting and not self._writing_held:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self.regulate()

    def on_body(self, body: bytes) -> None:
        assert self._arriving is not None
        self._idle_bytes = -self._read_bytes
        self._arriving.feed(body)

    def on_message_complete(self) -> None:
        assert self._arriving is not None
        exchange, self._arriving = self._arriving, None
        self._in_message = False
        self._deadline = self._loop.time() + KEEP_ALIVE_S if self._running is None else math.inf
        exchange.complete()

    def regulate(self) -> None:
        """Read on, or leave what comes to the caller's own buffers."""
        hold = bool(self._waiting or self._refusal or (self._arriving is not None and self._arriving.is_full))
        if hold is not self._reading_held and not self._transport.is_closing():
            self._reading_held = hold
            if hold:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def answered(self, exchange: Answered) -> None:
        self._running = None
        if not exchange.keep_alive:
            self._close()
            return
        if not self._in_message:
            self._deadline = self._loop.time() + KEEP_ALIVE_S
        if self._waiting or self._refusal is not None or self._reading_held:
            self._next()

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        if not self._in_message:
            self._deadline = math.inf
        exchange.task = task = self._loop.create_task(exchange.run(self._app, self._state.tasks))
        self._state.tasks.add(task)

    def _next(self) -> None:
        if self._running is None and not self._writing_held:
            if self._waiting:
                self._start(self._waiting.popleft())
            elif self._refusal is not None:
                self._refuse(self._refusal)
            self.regulate()

    def pause_writing(self) -> None:
        self._writing_held = True

    def resume_writing(self) -> None:
        self._writing_held = False
        self._next()

    def shutdown(self) -> None:
        """uvicorn wants to stop: what has begun is answered, and no more."""
        self._shutting_down = True
        if self._running is None and not self._waiting:
            self._close()

    def _look_at_the_clock(self) -> None:
        """One timer a connection that looks again and again: one a request would cost each of them a microsecond."""
        now = self._loop.time()
        if now >= self._deadline:
            if self._transport.is_closing():
                self._transport.abort()
            elif not self._has_begun or (
                self._in_message and (self._arriving is None or not self._arriving.is_answered)
            ):
                self._refuse(RequestTimeout(f"The request did not arrive within {REQUEST_S_MAX:.0f} s"))
            else:  # it is idle, or still sends the body of a request that has its answer
                self._close()
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        delay_s = min(max(self._deadline - now, 0.0), KEEP_ALIVE_S, REQUEST_S_MAX)
        self._timer = self._loop.call_later(delay_s, self._look_at_the_clock)

    def _refuse(self, error: GatewayError) -> None:
        """Answer what is no request, behind the answers that are due before, and hang up."""
        if self._transport.is_closing():
            return
        if self._arriving is not None and self._arriving.is_answered:
            self._close()  # a second answer would be taken for the next request's
            return
        if self._waiting and self._waiting[-1] is self._arriving:
            self._waiting.pop()  # the rest of it will never be read
        if self._waiting or (self._running is not None and self._running is not self._arriving):
            self._refusal = error
            self._in_message = False
            self._deadline = math.inf if self._running is not None else self._loop.time() + KEEP_ALIVE_S
            self.regulate()
            return
        body = error.body()
        headers = [header for header in (*self.server_headers, *error.headers) if header[0] != b"connection"]
        headers += [JSON, (b"content-length", b"%d" % len(body))]
        self.write(head_of_answer(error.status, headers, keep_alive=False) + body)
        self._close()

    def _close(self) -> None:
        """As soon as everything is written, or has waited REQUEST_S_MAX for it."""
        self._cut_off()
        self._deadline = self._loop.time() + REQUEST_S_MAX
        self._shared.flush()
        self._transport.close()

    def _cut_off(self) -> None:
        for exchange in (self._running, self._arriving, *self._waiting):
            if exchange is not None:
                exchange.cut_off()
        self._waiting.clear()
        self._running = None
