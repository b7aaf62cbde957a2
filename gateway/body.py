"""Reads a request's body: at most `bytes_max`, refused while it streams in; JSON or nothing."""

from gateway.asgi import Message, Receive, Scope
from gateway.errors import PayloadTooLarge, Unavailable, UnsupportedMediaType


class ClientDisconnected(Exception):
    """The caller left before its body was complete: there is no event, and nobody to answer."""


class ByteBudget:
    """Bytes of bodies that are still arriving, all connections together: slow callers share it among themselves."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def take(self, size: int) -> None:
        """Raises Unavailable."""
        self._left -= size
        if self._left < 0:
            self._left += size
            raise Unavailable("Too many large bodies arrive at once", code="bodies_in_flight")

    def give_back(self, size: int) -> None:
        self._left += size


async def read_body(scope: Scope, receive: Receive, bytes_max: int, budget: ByteBudget) -> bytes:
    """The whole body. How long it may take is the server's business.

    Raises UnsupportedMediaType for a body that does not say it is JSON, PayloadTooLarge as soon as its
    announced or received length exceeds `bytes_max`, Unavailable if too many bodies are under way at once,
    ClientDisconnected.
    """
    for name, value in scope["headers"]:
        if name == b"content-length":
            if int(value) > bytes_max:  # the server has checked that it is a number
                raise PayloadTooLarge(bytes_max)
        elif name == b"content-type":
            if value != b"application/json":
                _require_json(value)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMediaType(
                "Content-Encoding is not supported",
                code="content_encoding_unsupported",
                headers=[(b"accept-encoding", b"identity")],
            )
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > bytes_max:
            raise PayloadTooLarge(bytes_max)
        return body
    return await _read_chunks(message, receive, bytes_max, budget)


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


def _require_json(content_type: bytes) -> None:
    """text/plain counts as JSON: it is what a browser's beacon can send without a preflight."""
    media_type, *parameters = content_type.decode("latin-1").lower().split(";")
    media_type = media_type.strip()
    if media_type not in ("", "application/json", "text/plain") and not media_type.endswith("+json"):
        raise UnsupportedMediaType("Content-Type must be application/json", code="content_type_unsupported")
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("JSON must be UTF-8", code="charset_unsupported")
