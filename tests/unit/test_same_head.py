"""gateway.same_head: what is taken for a request with the head of the one before is one, as httptools reads it. All
else is left to httptools, so that nothing can be smuggled past it."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connections import READ_BYTES_MAX
from gateway.same_head import HEAD_BYTES_MAX, Head
from tests.unit.repeating import Tellers
from tests.unit.test_http_protocol import BAD, CONTINUE, GET, Answer, Server, answers, post, post_chunked, settled
from tests.unit.virtual_time import run

bounded = settings(max_examples=300, derandomize=True, deadline=None, database=None)

BODY = b'{"event_type":"click"}'
KEY = Tellers.KEY


class Parsed(NamedTuple):
    """A request but for the value of its Content-Length."""

    method: bytes
    url: bytes
    version: str
    keeps_alive: bool
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Reader:
    def __init__(self) -> None:
        self.requests: list[Parsed] = []
        self.is_whole = True
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.is_whole = False
        self._url, self._body = b"", b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, b"" if name.lower() == b"content-length" else value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        parser = self.parser
        known = parser.get_method(), self._url, parser.get_http_version(), parser.should_keep_alive()
        self.requests.append(Parsed(*known, self._headers, self._body))
        self.is_whole = True


def parsed(data: bytes) -> Parsed | None:
    """What httptools makes of it, if it is one whole request and nothing else."""
    reader = _Reader()
    try:
        reader.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return reader.requests[0] if len(reader.requests) == 1 and reader.is_whole else None


def remembered(request: bytes, but: bytes = b"") -> Head:
    head_bytes = request.index(b"\r\n\r\n") + 4
    head = Head.of(request[:head_bytes], len(request) - head_bytes, but)
    assert head is not None
    return head


def body_in(head: Head, data: bytes, behind: bytes = b"") -> bytes | None:
    """The body, if it is taken; `behind` is what the buffer has had before."""
    body_at = head.body_at(bytearray(data + behind), len(data))
    return data[body_at:] if body_at else None


def assert_as_httptools(head: Head, known: bytes, data: bytes) -> bool:
    """Whether it is taken; if so, it has the value that httptools reads, where that may differ."""
    body = body_in(head, data)
    if body is None:
        return False
    of_known = parsed(known)
    assert of_known is not None
    headers = [(name, head.value if name.lower() == KEY else value) for name, value in of_known.headers]
    assert parsed(data) == of_known._replace(body=body, headers=headers)
    return True


HEADS = {
    "short": b"POST /a HTTP/1.1\r\ncontent-length: %d\r\n\r\n",
    "length first": b"POST /a HTTP/1.1\r\nContent-Length:%d\r\nHost: a\r\n\r\n",
    "length in the middle": b"POST /a?b=c HTTP/1.1\r\nhost: a\r\nCONTENT-LENGTH: \t %d\r\nx-a: 1\r\nx-b:\r\n\r\n",
    "leading zeros": b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 00%d\r\nx: 12\r\n\r\n",
    "length's name in values": b"POST /content-length:1 HTTP/1.1\r\nx: content-length: 3\r\ncontent-length: %d\r\n\r\n",
}


def of(kind: str, body: bytes = BODY) -> bytes:
    return HEADS[kind] % len(body) + body


# The head


@pytest.mark.parametrize("kind", HEADS)
def test_the_same_head_is_taken_with_any_body(kind: str) -> None:
    known = of(kind)
    head = remembered(known)
    for body in (b"", b"x", BODY, bytes(9_999), known, GET, b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\nabc"):
        assert body_in(head, of(kind, body)) == body
        assert assert_as_httptools(head, known, of(kind, body))


def edits(data: bytes) -> Iterator[bytes]:
    """Every one of a single byte."""
    for position in range(len(data) + 1):
        before, behind = data[:position], data[position:]
        yield before + behind[1:]
        for value in range(256):
            byte = bytes([value])
            yield before + byte + behind
            yield before + byte + behind[1:]


@pytest.mark.parametrize("kind", HEADS)
def test_no_byte_may_differ(kind: str) -> None:
    """But a zero in front of the digits, and those of the body."""
    known = of(kind, b"12345")
    head_bytes = len(known) - 5
    head = remembered(known)
    taken = {data for data in edits(known) if assert_as_httptools(head, known, data)}
    others = {data for data in taken if data[:head_bytes] != known[:head_bytes]}
    [at] = [match.end() for match in re.finditer(rb"(?i)\r\ncontent-length:[ \t]*(?=\d)", known[:head_bytes])]
    # A byte more of the body or less is another length; a zero before the digits, or in the place of one, the same.
    grown = {known[:at] + b"0" * zeros + b"5\r\n" + known[known.index(b"\r\n", at) + 2 :] for zeros in range(5)}
    assert others == {data for data in grown if data != known and abs(len(data) - len(known)) == 1}
    assert len(taken - others) == 5 * 255 + 1


NO_NUMBERS = (
    *(
        b"+5",
        b"-5",
        b"5_",
        b"0_5",
        b"_5",
        b" 5",
        b"5 ",
        b"5\t",
        b"\t5",
        b"",
        b" ",
        b"0x5",
        b"5.",
        b"5e0",
        b"5;",
        b"5,5",
    ),
    *(b"\xb2", b"\xd9\xa5", b"\xef\xbc\x95", b"5\0", b"\r\n5", b"5\r", b"5\n", b"5\r\n 5", b"00000005", b"000000005"),
)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("digits", NO_NUMBERS, ids=repr)
def test_what_only_python_takes_for_a_number_is_none(kind: str, digits: bytes) -> None:
    known = of(kind, b"12345")
    data = HEADS[kind].replace(b"%d", digits) + b"12345"
    assert body_in(remembered(known), data) is None


def test_more_digits_than_a_read_can_have_are_left() -> None:
    known = of("short", b"12345")
    for zeros in range(10):
        data = known.replace(b" 5\r", b" %b5\r" % (b"0" * zeros))
        assert (body_in(remembered(known), data) == b"12345") == (zeros < 7)


@pytest.mark.parametrize("kind", HEADS)
def test_a_request_in_two_reads_is_left(kind: str) -> None:
    """Also where the buffer still has the rest, of another connection that has sent the same."""
    for body in (BODY, b"", of(kind)):
        request = of(kind, body)
        head = remembered(of(kind))
        for size in range(1, len(request)):
            assert body_in(head, request[:size]) is None
            assert body_in(head, request[:size], behind=request[size:] + bytes(9)) is None


@pytest.mark.parametrize(
    "behind", [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"P", GET, b"\0", of("short"), of("short")[:-1]]
)
def test_a_request_with_more_than_itself_is_left(behind: bytes) -> None:
    head = remembered(of("short"))
    assert body_in(head, of("short") + behind) is None
    assert body_in(head, behind + of("short")) is None
    assert body_in(head, of("short"), behind=behind) == BODY  # that is not of this read


@pytest.mark.parametrize("kind", HEADS)
def test_a_length_that_is_not_the_bodys_is_left(kind: str) -> None:
    head = remembered(of(kind))
    for length in (*range(60), 600, 9_999_999):
        for size in (0, 5, 21, 22, 23, 40):
            data = HEADS[kind] % length + b"x" * size
            for behind in (b"", b"x" * 100, BODY):
                assert body_in(head, data, behind) == (b"x" * size if length == size else None)


@bounded
@given(data=st.data(), kind=st.sampled_from(sorted(HEADS)))
def test_what_is_taken_is_what_httptools_reads(data: st.DataObject, kind: str) -> None:
    """However a request was bent."""
    known = of(kind)
    head = remembered(known)
    bent = bytearray(of(kind, data.draw(st.binary(max_size=30))))
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(bent)))
        end = data.draw(st.integers(start, min(start + 3, len(bent))))
        pieces = st.sampled_from([b"", b"\r\n", b"\n", b"0", b"1", b" ", b"\t", b"content-length: 3\r\n", b"x: y\r\n"])
        bent[start:end] = data.draw(pieces | st.binary(max_size=3))
    assert_as_httptools(head, known, bytes(bent))


WITHOUT_LENGTH = (
    GET,
    b"POST /a HTTP/1.1\r\n\r\n",
    post_chunked([b"x"]),
    b"POST /a HTTP/1.1\r\ncontent-length: 1 \r\n\r\nx",
    b"POST /a HTTP/1.1\r\ncontent-length: 00000001\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nx-content-length: 1\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nx: y;content-length: 1\r\n\r\nx",
    of("short") + b"\r\n",
    of("short")[:-1],
)


@pytest.mark.parametrize("request_bytes", WITHOUT_LENGTH, ids=repr)
def test_a_head_that_does_not_tell_its_bodys_length_is_not_remembered(request_bytes: bytes) -> None:
    head_bytes = request_bytes.index(b"\r\n\r\n") + 4
    assert Head.of(request_bytes[:head_bytes], len(request_bytes) - head_bytes) is None


# The value of a header that may differ

HEADS_BUT = {
    "value first": b"POST /a HTTP/1.1\r\nX-Key: k-1\r\nhost: a\r\ncontent-length: %d\r\n\r\n",
    "length first": b"POST /a HTTP/1.1\r\ncontent-length: %d\r\nhost: a\r\nx-key:k-1\r\nx: y\r\n\r\n",
    "side by side": b"POST /a HTTP/1.1\r\nhost: a\r\nx-KEY: \t k-1\r\nContent-Length:  %d\r\n\r\n",
    "at the end": b"POST /a?x-key: HTTP/1.1\r\nContent-Length: %d\r\nx-key: 123\r\n\r\n",
    "named elsewhere": b"POST /a HTTP/1.1\r\ny: x-key: z\r\nx-key: x-key:a\r\ny-x-key: b\r\ncontent-length:%d\r\n\r\n",
}
VALUES = (b"k", b"k-1", b"!", b"~", b'"k-1"', b"12345678", b"0", b"x-key:", b"%d", b"k" * 128)
NO_VALUES = (
    *(b"", b" ", b"a b", b"a\tb", b"a ", b"a\t", b"\x7f", b"\x80", b"\xff", b"a\0", b"a\nb", b"a\r\n b", b"a\r\n\tb"),
    b"k" * 129,
)

_KNOWN_VALUE = re.compile(rb"(?i)(\r\nx-key:[ \t]*)([!-~]+)(?=\r\n)")


def but(kind: str, value: bytes, body: bytes = BODY) -> bytes:
    head = _KNOWN_VALUE.sub(lambda match: match[1] + value.replace(b"%", b"%%"), HEADS_BUT[kind])
    return head % len(body) + body


def known_but(kind: str) -> Head:
    return remembered(but(kind, b"k-1"), KEY)


@pytest.mark.parametrize("kind", HEADS_BUT)
def test_the_same_head_is_taken_with_any_value(kind: str) -> None:
    head = known_but(kind)
    for value, body in itertools.product(VALUES, (BODY, b"", bytes(9_999), but(kind, b"k"))):
        data = but(kind, value, body)
        assert body_in(head, data) == body
        assert head.value == value
        assert assert_as_httptools(head, but(kind, b"k-1"), data)


@pytest.mark.parametrize("kind", HEADS_BUT)
@pytest.mark.parametrize("value", NO_VALUES, ids=repr)
def test_what_is_no_plain_value_is_left(kind: str, value: bytes) -> None:
    data = but(kind, value)
    assert body_in(known_but(kind), data) is None
    head_bytes = data.index(b"\r\n\r\n") + 4
    assert Head.of(data[:head_bytes], len(data) - head_bytes, KEY) is None, "nor remembered"


@pytest.mark.parametrize("kind", HEADS_BUT)
def test_no_byte_but_of_the_value_may_differ(kind: str) -> None:
    known, head = but(kind, b"k-1", b"12345"), known_but(kind)
    template = re.escape(_KNOWN_VALUE.sub(lambda match: match[1] + b"VALUE", HEADS_BUT[kind])).replace(b"%d", b"DIGITS")
    template = template.replace(b"VALUE", b"[!-~]{1,128}").replace(b"DIGITS", rb"(\d{1,7})") + b"(.*)"
    allowed = re.compile(template, re.DOTALL)
    taken = {data for data in edits(known) if assert_as_httptools(head, known, data)}
    assert taken == {data for data in edits(known) if (it := allowed.fullmatch(data)) and int(it[1]) == len(it[2])}
    assert len(taken) > 94 * 7


@pytest.mark.parametrize("kind", HEADS_BUT)
@pytest.mark.parametrize("digits", NO_NUMBERS, ids=repr)
def test_what_only_python_takes_for_a_number_is_none_beside_a_value(kind: str, digits: bytes) -> None:
    data = but(kind, b"k-1", b"12345").replace(b"5\r\n", digits + b"\r\n", 1)
    assert body_in(known_but(kind), data) is None


@pytest.mark.parametrize("kind", HEADS_BUT)
def test_a_request_with_a_value_in_two_reads_is_left(kind: str) -> None:
    request, head = but(kind, b"k-2"), known_but(kind)
    for size in range(1, len(request)):
        assert body_in(head, request[:size]) is None
        assert body_in(head, request[:size], behind=request[size:] + bytes(9)) is None
    assert body_in(head, request + b"\r\n") is None


@bounded
@given(data=st.data(), kind=st.sampled_from(sorted(HEADS_BUT)))
def test_what_is_taken_with_a_value_is_what_httptools_reads(data: st.DataObject, kind: str) -> None:
    known, head = but(kind, b"k-1"), known_but(kind)
    bent = bytearray(but(kind, data.draw(st.sampled_from(VALUES)), data.draw(st.binary(max_size=30))))
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(bent)))
        end = data.draw(st.integers(start, min(start + 3, len(bent))))
        pieces = [b"", b"\r\n", b"\n", b"\r", b"0", b"1", b" ", b"\t", b"x-key: z\r\n", b"\nx-key: z", b"x: y\r\n"]
        bent[start:end] = data.draw(st.sampled_from(pieces) | st.binary(max_size=3))
    assert_as_httptools(head, known, bytes(bent))


TWO_VALUES = (
    b"POST /a HTTP/1.1\r\ncontent-length: 1\r\n%b\r\nx",
    b"POST /a HTTP/1.1\r\n%bcontent-length: 1\r\n\r\nx",
)


@pytest.mark.parametrize("template", TWO_VALUES, ids=["behind", "before"])
@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"y: x-key: a\r\n",
        b"x-key: a\r\nx-key: b\r\n",
        b"x-key: a\r\nX-Key: a\r\n",
        b"x-key: a\r\ny: z\nx-key: b\r\n",
        b"y: z\nx-key: a\r\nx-key: b\r\n",
        b"y: z\n x-key: b\r\nx-key: a\r\n",
        b"x-key: a\r\nx-key : b\r\n",
        b"x-key: a\r\n\tx-key: b\r\n",
        b"x-key : a\r\n",
        b"x-key: a\r\nx-keys: b\r\n",
        b"x-key: a \r\n",
        b"x-key:\r\n a\r\n",
        b"y: z\nx-key: a\r\n",
    ],
    ids=repr,
)
def test_a_head_that_has_not_one_plain_value_is_not_remembered(template: bytes, lines: bytes) -> None:
    request = template % lines
    assert Head.of(request[:-1], 1, KEY) is None
    assert Head.of(request[:-1], 1) is not None


# A connection


class Outcome(NamedTuple):
    answers: list[Answer]
    closed: bool


def sent(pieces: Sequence[bytes], *, offers: bool = True, settles: Sequence[bool] = ()) -> tuple[Outcome, int]:
    """Each piece is a read; before the next one is sent all is answered, but where `settles` says otherwise. And how
    many of the requests were taken for such as have a known head."""

    async def talk() -> Outcome:
        server = Server()
        wire = server.connect(app)
        for piece, settle in itertools.zip_longest(pieces, settles[: len(pieces)], fillvalue=True):
            if not wire.closed:
                wire.send(piece)
            if settle:
                await settled()
        await settled()
        outcome = Outcome(answers(wire.received), wire.closed)
        await server.check()
        return outcome

    app = Tellers(offers=offers)
    return run(talk()), app.taken


def taken_of(pieces: Sequence[bytes]) -> int:
    """How many were taken; the caller cannot tell."""
    found, taken = sent(pieces)
    usual, none = sent(pieces, offers=False)
    assert found == usual
    assert none == 0
    return taken


@pytest.mark.parametrize("kind", HEADS)
def test_all_but_the_first_are_taken(kind: str) -> None:
    pieces = [of(kind, body) for body in (BODY, b"", b"12345678901", bytes(50_000), BODY)]
    pieces[1:1] = [of(kind, b"x" * (READ_BYTES_MAX - len(of(kind, b"")) - 4))]  # all that a read can have
    assert taken_of(pieces) == len(pieces) - 1


@pytest.mark.parametrize("kind", HEADS_BUT)
def test_all_but_the_first_are_taken_whatever_their_value(kind: str) -> None:
    pieces = [but(kind, value) for value in VALUES]
    assert taken_of(pieces) == len(VALUES) - 1
    found, _ = sent(pieces)
    assert all(b" [%r] " % value in answer.body for value, answer in zip(VALUES, found.answers, strict=True))


@pytest.mark.parametrize("kind", HEADS_BUT)
def test_a_value_that_is_not_plain_in_between_changes_nothing(kind: str) -> None:
    once, odd = but(kind, b"k-1"), but(kind, b"a b")
    assert taken_of([once, once, odd, once, but(kind, b"")]) == 2
    without = _KNOWN_VALUE.sub(b"", HEADS_BUT[kind]) % len(BODY) + BODY
    assert taken_of([once, without, without, once, once]) == 2


def test_another_head_is_another_head() -> None:
    pieces = [of(kind) for kind in HEADS]
    assert taken_of([*pieces, *pieces]) == 0
    assert taken_of([piece for piece in pieces for _ in range(3)]) == 2 * len(pieces)


def test_a_request_of_another_kind_in_between_changes_nothing() -> None:
    """Nothing is offered for it: the head that is known stays so."""
    once = of("short")
    for other in (GET, post_chunked([b"x"]), of("short") * 2, of("short") + of("short")[:9], once[:9]):
        rest = [of("short")[9:]] if len(other) < 10 or other.endswith(once[:9]) else []
        assert taken_of([once, once, other, *rest, once, once]) == 3


def with_headers(headers: bytes, version: bytes = b"1.1", method: bytes = b"POST", body: bytes = BODY) -> bytes:
    return b"%b /a HTTP/%b\r\n%bcontent-length: %d\r\n\r\n%b" % (method, version, headers, len(body), body)


TAKEN = {
    "Expect": with_headers(b"Expect: 100-continue\r\n"),
    "an offer to upgrade": with_headers(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"),
    "keep-alive": with_headers(b"Connection: keep-alive\r\n"),
    "a query": of("length in the middle"),
    "no body": with_headers(b"", body=b""),
    "a longest head": with_headers(
        b"x: %b\r\n" % (b"y" * (HEAD_BYTES_MAX - len(with_headers(b"x: \r\n", body=b"")) - 1))
    ),
    "a body that is a request": with_headers(b"", body=of("short")),
    "a body that is a head and a length": with_headers(b"", body=b"\r\n\r\ncontent-length: 0\r\n\r\n"),
    "bytes in a value": with_headers(b"x: \xff\xe9\r\n"),
}
LEFT = {
    "Connection: close": with_headers(b"Connection: close\r\n"),
    "Proxy-Connection: close": with_headers(b"Proxy-Connection: close\r\n"),
    "HTTP/1.0": with_headers(b"", b"1.0"),
    "HTTP/1.0 and keep-alive": with_headers(b"Connection: keep-alive\r\n", b"1.0"),
    "HTTP/2.0": with_headers(b"", b"2.0"),
    "PUT": with_headers(b"", method=b"PUT"),
    "an empty line in front": b"\r\n" + with_headers(b""),
    "chunks": post_chunked([BODY]),
    "chunks that hold a length": post_chunked([b"\r\ncontent-length: 39\r\n\r\n"]),
    "no length": b"POST /a HTTP/1.1\r\n\r\n",
    "a head that is too long": with_headers(b"x: %b\r\n" % (b"y" * HEAD_BYTES_MAX)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_is_taken(kind: str) -> None:
    assert taken_of([TAKEN[kind]] * 4) == 3


@pytest.mark.parametrize("kind", LEFT)
def test_is_left_to_httptools(kind: str) -> None:
    assert taken_of([LEFT[kind]] * 4) == 0


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_request_is_refused_behind_those_that_were_taken(kind: str) -> None:
    """And so is what differs from the known head in that alone."""
    bad = BAD[kind]
    assert taken_of([of("short"), of("short"), bad, of("short")]) == 1
    known = re.sub(rb"(?i)\r\n(transfer-encoding|content-length):[^\r]*", b"", bad[: bad.find(b"\r\n\r\n")])
    first = known + b"\r\ncontent-length: 1\r\n\r\nx"
    assert taken_of([first, first, bad, first]) <= 1


def test_an_offer_to_upgrade_that_is_known_changes_no_body() -> None:
    """httptools is shown other words in its place, in the body too where it looks like a header."""
    head = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    first, again = (with_headers(head, body=body) for body in (BODY, b"{\r\nupgrade: x}"))
    found, taken = sent([first, again])
    assert taken == 1
    assert found.answers[1].body.endswith(b"{\r\nupgrade: x}")
    assert found.answers[1].header(b"x-body") == b"14"


@pytest.mark.parametrize("order", ["wholes first", "halves first"])
def test_what_waits_to_be_told_to_continue_is_left(order: str) -> None:
    request = TAKEN["Expect"]
    halves = [request[: -len(BODY)], BODY]
    pieces = [request, request, *halves, request] if order == "wholes first" else [*halves, request, request, *halves]

    async def talk(app: Tellers) -> list[bytes]:
        server = Server()
        wire = server.connect(app)
        for piece in pieces:
            wire.send(piece)
            await settled()
        await server.check()
        return wire.writes

    app = Tellers()
    writes = run(talk(app))
    assert writes == run(talk(Tellers(offers=False)))
    assert writes.count(CONTINUE) == pieces.count(BODY)
    assert app.taken == (2 if order == "wholes first" else 1)


def test_a_request_in_two_reads_between_those_that_are_taken() -> None:
    request = of("length in the middle")
    for position in range(1, len(request)):
        assert taken_of([request, request, request[:position], request[position:], request]) == 2


@pytest.mark.parametrize("path", [b"/a", b"/early"])
@pytest.mark.parametrize("behind", [b"", b"rest"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_comes_by_itself_and_looks_like_a_known_request_is_a_body(
    is_chunked: bool, behind: bytes, path: bytes
) -> None:
    """Also when its request has been answered already: whoever is refused early could smuggle it past its refusal."""
    known = of("short")
    whole = post_chunked([known + behind], path) if is_chunked else post(known + behind, path)
    at = whole.index(known)
    pieces = [known, known, whole[:at], known, *filter(None, [whole[at + len(known) :]]), known]
    assert taken_of(pieces) == 2
    found, _ = sent(pieces)
    assert len(found.answers) == 4
    assert found.answers[2].body.endswith(known + behind) == (path != b"/early")


def test_a_known_request_behind_half_a_head_is_the_rest_of_it() -> None:
    known = of("short")
    pieces = [known, known, b"GET /a HTTP/1.1\r\nx: ", known, known]
    assert taken_of(pieces) == 2
    assert len(sent(pieces)[0].answers) == 4


def test_connections_know_their_own_heads_alone() -> None:
    """They read into one buffer."""

    async def talk() -> list[list[Answer]]:
        server = Server()
        apps = [Tellers() for _ in HEADS]
        wires = [server.connect(app) for app in apps]
        for round_ in range(4):
            for wire, kind in zip(wires, HEADS, strict=True):
                wire.send(of(kind, b"x" * 10 * round_))
            await settled()
        assert [app.taken for app in apps] == [3] * len(apps)
        await server.check()
        return [answers(wire.received) for wire in wires]

    usual = [sent([of(kind, b"x" * 10 * round_) for round_ in range(4)], offers=False) for kind in HEADS]
    assert run(talk()) == [outcome.answers for outcome, _ in usual]


def test_whatever_comes_the_caller_cannot_tell() -> None:
    """Requests of a few heads, one behind the other or at once, cut anywhere, some of them bent."""
    taken: list[int] = []

    @bounded
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        kinds = data.draw(st.lists(st.sampled_from(sorted(HEADS)), min_size=1, max_size=2))
        but_kind = data.draw(st.sampled_from(sorted(HEADS_BUT)))
        others = [
            GET,
            TAKEN["an offer to upgrade"],
            TAKEN["Expect"],
            post_chunked([BODY]),
            LEFT["Connection: close"],
            b"\r\n",
        ]
        pieces: list[bytes] = []
        for _ in range(data.draw(st.integers(2, 8))):
            body = data.draw(st.sampled_from([BODY, b"", GET, bytes(1_000)]))
            if data.draw(st.booleans()):
                piece = of(data.draw(st.sampled_from(kinds)), body)
            else:
                piece = but(but_kind, data.draw(st.sampled_from(VALUES)), body)
            match data.draw(st.sampled_from("aaaaabcdef")):
                case "b":
                    piece += of(kinds[0])
                case "c":
                    piece = data.draw(st.sampled_from(others))
                case "d":
                    at = data.draw(st.integers(0, len(piece)))
                    piece = piece[:at] + data.draw(st.binary(max_size=2)) + piece[at + data.draw(st.integers(0, 2)) :]
                case "e":
                    at = data.draw(st.integers(1, len(piece) - 1))
                    pieces.append(piece[:at])
                    piece = piece[at:]
                case "f":
                    piece += piece[: data.draw(st.integers(1, len(piece)))]
            pieces.append(piece)
        settles = data.draw(st.lists(st.booleans(), max_size=len(pieces)))
        found, of_them = sent([piece for piece in pieces if piece], settles=settles)
        usual, _ = sent([piece for piece in pieces if piece], settles=settles, offers=False)
        assert found == usual
        taken.append(of_them)

    check()
    assert sum(taken) > 100
