"""The few lines of ASGI that every answer goes through."""

from collections.abc import Sequence
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "JSON",
    "SAME_HEAD",
    "WHOLE",
    "ASGIApp",
    "Header",
    "Message",
    "Receive",
    "Respond",
    "SameHead",
    "Scope",
    "Send",
    "respond",
]

Header = tuple[bytes, bytes]

WHOLE = "sluice.response.whole"
"""Extension of our own server: a message of this type is a start and a body in one."""

SAME_HEAD = "sluice.same_head"
"""Extension of our own server: what is called with a SameHead, before a request is answered, has it answer those that
follow on the connection with the same head."""

JSON: Header = (b"content-type", b"application/json")


class Respond(Protocol):
    """Sends a whole JSON answer, at once or later; once a request."""

    def __call__(self, status: int, body: bytes, headers: Sequence[Header] = ()) -> None: ...


class SameHead(Protocol):
    """Answers requests whose head is that of one before, byte for byte, but for the value of Content-Length."""

    def __call__(self, body: bytes, respond: Respond) -> bool:
        """Called with the whole body. False: nothing was done, the head is to be read again."""


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
