"""The few lines of ASGI that every answer goes through."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ASGIApp", "Header", "Message", "Receive", "Scope", "Send", "respond"]

Header = tuple[bytes, bytes]

_JSON: Header = (b"content-type", b"application/json")


async def respond(send: Send, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
    """Send a whole JSON answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [_JSON, (b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})
