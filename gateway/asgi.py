"""The few lines of ASGI that every answer goes through."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["JSON", "WHOLE", "ASGIApp", "Header", "Message", "Receive", "Scope", "Send", "respond"]

Header = tuple[bytes, bytes]

WHOLE = "sluice.response.whole"
"""Extension of our own server: a message of this type is a start and a body in one."""

JSON: Header = (b"content-type", b"application/json")


async def respond(scope: Scope, send: Send, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
    """Send a whole JSON answer."""
    if WHOLE in scope.get("extensions", ()):
        await send({"type": WHOLE, "status": status, "headers": [JSON, *headers], "body": body})
        return
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [JSON, (b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})
