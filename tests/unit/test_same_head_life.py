"""Requests whose head is known, over the life of their connection: what runs, waits, fails, is late, or is left alone.

Time is virtual, and every connection is checked at its end: see `test_http_protocol.Server`.
"""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from structlog.testing import capture_logs

from gateway.asgi import SAME_HEAD, Header, Receive, Respond, Scope, Send
from gateway.asgi import respond as respond_by_asgi
from gateway.connections import READ_BYTES_MAX
from gateway.errors import InternalError
from gateway.same_head import HEAD_BYTES_MAX, MISSES_MAX
from gateway.server import KEEP_ALIVE_S, REQUEST_S_MAX, HttpProtocol
from tests.unit.fake_transport import Wire
from tests.unit.repeating import ByHand, Tellers, repeating
from tests.unit.test_http_protocol import (
    DATE,
    GET,
    Answer,
    Server,
    answers,
    assert_is_refusal,
    now,
    post,
    post_chunked,
    settled,
    statuses,
)
from tests.unit.virtual_time import VirtualTimeLoop

LOOP_FACTORY = VirtualTimeLoop


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.check()


def bodies(wire: Wire) -> list[bytes]:
    return [answer.body for answer in answers(wire.received)]


async def started(server: Server, app: ByHand, body: bytes = b"x") -> Wire:
    """A connection on which one such request is under way."""
    wire = await repeating(server, app)
    wire.send(post(body))
    await settled()
    assert app.begun[-1][0] == body
    assert not wire.writes
    return wire


# Answers


async def test_an_answer_is_that_of_any_other_request(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    server.state.default_headers = [DATE, (b"x-server", b"1")]
    app.begun[0][1](404, b"body", [(b"x-a", b"1"), (b"content-length", b"99")])
    await settled()
    [write] = wire.writes
    headers = [*server.state.default_headers, (b"content-type", b"application/json"), (b"x-a", b"1")]
    assert answers(write) == [Answer(404, [*headers, (b"content-length", b"4")], b"body")]
    assert not wire.closed


async def test_it_is_no_task(server: Server) -> None:
    app = ByHand()
    await started(server, app)
    assert not server.state.tasks
    assert app.usual == [b"first"]
    app.answer()


@pytest.mark.parametrize("is_late", [False, True])
async def test_an_answer_may_close_the_connection(server: Server, is_late: bool) -> None:
    def close(body: bytes, respond: Respond) -> bool:
        def answer() -> None:
            respond(413, b"", [(b"connection", b"close")])

        asyncio.get_running_loop().call_later(1, answer) if is_late else answer()
        return True

    wire = await repeating(server, ByHand(close))
    wire.send(post(b"x"))
    if is_late:
        wire.send(post(b"never begun") + b"\0")
    await asyncio.sleep(2)
    [answer] = answers(wire.received)
    assert (answer.status, answer.header(b"connection")) == (413, b"close")
    assert wire.lost


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    ("status", "headers"), [(200, [(b"x-a", b"1\r\nx-b: 2")]), (200, [(b"x\n", b"1")]), (299, [])], ids=repr
)
async def test_an_answer_that_cannot_be_written_is_a_500(
    server: Server, status: int, headers: list[Header], is_late: bool
) -> None:
    """Not none: the caller would wait for it as long as it can."""

    def handler(body: bytes, respond: Respond) -> bool:
        if is_late:
            asyncio.get_running_loop().call_soon(respond, status, b"secret", headers)
        else:
            respond(status, b"secret", headers)
        return True

    wire = await repeating(server, ByHand(handler))
    with capture_logs() as logs:
        wire.send(post(b"x"))
        await settled()
    [answer] = answers(wire.received)
    assert (answer.status, answer.body, answer.header(b"date")) == (500, InternalError().body(), DATE[1])
    assert len(logs) == 1
    wire.send(post(b"x"))
    await settled()
    assert statuses(wire) == [500, 500]


# Handlers that are none


class Failed(Exception):
    pass


@pytest.mark.parametrize("answers_first", [False, True])
async def test_a_handler_that_raises_is_asked_no_more(server: Server, answers_first: bool) -> None:
    """Its caller has an answer in any case, and what it may yet say of that request is no other's answer."""
    kept: list[Respond] = []

    def handler(body: bytes, respond: Respond) -> bool:
        kept.append(respond)
        if answers_first:
            respond(201, b"mine")
        raise Failed

    app = ByHand(handler)
    wire = await repeating(server, app)
    with capture_logs() as logs:
        wire.send(post(b"x"))
        await settled()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("the application failed", "error")]
    assert (statuses(wire), bodies(wire)) == ([201], [b"mine"]) if answers_first else ([500], [InternalError().body()])
    for _ in range(3):
        wire.send(post(b"y"))
        with pytest.raises(RuntimeError):
            kept[0](200, b"late")
        await settled()
    assert len(kept) == 1
    assert bodies(wire)[1:] == [b"usual y"] * 3
    assert not wire.closed


async def test_a_handler_that_declines_leaves_the_request_to_the_application(server: Server) -> None:
    """And may be offered again."""
    asked: list[bytes] = []

    def handler(body: bytes, respond: Respond) -> bool:
        asked.append(body)
        if body.startswith(b"no"):
            return False
        respond(200, b"again " + body)
        return True

    app = ByHand(handler)
    wire = await repeating(server, app)
    for body in (b"a", b"no 1", b"b", b"no 2", b"no 3", b"c"):
        wire.send(post(body))
        await settled()
    assert bodies(wire) == [b"again a", b"usual no 1", b"again b", b"usual no 2", b"usual no 3", b"again c"]
    assert asked == [b"a", b"no 1", b"b", b"no 2", b"no 3", b"c"]
    wire.send(post(b"no 4")[:-1])
    await asyncio.sleep(REQUEST_S_MAX + 1)
    assert statuses(wire)[-1] == 408  # there is still a deadline


async def test_a_handler_that_has_declined_is_gone_unless_it_is_offered_again(server: Server) -> None:
    """It may hold what is out of date: a registry, for one."""
    asked: list[bytes] = []

    def handler(body: bytes, respond: Respond) -> bool:
        asked.append(body)
        return False

    app = ByHand(handler)

    async def once(scope: Scope, receive: Receive, send: Send) -> None:
        if app.usual:
            await respond_by_asgi(scope, send, 404, b"")
        else:
            await app(scope, receive, send)

    wire = await repeating(server, once)
    for _ in range(3):
        wire.send(post(b"x"))
        await settled()
    assert statuses(wire) == [404] * 3
    assert asked == [b"x"]
    assert wire.protocol._repetition._handler is None


async def test_what_was_declined_and_answered_nevertheless_is_answered_once(server: Server) -> None:
    def handler(body: bytes, respond: Respond) -> bool:
        respond(200, b"again " + body)
        return False

    app = ByHand(handler)
    wire = await repeating(server, app)
    wire.send(post(b"x"))
    await settled()
    assert bodies(wire) == [b"again x"]
    assert app.usual == [b"first"]


@pytest.mark.parametrize("when", ["at once", "later", "behind the next one", "when the caller has gone"])
async def test_a_second_answer_is_refused(server: Server, when: str) -> None:
    """It would be taken for the next request's."""
    app = ByHand()
    wire = await started(server, app)
    app.answer(0)
    if when != "at once":
        await settled()
    if when == "later":
        await asyncio.sleep(1)
    elif when == "behind the next one":
        wire.send(post(b"z", b"/other"))
        await settled()
    elif when == "when the caller has gone":
        wire.hang_up()
        await settled()
    with pytest.raises(RuntimeError):
        app.answer(0, b"twice")
    await settled()
    assert bodies(wire) == [b"again x", *([b"usual z"] if when == "behind the next one" else [])]


async def test_a_handler_that_never_answers_holds_its_own_connection_alone(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    other = await repeating(server, Tellers())
    other.send(post(b"x"))
    await asyncio.sleep(KEEP_ALIVE_S + 1)
    assert statuses(other) == [200]
    assert other.closed
    await asyncio.sleep(3 * REQUEST_S_MAX)
    assert not wire.closed  # as with an application that never answers
    wire.hang_up()
    await settled()
    assert not server.state.connections


# What comes while one is under way


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_comes_behind_waits(server: Server, at_once: bool) -> None:
    app = ByHand()
    wire = await started(server, app)
    behind = [post(b"1"), GET, post_chunked([b"2"]), post(b"3")]
    for piece in [b"".join(behind)] if at_once else behind:
        wire.send(piece)
    await asyncio.sleep(REQUEST_S_MAX * 2)
    assert wire.writes == []
    assert not wire.reads
    assert app.usual == [b"first"]
    app.answer()
    await settled()
    assert bodies(wire)[:2] == [b"again x", b"usual 1"]
    for _ in range(len(app.begun) - 1):  # those that came one by one, when none was before them
        app.answer()
        await settled()
    assert [body.split()[-1] for body in bodies(wire)] == [b"x", b"1", b"usual", b"2", b"3"]
    assert wire.reads
    wire.send(post(b"4"))
    await settled()
    assert app.begun[-1][0] == b"4"
    app.answer()


@pytest.mark.parametrize("position", [1, 10, 40, len(post(b"behind")) - 1])
async def test_half_a_request_behind_one_has_its_own_time(server: Server, position: int) -> None:
    app = ByHand()
    wire = await started(server, app)
    wire.send(post(b"behind")[:position])
    await asyncio.sleep(REQUEST_S_MAX + 1)
    assert wire.writes == []
    app.answer()
    await settled()
    assert statuses(wire) == [200, 408]
    assert wire.closed


async def test_the_rest_of_a_request_behind_one_may_come_behind_its_answer(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    request = post(b"behind")
    wire.send(request[:20])
    await settled()
    app.answer()
    await settled()
    wire.send(request[20:])
    await settled()
    assert bodies(wire) == [b"again x", b"usual behind"]


@pytest.mark.parametrize(
    "garbage", [b"\0", b"GET / HTTP/1.1\r\nx y\r\n\r\n", post(b"x").replace(b"1\r\n\r\n", b"x\r\n\r\n")]
)
async def test_what_is_no_request_waits_for_the_answer_before(server: Server, garbage: bytes) -> None:
    app = ByHand()
    wire = await started(server, app)
    wire.send(garbage)
    await asyncio.sleep(REQUEST_S_MAX * 2)
    assert wire.writes == []
    assert not wire.reads
    app.answer()
    await settled()
    first, refusal = answers(wire.received)
    assert first.body == b"again x"
    assert_is_refusal(refusal, 400, "BadRequestError")
    assert wire.lost


@pytest.mark.parametrize("end", [Wire.hang_up, Wire.reset])
@pytest.mark.parametrize("behind", [b"", post(b"1"), post(b"1")[:-1], b"\0"], ids=["alone", "one", "half", "garbage"])
@pytest.mark.parametrize("answered", [False, True])
async def test_the_caller_may_go(server: Server, end: Callable[[Wire], None], behind: bytes, answered: bool) -> None:
    app = ByHand()
    wire = await started(server, app)
    if behind:
        wire.send(behind)
    end(wire)
    if answered:  # while it is not known yet that it has gone
        app.answer()
    await settled()
    if not answered:
        assert wire.lost or behind
        app.answer()
    await asyncio.sleep(REQUEST_S_MAX * 3)
    assert wire.lost
    assert not server.state.connections
    assert not wire.faults


async def test_an_answer_to_who_has_gone_is_not_written(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    wire.hang_up()
    await settled()
    assert not server.state.connections
    app.answer()
    with pytest.raises(RuntimeError):
        app.answer()
    await settled()
    assert wire.writes == []


# Answers that the caller does not take


async def test_none_is_begun_while_the_caller_takes_no_answers(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    wire.takes_answers = False
    app.answer(body=bytes(100_000))
    await settled()
    for number in range(3):
        wire.send(post(b"%d" % number))
        await settled()
    assert len(app.begun) == 1
    assert app.usual == [b"first"]
    assert not wire.reads
    assert len(wire.writes) == 1
    wire.take_answers()
    await settled()
    while app.begun[1:] and len(wire.writes) < 4:
        app.answer()
        await settled()
    assert [body[-1:] for body in bodies(wire)] == [b"\0", b"0", b"1", b"2"]
    assert wire.reads


async def test_a_caller_that_takes_no_answer_is_given_up(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    wire.takes_answers = False
    app.answer(body=bytes(100_000))
    await asyncio.sleep(KEEP_ALIVE_S + REQUEST_S_MAX + 0.1)
    assert wire.aborted
    assert not server.state.connections


async def test_answers_that_are_not_taken_do_not_grow(server: Server) -> None:
    def large(body: bytes, respond: Respond) -> bool:
        respond(200, bytes(50_000))
        return True

    wire = await repeating(server, ByHand(large))
    wire.takes_answers = False
    for _ in range(100):
        wire.send(post(b"x"))
        await settled()
    assert wire.unsent_bytes < 200_000
    assert not wire.reads
    for _ in range(100):
        wire.take_answers()
        wire.takes_answers = False
        await settled()
    wire.take_answers()
    await settled()
    assert statuses(wire) == [200] * 100


# Shutdown


@pytest.mark.parametrize("waiting", [0, 2])
async def test_what_is_under_way_at_shutdown_is_answered(server: Server, waiting: int) -> None:
    app = ByHand()
    wire = await started(server, app)
    if waiting:
        wire.send(b"".join(post(b"%d" % number) for number in range(waiting)))
    wire.protocol.shutdown()
    await asyncio.sleep(REQUEST_S_MAX * 2)
    assert not wire.closed
    app.answer()
    await settled()
    assert [body[-1:] for body in bodies(wire)] == [b"x", b"0", b"1"][: 1 + waiting]
    assert [answer.header(b"connection") for answer in answers(wire.received)] == [None] * waiting + [b"close"]
    assert wire.lost
    assert not server.state.connections


async def uvicorn_shutdown(server: Server, seconds: int, lifespan_ends: Callable[[], None]) -> None:
    """As uvicorn does it: `seconds` for what is under way, then the application's own end."""

    async def shutdown() -> None:
        lifespan_ends()
        await asyncio.sleep(0)

    instance = uvicorn.Server(uvicorn.Config(Tellers(), timeout_graceful_shutdown=seconds, log_config=None))
    instance.server_state = server.state
    instance.servers = []
    instance.lifespan = cast(Any, SimpleNamespace(shutdown=shutdown))
    await instance.shutdown(sockets=[])


async def test_uvicorn_waits_for_what_is_under_way(server: Server) -> None:
    """Though it is no task."""
    app = ByHand()
    wire = await started(server, app)
    idle = await repeating(server, Tellers())
    asyncio.get_running_loop().call_later(3, app.answer)
    began = now()
    await uvicorn_shutdown(server, 10, lambda: None)
    assert 3 <= now() - began < 4
    assert bodies(wire) == [b"again x"]
    assert (wire.lost, idle.lost) == (True, True)


async def test_what_uvicorn_does_not_wait_for_is_answered_when_the_outbox_stops(server: Server) -> None:
    """There is no task to cancel, and so no 500 for what is safe in the end."""
    app = ByHand()
    wire = await started(server, app)
    began = now()
    await uvicorn_shutdown(server, 2, app.answer)
    assert 2 <= now() - began < 3
    await settled()
    assert bodies(wire) == [b"again x"]
    assert wire.lost


# Time


async def test_an_application_may_take_longer_than_a_request(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    await asyncio.sleep(3 * REQUEST_S_MAX)
    assert not wire.closed
    app.answer()
    await settled()
    answered_at = now()
    await asyncio.sleep(KEEP_ALIVE_S * 3)
    assert wire.closed_at - answered_at == pytest.approx(KEEP_ALIVE_S, abs=0.01)
    assert statuses(wire) == [200]


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_connection_lives_as_long_as_it_is_used(server: Server, is_late: bool) -> None:
    def handler(body: bytes, respond: Respond) -> bool:
        if is_late:
            asyncio.get_running_loop().call_later(0.5, respond, 200, body)
        else:
            respond(200, body)
        return True

    wire = await repeating(server, ByHand(handler))
    for _ in range(20):
        wire.send(post(b"x"))
        await asyncio.sleep(KEEP_ALIVE_S * 0.9)
    assert bodies(wire) == [b"x"] * 20
    assert not wire.closed
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert len(timers) == 1  # and not one a request
    await asyncio.sleep(KEEP_ALIVE_S)
    assert wire.closed


async def test_a_request_that_does_not_end_is_408(server: Server) -> None:
    for position in (1, 20, 30, len(post(b"x")) - 1):
        wire = await repeating(server, Tellers())
        wire.send(post(b"x"))
        await asyncio.sleep(1)
        wire.send(post(b"x")[:position])
        await asyncio.sleep(REQUEST_S_MAX - 0.1)
        assert statuses(wire) == [200]
        await asyncio.sleep(0.2)
        assert statuses(wire) == [200, 408]
        assert wire.closed


# What is remembered


async def test_a_caller_whose_heads_differ_is_left_alone(server: Server) -> None:
    app = Tellers()
    wire = server.connect(app)
    repetition = wire.protocol._repetition
    for number in range(MISSES_MAX + 3):
        assert (SAME_HEAD in wire.protocol._scope["extensions"]) == (number <= MISSES_MAX)
        wire.send(post(b"x", b"/%d" % number))
        await settled()
    assert repetition.is_hopeless
    for _ in range(5):  # for good, also if they do not differ any more
        wire.send(post(b"x"))
        await settled()
    assert app.taken == 0
    assert (repetition._head, repetition._handler, repetition._last) == (None, None, None)
    assert statuses(wire) == [200] * (MISSES_MAX + 8)


async def test_others_in_between_are_forgiven(server: Server) -> None:
    """If they are not too many in a row, of which each counts once, in however many reads it comes."""
    app = Tellers()
    wire = await repeating(server, app)
    wire.send(post(b"first"))
    await settled()
    large = post(bytes(1_000_000), b"/large")
    for _ in range(3):
        for number in range(MISSES_MAX - 2):
            wire.send(post(b"x", b"/%d" % number) if number else GET)
            await settled()
        wire.send_slowly(large, 10_000)
        await settled()
        assert not wire.protocol._repetition.is_hopeless
        # What was offered last is known: one to be known again, and one that is.
        for _ in range(2):
            wire.send(post(b"first"))
            await settled()
    assert app.taken == 4


async def test_requests_in_two_reads_each_are_left_alone(server: Server) -> None:
    app = Tellers()
    wire = server.connect(app)
    for _ in range(MISSES_MAX + 1):
        wire.send(post(b"x")[:-1])
        await settled()
        wire.send(b"x")
        await settled()
    assert wire.protocol._repetition.is_hopeless
    assert app.taken == 0


NOT_ALONE = {
    "two": [post(b"1") + post(b"2")],
    "two reads": [post(b"1")[:-1], b"1"],
    "no body yet": [post(b"12")[:-2]],
    "one behind the other": [post(b"1"), post(b"2")],
    "more behind it": [post(b"1") + b"P"],
    "garbage behind it": [post(b"1") + b"\0"],
    "a blank line": [b"\r\n"],
    "GET": [GET],
    "the last one": [post(b"1", headers=b"connection: close\r\n")],
    "HTTP/1.0": [post(b"1").replace(b"1.1", b"1.0")],
    "too long a head": [post(b"1", headers=b"x: %b\r\n" % bytes([65] * HEAD_BYTES_MAX))],
}


@pytest.mark.parametrize("kind", NOT_ALONE)
async def test_what_is_not_alone_and_whole_is_not_remembered(server: Server, kind: str) -> None:
    """Not even until the application offers it, which cannot know."""
    wire = server.connect(ByHand())
    repetition = wire.protocol._repetition
    for piece in NOT_ALONE[kind]:
        wire.send(piece)
    assert repetition._last is None
    await settled()
    assert repetition._head is None


async def test_a_refused_request_is_no_offer_for_the_next(server: Server) -> None:
    """What was remembered of a request that offers nothing is forgotten when another comes."""
    app = ByHand()

    async def picky(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"] == b"/refused":
            await respond_by_asgi(scope, send, 404, b"")
        else:
            await app(scope, receive, send)

    for other in ([GET], [post(b"1")[:-1], b"1"], [post(b"1") + post(b"2")]):
        wire = server.connect(picky)
        wire.send(post(b"x", b"/refused"))
        await settled()
        for piece in other:
            wire.send(piece)
            await settled()
        wire.send(post(b"x", b"/refused"))
        await settled()
        assert statuses(wire)[-1] == 404
    assert not app.begun


async def test_memory_of_a_connection_is_bounded(server: Server) -> None:
    """Heads as long as they may be, bodies as large as a read: nothing of a body stays, and of heads the one that is
    known, beside the headers of the last one that was parsed."""
    fill = HEAD_BYTES_MAX - len(post(b"", headers=b"x: \r\n")) - 5
    app = ByHand()
    wires = [server.connect(app) for _ in range(20)]
    body = bytes(READ_BYTES_MAX - HEAD_BYTES_MAX)
    requests = [post(body, headers=b"x: %b\r\n" % (bytes([65 + kind]) * fill)) for kind in range(2)]

    async def talk() -> None:
        for request in (requests[0], requests[0], requests[1], requests[1], requests[0], requests[0]):
            for wire in wires:
                wire.send(request)
                await settled()
                if app.begun:
                    app.begun.pop()[1](200, b"")
                    await settled()
            for wire in wires:
                wire.writes.clear()
            app.usual.clear()

    await talk()
    tracemalloc.start()
    try:
        await talk()
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(wires) * HEAD_BYTES_MAX < held_bytes < len(wires) * 3 * HEAD_BYTES_MAX
    assert all(wire.protocol._repetition._last is None for wire in wires)


async def test_nothing_refers_to_a_connection_that_has_ended(server: Server) -> None:
    app = ByHand()
    wire = await started(server, app)
    protocol: HttpProtocol = wire.protocol
    wire.hang_up()
    await settled()
    assert not hasattr(protocol, "_repetition")
    assert protocol._running is None
    assert protocol._scope["extensions"] == {}
    app.answer()
