"""gateway.compression: every coding round trip, every way to be damaged, and what a bomb may cost."""

import contextlib
import gzip
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import orjson
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import compression
from gateway.compression import (
    MEMBERS_MAX,
    PIECE_BYTES,
    RATIO_FREE_BYTES,
    RATIO_MAX,
    WIRE_STEP_BYTES,
    Coding,
    Member,
    content_coding,
    decode,
    encoded_bytes_max,
)
from gateway.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from tests.unit import compression_corpus as corpus

BYTES_MAX = 5_242_880
OVERSHOOT_BYTES = 32_768  # the piece that exceeds a limit

EACH_ENCODER = pytest.mark.parametrize(("coding", "encode"), corpus.ENCODERS.values(), ids=corpus.ENCODERS.keys())

BOUNDED = settings(derandomize=True, deadline=None, max_examples=150)


def coding_of(name: bytes) -> Coding:
    coding = content_coding(name)
    assert coding is not None
    return coding


def decoded(coding: bytes, body: bytes, bytes_max: int = BYTES_MAX) -> bytes:
    return b"".join(decode(coding_of(coding), body, bytes_max))


def events(bytes_min: int, seed: int = 1) -> bytes:
    """Lines of JSON, as different from each other as real ones."""
    rng = random.Random(seed)
    lines: list[bytes] = []
    size = 0
    while size < bytes_min:
        event = {"event_type": "view", "position": rng.randrange(40), "session_id": f"{rng.getrandbits(64):x}"}
        lines.append(orjson.dumps(event))
        size += len(lines[-1]) + 1
    return b"\n".join(lines)


TEXT = events(300)
SMALL = b'{"event_type":"click","document_id":"doc_1"}'


# What is taken


@EACH_ENCODER
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        SMALL,
        events(WIRE_STEP_BYTES),
        events(100_000),
        events(3_000_000),
        b" " * PIECE_BYTES,
        bytes(1_000_000),
    ],
    ids=["empty", "byte", "event", "step", "batch", "large", "piece", "zeros"],
)
def test_round_trip(coding: bytes, encode: Callable[[bytes], bytes], body: bytes) -> None:
    assert decoded(coding, encode(body)) == body


@EACH_ENCODER
@pytest.mark.parametrize("around", [-1, 0, 1])
def test_pieces_end_where_the_body_does(coding: bytes, encode: Callable[[bytes], bytes], around: int) -> None:
    """Nothing stays in a decoder whose last piece is exactly full."""
    for unit in (PIECE_BYTES, 32_752, 32_768, 131_072):
        body = bytes(unit + around)
        assert decoded(coding, encode(body)) == body


@BOUNDED
@given(
    body=st.one_of(st.binary(max_size=400), st.binary(min_size=1, max_size=4).map(lambda unit: unit * 40_000)),
    encoder=st.sampled_from(list(corpus.ENCODERS.values())),
)
def test_round_trip_of_anything(body: bytes, encoder: tuple[bytes, Callable[[bytes], bytes]]) -> None:
    coding, encode = encoder
    assert decoded(coding, encode(body)) == body


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
@EACH_ENCODER
def test_wherever_a_step_ends(
    coding: bytes, encode: Callable[[bytes], bytes], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "WIRE_STEP_BYTES", step)
    monkeypatch.setattr(compression, "PIECE_BYTES", 50)
    assert decoded(coding, encode(TEXT)) == TEXT


def test_members_of_every_kind_are_one_body() -> None:
    parts = [events(10_000, seed) for seed in range(5)]
    encoders: list[Callable[[bytes], bytes]] = [
        gzip.compress,
        corpus.named_gzip,
        corpus.flushed_gzip,
        gzip.compress,
        corpus.gzip_members,
    ]
    assert decoded(b"gzip", b"".join(e(p) for e, p in zip(encoders, parts, strict=True))) == b"".join(parts)
    frames = [corpus.zstd_skippable(b""), zstd.compress(parts[0]), zstd.compress(b""), corpus.zstd_streamed(parts[1])]
    assert decoded(b"zstd", b"".join(frames)) == parts[0] + parts[1]
    assert decoded(b"zstd", corpus.zstd_skippable(b"only this")) == b""


def test_zstd_window_that_http_allows() -> None:
    assert decoded(b"zstd", corpus.zstd_frame(corpus.zstd_block(0, 1, b"x", last=True), window_log=23)) == b"x"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"gzip", "gzip"),
        (b"x-gzip", "gzip"),
        (b"X-GZip", "gzip"),
        (b" gzip\t", "gzip"),
        (b"deflate", "deflate"),
        (b"br", "br"),
        (b"zstd", "zstd"),
        (b"identity, gzip", "gzip"),
        (b"br,identity", "br"),
        (b",zstd,", "zstd"),
    ],
)
def test_content_encoding(value: bytes, name: str) -> None:
    assert coding_of(value).name == name


@pytest.mark.parametrize("value", [b"", b" ", b"identity", b"Identity , identity", b",,"])
def test_content_encoding_that_is_none(value: bytes) -> None:
    assert content_coding(value) is None


@pytest.mark.parametrize(
    "value",
    [
        b"gzip, gzip",
        b"gzip,br",
        b"zstd,zstd,zstd",
        b"gzip" + b",gzip" * 10_000,
        b"compress",
        b"lz4",
        b"snappy",
        b"aes128gcm",
        b"dcb",
        b"gzip;q=1",
        b"gzipped",
        b"*",
        b"\xff",
    ],
    ids=lambda value: str(value[:20]),
)
def test_content_encoding_that_is_not_supported(value: bytes) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        content_coding(value)
    assert caught.value.code == "content_encoding_unsupported"
    assert caught.value.headers == ((b"accept-encoding", b"gzip, deflate, br, zstd"),)


# What is not what it says


def refusal(coding: bytes, body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        decoded(coding, body)
    assert caught.value.code == "content_encoding_invalid"
    assert caught.value.details is not None
    assert set(caught.value.details) == {"content_encoding", "reason"}
    assert caught.value.details["reason"]
    return caught.value


@pytest.mark.parametrize(("coding", "body"), corpus.INVALID.values(), ids=corpus.INVALID.keys())
def test_invalid(coding: bytes, body: bytes) -> None:
    assert coding.decode() in refusal(coding, body).message


@pytest.mark.parametrize("name", corpus.SINGLE_STREAMS)
def test_cut_anywhere(name: str) -> None:
    coding, encode = corpus.SINGLE_STREAMS[name]
    body = encode(TEXT)
    for size in range(len(body)):
        assert refusal(coding, body[:size]).details == {
            "content_encoding": coding_of(coding).name,
            "reason": "truncated",
        }


@pytest.mark.parametrize("name", corpus.SINGLE_STREAMS)
def test_something_behind(name: str) -> None:
    coding, encode = corpus.SINGLE_STREAMS[name]
    body = encode(TEXT)
    for behind in (b"\0", b"\n", b"x", b"garbage" * 1_000):
        refusal(coding, body + behind)


@BOUNDED
@given(body=st.binary(max_size=2_000), coding=st.sampled_from([b"gzip", b"deflate", b"br", b"zstd"]))
def test_garbage(body: bytes, coding: bytes) -> None:
    check_decoded_or_refused(coding, body)


@BOUNDED
@given(
    encoder=st.sampled_from(list(corpus.ENCODERS.values())),
    damage=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_damage(encoder: tuple[bytes, Callable[[bytes], bytes]], damage: list[tuple[int, int]]) -> None:
    coding, encode = encoder
    body = bytearray(encode(TEXT))
    for at, value in damage:
        body[at % len(body)] = value
    check_decoded_or_refused(coding, bytes(body))


def check_decoded_or_refused(coding: bytes, body: bytes) -> None:
    with contextlib.suppress(BadRequest, PayloadTooLarge):
        decoded(coding, body)


# Limits


def pieces_until_refused(coding: bytes, body: bytes, bytes_max: int) -> tuple[list[int], PayloadTooLarge]:
    """The sizes of all pieces."""
    sizes: list[int] = []
    with pytest.raises(PayloadTooLarge) as caught:
        sizes.extend(map(len, decode(coding_of(coding), body, bytes_max)))
    return sizes, caught.value


class CountingMember:
    """What a decoder gives, all of it, and what it is given."""

    given_bytes = 0
    made_bytes = 0
    calls = 0
    count = 0

    def __init__(self, member: Member) -> None:
        self._member = member
        CountingMember.count += 1

    def decode(self, data: bytes | memoryview) -> bytes:
        assert len(data) <= WIRE_STEP_BYTES
        piece = self._member.decode(data)
        assert len(piece) <= OVERSHOOT_BYTES
        CountingMember.calls += 1
        CountingMember.given_bytes += len(data)
        CountingMember.made_bytes += len(piece)
        return piece

    @property
    def ended(self) -> bool:
        return self._member.ended

    @property
    def has_more(self) -> bool:
        return self._member.has_more

    @property
    def rest(self) -> bytes:
        return self._member.rest


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountingMember]:
    for name in ("given_bytes", "made_bytes", "calls", "count"):
        monkeypatch.setattr(CountingMember, name, 0)

    def counting(coding: Coding) -> Coding:
        return replace(coding, open=lambda body: CountingMember(coding.open(body)))

    monkeypatch.setattr(compression, "_CODINGS", {k: counting(v) for k, v in compression._CODINGS.items()})
    return CountingMember


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("bytes_max", [1_000, 262_144, BYTES_MAX])
@pytest.mark.parametrize("name", corpus.BOMBS)
def test_bomb(name: str, bytes_max: int, counted: type[CountingMember], traced: None) -> None:
    """Of the gigabytes that it holds, no more is made than the limit and a piece."""
    coding, make, size = corpus.BOMBS[name]
    body = make(size)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    with pytest.raises(PayloadTooLarge):
        decoded(coding, body, bytes_max)
    _, peak = tracemalloc.get_traced_memory()
    assert counted.made_bytes <= bytes_max + OVERSHOOT_BYTES
    assert counted.calls <= bytes_max / 20_000 + 100
    assert peak - before <= bytes_max + 8 * OVERSHOOT_BYTES


def test_bomb_of_ten_kilobytes(traced: None) -> None:
    """Ten of gzip are ten million bytes, and of zstd 300 million; each is forgotten as it comes."""
    bombs = {b"gzip": corpus.gzip_bomb(10_000_000)[:10_240], b"zstd": corpus.zstd_bomb(1 << 30)[:10_240]}
    for coding, body in bombs.items():
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        pieces = decode(coding_of(coding), body, BYTES_MAX)
        with pytest.raises(PayloadTooLarge):
            assert sum(map(len, pieces)) <= BYTES_MAX
        assert tracemalloc.get_traced_memory()[1] - before <= 8 * OVERSHOOT_BYTES


@EACH_ENCODER
@pytest.mark.parametrize("size", [0, 1, 1_000, 32_752, 32_768, 100_000])
def test_decoded_limit_is_exact(coding: bytes, encode: Callable[[bytes], bytes], size: int) -> None:
    body = encode(bytes(size))
    assert decoded(coding, body, size) == bytes(size)
    if size:
        with pytest.raises(PayloadTooLarge) as caught:
            decoded(coding, body, size - 1)
        assert caught.value.code is None
        assert caught.value.details == {"bytes_max": size - 1}


@pytest.mark.parametrize(
    "name", ["gzip", "deflate", "br", "zstd", "zstd, streamed", "stored deflate", "gzip with a full head"]
)
@pytest.mark.parametrize("size", [1, 100, 262_144, BYTES_MAX])
def test_what_does_not_compress_fits_the_wire(name: str, size: int) -> None:
    body = random.Random(size).randbytes(size)
    assert len(corpus.ENCODERS[name][1](body)) <= encoded_bytes_max(size)


def test_ratio(counted: type[CountingMember]) -> None:
    """100 bytes that are 128 KiB for each four of theirs: all they get is what is free."""
    body = corpus.zstd_bomb(1 << 30)[:100]
    sizes, error = pieces_until_refused(b"zstd", body, 100 * BYTES_MAX)
    assert error.code == "content_encoding_ratio"
    assert str(RATIO_MAX) in error.message
    assert sum(sizes) <= RATIO_FREE_BYTES
    assert counted.made_bytes <= RATIO_FREE_BYTES + OVERSHOOT_BYTES


def test_ratio_is_exact() -> None:
    """Padded with a skippable frame to one byte more or less."""
    size = 3_000_000
    frame = zstd.compress(bytes(size))
    enough = size // RATIO_MAX - len(frame) - 8
    assert len(decoded(b"zstd", frame + corpus.zstd_skippable(bytes(enough)))) == size
    with pytest.raises(PayloadTooLarge) as caught:
        decoded(b"zstd", frame + corpus.zstd_skippable(bytes(enough - 1)))
    assert caught.value.code == "content_encoding_ratio"


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_any_ratio_is_free_up_to_a_megabyte(name: str) -> None:
    coding, encode = corpus.ENCODERS[name]
    assert len(decoded(coding, encode(bytes(RATIO_FREE_BYTES)))) == RATIO_FREE_BYTES


@pytest.mark.parametrize("name", ["gzip", "br", "zstd"])
def test_rich_and_repetitive_batches_are_honest(name: str) -> None:
    coding, encode = corpus.ENCODERS[name]
    metadata = {"filters": ["color:red", "size:42", "brand:acme"] * 20, "user_agent": "Mozilla/5.0 (X11; Linux x86_64)"}
    batch = b"\n".join(
        orjson.dumps({"event_type": "view", "document_id": f"doc_{n}", "session_id": "s", "metadata": metadata})
        for n in range(5_000)
    )
    assert 4_000_000 < len(batch) <= BYTES_MAX
    assert len(batch) > 100 * len(encode(batch))
    assert decoded(coding, encode(batch)) == batch


@pytest.mark.parametrize(
    ("coding", "member"),
    [(b"gzip", gzip.compress(b"")), (b"zstd", zstd.compress(b"")), (b"zstd", corpus.zstd_skippable(b""))],
    ids=["gzip", "zstd", "skippable"],
)
def test_members_limit_is_exact(coding: bytes, member: bytes) -> None:
    assert decoded(coding, member * MEMBERS_MAX) == b""
    with pytest.raises(PayloadTooLarge) as caught:
        decoded(coding, member * (MEMBERS_MAX + 1))
    assert caught.value.code == "content_encoding_members"


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"])
def test_members_limit_holds_for_those_that_say_something(coding: bytes) -> None:
    one = corpus.ENCODERS[coding.decode()][1](b'{"event_type":"click"}\n')
    with pytest.raises(PayloadTooLarge) as caught:
        decoded(coding, one * 100_000)
    assert caught.value.code == "content_encoding_members"


@pytest.mark.parametrize("name", corpus.IDLERS)
def test_work_without_output_is_bounded(name: str, counted: type[CountingMember]) -> None:
    """Each step takes what it may or is one of few members: 5 MiB that say nothing cost as many steps as 5 MiB."""
    coding, make = corpus.IDLERS[name]
    body = make(BYTES_MAX)
    try:
        assert decoded(coding, body) == b""
    except PayloadTooLarge as error:
        assert error.code == "content_encoding_members"  # noqa: PT017 - either is fine
    assert counted.count <= MEMBERS_MAX
    assert counted.calls <= len(body) / WIRE_STEP_BYTES + 1 + MEMBERS_MAX
    # What is left of a step when a member ends is given again, to the next one.
    assert counted.given_bytes <= len(body) + MEMBERS_MAX * WIRE_STEP_BYTES
