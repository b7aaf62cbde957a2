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
    "OfferSameHead",
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
"""Extension of our own server: an OfferSameHead."""

JSON: Header = (b"content-type", b"application/json")


class Respond(Protocol):
    """Sends a whole JSON answer, at once or later; once a request."""

    def __call__(self, status: int, body: bytes, headers: Sequence[Header] = ()) -> None: ...


class SameHead(Protocol):
    """Answers requests whose head is that of one before, byte for byte, but for the value of Content-Length and of the
    one header that was named with the offer, if one was."""

    def __call__(self, body: bytes, respond: Respond, value: bytes | None) -> bool:
        """Called with the whole body, and the header's value: 1 to 128 visible ASCII characters. False: nothing was
        done, the head is to be read again."""


class OfferSameHead(Protocol):
    """Called before a request is answered, it has those that follow on the connection with the same head answered by
    `handler`. The value of the header `but`, a name in lower case, may differ."""

    def __call__(self, handler: SameHead, but: bytes = b"") -> None: ...


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
