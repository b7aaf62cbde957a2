"""Requests whose head is that of the one before: who sends events or batches repeats it, all but its Content-Length,
and the value of one header that the application names, if it has one that differs each time.

What follows from a head alone, who calls for example, need not be found out again. So where an application asks for it
(`asgi.SAME_HEAD`), a connection compares the next request with that head, and hands over the body, and that value: no
parser, no scope, no task. What is not the same to the byte takes the usual way, which alone decides what is a request.
"""

import functools
import re
from collections.abc import Sequence

import structlog

from gateway.asgi import JSON, Header, SameHead
from gateway.errors import InternalError
from gateway.exchange import Connection, ok_answer, whole_answer

log = structlog.get_logger(__name__)

HEAD_BYTES_MAX = 4_096  # of a head that is remembered: 10,000 connections may each have one
MISSES_MAX = 8  # in a row: such a caller's heads differ

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,7})\r\n", re.IGNORECASE)
_DIGITS_MAX = 7
_VALUE_BYTES_MAX = 128
_VALUE = re.compile(rb"[!-~]{1,%d}" % _VALUE_BYTES_MAX)


class Head:
    """All of a request's head but the digits of its length."""

    __slots__ = ("_before", "_behind", "_digits_at")

    value: bytes | None = None

    def __init__(self, before: bytes, behind: bytes) -> None:
        self._before = before
        self._behind = behind
        self._digits_at = len(before)

    @staticmethod
    def of(head: bytes, body_bytes: int, but: bytes = b"") -> "Head | None":
        """Of a request that has been parsed; None if the head does not tell its body's length, or has not one plain
        value of the header that it may differ in."""
        length = _LENGTH.search(head)
        if length is None or int(length[1]) != body_bytes:
            return None
        if not but:
            return Head(head[: length.start(1)], head[length.end(1) :])
        name, header = _named(but)
        value = header.search(head)
        if value is None or len(name.findall(head)) != 1:
            return None
        [(start, first_end), (second, end)] = sorted([length.span(1), value.span(1)])
        return HeadBut(head[:start], head[first_end:second], head[end:], is_value_first=start == value.start(1))

    def body_at(self, buffer: bytearray, size: int) -> int:
        """Where the body begins, if the first `size` bytes are a whole request with this head; 0 if they are not. What
        stands behind them is of other requests."""
        if not buffer.startswith(self._before):
            return 0
        digits_end = buffer.find(b"\r", self._digits_at, self._digits_at + _DIGITS_MAX + 1)
        digits = buffer[self._digits_at : digits_end]
        if digits_end < 0 or not digits.isdigit() or not buffer.startswith(self._behind, digits_end):
            return 0
        body_at = digits_end + len(self._behind)
        return body_at if body_at + int(digits) == size else 0


class HeadBut(Head):
    """And but the value of one header; `value` is that of the request that was compared with it last."""

    __slots__ = ("_between", "_is_value_first", "value")

    def __init__(self, before: bytes, between: bytes, behind: bytes, *, is_value_first: bool) -> None:
        super().__init__(before, behind)
        self._between = between
        self._is_value_first = is_value_first

    def body_at(self, buffer: bytearray, size: int) -> int:
        first_at = len(self._before)
        first_end = buffer.find(b"\r", first_at, first_at + _VALUE_BYTES_MAX + 1)
        if first_end < 0 or not buffer.startswith(self._before) or not buffer.startswith(self._between, first_end):
            return 0
        second_at = first_end + len(self._between)
        second_end = buffer.find(b"\r", second_at, second_at + _VALUE_BYTES_MAX + 1)
        if second_end < 0 or not buffer.startswith(self._behind, second_end):
            return 0
        value, digits = bytes(buffer[first_at:first_end]), bytes(buffer[second_at:second_end])
        if not self._is_value_first:
            value, digits = digits, value
        if len(digits) > _DIGITS_MAX or not digits.isdigit() or _VALUE.fullmatch(value) is None:
            return 0
        self.value = value
        body_at = second_end + len(self._behind)
        return body_at if body_at + int(digits) == size else 0


@functools.cache
def _named(name: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Finds lines that may be taken for a header of this name; and a plain one, with its value."""
    name = re.escape(name)
    header = rb"\r\n%b:[ \t]*(%b)\r\n(?![ \t])" % (name, _VALUE.pattern)  # nor does it go on in the next line
    return re.compile(rb"\n[ \t]*" + name, re.IGNORECASE), re.compile(header, re.IGNORECASE)


class Repetition:
    """Of a connection's requests. It is in the place of an Exchange for those whose head is known."""

    __slots__ = ("_connection", "_handler", "_head", "_is_answered", "_is_cut_off", "_last", "_misses", "keep_alive")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._handler: SameHead | None = None
        self._head: Head | None = None
        self._last: tuple[bytes, int] | None = None  # head, and bytes of the body
        self._misses = 0
        self._is_answered = self._is_cut_off = False
        self.keep_alive = True

    @property
    def is_hopeless(self) -> bool:
        """For good: no request of this connection will be repeated any more."""
        return self._misses > MISSES_MAX

    def body_at(self, buffer: bytearray, size: int) -> int:
        """Where the body begins of a request whose head is known; 0 if it is not."""
        return 0 if self._head is None else self._head.body_at(buffer, size)

    def begin(self, body: bytes) -> bool:
        """False if the head is to be read again."""
        assert self._handler is not None
        assert self._head is not None
        self._is_answered = False
        try:
            is_begun = self._handler(body, self.respond, self._head.value)
        except Exception:
            log.exception("the application failed")
            self._give_up()  # what it may yet answer would be taken for the answer to a later request
            if not self._is_answered:
                error = InternalError()
                self.respond(error.status, error.body(), error.headers)
            return True
        if is_begun or self._is_answered:
            self._misses = 0
            return True
        self.forget()
        return False

    def respond(self, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
        """Raises RuntimeError for a second answer."""
        if self._is_answered:
            raise RuntimeError("a request has one answer")
        if self._is_cut_off:
            self._is_answered = True
            return
        connection = self._connection
        try:
            answer = self._answer(status, body, headers)
        except Exception:  # not to be raised: who answers later is called by the event loop, and tells nobody
            log.exception("the application's answer is none")
            error = InternalError()
            answer = self._answer(error.status, error.body(), error.headers)
        self._is_answered = True
        connection.write(answer)
        connection.answered(self)

    def _answer(self, status: int, body: bytes, headers: Sequence[Header]) -> bytes:
        connection = self._connection
        if status == 200 and connection.goes_on:
            return ok_answer(connection.ok_head, headers, body)
        headers = (*connection.server_headers, JSON, *headers)
        answer, self.keep_alive = whole_answer("POST", status, headers, body, connection.goes_on)
        return answer

    def cut_off(self) -> None:
        """The caller has gone."""
        self._is_cut_off = True

    def saw(self, buffer: bytearray, size: int, *, begins: bool, is_request: bool) -> None:
        """What came was not the same. `begins`: a request may have begun with it; `is_request`: it is a whole one and
        no more, behind which there may be others."""
        self._last = None
        if not begins or self.is_hopeless:
            return
        self._misses += 1
        if self.is_hopeless:
            self.forget()
        elif is_request and buffer.startswith(b"POST "):
            end = buffer.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX) + 4
            if end > 3:
                self._last = bytes(buffer[:end]), size - end

    def offer(self, handler: SameHead, but: bytes = b"") -> None:
        """By the application, for what it is answering: an `asgi.OfferSameHead`."""
        if self._last is not None:
            head = Head.of(*self._last, but)
            self._last = None
            if head is not None:
                self._head, self._handler = head, handler

    def forget(self) -> None:
        self._head = self._handler = self._last = None

    def _give_up(self) -> None:
        self._misses = MISSES_MAX + 1
        self.forget()
