"""Reads a request's body: at most `bytes_max`, refused while it streams in; JSON or nothing."""

from gateway.asgi import Receive, Scope
from gateway.errors import PayloadTooLarge, UnsupportedMediaType


class ClientDisconnected(Exception):
    """The caller left before its body was complete: there is no event, and nobody to answer."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """The whole body.

    Raises UnsupportedMediaType for a body that does not say it is JSON, PayloadTooLarge as soon as its
    announced or received length exceeds `bytes_max`, ClientDisconnected.
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
    chunks = bytearray()
    while message["type"] == "http.request":
        chunks += message.get("body", b"")
        if len(chunks) > bytes_max:
            raise PayloadTooLarge(bytes_max)
        if not message.get("more_body"):
            return bytes(chunks)
        message = await receive()
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
