"""gateway.body: what is read, how much of it, and what is refused before it is read."""

import asyncio
import contextlib
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import pairwise

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.body
from gateway.asgi import Message, Scope
from gateway.body import DECODER_BYTES, STEPS_A_TURN, ByteBudget, ClientDisconnected, is_ndjson, read_body
from gateway.compression import PIECE_BYTES, Coding, decode, encoded_bytes_max
from gateway.errors import BadRequest, PayloadTooLarge, Unavailable, UnsupportedMediaType
from tests.unit import compression_corpus as corpus

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


# JSON lines

NDJSON = [b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines"]


@pytest.mark.parametrize("content_type", [*NDJSON, b"Application/X-NDJSON", b" application/jsonl ; charset=utf-8"])
async def test_lines_of_json_pass_where_they_are_wanted(content_type: bytes) -> None:
    assert is_ndjson(content_type)
    header = (b"content-type", content_type)
    messages = [chunk(b"1\n2")]
    assert await read_body(scope(header), Stream(messages).receive, BYTES_MAX, ByteBudget(BUDGET), ndjson=True)
    with pytest.raises(UnsupportedMediaType) as caught:
        await read(messages, header)
    assert caught.value.code == "content_type_unsupported"


@pytest.mark.parametrize(
    "content_type", [b"", b"application/json", b"text/plain", b"application/x-ndjson+json", b"x-ndjson", b"\xff"]
)
def test_content_type_that_is_not_lines_of_json(content_type: bytes) -> None:
    assert not is_ndjson(content_type)


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        (b"application/x-ndjson; charset=utf-16", "charset_unsupported"),
        (b"text/csv", "content_type_unsupported"),
        (b"application/x-ndjsonp", "content_type_unsupported"),
    ],
)
async def test_what_is_neither_json_nor_lines_of_it(content_type: bytes, code: str) -> None:
    stream = Stream([])
    with pytest.raises(UnsupportedMediaType) as caught:
        await read_body(
            scope((b"content-type", content_type)), stream.receive, BYTES_MAX, ByteBudget(BUDGET), ndjson=True
        )
    assert caught.value.code == code
    assert stream.taken == 0


@pytest.mark.parametrize("content_type", [b"application/json", b"text/plain", b""])
async def test_json_passes_where_lines_of_it_are_wanted(content_type: bytes) -> None:
    headers = scope((b"content-type", content_type))
    assert await read_body(headers, Stream([chunk(b"{}")]).receive, BYTES_MAX, ByteBudget(BUDGET), ndjson=True) == b"{}"


# Encoded bodies; what becomes of the bytes is in test_compression.py

EACH_ENCODER = pytest.mark.parametrize(("coding", "encode"), corpus.ENCODERS.values(), ids=corpus.ENCODERS.keys())
EVENT = b'{"event_type":"click","document_id":"doc_1"}'
ENCODED_BYTES_MAX = 5_242_880
ENCODED_BUDGET = 33_554_432


async def read_encoded(
    coding: bytes,
    messages: Iterable[Message],
    *headers: tuple[bytes, bytes],
    bytes_max: int = ENCODED_BYTES_MAX,
    budget: ByteBudget | None = None,
) -> bytes:
    encoding = (b"content-encoding", coding)
    receive = Stream(messages).receive
    return await read_body(scope(encoding, *headers), receive, bytes_max, budget or ByteBudget(ENCODED_BUDGET))


@EACH_ENCODER
async def test_encoded_body_cut_in_two_anywhere(coding: bytes, encode: Callable[[bytes], bytes]) -> None:
    body = encode(EVENT)
    for at in range(len(body) + 1):
        assert await read_encoded(coding, [chunk(body[:at], more=True), chunk(body[at:])]) == EVENT


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    encoder=st.sampled_from(list(corpus.ENCODERS.values())),
    lines=st.integers(0, 3_000),
    cuts=st.lists(st.floats(0, 1), max_size=20),
)
async def test_encoded_body_in_any_pieces(
    encoder: tuple[bytes, Callable[[bytes], bytes]], lines: int, cuts: list[float]
) -> None:
    coding, encode = encoder
    body = b"".join(b'{"event_type":"view","position":%d}\n' % n for n in range(lines))
    encoded = encode(body)
    places = [0, *sorted(int(cut * len(encoded)) for cut in cuts), len(encoded)]
    pieces = [chunk(encoded[a:b], more=True) for a, b in pairwise(places)]
    assert await read_encoded(coding, [*pieces, chunk(b"")]) == body


@pytest.mark.parametrize("encoding", [b"gzip, gzip", b"gzip,br", b"x", b"compress", b"gzip;q=1"])
async def test_encoding_that_is_not_supported_is_refused_unread(encoding: bytes) -> None:
    stream = Stream([])
    with pytest.raises(UnsupportedMediaType) as caught:
        await read_body(scope((b"content-encoding", encoding)), stream.receive, BYTES_MAX, ByteBudget(BUDGET))
    assert caught.value.code == "content_encoding_unsupported"
    assert (b"accept-encoding", b"gzip, deflate, br, zstd") in caught.value.headers
    assert stream.taken == 0


async def test_encoding_in_two_lines_is_one_list() -> None:
    identity, gzip_ = (b"content-encoding", b"identity"), (b"content-encoding", b"gzip")
    assert await read([chunk(gzip.compress(b"{}"))], identity, gzip_) == b"{}"
    assert await read([chunk(b"{}")], identity, identity) == b"{}"
    with pytest.raises(UnsupportedMediaType):
        await read([chunk(gzip.compress(gzip.compress(b"{}")))], gzip_, gzip_)


@pytest.mark.parametrize("first", ["encoding", "type"])
async def test_content_type_counts_in_any_order(first: str) -> None:
    headers = [(b"content-encoding", b"gzip"), (b"content-type", b"text/html"), (b"content-length", b"22")]
    with pytest.raises(UnsupportedMediaType) as caught:
        await read([], *(headers if first == "encoding" else reversed(headers)))
    assert caught.value.code == "content_type_unsupported"


@pytest.mark.parametrize("last", ["encoding", "length"])
async def test_encoded_body_may_be_a_little_longer_than_decoded(last: str) -> None:
    body = gzip.compress(b"0123456789")
    assert len(body) > BYTES_MAX
    headers = [(b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(body))]
    assert await read([chunk(body)], *(headers if last == "length" else reversed(headers))) == b"0123456789"


@pytest.mark.parametrize("announced", [True, False])
async def test_encoded_body_much_longer_than_decoded_is_refused(announced: bool) -> None:
    limit = encoded_bytes_max(BYTES_MAX)
    for size, taken in ((limit, 1), (limit + 1, 0 if announced else 1)):
        stream = Stream([chunk(corpus.empty_stored_blocks(limit * 2)[:size], more=True)])
        length = [(b"content-length", b"%d" % size)] if announced else []
        with pytest.raises(PayloadTooLarge if size > limit else IndexError):
            await read_body(
                scope((b"content-encoding", b"deflate"), *length), stream.receive, BYTES_MAX, ByteBudget(10_000)
            )
        assert stream.taken == taken
    with pytest.raises(PayloadTooLarge):
        await read([chunk(bytes(limit + 1))], (b"content-encoding", b"gzip"))


@pytest.mark.parametrize(("coding", "body"), corpus.INVALID.values(), ids=corpus.INVALID.keys())
async def test_encoded_body_that_is_none(coding: bytes, body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        await read_encoded(coding, [chunk(body)])
    assert caught.value.code == "content_encoding_invalid"


@pytest.mark.parametrize("name", corpus.BOMBS)
@pytest.mark.parametrize("bytes_max", [262_144, ENCODED_BYTES_MAX])
async def test_bomb(name: str, bytes_max: int) -> None:
    coding, make, size = corpus.BOMBS[name]
    body = make(size)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            await read_encoded(coding, [chunk(body[:200_000])], bytes_max=bytes_max)
        assert tracemalloc.get_traced_memory()[1] <= 2 * bytes_max + 1_000_000
    finally:
        tracemalloc.stop()


async def test_bomb_that_is_not_all_there_holds_what_was_sent() -> None:
    """Not the megabytes that it might become: thousands of callers may hold one each."""
    budget = ByteBudget(100_000)
    bomb = corpus.gzip_bomb(10_000_000)
    waiting = []
    for _ in range(9):
        stream = SlowStream([chunk(bomb[:10_000], more=True), chunk(b"")])
        headers = scope((b"content-encoding", b"gzip"))
        waiting.append(asyncio.create_task(read_body(headers, stream.receive, ENCODED_BYTES_MAX, budget)))
    await asyncio.sleep(0)
    assert await read_encoded(b"gzip", [chunk(gzip.compress(EVENT)[:9], more=True), chunk(gzip.compress(EVENT)[9:])])
    assert not any(task.done() for task in waiting)
    with pytest.raises(Unavailable):
        await read_encoded(b"gzip", [chunk(bomb[:10_001], more=True)], budget=budget)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    budget.take(100_000)


async def test_small_encoded_body_needs_no_budget() -> None:
    """Nor does a plain one: it never waits."""
    for coding, encode in corpus.ENCODERS.values():
        assert await read_encoded(coding, [chunk(encode(EVENT * 100))], budget=ByteBudget(0)) == EVENT * 100


# Decoding that takes long

LARGE = b"".join(b'{"event_type":"view","position":%d}\n' % n for n in range(100_000))


class Steps:
    """Counts how many steps of decoding are done between two turns of the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_a_row_max = self._in_a_row = 0
        self.turns = 0
        self.steps = 0

        def counted(coding: Coding, body: bytes, bytes_max: int) -> Iterator[bytes]:
            for piece in decode(coding, body, bytes_max):
                self.steps += 1
                self._in_a_row += 1
                self.in_a_row_max = max(self.in_a_row_max, self._in_a_row)
                yield piece

        monkeypatch.setattr(gateway.body, "decode", counted)

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turns += 1
            self._in_a_row = 0


@pytest.fixture
async def steps(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Steps]:
    steps = Steps(monkeypatch)
    watch = asyncio.create_task(steps.watch())
    await asyncio.sleep(0)
    yield steps
    watch.cancel()


@pytest.mark.parametrize(("coding", "encode"), [corpus.ENCODERS[name] for name in ("gzip", "deflate", "br", "zstd")])
async def test_others_have_their_turn(coding: bytes, encode: Callable[[bytes], bytes], steps: Steps) -> None:
    assert await read_encoded(coding, [chunk(encode(LARGE))]) == LARGE
    assert steps.in_a_row_max <= STEPS_A_TURN + 1
    assert steps.turns >= len(LARGE) / PIECE_BYTES / STEPS_A_TURN - 1


@pytest.mark.parametrize("name", corpus.IDLERS)
async def test_others_have_their_turn_while_nothing_comes_out(name: str, steps: Steps) -> None:
    coding, make = corpus.IDLERS[name]
    with contextlib.suppress(PayloadTooLarge):
        assert await read_encoded(coding, [chunk(make(1_000_000))]) == b""
    assert steps.steps > 100
    assert steps.in_a_row_max <= STEPS_A_TURN + 1


async def test_small_encoded_body_is_decoded_at_once(steps: Steps) -> None:
    before = steps.turns
    for coding, encode in corpus.ENCODERS.values():
        assert await read_encoded(coding, [chunk(encode(EVENT))]) == EVENT
    assert steps.turns == before


async def test_large_ones_are_decoded_one_by_one_and_small_ones_do_not_wait() -> None:
    budget = ByteBudget(4 * len(LARGE))  # for one decoded one, and others that wait
    bodies = [
        asyncio.create_task(read_encoded(b"zstd", [chunk(zstd.compress(LARGE))], budget=budget)) for _ in range(4)
    ]
    await asyncio.sleep(0)
    assert await read_encoded(b"gzip", [chunk(gzip.compress(EVENT))], budget=budget) == EVENT
    assert not any(body.done() for body in bodies)
    assert [await body for body in bodies] == [LARGE] * 4
    budget.take(4 * len(LARGE))


async def test_too_many_large_ones_are_refused() -> None:
    """Each that waits holds its bytes, a decoder and what came out at once."""
    budget = ByteBudget(10 * DECODER_BYTES)
    encoded = zstd.compress(LARGE[:1_000_000])
    answers = await asyncio.gather(
        *(read_encoded(b"zstd", [chunk(encoded)], budget=budget) for _ in range(20)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert {error.code for error in refused} == {"bodies_in_flight"}
    assert 10 <= len(refused) <= 15
    assert [answer for answer in answers if not isinstance(answer, Unavailable)] == [LARGE[:1_000_000]] * (
        20 - len(refused)
    )
    budget.take(10 * DECODER_BYTES)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("decoded", None),
        ("too large", PayloadTooLarge),
        ("invalid", BadRequest),
        ("no budget", Unavailable),  # for all that comes out, though for a start
        ("cancelled", asyncio.CancelledError),
        ("cancelled, waiting", asyncio.CancelledError),
    ],
)
async def test_budget_is_given_back_however_decoding_ends(end: str, error: type[BaseException] | None) -> None:
    size = 2 * DECODER_BYTES if end == "no budget" else ENCODED_BUDGET
    budget = ByteBudget(size)
    body = gzip.compress(LARGE)
    first = asyncio.create_task(read_encoded(b"gzip", [chunk(body)], budget=budget)) if "waiting" in end else None
    task = asyncio.create_task(
        read_encoded(
            b"gzip",
            [chunk(body[:-1] + b"x" if end == "invalid" else body)],
            bytes_max=1_000_000 if end == "too large" else ENCODED_BYTES_MAX,
            budget=budget,
        )
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        budget.take(size)
    if "cancelled" in end:
        assert not task.done()
        task.cancel()
    await asyncio.wait({task, *([first] if first else [])})
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        assert await task == LARGE
    budget.take(size)
    budget.give_back(size)
    if end != "no budget":
        assert await read_encoded(b"gzip", [chunk(body)], budget=budget) == LARGE


async def test_caller_of_an_encoded_body_who_leaves() -> None:
    with pytest.raises(ClientDisconnected):
        await read_encoded(b"gzip", [DISCONNECT])
    with pytest.raises(ClientDisconnected):
        await read_encoded(b"gzip", [chunk(gzip.compress(EVENT), more=True), DISCONNECT])
