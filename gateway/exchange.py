"""One HTTP request and its answer, as ASGI has them.

An answer leaves whole, in one write to the socket: head and body apart would be a write more, which costs a single
event a tenth of all that is done for it. So pieces of a body are kept until the last one; no answer here is long.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

import structlog

from gateway.asgi import JSON, WHOLE, ASGIApp, Header, Message, Scope
from gateway.errors import InternalError

log = structlog.get_logger(__name__)

UNREAD_BYTES_MAX = 65_536  # of a body that nobody has asked for: more is not read from the socket

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in HTTPStatus}
_WITHOUT_BODY = (204, 304)
_LINE_BREAK = "a header of the answer holds a line break"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Answered(Protocol):
    """What has had its answer. Unless `keep_alive`, the connection ends with it."""

    keep_alive: bool


class Connection(Protocol):
    """Where an exchange takes place."""

    @property
    def server_headers(self) -> list[Header]:
        """That every answer carries."""

    @property
    def ok_head(self) -> bytes:
        """What every answer of 200 in JSON begins with, for `ok_answer`."""

    @property
    def goes_on(self) -> bool:
        """Whether there may be a request behind the one that is being answered."""

    def write(self, data: bytes) -> None: ...
    def regulate(self) -> None:
        """`is_full` has changed."""

    def answered(self, exchange: "Answered") -> None: ...


class Exchange:
    """`arrived` once the last byte of the body is there; `is_answered` once the answer is written; `is_cut_off` if the
    caller has gone. The last two end the exchange: nothing that comes later is read or written."""

    __slots__ = (
        "_body",
        "_connection",
        "_head",
        "_is_awaited",
        "_is_read",
        "_pieces",
        "_waiter",
        "arrived",
        "is_answered",
        "is_cut_off",
        "keep_alive",
        "scope",
        "task",
    )

    def __init__(self, connection: Connection, scope: Scope, keep_alive: bool) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.task: asyncio.Task[None] | None = None
        self.arrived = self.is_answered = self.is_cut_off = False
        self._body: bytes | bytearray = b""
        self._is_awaited = self._is_read = False
        self._head: Message | None = None
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._body) > UNREAD_BYTES_MAX and not self.is_answered

    def feed(self, chunk: bytes) -> None:
        """More of the body."""
        if self.is_answered:
            return
        if not self._body:
            self._body = chunk
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += chunk
        if self._waiter is None and self.is_full:
            self._connection.regulate()
        self._wake()

    def complete(self) -> None:
        """That was all of the body."""
        self.arrived = True
        self._wake()

    def cut_off(self) -> None:
        """The caller has gone."""
        self.is_cut_off = True
        self._wake()

    async def run(self, app: ASGIApp, tasks: set[asyncio.Task[None]]) -> None:
        """Answers in any case: with the envelope of an InternalError if the application does not. `tasks` are those
        that the server waits for when it shuts down; this one leaves them at its end."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.is_answered and not self.is_cut_off:
                log.error("the application gave no answer", path=self.scope["path"])
        except BaseException:  # a CancelledError too: the server gives up on what takes too long to shut down
            log.exception("the application failed", path=self.scope["path"])
        if not self.is_answered and not self.is_cut_off:
            error = InternalError()
            self._answer(error.status, [JSON, *error.headers], error.body())
        if self.task is not None:
            tasks.discard(self.task)

    async def receive(self) -> Message:
        while not (self.is_answered or self.is_cut_off):
            if self._body or (self.arrived and not self._is_read):
                body, self._body = self._body, b""
                self._is_read = self.arrived
                if len(body) > UNREAD_BYTES_MAX:
                    self._connection.regulate()
                return {"type": "http.request", "body": bytes(body), "more_body": not self.arrived}
            if not self.arrived and not self._is_awaited:
                self._is_awaited = True
                if self.scope["http_version"] == "1.1" and _expects_continue(self.scope["headers"]):
                    self._connection.write(_CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Raises RuntimeError for what is out of order, or would break out of its header."""
        if message["type"] == WHOLE and self._head is None:
            self._head = message
            self._answer(message["status"], message["headers"], message["body"])
            return
        if message["type"] == "http.response.start":
            if self._head is not None:
                raise RuntimeError("an answer has one head")
            self._head = message
            return
        if self._head is None or self.is_answered or message["type"] != "http.response.body":
            raise RuntimeError("a body belongs between an answer's head and its end")
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            self._pieces.append(body)
        else:
            if self._pieces:
                body = b"".join([*self._pieces, body])
            self._answer(self._head["status"], self._head.get("headers", ()), body)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _answer(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Raises RuntimeError."""
        connection = self._connection
        keep_alive = self.keep_alive and connection.goes_on
        answer, self.keep_alive = whole_answer(
            self.scope["method"], status, (*connection.server_headers, *headers), body, keep_alive
        )
        self.is_answered = True
        if not self.is_cut_off:
            connection.write(answer)
            connection.answered(self)


def whole_answer(
    method: str, status: int, headers: Sequence[Header], body: bytes, keep_alive: bool
) -> tuple[bytes, bool]:
    """As it goes over the wire, and whether the connection goes on. Raises RuntimeError."""
    length = b"%d" % len(body)
    kept: list[Header] = []
    for header in headers:
        name = header[0]
        if name == b"connection":  # in our answers it says `close`, and nothing else
            keep_alive = False
        elif name != b"content-length":
            kept.append(header)
        elif method == "HEAD":
            length = header[1]
    if status not in _WITHOUT_BODY:
        kept.append((b"content-length", length))
    head = head_of_answer(status, kept, keep_alive)
    has_body = method != "HEAD" and status not in _WITHOUT_BODY
    return (head + body if has_body else head), keep_alive


def ok_head(server_headers: Sequence[Header]) -> bytes:
    """Raises RuntimeError."""
    return head_of_answer(200, [*server_headers, JSON], keep_alive=True)[: -len(b"\r\n")]


def ok_answer(ok_head: bytes, headers: Sequence[Header], body: bytes) -> bytes:
    """As `whole_answer` for 200 on a connection that goes on, in half of the time. `headers` have neither `connection`
    nor `content-length`. Raises RuntimeError."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if not lines.count(b"\r") == lines.count(b"\n") == len(headers):
        raise RuntimeError(_LINE_BREAK)
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (ok_head, lines, len(body), body)


def head_of_answer(status: int, headers: Sequence[Header], keep_alive: bool) -> bytes:
    """With the empty line at its end; `headers` are all but `connection`. Raises RuntimeError."""
    lines = [_STATUS_LINES[status], *[b"%b: %b" % header for header in headers]]
    if not keep_alive:
        lines.append(b"connection: close")
    head = b"\r\n".join(lines)
    if not head.count(b"\r") == head.count(b"\n") == len(lines) - 1:
        raise RuntimeError(_LINE_BREAK)
    return head + b"\r\n\r\n"


def _expects_continue(headers: Sequence[Header]) -> bool:
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
