"""gateway.server and gateway.exchange, against callers and applications of every kind, well-behaved or not.

Time is virtual: `settled()` returns when nothing more can happen at this moment, deadlines cost nothing, and what hangs
is seen at once. Every connection is checked at its end: see `Server`.
"""

import asyncio
import itertools
import random
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, cast

import orjson
import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway import server as server_module
from gateway.asgi import WHOLE, ASGIApp, Header, Message, Receive, Scope, Send
from gateway.connections import READ_BYTES_MAX
from gateway.errors import InternalError
from gateway.exchange import UNREAD_BYTES_MAX, Exchange
from gateway.server import HEAD_BYTES_MAX, KEEP_ALIVE_S, REQUEST_S_MAX, HttpProtocol
from tests.unit.fake_transport import Wire
from tests.unit.virtual_time import VirtualTimeLoop

LOOP_FACTORY = VirtualTimeLoop

DATE: Header = (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: list[Header]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1
        return values[0] if values else None


def answers(received: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """Every answer on the wire, as a caller reads them who asked with these methods. Raises AssertionError for a byte
    too many or too few."""
    found = []
    for method in itertools.chain(methods, itertools.repeat("GET")):
        if not received:
            break
        head, separator, received = received.partition(b"\r\n\r\n")
        assert separator
        status_line, *lines = head.split(b"\r\n")
        version, status, phrase = status_line.split(b" ", 2)
        assert version == b"HTTP/1.1"
        assert phrase
        headers = []
        for line in lines:
            name, colon, value = line.partition(b": ")
            assert colon
            headers.append((name, value))
        answer = Answer(int(status), headers, b"")
        if method != "HEAD" and answer.status not in (204, 304):
            length = int(answer.header(b"content-length") or b"-1")
            assert 0 <= length <= len(received)
            answer = answer._replace(body=received[:length])
            received = received[length:]
        found.append(answer)
    return found


def statuses(wire: Wire) -> list[int]:
    return [answer.status for answer in answers(wire.received)]


def assert_is_refusal(answer: Answer, status: int, type_: str) -> None:
    """In the envelope, and the caller is told that this was all."""
    assert answer.status == status
    assert answer.header(b"content-type") == b"application/json"
    assert answer.header(b"connection") == b"close"
    body = orjson.loads(answer.body)
    assert (body["success"], body["status"], body["error"]["type"]) == (False, status, type_)


async def settled() -> None:
    """Virtual time passes only when nothing is left to do."""
    await asyncio.sleep(1e-6)


def post(body: bytes, path: bytes = b"/a", headers: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n%b" % (path, headers, len(body), body)


def post_chunked(chunks: Sequence[bytes], path: bytes = b"/a", trailers: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST %b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (path, body, trailers)


async def read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        body += message["body"]
        if not message["more_body"]:
            return body


async def answer_with(send: Send, body: bytes = b"", status: int = 200, headers: Sequence[Header] = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await answer_with(send, await read(receive))


async def not_reading(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before it has seen the body."""
    await answer_with(send, b"early")


async def answering_at_length(scope: Scope, receive: Receive, send: Send) -> None:
    """With more than a connection takes at once."""
    await answer_with(send, bytes(100_000))


class Slow:
    """Reads and answers with the request's path and body, as many requests as `let_go` has allowed."""

    def __init__(self) -> None:
        self.started: list[bytes] = []
        self.gone: list[bytes] = []
        self._allowed = asyncio.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started.append(scope["raw_path"])
        try:
            body = await read(receive)
        except ConnectionAbortedError:
            self.gone.append(scope["raw_path"])
            return
        await self._allowed.acquire()
        await answer_with(send, scope["raw_path"] + body)

    async def let_go(self, requests: int = 1) -> None:
        for _ in range(requests):
            self._allowed.release()
        await settled()


class Waiting:
    """Reads nothing until it is told to, and keeps what it was then given; answers once it is told that."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.may_read.wait()
        self.body = await read(receive)
        await self.may_answer.wait()
        await answer_with(send)


class Server:
    """What connections share. At the end nothing may be left of them: no task, no connection, no timer, no exception
    that nobody saw, no byte written to who has gone."""

    def __init__(self) -> None:
        self.state = ServerState()
        self.state.default_headers = [DATE]
        self._wires: list[Wire] = []
        self._unseen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._unseen.append(context))

    def connect(self, app: ASGIApp, protocol: type = HttpProtocol, **of_wire: Any) -> Wire:
        config = Config(
            app, http=protocol, ws="none", lifespan="off", interface="asgi3", proxy_headers=False, log_config=None
        )
        config.load()
        wire = Wire(protocol(config=config, server_state=self.state, app_state={}), **of_wire)
        self._wires.append(wire)
        return wire

    async def check(self) -> None:
        await settled()
        for wire in self._wires:
            wire.reset()
        await settled()
        assert not self.state.tasks, "a task is left"
        assert not self.state.connections, "a connection is left"
        assert not self._unseen
        assert [fault for wire in self._wires for fault in wire.faults] == []
        assert [asyncio.current_task()] == list(asyncio.all_tasks())


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.check()


# Answers.


async def exchanged(server: Server, request: bytes, app: ASGIApp) -> tuple[Wire, Answer]:
    wire = server.connect(app)
    wire.send(request)
    await settled()
    [answer] = answers(wire.received, [request.split(b" ", 1)[0].decode()])
    return wire, answer


@pytest.mark.parametrize(
    ("method", "status", "length", "body"),
    [
        (b"GET", 200, b"4", b"body"),
        (b"HEAD", 200, b"4", b""),
        (b"GET", 204, None, b""),
        (b"GET", 304, None, b""),
        (b"GET", 404, b"4", b"body"),
    ],
)
async def test_an_answer_is_one_write(
    server: Server, method: bytes, status: int, length: bytes | None, body: bytes
) -> None:
    """A write more costs a tenth of an event. What has no body has none, whatever the application says: its bytes would
    be read as the next answer's."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(send, b"body", status, [(b"x-a", b"1"), (b"x-a", b"2")])

    wire, answer = await exchanged(server, method + b" /a HTTP/1.1\r\nhost: a\r\n\r\n", app)
    assert len(wire.writes) == 1
    assert answer.status == status
    assert answer.headers[:3] == [DATE, (b"x-a", b"1"), (b"x-a", b"2")]
    assert answer.header(b"content-length") == length
    assert answer.header(b"connection") is None
    assert answer.body == body
    assert not wire.closed


async def test_the_length_that_head_is_told_is_the_applications(server: Server) -> None:
    """Who answers HEAD need not make the body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(send, b"", 200, [(b"content-length", b"123")])

    _, answer = await exchanged(server, b"HEAD /a HTTP/1.1\r\nhost: a\r\n\r\n", app)
    assert answer.header(b"content-length") == b"123"


async def test_a_length_that_is_not_the_bodys_does_not_reach_the_caller(server: Server) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(send, b"body", 200, [(b"content-length", b"1")])

    _, answer = await exchanged(server, GET, app)
    assert answer.body == b"body"


@pytest.mark.parametrize("pieces", [[b"a", b"b", b"c"], [b"", b"", b"abc"], [b"abc", b""], [b"abc", None]])
async def test_a_body_in_pieces_leaves_in_one_write(server: Server, pieces: list[bytes | None]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, piece in enumerate(pieces, 1):
            assert not wire.writes
            message: Message = {"type": "http.response.body", "more_body": number < len(pieces)}
            await send(message if piece is None else {**message, "body": piece})

    wire = server.connect(app)
    wire.send(GET)
    await settled()
    [write] = wire.writes
    assert answers(write)[0].body == b"abc"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_whole_answer_may_be_one_message(server: Server, method: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert WHOLE in scope["extensions"]
        await send({"type": WHOLE, "status": 404, "headers": [(b"x-a", b"1")], "body": b"body"})

    wire, answer = await exchanged(server, b"%b /a HTTP/1.1\r\nhost: a\r\n\r\n" % method.encode(), app)
    assert len(wire.writes) == 1
    assert answer == Answer(404, [DATE, (b"x-a", b"1"), (b"content-length", b"4")], b"body" if method == "GET" else b"")


async def test_an_answer_may_have_no_headers_and_no_body(server: Server) -> None:
    """ASGI leaves both out."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    _, answer = await exchanged(server, GET, app)
    assert answer == Answer(200, [DATE, (b"content-length", b"0")], b"")


@pytest.mark.parametrize("request_bytes", [GET, b"\0", b"GET / HTTP/1.1\r\nx y\r\n\r\n"], ids=["200", "400", "400 too"])
async def test_every_answer_has_the_servers_headers_of_now(server: Server, request_bytes: bytes) -> None:
    wire = server.connect(echo)
    server.state.default_headers = [(b"date", b"later"), (b"x-server", b"1")]
    wire.send(request_bytes)
    await settled()
    [answer] = answers(wire.received)
    assert answer.header(b"date") == b"later"
    assert answer.header(b"x-server") == b"1"


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"1\r\nx-b: 2"),
        (b"x-a", b"1\nx-b: 2"),
        (b"x-a", b"1\rx-b: 2"),
        (b"x-a\r\nx-b", b"2"),
        (b"x-a\nx-b", b"2"),
        (b"x-a", b"\r\n\r\n<html>"),
        (b"x-a", b"1\r\n"),
        (b"x-a", b"\n\r"),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_a_header_that_would_break_out_is_a_500_without_it(server: Server, method: bytes, header: Header) -> None:
    raised: list[Exception] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await answer_with(send, b"", 200, [(b"x-first", b"1"), header])
        except RuntimeError as error:
            raised.append(error)
            raise

    wire, answer = await exchanged(server, method + GET[3:], app)
    assert len(raised) == 1
    assert answer.status == 500
    assert b"x-" not in wire.received
    assert answer.header(b"content-length") == b"%d" % len(InternalError().body())


async def test_a_length_for_head_that_would_break_out_is_a_500(server: Server) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(send, b"", 200, [(b"content-length", b"1\r\nx-b: 2")])

    wire, answer = await exchanged(server, b"HEAD /a HTTP/1.1\r\nhost: a\r\n\r\n", app)
    assert answer.status == 500
    assert b"x-b" not in wire.received


async def _raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("secret")


async def _raises_behind_the_head(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"secret")]})
    await send({"type": "http.response.body", "body": b"secret", "more_body": True})
    raise ValueError("secret")


async def _returns(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def _returns_behind_the_head(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"secret")]})


async def _gives_two_heads(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"secret")]})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"secret")]})


async def _gives_a_head_and_a_whole(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"secret")]})
    await send({"type": WHOLE, "status": 200, "headers": [], "body": b"secret"})


async def _gives_no_head(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"secret"})


async def _cancels_itself(scope: Scope, receive: Receive, send: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    "app",
    [
        _raises,
        _raises_behind_the_head,
        _returns,
        _returns_behind_the_head,
        _gives_two_heads,
        _gives_a_head_and_a_whole,
        _gives_no_head,
        _cancels_itself,
    ],
)
async def test_an_application_without_an_answer_is_a_500_in_the_envelope(server: Server, app: ASGIApp) -> None:
    """And the connection goes on: nothing of another answer is on it."""
    wire = server.connect(app)
    for number in (1, 2):
        wire.send(post(b"{}"))
        await settled()
        assert len(wire.writes) == number
        assert b"secret" not in wire.received
    assert not server.state.tasks
    for answer in answers(wire.received):
        assert answer.status == 500
        assert answer.header(b"content-type") == b"application/json"
        assert answer.body == InternalError().body()
        assert answer.header(b"date") == DATE[1]


async def test_what_comes_behind_an_answer_is_refused_and_not_sent(server: Server) -> None:
    raised: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(send, b"whole")
        for message in (
            {"type": "http.response.body", "body": b"more"},
            {"type": "http.response.start", "status": 200},
        ):
            try:
                await send(message)
            except RuntimeError as error:
                raised.append(str(error))
        raise ValueError

    _, answer = await exchanged(server, GET, app)
    assert answer.body == b"whole"
    assert len(raised) == 2


async def test_a_request_that_is_cancelled_is_answered(server: Server) -> None:
    """uvicorn cancels what is not done when it must stop."""
    app = Waiting()
    wire = server.connect(app)
    wire.send(GET)
    await settled()
    for task in list(server.state.tasks):
        task.cancel()
    await settled()
    assert statuses(wire) == [500]
    assert not server.state.tasks


# Bodies of requests.

BODY = b'{"event_type":"click"}'
POSTS = {"with a length": post(BODY), "chunked": post_chunked([BODY[:5], BODY[5:6], BODY[6:]])}


@pytest.mark.parametrize("kind", POSTS)
async def test_a_request_may_be_split_at_every_byte(server: Server, kind: str) -> None:
    for position in range(len(POSTS[kind]) + 1):
        wire = server.connect(echo)
        for part in (POSTS[kind][:position], POSTS[kind][position:]):
            if part:
                wire.send(part)
                await settled()
        assert [answer.body for answer in answers(wire.received)] == [BODY], position


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("kind", POSTS)
async def test_a_request_may_come_byte_by_byte(server: Server, kind: str, settles: bool) -> None:
    wire = server.connect(echo)
    for byte in POSTS[kind] * 2:
        wire.send(bytes([byte]))
        if settles:
            await settled()
    await settled()
    assert [answer.body for answer in answers(wire.received)] == [BODY] * 2


async def test_what_the_application_is_told_of_the_body(server: Server) -> None:
    """As ASGI has it: pieces, of which the last one says so; then nothing until the caller goes."""
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not messages or messages[-1]["type"] != "http.disconnect":
            messages.append(await receive())

    wire = server.connect(app)
    wire.send(b"POST /a HTTP/1.1\r\ncontent-length: 6\r\n\r\n")
    await settled()
    assert messages == []
    wire.send(b"ab")
    wire.send(b"c")
    await settled()
    assert messages == [{"type": "http.request", "body": b"abc", "more_body": True}]
    wire.send(b"def")
    await settled()
    assert messages[1:] == [{"type": "http.request", "body": b"def", "more_body": False}]
    await asyncio.sleep(REQUEST_S_MAX * 2)
    assert len(messages) == 2
    wire.hang_up()
    await settled()
    assert messages[2:] == [{"type": "http.disconnect"}]
    assert wire.writes == []
    assert {type(message["body"]) for message in messages[:2]} == {bytes}


@pytest.mark.parametrize("request_bytes", [GET, post(b""), post_chunked([])], ids=["GET", "length 0", "chunked"])
async def test_an_empty_body_is_told_once(server: Server, request_bytes: bytes) -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages.append(await receive())
        messages.append(await receive())

    wire = server.connect(app)
    wire.send(request_bytes)
    await settled()
    assert messages == [{"type": "http.request", "body": b"", "more_body": False}]
    wire.hang_up()
    await settled()
    assert messages[1:] == [{"type": "http.disconnect"}]


async def test_behind_its_answer_an_application_is_told_that_it_is_over(server: Server) -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waits = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await answer_with(send)
        messages.extend([await waits, await receive()])

    wire = server.connect(app)
    wire.send(b"POST /a HTTP/1.1\r\ncontent-length: 6\r\n\r\n")
    await settled()
    assert statuses(wire) == [200]
    wire.send(b"abcdef")
    await settled()
    assert messages == [{"type": "http.disconnect"}] * 2


async def test_a_wait_for_the_body_may_be_given_up(server: Server) -> None:
    """As `asyncio.timeout` does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 1)
        await answer_with(send, await read(receive))

    wire = server.connect(app)
    wire.send(b"POST /a HTTP/1.1\r\ncontent-length: 6\r\n\r\n")
    await asyncio.sleep(2)
    wire.send(b"abc")
    wire.send(b"def")
    await settled()
    assert answers(wire.received)[0].body == b"abcdef"


async def test_many_tiny_chunks_are_one_body(server: Server) -> None:
    app = Waiting()
    wire = server.connect(app)
    wire.send(post_chunked([b"x"] * 10_000))
    app.may_read.set()
    app.may_answer.set()
    await settled()
    assert app.body == b"x" * 10_000
    assert statuses(wire) == [200]


def test_a_body_grows_in_place() -> None:
    """To copy for each chunk those before it would cost a caller's 64 KiB of single bytes two gigabytes of copying."""
    exchange = Exchange(cast(Any, None), {}, True)
    exchange.feed(b"a")
    exchange.feed(b"b")
    grown = exchange._body
    for _ in range(1_000):
        exchange.feed(b"x")
    assert exchange._body is grown


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_nobody_reads_stays_with_the_caller(server: Server, chunked: bool) -> None:
    """Above UNREAD_BYTES_MAX nothing more is read, until the application has."""
    app = Waiting()
    wire = server.connect(app)
    body = random.Random(1).randbytes(2_000_000)
    whole = post_chunked([body[start : start + 9_999] for start in range(0, len(body), 9_999)])
    wire.send_slowly(whole if chunked else post(body), 10_000)
    await settled()
    assert not wire.reads
    taken = len(body) - len(wire.unread)
    assert UNREAD_BYTES_MAX - 1_000 < taken < UNREAD_BYTES_MAX + 20_000
    app.may_read.set()
    await settled()
    assert wire.reads
    assert app.body == body
    app.may_answer.set()
    await settled()
    wire.send(GET)
    await settled()
    assert statuses(wire) == [200, 200]


async def test_of_a_body_that_comes_fast_no_more_is_read_than_the_limit_allows(server: Server) -> None:
    """The read that passes UNREAD_BYTES_MAX is the last."""
    app = Waiting()
    wire = server.connect(app)
    wire.send(post(bytes(2_000_000)))
    await settled()
    assert not wire.reads
    app.may_read.set()
    app.may_answer.set()
    assert 2_000_000 - len(wire.unread) <= UNREAD_BYTES_MAX + READ_BYTES_MAX
    await settled()
    assert len(app.body) == 2_000_000


async def test_what_is_unread_at_the_answer_is_read_and_dropped(server: Server) -> None:
    """The next request is behind it."""
    app = Slow()

    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"] != b"/early":
            await echo(scope, receive, send)
            return
        await app._allowed.acquire()
        await answer_with(send, b"early")

    wire = server.connect(early)
    wire.send(post(bytes(1_000_000), b"/early"))
    wire.send(post(b"next"))
    await settled()
    assert not wire.reads
    assert wire.writes == []
    await app.let_go()
    assert [answer.body for answer in answers(wire.received)] == [b"early", b"next"]
    assert wire.reads
    assert not wire.unread


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_before_the_body_is_complete(server: Server, chunked: bool) -> None:
    """The rest of the body is no request, and the next one is answered."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (not_reading if scope["raw_path"] == b"/early" else echo)(scope, receive, send)

    body = GET * 10
    request = post_chunked([body, body], b"/early") if chunked else post(body, b"/early")
    for position in range(request.index(b"\r\n\r\n") + 4, len(request) + 1, 7):
        wire = server.connect(app)
        wire.send(request[:position])
        await settled()
        assert [answer.body for answer in answers(wire.received)] == [b"early"]
        wire.send(request[position:] + post(b"second"))
        wire.send(post(b"third"))
        await settled()
        assert [answer.body for answer in answers(wire.received)] == [b"early", b"second", b"third"]


async def test_the_rest_of_a_body_that_was_answered_is_not_kept(server: Server) -> None:
    wire = server.connect(not_reading)
    wire.send(b"POST /a HTTP/1.1\r\ncontent-length: 5000000\r\n\r\n")
    await settled()
    rest = bytes(50_000)
    tracemalloc.start()
    try:
        for _ in range(99):
            wire.send(rest)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert wire.reads
    assert held_bytes < 500_000
    wire.send(rest + GET)
    await settled()
    assert statuses(wire) == [200, 200]


async def test_trailers_are_no_headers(server: Server) -> None:
    """A proxy that sets X-Forwarded-For does so in front of the body; what the caller puts behind it proves nothing."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    wire = server.connect(app)
    wire.send(post_chunked([b"x"], trailers=b"x-forwarded-for: 192.0.2.1\r\nx-b: 2\r\n"))
    wire.send(post(b"next"))
    await settled()
    assert [answer.body for answer in answers(wire.received)] == [b"x", b"next"]
    assert [name for name, _ in scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize("line", [b"x: y\r\n", b"y"], ids=["many", "one"])
async def test_trailers_do_not_grow_without_end(server: Server, line: bytes) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post_chunked([b"x"])[:-2] + b"x: ")
    sent = 0
    while not wire.closed and sent < 4_000_000:
        wire.send(line * 1_000)
        sent += len(line) * 1_000
        await settled()
    assert wire.closed
    assert sent <= HEAD_BYTES_MAX + READ_BYTES_MAX


# 100-continue.


def expecting(length: int, version: bytes = b"1.1") -> bytes:
    return b"POST /a HTTP/%b\r\nExpect: 100-Continue\r\ncontent-length: %d\r\n\r\n" % (version, length)


async def test_the_caller_is_told_to_continue_once_the_application_waits(server: Server) -> None:
    app = Waiting()
    wire = server.connect(app)
    wire.send(expecting(4))
    await settled()
    assert wire.writes == []
    app.may_read.set()
    await settled()
    assert wire.writes == [CONTINUE]
    for byte in b"body":
        wire.send(bytes([byte]))
        await settled()
    app.may_answer.set()
    await settled()
    assert wire.writes[:-1] == [CONTINUE]
    assert answers(wire.writes[-1])[0].status == 200
    assert app.body == b"body"


@pytest.mark.parametrize(
    ("app", "sent", "status"),
    [
        (echo, expecting(4) + b"body", 200),
        (echo, expecting(0), 200),
        (not_reading, expecting(4), 200),
        (_raises, expecting(4), 500),
    ],
    ids=["the body is there", "there is none", "it is not wanted", "it is not wanted any more"],
)
async def test_nobody_is_told_to_continue_without_need(server: Server, app: ASGIApp, sent: bytes, status: int) -> None:
    wire = server.connect(app)
    wire.send(sent)
    await settled()
    assert statuses(wire) == [status]


async def test_a_caller_of_http_1_0_is_not_told_to_continue(server: Server) -> None:
    """It does not know that answer."""
    wire = server.connect(echo)
    wire.send(expecting(4, b"1.0"))
    await settled()
    assert wire.writes == []
    wire.send(b"body")
    await settled()
    assert statuses(wire) == [200]
    assert wire.closed


async def test_to_continue_is_told_behind_the_answers_before(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post(b"1", b"/1") + expecting(4))
    await settled()
    assert wire.writes == []
    await app.let_go()
    assert wire.writes[1:] == [CONTINUE]
    wire.send(b"body")
    await app.let_go()
    assert [answers(write)[0].body for write in (wire.writes[0], wire.writes[2])] == [b"/11", b"/abody"]


# Several requests on a connection.


async def test_requests_of_one_read_are_answered_in_their_order_one_at_a_time(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    paths = [b"/%d" % number for number in range(100)]
    wire.send(b"".join(post(b"!", path) for path in paths))
    await settled()
    assert not wire.reads
    for number in range(len(paths)):
        assert app.started == paths[: number + 1]
        await app.let_go()
    assert [answer.body for answer in answers(wire.received)] == [path + b"!" for path in paths]
    assert wire.reads
    assert not wire.closed


async def test_nothing_is_read_while_requests_wait(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post(b"", b"/1") + post(b"", b"/2"))
    wire.send(post(b"", b"/3") + post(b"", b"/4"))
    await settled()
    assert (app.started, wire.reads) == ([b"/1"], False)
    await app.let_go()
    assert (app.started, wire.reads) == ([b"/1", b"/2"], False)  # what is behind /2 was read, and waits
    await app.let_go(3)
    assert [answer.body for answer in answers(wire.received)] == [b"/1", b"/2", b"/3", b"/4"]
    assert wire.reads


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_of_a_request_that_waits_may_come_later(server: Server, chunked: bool) -> None:
    body = bytes(range(256)) * 1_000
    second = post_chunked([body[:1_000], body[1_000:]], b"/2") if chunked else post(body, b"/2")
    for position in (60, 100, 1_000, 200_000, len(second) - 1):
        app = Slow()
        wire = server.connect(app)
        wire.send(post(b"", b"/1") + second[:position])
        wire.send_slowly(second[position:] + post(b"", b"/3"), 50_000)
        await app.let_go(3)
        assert [answer.body for answer in answers(wire.received)] == [b"/1", b"/2" + body, b"/3"], position
        assert wire.reads


async def test_a_caller_who_asks_without_end_is_held(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    for _ in range(100):
        wire.send(GET * 1_000)
    await settled()
    assert not wire.reads
    assert len(wire.unread) >= len(GET) * 99_000
    assert len(app.started) == 1
    wire.reset()
    await app.let_go()
    assert len(app.started) == 1


async def test_what_a_caller_asks_without_end_is_bounded_memory(server: Server) -> None:
    """The shortest requests there are, while the first is worked on: no more than one read of them is held."""
    app = Slow()
    wire = server.connect(app)
    shortest = b"GET / HTTP/1.1\r\n\r\n"
    stream = shortest * (8 * READ_BYTES_MAX // len(shortest))
    tracemalloc.start()
    try:
        wire.send(stream)
        await settled()
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    wire.reset()
    await app.let_go()
    assert held_bytes < 64 * READ_BYTES_MAX


async def test_a_caller_who_asks_one_by_one_and_takes_no_answer_is_held(server: Server) -> None:
    """Else what is written for it would grow as long as it likes to ask."""
    answer = bytes(50_000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(send, answer)

    wire = server.connect(app)
    wire.takes_answers = False
    for _ in range(100):
        wire.send(GET)
        await settled()
    assert wire.unsent_bytes < 4 * len(answer)
    assert not wire.reads
    wire.take_answers()
    await settled()
    assert statuses(wire) == [200] * 100
    assert wire.reads


async def test_requests_that_wait_are_begun_when_the_caller_takes_answers_again(server: Server) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.append(scope["raw_path"])
        await answer_with(send, bytes(100_000))

    started: list[bytes] = []
    wire = server.connect(app)
    wire.takes_answers = False
    wire.send(b"".join(post(b"", b"/%d" % number) for number in range(10)))
    await settled()
    while len(started) < 10:
        before = len(started)
        assert len(wire.writes) == before
        assert wire.unsent_bytes <= 300_000
        wire.take_answers()
        wire.takes_answers = False
        await settled()
        assert before < len(started) <= before + 2
    wire.take_answers()
    await settled()
    assert started == [b"/%d" % number for number in range(10)]
    assert statuses(wire) == [200] * 10
    assert wire.reads


@pytest.mark.parametrize("size", [1, 7, 100, 4_096, 70_000, 1_000_000])
async def test_large_and_small_requests_in_reads_of_any_size(server: Server, size: int) -> None:
    """No deadlock between a full body, requests that wait and answers that are not taken."""
    chance = random.Random(size)
    bodies = [
        chance.randbytes(chance.choice([0, 1, 1_000, 70_000, 300_000][: 3 if size == 1 else 5])) for _ in range(12)
    ]
    stream = b"".join(
        post(body) if chance.random() < 0.5 else post_chunked([body[:9], body[9:]] if len(body) > 9 else [])
        for body in bodies
    )
    wire = server.connect(echo)
    wire.takes_answers = False
    for start in range(0, len(stream), size):
        wire.send(stream[start : start + size])
        if chance.random() < 0.3:
            await settled()
        if chance.random() < 0.3:
            wire.take_answers()
            wire.takes_answers = False
    for _ in range(len(bodies) + 1):
        await settled()
        wire.take_answers()
        wire.takes_answers = False
    assert len(answers(wire.received)) == len(bodies)
    assert wire.reads
    assert not wire.closed


async def test_a_large_body_and_the_beginning_of_the_next_head_are_no_long_head(server: Server) -> None:
    wire = server.connect(echo)
    body = bytes(100_000)
    wire.send(post(body) + GET[:-4])
    await settled()
    wire.send(GET[-4:])
    await settled()
    assert [(answer.status, answer.body) for answer in answers(wire.received)] == [(200, body), (200, b"")]


# The end of a connection.


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /a HTTP/1.1\r\nhost: a\r\nConnection: Close\r\n\r\n",
        b"GET /a HTTP/1.0\r\n\r\n",
        b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    ],
    ids=["close", "1.0", "1.0 keep-alive"],
)
async def test_a_caller_that_wants_one_answer_gets_one(server: Server, request_bytes: bytes) -> None:
    wire = server.connect(echo)
    wire.send(request_bytes)
    await settled()
    [answer] = answers(wire.received)
    assert answer.header(b"connection") == b"close"
    assert wire.closed


async def test_what_follows_the_last_request_is_ignored(server: Server) -> None:
    """RFC 9112, 9.6. Above all it is no 400 in the last answer's place."""
    for rest in (GET, b"\0garbage", b"\r\n"):
        app = Slow()
        wire = server.connect(app)
        wire.send(post(b"", headers=b"connection: close\r\n") + rest)
        wire.send(rest)
        await settled()
        assert wire.writes == []
        await app.let_go(3)
        assert statuses(wire) == [200]
        assert len(app.started) == 1
        assert wire.closed


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close"])
async def test_an_application_may_close_the_connection(server: Server, value: bytes) -> None:
    """Requests that wait behind such an answer are not begun: their answers could not be sent."""
    started = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal started
        started += 1
        await answer_with(send, b"", 413, [(b"connection", value)])

    wire = server.connect(app)
    wire.send(GET + GET)
    await settled()
    [answer] = answers(wire.received)
    assert answer.header(b"connection") == b"close"
    assert wire.closed
    assert started == 1


async def test_a_closing_answer_before_the_body_is_complete(server: Server) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(send, b"", 413, [(b"connection", b"close")])

    wire = server.connect(app)
    wire.send(post(bytes(100_000))[:50_000])
    await settled()
    assert statuses(wire) == [413]
    assert wire.closed


STAGES = {
    "at once": b"",
    "in the head": GET[:9],
    "in the body": post(b"body")[:-1],
    "in the body's chunks": post_chunked([b"body"])[:-7],
    "behind the request": post(b"body"),
    "with one that waits": post(b"body") + post(b"body", b"/2"),
    "with half of one that waits": post(b"body") + post(b"body", b"/2")[:-1],
    "with half of a head that waits": post(b"body") + GET[:9],
    "with garbage that waits": post(b"body") + b"\0",
}


@pytest.mark.parametrize("end", [Wire.hang_up, Wire.reset])
@pytest.mark.parametrize("stage", STAGES)
async def test_the_caller_may_go_at_every_stage(server: Server, stage: str, end: Callable[[Wire], None]) -> None:
    app = Slow()
    wire = server.connect(app)
    if STAGES[stage]:
        wire.send(STAGES[stage])
    await settled()
    end(wire)
    await app.let_go(3)
    await asyncio.sleep(REQUEST_S_MAX * 3)
    assert not server.state.tasks
    assert not server.state.connections


async def test_the_caller_may_go_before_the_application_has_begun(server: Server) -> None:
    """What has arrived in whole is served nevertheless: a page that is left sends its last event so."""
    app = Slow()
    wire = server.connect(app)
    wire.send(post(b"body"))
    wire.hang_up()
    await app.let_go()
    assert app.started == [b"/a"]
    assert wire.writes == []
    assert not server.state.tasks


async def test_the_caller_may_go_while_its_body_fills_up(server: Server) -> None:
    app = Waiting()
    wire = server.connect(app)
    wire.send(post(bytes(1_000_000)))
    wire.reset()
    await settled()
    app.may_read.set()
    await settled()
    assert not server.state.tasks
    assert not server.state.connections


async def test_an_answer_to_who_has_gone_is_no_error(server: Server) -> None:
    sent: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()
        await answer_with(send)
        sent.append(True)

    wire = server.connect(app)
    wire.send(GET)
    await settled()
    wire.hang_up()
    await settled()
    assert sent == [True]
    assert wire.writes == []


# What is no request.

BAD = {
    "garbage": b"\x16\x03\x01\x02\x00\x01",
    "no method": b"FROB /a HTTP/1.1\r\n\r\n",
    "no version": b"GET /a HTTX/1.1\r\n\r\n",
    "an unknown version": b"GET /a HTTP/3.7\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a space in the URL": b"GET /a b HTTP/1.1\r\n\r\n",
    "bytes in the URL": "GET /é HTTP/1.1\r\n\r\n".encode(),
    "a URL without a slash": b"GET a HTTP/1.1\r\n\r\n",
    "a tunnel": b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "NUL in a value": b"GET /a HTTP/1.1\r\nx: a\0b\r\n\r\n",
    "NUL in a name": b"GET /a HTTP/1.1\r\nx\0y: a\r\n\r\n",
    "a space before the colon": b"GET /a HTTP/1.1\r\nhost : a\r\n\r\n",
    "no colon": b"GET /a HTTP/1.1\r\nhost\r\n\r\n",
    "no name": b"GET /a HTTP/1.1\r\n: a\r\n\r\n",
    "a folded line": b"GET /a HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
    "a lone CR in a value": b"GET /a HTTP/1.1\r\nx: a\ry: b\r\n\r\n",
    "a lone LF": b"GET /a HTTP/1.1\r\nx: a\ny: b\r\n\r\n",
    "lone LFs": b"GET /a HTTP/1.1\nhost: a\n\n",
    "two lengths": b"POST /a HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a length twice": b"POST /a HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
    "a list of lengths": b"POST /a HTTP/1.1\r\ncontent-length: 1, 1\r\n\r\na",
    "no number": b"POST /a HTTP/1.1\r\ncontent-length: a\r\n\r\na",
    "an empty length": b"POST /a HTTP/1.1\r\ncontent-length:\r\n\r\na",
    "a negative length": b"POST /a HTTP/1.1\r\ncontent-length: -1\r\n\r\na",
    "a length with a sign": b"POST /a HTTP/1.1\r\ncontent-length: +1\r\n\r\na",
    "a length beyond 64 bits": b"POST /a HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\na",
    "length and chunks": b"POST /a HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n",
    "chunks that are not last": b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "no chunks": b"POST /a HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n0\r\n\r\n",
    "a chunk without a size": b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "a chunk of negative size": b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
    "a chunk beyond 64 bits": b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n11111111111111111\r\n",
    "a chunk that is longer": b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    "a bad second chunk": b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n",
    "a length in the trailers": post_chunked([b"x"], trailers=b"content-length: 5\r\n"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("size", [1, 1_000])
async def test_what_is_no_request_is_refused(server: Server, kind: str, size: int) -> None:
    wire = server.connect(Slow())
    for start in range(0, len(BAD[kind]), size):
        if not wire.closed:
            wire.send(BAD[kind][start : start + size])
            await settled()
    [answer] = answers(wire.received)
    assert_is_refusal(answer, 400, "BadRequestError")
    assert wire.closed
    assert wire.lost
    assert not server.state.tasks
    assert not server.state.connections


@pytest.mark.parametrize("kind", BAD)
async def test_what_is_no_request_is_refused_behind_the_answers_before(server: Server, kind: str) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post(b"", b"/1") + post(b"", b"/2") + BAD[kind])
    await settled()
    assert wire.writes == []
    assert not wire.reads
    await app.let_go(2)
    first, second, *rest = answers(wire.received)
    assert [first.body, second.body] == [b"/1", b"/2"]
    [refusal] = rest
    assert_is_refusal(refusal, 400, "BadRequestError")
    assert wire.closed
    assert app.started == [b"/1", b"/2"]
    assert not server.state.tasks


async def test_what_is_no_request_is_refused_when_the_answers_before_were_taken(server: Server) -> None:
    wire = server.connect(answering_at_length)
    wire.takes_answers = False
    wire.send(GET * 5 + b"\0")
    await settled()
    assert len(statuses(wire)) < 5
    while not wire.lost:
        wire.take_answers()
        await settled()
    assert statuses(wire) == [200] * 5 + [400]
    assert wire.closed


async def test_a_bad_body_ends_the_request(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post_chunked([b"body"])[:-5])
    await settled()
    wire.send(b"zz\r\n")
    await settled()
    assert app.gone == [b"/a"]
    assert statuses(wire) == [400]
    assert wire.closed


async def test_a_request_that_has_its_answer_gets_no_second_one(server: Server) -> None:
    """A caller would take a 400 for the answer to its next request."""
    wire = server.connect(not_reading)
    wire.send(post_chunked([b"body"])[:-5])
    await settled()
    assert statuses(wire) == [200]
    wire.send(b"zz\r\n")
    await settled()
    assert statuses(wire) == [200]
    assert wire.closed


# Heads.


@pytest.mark.parametrize("size", [1_000, 4_096, 50_000])
@pytest.mark.parametrize("kind", ["a value", "many headers", "the URL"])
async def test_a_head_that_is_too_long_is_refused(server: Server, kind: str, size: int) -> None:
    start, filling = {
        "a value": (b"GET /a HTTP/1.1\r\nx: ", b"y" * 100),
        "many headers": (b"GET /a HTTP/1.1\r\n", b"x: y\r\n" * 20),
        "the URL": (b"GET /", b"y" * 100),
    }[kind]
    wire = server.connect(Slow())
    sent = 0
    for piece in itertools.chain([start], itertools.repeat(filling * (size // 100))):
        wire.send(piece)
        sent += len(piece)
        if wire.closed:
            break
    assert HEAD_BYTES_MAX < sent <= HEAD_BYTES_MAX + 2 * size
    await settled()
    [answer] = answers(wire.received)
    assert_is_refusal(answer, 431, "RequestHeaderFieldsTooLargeError")
    assert not server.state.connections


async def test_a_head_that_is_too_long_and_comes_at_once_is_refused(server: Server) -> None:
    """Its length is what counts, and not how it happens to be cut."""
    wire = server.connect(echo)
    wire.send(b"GET /a HTTP/1.1\r\nx: %b\r\n\r\n" % (b"y" * 2 * HEAD_BYTES_MAX))
    await settled()
    assert statuses(wire) == [431]


@pytest.mark.parametrize("size", [1_000, HEAD_BYTES_MAX])
async def test_a_long_head_is_not_too_long(server: Server, size: int) -> None:
    head = b"GET /a HTTP/1.1\r\nx: %b\r\n\r\n" % (b"y" * (HEAD_BYTES_MAX - 24))
    assert len(head) == HEAD_BYTES_MAX
    wire = server.connect(echo)
    for _ in range(3):
        wire.send_slowly(head, size)
        await settled()
    assert statuses(wire) == [200] * 3


async def test_a_head_that_is_too_long_is_refused_behind_the_answer_before(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post(b"", b"/1") + b"GET /a HTTP/1.1\r\nx: ")
    for _ in range(HEAD_BYTES_MAX // 1_000 + 2):
        wire.send(b"y" * 1_000)
    await settled()
    assert wire.writes == []
    await app.let_go()
    assert statuses(wire) == [200, 431]
    assert wire.closed


# Offers to upgrade.


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
@pytest.mark.parametrize("connection", [b"Upgrade, HTTP2-Settings", b"upgrade", b"keep-alive, Upgrade"])
async def test_an_offer_to_upgrade_is_not_taken_and_the_body_is_there(
    server: Server, name: bytes, connection: bytes
) -> None:
    """Java's HTTP client makes one with its first request."""
    offer = b"Connection: %b\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n%b: h2c\r\n" % (connection, name)
    request = post(BODY, headers=offer)
    wire = server.connect(echo)
    wire.send(request + post(b"second"))
    await settled()
    wire.send(request)
    await settled()
    assert [answer.body for answer in answers(wire.received)] == [BODY, b"second", BODY]
    assert not wire.closed


@pytest.mark.parametrize("body", [BODY, b'{\r\n  "event_type": "click"\r\n}', b""], ids=["one line", "several", "none"])
async def test_an_offer_to_upgrade_is_seen_wherever_the_body_before_it_was_cut(server: Server, body: bytes) -> None:
    first = post(body)
    second = post(BODY, headers=b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
    for position in range(1, len(first) + 1):
        wire = server.connect(echo)
        wire.send(first[:position])
        await settled()
        wire.send(first[position:] + second)
        await settled()
        assert [answer.body for answer in answers(wire.received)] == [body, BODY], position


async def test_an_offer_to_upgrade_is_seen_in_a_segment_of_its_own(server: Server) -> None:
    offer = b"\r\nUpgrade: h2c"
    before, _, after = post(BODY, headers=b"Connection: Upgrade\r\nUpgrade: h2c\r\n").partition(offer)
    wire = server.connect(echo)
    for segment in (before, offer, after):
        wire.send(segment)
        await settled()
    assert [answer.body for answer in answers(wire.received)] == [BODY]


async def test_an_offer_to_upgrade_is_gone_and_nothing_else(server: Server) -> None:
    headers: list[Header] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers.extend(scope["headers"])
        await echo(scope, receive, send)

    body = b'{"query":"upgrade: now","x":"pgrade: PGRADE: "}'
    wire = server.connect(app)
    wire.send(post(body, b"/upgrade:", b"connection: upgrade\r\nupgrade: h2c\r\nx: upgrade:\r\nnot-upgrade: 1\r\n"))
    await settled()
    assert answers(wire.received)[0].body == body
    assert b"upgrade" not in dict(headers)
    assert (b"x", b"upgrade:") in headers
    assert (b"not-upgrade", b"1") in headers


async def test_an_offer_to_upgrade_in_two_segments_does_no_harm(server: Server) -> None:
    """At worst its body is lost: nothing in it may be taken for a request, and the connection ends in order."""
    request = post(post(b"", b"/smuggled"), headers=b"connection: upgrade\r\nupgrade: h2c\r\n")
    body_at = request.index(b"\r\n\r\n") + 4
    for position in range(1, len(request)):
        app = Slow()
        wire = server.connect(app)
        wire.send(request[:position])
        await settled()
        wire.send(request[position:body_at] if position < body_at else request[position:])
        await settled()
        if position < body_at:
            wire.send(request[body_at:])
        await app.let_go(5)
        assert app.started == [b"/a"], position
        assert len(wire.writes) == 1
        assert answers(wire.received)[0].status == 200


# Shutdown.


async def test_an_idle_connection_is_closed_at_shutdown(server: Server) -> None:
    fresh, idle, half = (server.connect(echo) for _ in range(3))
    idle.send(post(BODY))
    half.send(GET[:9])
    await settled()
    for wire in (fresh, idle, half):
        wire.protocol.shutdown()
        assert wire.closed
    await settled()
    assert not server.state.connections
    assert (statuses(fresh), statuses(idle), statuses(half)) == ([], [200], [])


@pytest.mark.parametrize("split", [False, True])
async def test_a_busy_connection_is_closed_behind_its_answer(server: Server, split: bool) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post(BODY)[:-1] if split else post(BODY))
    await settled()
    wire.protocol.shutdown()
    await settled()
    assert not wire.closed
    if split:
        wire.send(BODY[-1:])
    await app.let_go()
    [answer] = answers(wire.received)
    assert answer.body == b"/a" + BODY
    assert answer.header(b"connection") == b"close"  # or the next request would be on its way to nobody
    assert wire.closed
    assert wire.lost
    assert not server.state.connections


async def test_requests_that_wait_at_shutdown_are_all_answered(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(b"".join(post(b"", b"/%d" % number) for number in range(5)))
    await settled()
    wire.protocol.shutdown()
    for number in range(5):
        assert not wire.closed
        await app.let_go()
        assert len(wire.writes) == number + 1
    assert [answer.header(b"connection") for answer in answers(wire.received)] == [None] * 4 + [b"close"]
    assert wire.closed


async def test_an_answer_that_nobody_takes_at_shutdown_is_given_up(server: Server) -> None:
    wire = server.connect(answering_at_length)
    wire.takes_answers = False
    wire.send(GET + GET)
    await settled()
    wire.protocol.shutdown()
    await asyncio.sleep(KEEP_ALIVE_S + REQUEST_S_MAX + 1)
    assert wire.aborted
    assert not server.state.connections


# Time.


def now() -> float:
    return asyncio.get_running_loop().time()


LATE = {
    "nothing": b"",
    "half a line": GET[:7],
    "half a head": GET[:-2],
    "no body": post(BODY)[: -len(BODY)],
    "half a body": post(BODY)[:-1],
    "half of the chunks": post_chunked([BODY])[:-5],
    "half of the trailers": post_chunked([BODY])[:-2],
}


@pytest.mark.parametrize("kind", LATE)
async def test_a_request_that_does_not_end_is_408(server: Server, kind: str) -> None:
    app = Slow()
    wire = server.connect(app)
    began = now()
    for byte in LATE[kind]:
        wire.send(bytes([byte]))
        await asyncio.sleep(REQUEST_S_MAX * 0.5 / len(LATE[kind]))
    await asyncio.sleep(REQUEST_S_MAX - (now() - began) - 0.1)
    assert wire.writes == []
    await asyncio.sleep(0.2)
    [answer] = answers(wire.received)
    assert_is_refusal(answer, 408, "RequestTimeoutError")
    assert wire.closed
    assert app.gone == app.started
    assert not server.state.connections


async def test_each_request_has_its_own_time(server: Server) -> None:
    wire = server.connect(echo)
    for _ in range(5):
        wire.send(post(BODY)[:-1])
        await asyncio.sleep(REQUEST_S_MAX * 0.9)
        wire.send(BODY[-1:])
        await asyncio.sleep(KEEP_ALIVE_S * 0.9)
    assert statuses(wire) == [200] * 5
    wire.send(post(BODY)[:-1])
    await asyncio.sleep(REQUEST_S_MAX + 0.1)
    assert statuses(wire) == [200] * 5 + [408]


async def test_an_idle_connection_is_closed_without_a_word(server: Server) -> None:
    wire = server.connect(echo)
    for gap_s in (0.0, KEEP_ALIVE_S * 0.9, 1.0, KEEP_ALIVE_S * 0.5):
        await asyncio.sleep(gap_s)
        wire.send(post(BODY))
        await settled()
        answered_at = now()
    await asyncio.sleep(KEEP_ALIVE_S * 3)
    assert statuses(wire) == [200] * 4
    assert wire.closed
    assert KEEP_ALIVE_S - 0.01 <= wire.closed_at - answered_at <= KEEP_ALIVE_S + 0.01
    assert not server.state.connections


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n"])
async def test_blank_lines_keep_no_connection(server: Server, blank: bytes) -> None:
    wire = server.connect(echo)
    wire.send(post(BODY))
    for _ in range(20):
        await asyncio.sleep(KEEP_ALIVE_S / 2)
        if not wire.closed:
            wire.send(blank)
    assert wire.closed
    assert statuses(wire) == [200]


@pytest.mark.parametrize("behind", [b"", post(b"", b"/2")], ids=["alone", "with one that waits"])
async def test_an_application_may_take_longer_than_a_request(server: Server, behind: bytes) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post(BODY) + behind)
    for number in range(1, 3 if behind else 2):
        await asyncio.sleep(REQUEST_S_MAX * 3)
        await app.let_go()
        assert statuses(wire) == [200] * number
    answered_at = now()
    await asyncio.sleep(KEEP_ALIVE_S + 0.1)
    assert wire.closed_at - answered_at == pytest.approx(KEEP_ALIVE_S, abs=0.01)


async def test_a_request_that_does_not_end_is_408_behind_the_answer_before(server: Server) -> None:
    app = Slow()
    wire = server.connect(app)
    wire.send(post(b"", b"/1") + GET[:9])
    await asyncio.sleep(REQUEST_S_MAX * 2)
    assert wire.writes == []
    await app.let_go()
    assert statuses(wire) == [200, 408]
    assert wire.closed


async def test_a_body_that_had_to_wait_for_the_answer_before_is_waited_for(server: Server) -> None:
    """It is we who did not read it: whatever becomes of it, the connection does not hang."""
    app = Slow()
    wire = server.connect(app)
    wire.send(post(b"", b"/1") + post(BODY, b"/2")[:-1])
    wire.send(BODY[-1:])
    await asyncio.sleep(REQUEST_S_MAX * 2)
    assert wire.writes == []
    await app.let_go(2)
    await asyncio.sleep(REQUEST_S_MAX * 2)
    assert statuses(wire)[0] == 200
    assert len(wire.writes) == 2
    assert wire.closed
    assert not server.state.tasks


async def test_the_rest_of_a_body_that_was_answered_has_its_time_too(server: Server) -> None:
    """Then the connection is closed: a second answer would be the next request's."""
    wire = server.connect(not_reading)
    wire.send(post(BODY)[:-1])
    await asyncio.sleep(REQUEST_S_MAX - 0.1)
    assert not wire.closed
    await asyncio.sleep(0.2)
    assert wire.closed
    assert statuses(wire) == [200]


@pytest.mark.parametrize(
    "requests",
    [
        GET,
        GET * 3,
        GET * 3 + b"\0",
        GET * 3 + GET[:9],
        GET * 2 + post(b"body")[:-1],
        GET * 2 + b"GET /a HTTP/1.0\r\n\r\n",
        b"GET /a HTTP/1.0\r\n\r\n",
        post(b"body")[:-1],
    ],
    ids=["1", "3", "3 and garbage", "3 and half a head", "2 and half a body", "2 and a last one", "last", "half"],
)
async def test_a_caller_that_takes_no_answer_is_given_up(server: Server, requests: bytes) -> None:
    wire = server.connect(answering_at_length)
    wire.takes_answers = False
    wire.send(requests)
    await asyncio.sleep(2 * REQUEST_S_MAX + KEEP_ALIVE_S + 0.1)
    assert wire.aborted
    assert not server.state.connections
    assert not server.state.tasks


async def test_a_last_answer_may_be_taken_slowly(server: Server) -> None:
    wire = server.connect(answering_at_length)
    wire.takes_answers = False
    wire.send(b"GET /a HTTP/1.0\r\n\r\n")
    await asyncio.sleep(REQUEST_S_MAX - 0.1)
    assert not wire.aborted
    wire.take_answers()
    await settled()
    assert wire.lost
    assert not wire.aborted


async def test_no_timer_is_left_of_a_connection(server: Server) -> None:
    loop = asyncio.get_running_loop()
    for request in (b"", GET, GET[:9], b"\0"):
        wire = server.connect(echo)
        if request:
            wire.send(request)
        await settled()
        wire.reset()
    await settled()
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert timers == []


# Connections.


async def test_one_connection_too_many_is_503(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 3)
    served = [server.connect(echo) for _ in range(3)]
    refused = server.connect(echo)
    [answer] = answers(refused.received)
    assert_is_refusal(answer, 503, "ServiceUnavailableError")
    assert orjson.loads(answer.body)["error"]["code"] == "too_many_connections"
    assert answer.header(b"retry-after") == b"1"
    await settled()
    assert refused.lost
    served[0].hang_up()
    await settled()
    again = server.connect(echo)
    for wire in (*served[1:], again):
        wire.send(post(BODY))
    await settled()
    assert [statuses(wire) for wire in (*served[1:], again)] == [[200]] * 3


async def test_connections_share_nothing_but_the_server(server: Server) -> None:
    """They read into one buffer: a request in parts must not see another's."""
    chance = random.Random(7)
    wires = [server.connect(echo) for _ in range(20)]
    bodies = [[chance.randbytes(chance.randrange(500)) for _ in range(5)] for _ in wires]
    streams = [b"".join(post(body) for body in of_wire) for of_wire in bodies]
    while any(streams):
        number = chance.randrange(len(wires))
        size = chance.randrange(1, 200)
        if streams[number]:
            wires[number].send(streams[number][:size])
            streams[number] = streams[number][size:]
        if chance.random() < 0.2:
            await settled()
    await settled()
    assert [[answer.body for answer in answers(wire.received)] for wire in wires] == bodies


# What uvicorn's own protocol makes of the same requests.

URLS = (
    b"/",
    b"//",
    b"//x",
    b"//x/y?z",
    b"/a/b/../c/./d",
    b"/a?",
    b"/a?b",
    b"/a?b?c",
    b"/a?b=c&d=%20+e",
    b"/a#f",
    b"/a#",
    b"/a?b#f",
    b"/a?#f",
    b"/a#f?b",
    b"/a#f#g",
    b"/?",
    b"/#?x",
    b"/%61%2f%2F%25",
    b"/%c3%a9?%c3%a9",
    b"/%ff%",
    b"/%zz",
    b"/a;b=c,d:e@f!$&'()*",
    b'/[]{}|^`<>"\\~',
    b"/:80",
    b"/http://b/c",
    b"/" + b"x" * 3_000,
    b"http://a/b",
    b"http://a/b?c#d",
    b"http://a/",
    b"http://a:80/b?",
    b"http://u:p@a:80/b%20c",
    b"HTTPS://a/b",
    b"*",
)
HEADS = (
    b"host: a\r\n",
    b"Host: a\r\nX-A: 1\r\nx-a: 2\r\nX-EMPTY:\r\nX-Space:   v w\t \r\n",
    b"host: a\r\nx-bytes: \xff\xc3\xa9\r\n",
    b"host: a\r\ncontent-type: application/json\r\nConnection: keep-alive\r\n",
    b"host: a\r\nx-long: %b\r\n" % (b"v" * 2_000),
)
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"M-SEARCH")


def a_request(chance: random.Random, url: bytes) -> bytes:
    method, headers = chance.choice(METHODS), chance.choice(HEADS)
    body = chance.choice([b"", b"x", b'{"a":1}', chance.randbytes(2_000), b"\r\n\r\n", GET])
    if chance.random() < 0.4:
        headers += b"content-length: %d\r\n" % len(body)
    elif chance.random() < 0.6:
        cuts = sorted(chance.sample(range(len(body) + 1), min(3, len(body) + 1)))
        parts = [body[start:end] for start, end in itertools.pairwise([0, *cuts, len(body)]) if start < end]
        extension = chance.choice([b"", b";a=b", b";x"])
        headers += b"Transfer-Encoding: chunked\r\n"
        body = b"".join(b"%X%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n\r\n"
    else:
        body = b""
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, url, headers, body)


class Seen(NamedTuple):
    scopes: list[Scope]
    bodies: list[bytes]
    statuses: list[int]
    answer_bodies: list[bytes]
    closed: bool


async def seen_by(server: Server, protocol: type, pieces: Sequence[bytes], **of_wire: Any) -> Seen:
    scopes: list[Scope] = []
    bodies: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append({key: value for key, value in scope.items() if key not in ("state", "extensions")})
        body = await read(receive)
        bodies.append(body)
        status = 200 + len(bodies) % 3
        answer = scope["raw_path"] + body
        await answer_with(send, answer, status, [(b"content-length", b"%d" % len(answer))])

    wire = server.connect(app, protocol, **of_wire)
    for piece in pieces:
        wire.send(piece)
        if len(piece) % 3 == 0:
            await settled()
    await settled()
    found = answers(wire.received, [scope["method"] for scope in scopes])
    return Seen(
        [{**scope, "headers": list(scope["headers"])} for scope in scopes],
        bodies,
        [answer.status for answer in found],
        [answer.body for answer in found],
        wire.closed,
    )


def cut(chance: random.Random, stream: bytes, most: int) -> list[bytes]:
    cuts = sorted(chance.sample(range(1, len(stream)), min(most, len(stream) - 1)))
    return [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]


@pytest.mark.parametrize("url", URLS)
async def test_a_request_is_what_uvicorn_makes_of_it(server: Server, url: bytes) -> None:
    chance = random.Random(url)
    for cuts in (0, 1, 3, 10):
        stream = a_request(chance, url)
        pieces = cut(chance, stream, cuts)
        ours = await seen_by(server, HttpProtocol, pieces)
        assert ours == await seen_by(server, HttpToolsProtocol, pieces)
        assert len(ours.scopes) == 1


@pytest.mark.parametrize("seed", range(40))
async def test_a_connection_is_what_uvicorn_makes_of_it(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    requests = chance.randrange(1, 8)
    stream = b"".join(a_request(chance, chance.choice(URLS)) for _ in range(requests))
    if seed % 3 == 0:
        stream += b"GET /last HTTP/1.0\r\n\r\n"
    pieces = cut(chance, stream, chance.choice([0, 2, 10, 50]))
    ours = await seen_by(server, HttpProtocol, pieces)
    assert ours == await seen_by(server, HttpToolsProtocol, pieces)
    assert len(ours.scopes) == len(ours.statuses) == requests + (seed % 3 == 0)


@pytest.mark.parametrize("version", [b"0.9", b"1.0", b"1.1", b"2.0"])
async def test_a_version_is_what_uvicorn_makes_of_it(server: Server, version: bytes) -> None:
    pieces = [b"GET /a HTTP/%b\r\nhost: a\r\n\r\n" % version]
    assert await seen_by(server, HttpProtocol, pieces) == await seen_by(server, HttpToolsProtocol, pieces)


async def test_addresses_are_what_uvicorn_makes_of_them(server: Server) -> None:
    ours = await seen_by(server, HttpProtocol, [GET])
    assert ours == await seen_by(server, HttpToolsProtocol, [GET])
    assert ours.scopes[0]["client"] == ("192.0.2.7", 4711)
    assert ours.scopes[0]["server"] == ("127.0.0.1", 8080)
    of_ipv6 = await seen_by(server, HttpProtocol, [GET], peer=("2001:db8::1", 4711, 0, 0))
    assert of_ipv6.scopes[0]["client"] == ("2001:db8::1", 4711)


async def test_an_absolute_url_may_have_no_path(server: Server) -> None:
    """RFC 9112, 3.2.2: it is `/`. uvicorn fails here."""
    seen = await seen_by(server, HttpProtocol, [b"GET http://a HTTP/1.1\r\n\r\n", b"GET http://a?b HTTP/1.1\r\n\r\n"])
    assert [(scope["path"], scope["raw_path"], scope["query_string"]) for scope in seen.scopes] == [
        ("/", b"/", b""),
        ("/", b"/", b"b"),
    ]


# Anything.


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_happens_a_connection_ends(server: Server, seed: int) -> None:
    """Requests good and bad in pieces of any size, an application that does as it likes, a caller that takes answers or
    does not, pauses and goes: no byte out of order, and in the end nothing is left."""
    chance = random.Random(seed)
    numbers = itertools.count()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        number = next(numbers)
        assert scope["raw_path"] == b"/%d" % number, "out of order"
        manner = random.Random(seed * 1_000 + number)
        if manner.random() < 0.2:
            await asyncio.sleep(manner.choice([0, 0.1, 3, 30]))
        if manner.random() < 0.7:
            try:
                await read(receive)
            except ConnectionAbortedError:
                return
        if manner.random() < 0.1:
            raise ValueError("as it likes")
        close = [(b"connection", b"close")] if manner.random() < 0.05 else []
        await answer_with(send, b"%d " % number + bytes(manner.choice([0, 10, 70_000])), 200, close)

    parts = []
    for number in range(chance.randrange(1, 15)):
        body = bytes(chance.choice([0, 5, 3_000, 90_000]))
        path = b"/%d" % number
        parts.append(post(body, path) if chance.random() < 0.5 else post_chunked([body] if body else [], path))
        if chance.random() < 0.1:
            parts.append(chance.choice(list(BAD.values())))
    stream = b"".join(parts)
    wire = server.connect(app)
    for piece in cut(chance, stream, chance.choice([0, 3, 30])):
        wire.takes_answers = chance.random() < 0.7
        if wire.takes_answers:
            wire.take_answers()
        if not wire.closed:
            wire.send(piece)
        if chance.random() < 0.5:
            await asyncio.sleep(chance.choice([0.001, 0.001, 1, 7]))
        if chance.random() < 0.02 and not wire.closed:
            wire.reset()
        if chance.random() < 0.02:
            wire.protocol.shutdown()
    wire.take_answers()
    await asyncio.sleep(60 * REQUEST_S_MAX)
    assert wire.lost
    assert not server.state.tasks
    assert not server.state.connections
    bodies = [answer.body for answer in answers(wire.received) if answer.status == 200]
    order = [int(body.split(b" ")[0]) for body in bodies]
    assert order == sorted(order)
    assert max(Counter(order).values(), default=1) == 1
