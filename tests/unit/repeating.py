"""Applications that take requests with the head of the one before, and a connection to one."""

from collections.abc import Callable
from typing import Any

from gateway.asgi import SAME_HEAD, Receive, Respond, SameHead, Scope, Send, respond
from tests.unit.fake_transport import Wire
from tests.unit.test_http_protocol import Server, answers, post, read, settled


class Tellers:
    """Answers with all that it knows of a request, to /early before it has seen the body. What comes with a known head
    is answered with what was known of that head, if it `offers`; `taken` counts these. A header KEY may differ."""

    KEY = b"x-key"

    def __init__(self, *, offers: bool = True) -> None:
        self._offers = offers
        self.taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b"" if scope["raw_path"] == b"/early" else await read(receive)
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", self.KEY)]
        told = repr((scope["method"], scope["raw_path"], scope["query_string"], headers)).encode()
        keys = [value for name, value in scope["headers"] if name == self.KEY]
        offer = scope["extensions"].get(SAME_HEAD)
        if self._offers and offer is not None:
            offer(self._handler(told), *[self.KEY][: len(keys)])
        await respond(scope, send, 200, b"%b %r " % (told, keys) + body, [(b"x-body", b"%d" % len(body))])

    def _handler(self, told: bytes) -> SameHead:
        def handle(body: bytes, respond: Respond, value: bytes | None) -> bool:
            self.taken += 1
            keys = [] if value is None else [value]
            respond(200, b"%b %r " % (told, keys) + body, [(b"x-body", b"%d" % len(body))])
            return True

        return handle


class ByHand:
    """The first request is answered at once, those with its head when a test says so: `begun` are their bodies and what
    answers them. `handler` is asked instead, if there is one."""

    def __init__(self, handler: Callable[[bytes, Respond], bool] | None = None) -> None:
        self.begun: list[tuple[bytes, Respond]] = []
        self.usual: list[bytes] = []
        self._handler = handler or self._keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read(receive)
        self.usual.append(body)
        if SAME_HEAD in scope["extensions"]:
            scope["extensions"][SAME_HEAD](lambda body, respond, _: self._handler(body, respond))
        await respond(scope, send, 200, b"usual " + body)

    def _keep(self, body: bytes, respond: Respond) -> bool:
        self.begun.append((body, respond))
        return True

    def answer(self, number: int = -1, body: bytes | None = None) -> None:
        begun, respond = self.begun[number]
        respond(200, b"again " + begun if body is None else body)


async def repeating(server: Server, app: Any) -> Wire:
    """A connection whose head is known."""
    wire = server.connect(app)
    wire.send(post(b"first"))
    await settled()
    assert [answer.status for answer in answers(wire.received)] == [200]
    wire.writes.clear()
    return wire
