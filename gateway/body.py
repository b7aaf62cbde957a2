"""Reads a request's body: at most `bytes_max`, refused while it streams in; JSON or nothing.

An encoded body is decoded once it is all there, not while it arrives: what a slow caller makes us hold is then what it
has sent, and not the thousandfold that it may decode to, nor a decoder, which with br can be made to take 3 MiB.
"""

import asyncio
import itertools

from gateway.asgi import Message, Receive, Scope
from gateway.compression import Coding, content_coding, decode, encoded_bytes_max
from gateway.errors import PayloadTooLarge, Unavailable, UnsupportedMediaType

STEPS_A_TURN = 8  # of decoding: at most 256 KiB come out or 32 KiB go in, in 1 ms; in 5 if made to take long
DECODER_BYTES = 1_048_576  # what a decoder holds by itself, above all its window

_NDJSON = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines")


class ClientDisconnected(Exception):
    """The caller left before its body was complete: there is no event, and nobody to answer."""


class ByteBudget:
    """Bytes of bodies that are still arriving or take long to decode, all connections together: slow callers share it
    among themselves."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self.long_decode = asyncio.Lock()
        """One at a time: side by side they would hold more and be ready no sooner."""

    def take(self, size: int) -> None:
        """Raises Unavailable."""
        self._left -= size
        if self._left < 0:
            self._left += size
            raise Unavailable("Too many large bodies arrive at once", code="bodies_in_flight")

    def give_back(self, size: int) -> None:
        self._left += size


async def read_body(scope: Scope, receive: Receive, bytes_max: int, budget: ByteBudget, ndjson: bool = False) -> bytes:
    """The whole body, decoded. How long it may take to arrive is the server's business.

    Raises UnsupportedMediaType for a body that does not say it is JSON (or, if `ndjson`, lines of it) or is in a coding
    that we cannot undo, BadRequest if it is not in the coding that it names, PayloadTooLarge as soon as its announced,
    received or decoded length exceeds `bytes_max`, Unavailable if too many bodies are under way at once,
    ClientDisconnected.
    """
    for name, value in scope["headers"]:  # the usual body needs no more than this, which is quick
        if name == b"content-length":
            if int(value) > bytes_max:  # the server has checked that it is a number
                return await _read_unusual(scope, receive, bytes_max, budget, ndjson)
        elif name == b"content-type":
            if value != b"application/json":
                _require_json(value, ndjson)
        elif name == b"content-encoding":
            return await _read_unusual(scope, receive, bytes_max, budget, ndjson)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > bytes_max:
            raise PayloadTooLarge(bytes_max)
        return body
    return await _read_chunks(message, receive, bytes_max, budget)


def is_ndjson(content_type: bytes) -> bool:
    """Whether a body of this Content-Type is lines of JSON, each a value of its own."""
    return content_type.partition(b";")[0].strip().lower() in _NDJSON


async def _read_unusual(scope: Scope, receive: Receive, bytes_max: int, budget: ByteBudget, ndjson: bool) -> bytes:
    """A body that is encoded, or is too large if it is not; the headers come in any order."""
    announced_bytes = 0
    encoding = b""
    for name, value in scope["headers"]:
        if name == b"content-length":
            announced_bytes = int(value)
        elif name == b"content-type":
            _require_json(value, ndjson)
        elif name == b"content-encoding":
            encoding += b"," + value  # the lines of a header are one list
    coding = content_coding(encoding)
    arriving_bytes_max = bytes_max if coding is None else encoded_bytes_max(bytes_max)
    if announced_bytes > arriving_bytes_max:
        raise PayloadTooLarge(bytes_max)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > arriving_bytes_max:
            raise PayloadTooLarge(bytes_max)
    else:
        body = await _read_chunks(message, receive, arriving_bytes_max, budget)
    return body if coding is None else await _decode(coding, body, bytes_max, budget)


async def _read_chunks(message: Message, receive: Receive, bytes_max: int, budget: ByteBudget) -> bytes:
    """A body in several pieces: what has arrived counts against the budget of all that are being read."""
    chunks = bytearray()
    try:
        while message["type"] == "http.request":
            chunk = message.get("body", b"")
            budget.take(len(chunk))
            chunks += chunk
            if len(chunks) > bytes_max:
                raise PayloadTooLarge(bytes_max)
            if not message.get("more_body"):
                return bytes(chunks)
            message = await receive()
    finally:
        budget.give_back(len(chunks))
    raise ClientDisconnected


async def _decode(coding: Coding, body: bytes, bytes_max: int, budget: ByteBudget) -> bytes:
    """At once if that is quick. If not, one body after the other, and others have their turn in between."""
    pieces = decode(coding, body, bytes_max)
    start = b"".join(itertools.islice(pieces, STEPS_A_TURN))
    piece = next(pieces, None)
    if piece is None:
        return start
    decoded = bytearray(start)
    held = len(body) + len(decoded) + DECODER_BYTES
    budget.take(held)
    try:
        async with budget.long_decode:
            steps = 0
            while piece is not None:
                if steps % STEPS_A_TURN == 0:
                    await asyncio.sleep(0)
                budget.take(len(piece))
                held += len(piece)
                decoded += piece
                steps += 1
                piece = next(pieces, None)
        return bytes(decoded)
    finally:
        budget.give_back(held)


def _require_json(content_type: bytes, ndjson: bool) -> None:
    """text/plain counts as JSON: it is what a browser's beacon can send without a preflight."""
    media_type, *parameters = content_type.decode("latin-1").lower().split(";")
    media_type = media_type.strip()
    if (
        media_type not in ("", "application/json", "text/plain")
        and not media_type.endswith("+json")
        and not (ndjson and is_ndjson(content_type))
    ):
        raise UnsupportedMediaType("Content-Type must be application/json", code="content_type_unsupported")
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("JSON must be UTF-8", code="charset_unsupported")
