"""gateway.body: what is read, how much of it, and what is refused before it is read."""

import asyncio
from collections.abc import Iterable

import pytest

from gateway.asgi import Message, Scope
from gateway.body import ByteBudget, ClientDisconnected, read_body
from gateway.errors import PayloadTooLarge, Unavailable, UnsupportedMediaType

BYTES_MAX = 10
BUDGET = 1_000
DISCONNECT: Message = {"type": "http.disconnect"}


def chunk(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Stream:
    """The caller's side: hands out messages one at a time and counts them."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages = list(messages)
        self.taken = 0

    async def receive(self) -> Message:
        message = self._messages[self.taken]  # an IndexError: asked for more than a caller sends
        self.taken += 1
        return message


def scope(*headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "headers": list(headers)}


async def read(messages: Iterable[Message], *headers: tuple[bytes, bytes]) -> bytes:
    return await read_body(scope(*headers), Stream(messages).receive, BYTES_MAX, ByteBudget(BUDGET))


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        ([chunk(b"")], b""),
        ([{"type": "http.request"}], b""),
        ([chunk(b"abc")], b"abc"),
        ([chunk(b"0123456789")], b"0123456789"),
        ([chunk(b"abc", more=True), chunk(b"def")], b"abcdef"),
        ([chunk(b"abc", more=True), chunk(b"")], b"abc"),
        ([chunk(b"", more=True), chunk(b"", more=True), chunk(b"x")], b"x"),
        ([*(chunk(b"%d" % n, more=True) for n in range(10)), chunk(b"")], b"0123456789"),
        ([chunk(b"a", more=True), {"type": "http.request"}], b"a"),
    ],
    ids=["empty", "no-body-key", "one", "one-exactly-max", "two", "empty-last", "empty-first", "exactly-max", "bare"],
)
async def test_whole_body(messages: list[Message], body: bytes) -> None:
    assert await read(messages) == body


@pytest.mark.parametrize(
    ("messages", "taken"),
    [
        ([chunk(b"x" * 11)], 1),
        ([chunk(b"x" * 11, more=True), chunk(b"never read")], 1),
        ([chunk(b"x" * 6, more=True), chunk(b"y" * 5, more=True), chunk(b"never read")], 2),
        ([*(chunk(b"x", more=True) for _ in range(11)), chunk(b"never read")], 11),
    ],
    ids=["at-once", "first-chunk", "second-chunk", "drop-by-drop"],
)
async def test_too_large_is_refused_while_it_streams_in(messages: list[Message], taken: int) -> None:
    stream = Stream(messages)
    with pytest.raises(PayloadTooLarge):
        await read_body(scope(), stream.receive, BYTES_MAX, ByteBudget(BUDGET))
    assert stream.taken == taken


# What all bodies together may be


class SlowStream(Stream):
    """Waits, once it has handed out all but the last message, until it may go on."""

    def __init__(self, messages: Iterable[Message]) -> None:
        super().__init__(messages)
        self.go_on = asyncio.Event()

    async def receive(self) -> Message:
        if self.taken == len(self._messages) - 1:
            await self.go_on.wait()
        return await super().receive()


async def arriving(budget: ByteBudget, *messages: Message) -> tuple[asyncio.Task[bytes], SlowStream]:
    stream = SlowStream(messages)
    task = asyncio.create_task(read_body(scope(), stream.receive, BYTES_MAX, budget))
    for _ in messages:
        await asyncio.sleep(0)
    return task, stream


async def test_bodies_that_arrive_in_pieces_share_a_budget() -> None:
    budget = ByteBudget(20)
    first = await arriving(budget, chunk(b"x" * 9, more=True), chunk(b""))
    second = await arriving(budget, chunk(b"x" * 9, more=True), chunk(b"yy"))
    third = Stream([chunk(b"x" * 3, more=True), chunk(b"never read")])
    with pytest.raises(Unavailable) as caught:
        await read_body(scope(), third.receive, BYTES_MAX, budget)
    assert caught.value.code == "bodies_in_flight"
    assert third.taken == 1
    assert await read_body(scope(), Stream([chunk(b"z" * 10)]).receive, BYTES_MAX, budget)  # in one piece: no wait

    first[1].go_on.set()
    assert await first[0] == b"x" * 9
    assert await read_body(scope(), Stream([chunk(b"x" * 9, more=True), chunk(b"")]).receive, BYTES_MAX, budget)
    second[1].go_on.set()
    with pytest.raises(PayloadTooLarge):
        await second[0]


@pytest.mark.parametrize("end", [b"whole", b"too large", b"left", b"cancelled", b"refused"])
async def test_budget_is_given_back_however_a_body_ends(end: bytes) -> None:
    budget = ByteBudget(8 if end == b"refused" else 12)
    last = {b"too large": chunk(b"y" * 5), b"left": DISCONNECT, b"refused": chunk(b"y")}.get(end, chunk(b""))
    task, stream = await arriving(budget, chunk(b"x" * 8, more=True), last)
    if end == b"cancelled":
        task.cancel()
    stream.go_on.set()
    await asyncio.wait({task})
    for _ in range(3):
        assert await read_body(scope(), Stream([chunk(b"x" * 8, more=True), chunk(b"")]).receive, BYTES_MAX, budget)


@pytest.mark.parametrize("length", [b"11", b"262145", b"9" * 30])
async def test_announced_length_is_refused_before_anything_is_read(length: bytes) -> None:
    stream = Stream([])
    with pytest.raises(PayloadTooLarge):
        await read_body(scope((b"content-length", length)), stream.receive, BYTES_MAX, ByteBudget(BUDGET))
    assert stream.taken == 0


async def test_announced_length_is_not_trusted() -> None:
    with pytest.raises(PayloadTooLarge):
        await read([chunk(b"x" * 11)], (b"content-length", b"3"))
    with pytest.raises(PayloadTooLarge):
        await read([chunk(b"x" * 6, more=True), chunk(b"x" * 6)], (b"content-length", b"0"))
    assert await read([chunk(b"abc")], (b"content-length", b"10")) == b"abc"


@pytest.mark.parametrize(
    "messages",
    [[DISCONNECT], [chunk(b"ab", more=True), DISCONNECT], [chunk(b"", more=True), DISCONNECT]],
    ids=["at-once", "midway", "before-a-byte"],
)
async def test_caller_who_leaves(messages: list[Message]) -> None:
    with pytest.raises(ClientDisconnected):
        await read(messages)


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json;charset=utf-8",
        b'application/json; charset="UTF-8"',
        b"application/json ; charset=utf8",
        b"application/json; charset=us-ascii",
        b"application/json; profile=x",
        b"application/json;",
        b"application/problem+json",
        b"application/ld+json; charset=utf-8",
        b"text/plain",
        b"text/plain;charset=UTF-8",
        b"",
    ],
)
async def test_content_type_that_is_json(content_type: bytes) -> None:
    assert await read([chunk(b"{}")], (b"content-type", content_type)) == b"{}"


async def test_absent_content_type_is_taken_for_json() -> None:
    assert await read([chunk(b"{}")]) == b"{}"


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        (b"application/x-www-form-urlencoded", "content_type_unsupported"),
        (b"multipart/form-data; boundary=x", "content_type_unsupported"),
        (b"text/html", "content_type_unsupported"),
        (b"application/xml", "content_type_unsupported"),
        (b"application/jsonp", "content_type_unsupported"),
        (b"application/json, text/plain", "content_type_unsupported"),
        (b"json", "content_type_unsupported"),
        (b"\xff\xfe", "content_type_unsupported"),
        (b"application/json; charset=utf-16", "charset_unsupported"),
        (b"application/json; charset=iso-8859-1", "charset_unsupported"),
        (b'application/json; x=y; charset="latin1"', "charset_unsupported"),
        (b"text/plain; charset=", "charset_unsupported"),
    ],
)
async def test_content_type_that_is_not(content_type: bytes, code: str) -> None:
    stream = Stream([])
    with pytest.raises(UnsupportedMediaType) as caught:
        await read_body(scope((b"content-type", content_type)), stream.receive, BYTES_MAX, ByteBudget(BUDGET))
    assert caught.value.code == code
    assert stream.taken == 0


@pytest.mark.parametrize("encoding", [b"identity", b"", b" Identity "])
async def test_content_encoding_that_is_none(encoding: bytes) -> None:
    assert await read([chunk(b"{}")], (b"content-encoding", encoding)) == b"{}"


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"zstd", b"deflate", b"identity, gzip", b"GZIP", b"x"])
async def test_compressed_body_is_refused_unread(encoding: bytes) -> None:
    stream = Stream([])
    with pytest.raises(UnsupportedMediaType) as caught:
        await read_body(scope((b"content-encoding", encoding)), stream.receive, BYTES_MAX, ByteBudget(BUDGET))
    assert caught.value.code == "content_encoding_unsupported"
    assert (b"accept-encoding", b"identity") in caught.value.headers
    assert stream.taken == 0
