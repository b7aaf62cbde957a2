"""schemas.batches: each event is what it would be alone, whatever its neighbours are; what is no batch is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import batches
from schemas.batches import FIELDS_MAX, READ_TWICE_BYTES_MAX, STEPS_MAX, VALUES_MAX, Batch, TooManyEvents, of_event
from schemas.validation import Invalid, has_long_integer, loads
from tests.unit.json_corpus import KEPT_VALUES, REFUSED_TEXTS, REFUSED_VALUES
from tests.unit.test_row_properties import values

bounded = settings(max_examples=150, derandomize=True, deadline=None, database=None)

GOOD = b'{"event_type": "click", "query": "a, [b] {c} \\"d\\\\"}'
LONG = b"123456789012345678901234567890"


def array(texts: list[bytes]) -> bytes:
    return b"[" + b",".join(texts) + b"]"


def indented_array(texts: list[bytes]) -> bytes:
    return b"\r\n [ " + b"\t, \n".join(texts) + b" ]\n"


def envelope(texts: list[bytes]) -> bytes:
    return b'{"sent_at": [1], "events": [%b], "x": {"events": [2]}}' % b",".join(texts)


def lines(texts: list[bytes]) -> bytes:
    return b"\n".join(texts)


def windows_lines(texts: list[bytes]) -> bytes:
    return b"\r\n\r\n" + b"".join(text + b"\r\n" for text in texts)


Form = Callable[[list[bytes]], bytes]
JSON_FORMS: list[Form] = [array, indented_array, envelope]
LINE_FORMS: list[Form] = [lines, windows_lines]
ANY_FORM = pytest.mark.parametrize("form", [*JSON_FORMS, *LINE_FORMS], ids=lambda form: form.__name__)


def parse(body: bytes, form: Form = array, events_max: int = 1000) -> Batch:
    return batches.parse_batch(body, ndjson=form in LINE_FORMS, events_max=events_max)


def exactly(value: Any) -> list[str]:
    """Equal only for the same value of the same kind, at any depth: `1` is not `1.0`, `-0.0` is not `0.0`."""
    told, left = [], [value]
    while left:
        value = left.pop()
        if type(value) is dict:
            told.append(repr(list(value)))
            left += value.values()
        elif type(value) is list:
            told.append(f"[{len(value)}]")
            left += value
        else:
            told.append(repr(value))
    return told


def outcome(event: Any) -> Any:
    """What can be compared of an event: its value, or the type of what is wrong with it."""
    return [entry["type"] for entry in event.detail] if isinstance(event, Invalid) else exactly(event)


def alone(text: bytes) -> Any:
    try:
        return exactly(loads(text))
    except Invalid as invalid:
        return [entry["type"] for entry in invalid.detail]


def refusal(body: bytes, form: Form = array) -> dict[str, Any]:
    with pytest.raises(Invalid) as caught:
        parse(body, form)
    (entry,) = caught.value.detail
    assert set(entry) == {"loc", "msg", "type"}
    assert isinstance(entry["msg"], str)
    return entry


BROKEN_EVENTS: dict[str, bytes] = {
    **{name: b'{"event_type": "e", "x": %b}' % value for name, value in REFUSED_VALUES.items()},
    **{name: REFUSED_TEXTS[name] for name in ("two-documents", "trailing-text", "byte-order-mark", "nul", "form")},
    "gzip-magic": REFUSED_TEXTS["gzip-magic"],
    "double-comma": b'{"event_type": "e",, "x": 1}',
    "no-value": b'{"event_type":, "x": 1}',
    "no-colon-after-a-number": b'{"event_type": "e", 1 1}',
    "words": b"click on the first result",
    "word-before-a-string": b'{"event_type": u"e", "x": b"[,"}',
    "backslash-outside-a-string": b'{"a": \\, "b": 1}',
    "backslashes-at-the-end-of-a-string": rb'{"a": "x\\\", [", b: 1}',
    "brackets-and-quotes-within-strings": rb'{"a": [[[["]]]]\"", NaN]], "}]"]]}',
    "nested-1025-deep": b"[" * 1025 + b"]" * 1025,
    "nested-1200-deep-with-words-between": b"[x{y:" * 600 + b"z}w]" * 600,
    "wide-and-nested": b"[" + b"[[{[]:[]}]]," * 5_000 + b"]",
    "long-number-and-nan": b"[%b, NaN]" % LONG,
}
# Among lines each of these is one broken event. In an array nobody can tell where it ends.
ENDLESS_EVENTS: dict[str, bytes] = {
    **{name: REFUSED_TEXTS[name] for name in ("cut-short", "never-closed", "utf-16", "utf-32")},
    "key-cut-short": b'{"event_ty',
    "quote-not-escaped": b'{"event_type": "a "nice" query"}',
    "quote-missing-before": b'{"event_type: "e"}',
    "quote-missing-after": b'{"event_type": "e}',
    "quote-alone": b'"',
    "quotes-side-by-side": b'{"a": """"}',
    "no-colon-after-a-string": b'{"event_type" "e"}',
    "no-comma-after-a-string": b'{"event_type": "e" "x": 1}',
    "bracket-too-many": b'{"event_type": "e"}}',
    "brackets-too-many": b'{"event_type": "e"}]]',
    "bracket-missing": b'{"event_type": ["e"}',
    "brackets-of-two-kinds": b'{"event_type": ["e"}, "x": 1]',
    "closed-by-the-other-bracket": b'{"event_type": "e"]',
    "flat-closed-by-the-other-bracket": b'{"x": {"event_type": "e"], "y": 1}',
    "runs-of-brackets-that-cross": b"[[{{[]}]}]",
}


@pytest.mark.parametrize("name", BROKEN_EVENTS)
@ANY_FORM
def test_broken_event_harms_no_other(name: str, form: Form) -> None:
    broken = BROKEN_EVENTS[name]
    texts = [broken, b'{"n": %b}' % LONG, broken, GOOD]
    batch = parse(form(texts), form)
    assert [outcome(event) for event in batch.events] == [alone(text) for text in texts]
    assert batch.events[1::2] == [{"n": int(LONG)}, {"event_type": "click", "query": 'a, [b] {c} "d\\'}]


@pytest.mark.parametrize("name", ENDLESS_EVENTS)
@ANY_FORM
def test_where_an_event_ends_is_not_guessed(name: str, form: Form) -> None:
    broken = ENDLESS_EVENTS[name]
    assert alone(broken) == ["json_invalid"]
    for texts in ([GOOD, broken, GOOD], [broken, GOOD, broken, GOOD], [GOOD, GOOD, broken]):
        if form in JSON_FORMS:
            assert refusal(form(texts), form)["type"] == "json_invalid"
        else:
            assert [outcome(event) for event in parse(form(texts), form).events] == [alone(text) for text in texts]


@pytest.mark.parametrize("name", KEPT_VALUES)
@ANY_FORM
def test_valid_value_stays_intact(name: str, form: Form) -> None:
    texts = [b'{"event_type": "e", "x": %b}' % value for value in (KEPT_VALUES[name][0], b"1", b"NaN")]
    for count in (2, 3):  # without and with a neighbour that spoils the whole
        batch = parse(form(texts[:count]), form)
        assert [outcome(event) for event in batch.events] == [alone(text) for text in texts[:count]]
        assert not isinstance(batch.events[0], Invalid)


good_texts = st.builds(lambda value, ascii: json.dumps(value, ensure_ascii=ascii).encode(), values, st.booleans())
broken_texts = st.sampled_from([text for text in BROKEN_EVENTS.values() if len(text) < VALUES_MAX // 3])
texts_of_events = st.lists(good_texts, min_size=1, max_size=8).flatmap(
    lambda good: st.lists(broken_texts, max_size=3).flatmap(lambda broken: st.permutations([*good, *broken]))
)


@bounded
@given(texts=texts_of_events, form=st.sampled_from([*JSON_FORMS, *LINE_FORMS]))
def test_each_event_is_what_it_would_be_alone(texts: list[bytes], form: Form) -> None:
    batch = parse(form(texts), form)
    assert [outcome(event) for event in batch.events] == [alone(text) for text in texts]


names = st.sampled_from([b'"events"', rb'"\u0065vents"', b'"sent_at"', b'"x"', b'""', rb'"\"events\\"', b'"event"'])
members = st.lists(st.tuples(names, good_texts), max_size=4)
arrays = st.lists(good_texts, max_size=4).map(indented_array)


@bounded
@given(before=members, events=arrays, after=members, space=st.sampled_from([b"", b" ", b"\n\t"]))
def test_cut_or_in_one_go_is_the_same(
    before: list[tuple[bytes, bytes]], events: bytes, after: list[tuple[bytes, bytes]], space: bytes
) -> None:
    parts = [*before, (b'"events"', events), *after]
    body = b"{" + b",".join(space + name + space + b":" + value + space for name, value in parts) + b"}"
    value = loads(body)
    if type(value["events"]) is list:
        assert exactly(batches._read_apart(body, 1000)) == exactly(value)
    else:
        with pytest.raises(batches._CannotCut):
            batches._read_apart(body, 1000)
    assert exactly(batches._read_apart(events, 1000)) == exactly(loads(events))


@bounded
@given(
    body=st.binary(max_size=40)
    | st.lists(
        st.sampled_from(
            [
                *BROKEN_EVENTS.values(),
                *ENDLESS_EVENTS.values(),
                GOOD,
                b"[",
                b"]",
                b"{",
                b"}",
                b",",
                b'"',
                b"\\",
                b" ",
                b"1",
                b'"events":',
                b"\n",
            ]
        ),
        max_size=14,
    ).map(b"".join),
    form=st.sampled_from([array, lines]),
)
def test_any_bytes_are_a_batch_or_refused(body: bytes, form: Form) -> None:
    try:
        batch = parse(body, form, events_max=5)
    except (Invalid, TooManyEvents):
        return
    assert 1 <= len(batch.events) <= 5


@pytest.mark.parametrize(
    ("body", "loc", "type_"),
    [
        (b"", ["body"], "json_invalid"),
        (b" ", ["body"], "json_invalid"),
        (b"null", ["body"], "list_type"),
        (b"12", ["body"], "list_type"),
        (b'"[1]"', ["body"], "list_type"),
        (b"NaN", ["body"], "json_invalid"),
        (b"[]", ["body"], "too_short"),
        (b" [ \n ] ", ["body"], "too_short"),
        (b"{}", ["body", "events"], "missing"),
        (GOOD, ["body", "events"], "missing"),
        (b'{"events": []}', ["body", "events"], "too_short"),
        (b'{"events": {}}', ["body", "events"], "list_type"),
        (b'{"events": null}', ["body", "events"], "list_type"),
        (b'{"events": "[1]"}', ["body", "events"], "list_type"),
        (b'{"events": [1], "events": 1}', ["body", "events"], "list_type"),
        (b'{"events": [1], "events": []}', ["body", "events"], "too_short"),
        # What is wrong here is not within an event.
        (b'{"events": [1], "sent_at": NaN}', ["body"], "json_invalid"),
        (b'{"events": [NaN], "events": 1}', ["body"], "json_invalid"),
        (b'{"events": [NaN], "events": [1]}', ["body"], "json_invalid"),
        (b'{"events": [NaN] 1}', ["body"], "json_invalid"),
        (b'{"events": [NaN}', ["body"], "json_invalid"),
        (b'{"events": [NaN]]', ["body"], "json_invalid"),
        (b'{"events": [NaN],}', ["body"], "json_invalid"),
        (b'{"events" [NaN]}', ["body"], "json_invalid"),
        (b"{events: [NaN]}", ["body"], "json_invalid"),
        (b'{"\xff": 1, "events": [NaN]}', ["body"], "json_invalid"),
        (b'{"x": NaN}', ["body"], "json_invalid"),
        (b"[NaN] 1", ["body"], "json_invalid"),
        (b"[NaN][1]", ["body"], "json_invalid"),
        (b"[NaN}", ["body"], "json_invalid"),
        (b"[1, 2", ["body"], "json_invalid"),
        (b'[1, "2]', ["body"], "json_invalid"),
        (b"\xef\xbb\xbf[1]", ["body"], "json_invalid"),
        ("[1]".encode("utf-16"), ["body"], "json_invalid"),
        (b"[" * 1_000, ["body"], "json_invalid"),
        (GOOD + b"\n" + GOOD, ["body"], "json_invalid"),
    ],
)
def test_what_is_no_batch_is_refused(body: bytes, loc: list[str], type_: str) -> None:
    entry = refusal(body)
    assert (entry["loc"], entry["type"]) == (loc, type_)


@pytest.mark.parametrize("body", [b"", b"\n", b" \t\r\n\r\n  "])
def test_no_lines_are_refused(body: bytes) -> None:
    entry = refusal(body, lines)
    assert (entry["loc"], entry["type"]) == (["body"], "too_short")


def test_message_is_that_of_the_reader_and_tells_the_position() -> None:
    with pytest.raises(Invalid) as caught:
        loads(b"[1, 2")
    assert refusal(b"[1, 2") == caught.value.detail[0]
    body = b'{"events": [NaN, 1], "y": x}'  # beside the broken event, which is an event's own matter
    assert f"(char {body.index(b'x')})" in refusal(body)["msg"]


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b"[1,]", [True, False]),
        (b"[,1]", [False, True]),
        (b"[1,,2]", [True, False, True]),
        (b"[,]", [False, False]),
        (b'{"events": [1, 2,]}', [True, True, False]),
    ],
)
def test_comma_too_many_is_an_event_that_cannot_be_read(body: bytes, good: list[bool]) -> None:
    assert [not isinstance(event, Invalid) for event in parse(body).events] == good


@pytest.mark.parametrize("broken", [b"", b", NaN"])
def test_fields_beside_the_events(broken: bytes) -> None:
    batch = parse(b'{"timestamp": 2.0, "events": [1%b], "sent_at": {"a": "b"}, "b": 1, "a": 2}' % broken)
    assert (batch.sent_at, batch.timestamp, batch.unknown) == ({"a": "b"}, 2.0, ["b", "a"])
    assert (parse(b"[1%b]" % broken).sent_at, parse(b"[1%b]" % broken).unknown) == (None, [])


@pytest.mark.parametrize("broken", [b"", b", NaN"])
def test_unknown_fields_are_named_within_bounds(broken: bytes) -> None:
    unknown = b"".join(b'"%b%d": 1,' % (b"x" * 100, number) for number in range(50))
    batch = parse(b'{%b "\\u0065vents": [1%b]}' % (unknown, broken))
    assert len(batch.unknown) == batches.UNKNOWN_MAX
    assert batch.unknown[0] == "x" * batches.UNKNOWN_CHARS_MAX
    assert batch.events[0] == 1


@pytest.mark.parametrize("broken", [b"", b", NaN"])
def test_of_events_that_come_twice_the_last_count(broken: bytes) -> None:
    batch = parse(b'{"events": [1, 2], "events": "x", "\\u0065vents": [3%b], "sent_at": 1, "sent_at": 2}' % broken)
    assert batch.events[0] == 3
    assert len(batch.events) == (2 if broken else 1)
    assert batch.sent_at == 2


@ANY_FORM
@pytest.mark.parametrize("broken", [False, True])
def test_as_many_events_as_the_limit(form: Form, broken: bool) -> None:
    texts = [GOOD] * 9 + [b"NaN" if broken else GOOD]
    assert len(parse(form(texts), form, events_max=10).events) == 10
    with pytest.raises(TooManyEvents):
        parse(form([*texts, GOOD]), form, events_max=10)


@ANY_FORM
@pytest.mark.parametrize("event", [b"{}", b"", b"NaN", b"["], ids=repr)
def test_a_million_events(form: Form, event: bytes) -> None:
    texts = [event] * 1_000_000
    if event == b"[" and form in JSON_FORMS:
        assert refusal(form(texts), form)["type"] == "too_many_values"
    elif event == b"" and form in LINE_FORMS:
        assert refusal(form(texts), form)["type"] == "too_short"
    else:
        with pytest.raises(TooManyEvents):
            parse(form(texts), form)


@ANY_FORM
def test_values_are_counted(form: Form) -> None:
    def texts(values: int) -> list[bytes]:
        around = form([GOOD, b"[0]"])
        return [GOOD, b"[%b0]" % (b"0," * (values - sum(map(around.count, (b",", b"[", b"{")))))]

    assert len(parse(form(texts(VALUES_MAX)), form).events) == 2
    entry = refusal(form(texts(VALUES_MAX + 1)), form)
    assert (entry["loc"], entry["type"]) == (["body"], "too_many_values")


@pytest.mark.parametrize("form", JSON_FORMS, ids=lambda form: form.__name__)
def test_steps_are_counted(form: Form) -> None:
    turn = b"{[[]]x}"  # three steps
    within, beyond = (b"[%b]" % (turn * count) for count in (STEPS_MAX // 4, STEPS_MAX // 3 + 10))
    refused, good = parse(form([within, GOOD]), form).events
    assert isinstance(refused, Invalid)
    assert good == loads(GOOD)
    assert refusal(form([beyond, GOOD]), form)["type"] == "json_invalid"


def test_fields_are_counted_while_a_batch_is_cut() -> None:
    def body(fields: int, event: bytes) -> bytes:
        return b"{%b" % b"".join(b'"%d": 1,' % number for number in range(fields - 1)) + b'"events": [%b]}' % event

    assert isinstance(parse(body(FIELDS_MAX, b"NaN")).events[0], Invalid)
    assert refusal(body(FIELDS_MAX + 1, b"NaN"))["type"] == "json_invalid"
    assert parse(body(FIELDS_MAX + 1, b"1")).events == [1]
    padding = b" " * READ_TWICE_BYTES_MAX  # too large to be read twice, and nothing that can be cut, but valid
    assert parse(body(FIELDS_MAX + 1, LONG + padding)).events == [int(LONG)]


@pytest.mark.parametrize("form", JSON_FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("deep", [b"[" * 1000 + LONG + b"]" * 1000, b"[" * 1023 + b"]" * 1023], ids=["long", "short"])
@pytest.mark.parametrize("size", [10, READ_TWICE_BYTES_MAX], ids=["small", "large"])
def test_neighbours_decide_nothing_about_depth_or_digits(form: Form, deep: bytes, size: int) -> None:
    texts = [GOOD, deep, b'{"n": -%b, "s": "%b"}' % (LONG, b"x" * size), b'{"f": 1.0, "i": -0, "z": -0.0}', GOOD]
    assert [outcome(event) for event in parse(form(texts), form).events] == [alone(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "has"),
    [
        (b"18446744073709551616", True),
        (b"-9223372036854775809", True),
        (b'{"a":18446744073709551616}', True),
        (b'{"a" : -9223372036854775809}', True),
        (b"[1,18446744073709551616]", True),
        (b"[\n18446744073709551616]", True),
        (b"[\t-%b]" % LONG, True),
        (b"[1763800000123456789]", False),
        (b"[9223372036854775807]", False),
        (b'["18446744073709551616", "id-9x%b"]' % LONG, False),
        (b"[0.%b, 1e-5, 1E%b]" % (LONG, LONG), False),
        (b"", False),
    ],
)
def test_what_looks_like_a_long_integer(text: bytes, has: bool) -> None:
    assert has_long_integer(text) is has


def test_error_of_an_event_tells_its_index() -> None:
    detail = [
        {"loc": ["body"], "msg": "m", "type": "t"},
        {"loc": ["body", "interaction_type", 2], "msg": "n", "type": "u"},
    ]
    assert of_event(7, detail) == [
        {"loc": ["body", 7], "msg": "m", "type": "t"},
        {"loc": ["body", 7, "interaction_type", 2], "msg": "n", "type": "u"},
    ]
    assert detail[0]["loc"] == ["body"]
