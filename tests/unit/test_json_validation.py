"""schemas.validation and the two models: what is refused, how that is said, and what stays as it was."""

import json
from typing import Any

import pytest

from schemas.fields import INT64_MAX, INT64_MIN
from schemas.retriever_interaction import TrackInteractionRequest
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, Stream
from schemas.validation import NESTING_MAX, Invalid, dumps, loads
from tests.unit.json_corpus import KEPT_VALUES, REFUSED_TEXTS, REFUSED_VALUES

APP_EVENT: dict[str, Any] = {"event_type": "click"}
RETRIEVER_EVENT: dict[str, Any] = {"document_id": "d", "interaction_type": ["view"], "position": 0}
EVENTS = {APP_INTERACTIONS.name: APP_EVENT, RETRIEVER_INTERACTIONS.name: RETRIEVER_EVENT}

BOTH_STREAMS = pytest.mark.parametrize("stream", [APP_INTERACTIONS, RETRIEVER_INTERACTIONS], ids=lambda s: s.name)

NOT_STRINGS = (1, 1.5, True, [], {})
NOT_INTEGERS = ("2", "", True, False, 2.5, [], {}, [2], {"a": 2})
NOT_INT64 = (INT64_MAX + 1, INT64_MIN - 1, 10**30, -(10**300), 1e19, -1e300, float(2**63))
NOT_OBJECTS = ("x", "{}", 1, 1.5, True, [], [{}])
NOT_NUMBERS = ("0.5", True, [], {})

NULLABLE_STRINGS = {
    APP_INTERACTIONS: ("document_id", "query", "session_id"),
    RETRIEVER_INTERACTIONS: ("execution_id", "session_id"),
}
NULLABLE_INTEGERS = {
    APP_INTERACTIONS: ("position", "result_count", "latency_ms", "dwell_ms"),
    RETRIEVER_INTERACTIONS: ("result_set_size",),
}
NULLABLE_OBJECTS = {
    APP_INTERACTIONS: ("metadata",),
    RETRIEVER_INTERACTIONS: ("metadata", "query_snapshot"),
}


def body_of(stream: Stream, **fields: Any) -> bytes:
    return json.dumps({**EVENTS[stream.name], **fields}).encode()


def refusal(stream: Stream, body: bytes) -> list[dict[str, Any]]:
    """The detail with which a body is refused, at the latest when it is written as a row."""
    with pytest.raises(Invalid) as caught:
        stream.encode(stream.parse(body), "id", "owner", 0)
    return caught.value.detail


def locations(detail: list[dict[str, Any]]) -> list[list[str | int]]:
    return [entry["loc"] for entry in detail]


@pytest.mark.parametrize("value", REFUSED_VALUES.values(), ids=REFUSED_VALUES.keys())
@pytest.mark.parametrize("field", ["metadata", "unknown"])
@BOTH_STREAMS
def test_hostile_value_is_refused(stream: Stream, field: str, value: bytes) -> None:
    event = json.dumps(EVENTS[stream.name]).encode()
    body = event[:-1] + b', "%b": {"x": %b}}' % (field.encode(), value)

    detail = refusal(stream, body)

    assert locations(detail) == [["body"]]
    assert detail[0]["type"] in ("json_invalid", "nesting_too_deep")
    assert set(detail[0]) == {"loc", "msg", "type"}


@BOTH_STREAMS
@pytest.mark.parametrize("text", REFUSED_TEXTS.values(), ids=REFUSED_TEXTS.keys())
def test_text_that_is_no_event_is_refused(stream: Stream, text: bytes) -> None:
    for entry in refusal(stream, text):
        assert entry["loc"][0] == "body"
        assert set(entry) == {"loc", "msg", "type"}
        assert isinstance(entry["msg"], str)
        assert isinstance(entry["type"], str)


@pytest.mark.parametrize(("value", "written"), KEPT_VALUES.values(), ids=KEPT_VALUES.keys())
@pytest.mark.parametrize("field", ["metadata", "unknown"])
@BOTH_STREAMS
def test_valid_value_stays_intact(stream: Stream, field: str, value: bytes, written: bytes) -> None:
    body = json.dumps(EVENTS[stream.name]).encode()[:-1] + b', "%b": {"x": %b}}' % (field.encode(), value)
    row = stream.encode(stream.parse(body), "id", "owner", 0)
    assert b'"%b":{"x":%b}' % (field.encode(), written) in row
    assert json.loads(row)["event_id"] == "id"


@pytest.mark.parametrize(
    ("stream", "field", "wrong", "type_"),
    [
        *((APP_INTERACTIONS, "event_type", wrong, "string_type") for wrong in (*NOT_STRINGS, None)),
        *((RETRIEVER_INTERACTIONS, "document_id", wrong, "string_type") for wrong in (*NOT_STRINGS, None)),
        *((s, f, w, "string_type") for s, fields in NULLABLE_STRINGS.items() for f in fields for w in NOT_STRINGS),
        *((s, f, w, "int_type") for s, fields in NULLABLE_INTEGERS.items() for f in fields for w in NOT_INTEGERS),
        *((RETRIEVER_INTERACTIONS, "position", wrong, "int_type") for wrong in (*NOT_INTEGERS, None)),
        *((s, f, w, "dict_type") for s, fields in NULLABLE_OBJECTS.items() for f in fields for w in NOT_OBJECTS),
        *((RETRIEVER_INTERACTIONS, "document_score", wrong, "float_type") for wrong in NOT_NUMBERS),
        *((RETRIEVER_INTERACTIONS, "interaction_type", wrong, "list_type") for wrong in (None, "view", {}, 1, True)),
    ],
    ids=repr,
)
def test_nothing_is_coerced(stream: Stream, field: str, wrong: Any, type_: str) -> None:
    detail = refusal(stream, body_of(stream, **{field: wrong}))
    assert locations(detail) == [["body", field]]
    assert detail[0]["type"] == type_


@pytest.mark.parametrize("number", NOT_INT64, ids=repr)
@pytest.mark.parametrize(
    ("stream", "field"),
    [
        *((s, f) for s, fields in NULLABLE_INTEGERS.items() for f in fields),
        (RETRIEVER_INTERACTIONS, "position"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_integer_beyond_64_bits_is_refused(stream: Stream, field: str, number: float) -> None:
    assert locations(refusal(stream, body_of(stream, **{field: number}))) == [["body", field]]


@pytest.mark.parametrize(
    ("stream", "field", "number"),
    [
        *((APP_INTERACTIONS, f, n) for f in NULLABLE_INTEGERS[APP_INTERACTIONS] for n in (INT64_MIN, -1, 0, INT64_MAX)),
        *((RETRIEVER_INTERACTIONS, "position", n) for n in (0, INT64_MAX)),
        *((RETRIEVER_INTERACTIONS, "result_set_size", n) for n in (1, INT64_MAX)),
    ],
    ids=repr,
)
def test_bounds_of_an_integer_belong_to_it(stream: Stream, field: str, number: int) -> None:
    assert stream.parse(body_of(stream, **{field: number}))[field] == number


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (b"2.0", 2),
        (b"2e0", 2),
        (b"1e2", 100),
        (b"-3.0", -3),
        (b"0.0", 0),
        (b"-0.0", 0),
        (b"-9223372036854775808.0", INT64_MIN),
    ],
    ids=repr,
)
def test_whole_float_is_the_integer(written: bytes, number: int) -> None:
    body = b'{"event_type": "e", "position": %b, "dwell_ms": %b, "metadata": {"x": 1.0}, "y": 2.0}' % (written, written)
    row = APP_INTERACTIONS.encode(APP_INTERACTIONS.parse(body), "id", "owner", 0)
    assert b'"position":%d,"dwell_ms":%d,"metadata":{"x":1.0},"extra":{"y":2.0}}' % (number, number) in row


def test_whole_float_is_the_integer_beside_another_fault() -> None:
    detail = refusal(APP_INTERACTIONS, b'{"event_type": "e", "position": 2.0, "dwell_ms": "x"}')
    assert locations(detail) == [["body", "dwell_ms"]]


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"position": -1}, ["body", "position"]),
        ({"position": -1.0}, ["body", "position"]),
        ({"result_set_size": 0}, ["body", "result_set_size"]),
        ({"result_set_size": -5}, ["body", "result_set_size"]),
        ({"interaction_type": []}, ["body", "interaction_type"]),
        ({"interaction_type": ["buy"]}, ["body", "interaction_type", 0]),
        ({"interaction_type": ["View"]}, ["body", "interaction_type", 0]),
        ({"interaction_type": ["view", "click", ""]}, ["body", "interaction_type", 2]),
        ({"interaction_type": ["view", None]}, ["body", "interaction_type", 1]),
        ({"interaction_type": [0]}, ["body", "interaction_type", 0]),
        ({"interaction_type": [["view"]]}, ["body", "interaction_type", 0]),
    ],
    ids=repr,
)
def test_bounds_of_a_retriever_event(fields: dict[str, Any], location: list[str | int]) -> None:
    assert locations(refusal(RETRIEVER_INTERACTIONS, body_of(RETRIEVER_INTERACTIONS, **fields))) == [location]


@pytest.mark.parametrize(
    ("stream", "field"),
    [
        (APP_INTERACTIONS, "event_type"),
        (RETRIEVER_INTERACTIONS, "document_id"),
        (RETRIEVER_INTERACTIONS, "interaction_type"),
        (RETRIEVER_INTERACTIONS, "position"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_required_field(stream: Stream, field: str) -> None:
    event = {name: value for name, value in EVENTS[stream.name].items() if name != field}
    detail = refusal(stream, json.dumps({**event, "session_id": "s"}).encode())
    assert detail == [{"loc": ["body", field], "msg": "Field required", "type": "missing"}]


def test_every_fault_is_named() -> None:
    detail = refusal(APP_INTERACTIONS, b'{"position": "2", "metadata": [], "query": 1}')
    assert sorted(locations(detail)) == [
        ["body", "event_type"],
        ["body", "metadata"],
        ["body", "position"],
        ["body", "query"],
    ]


def test_a_long_list_of_wrong_values_gets_one_error() -> None:
    detail = refusal(RETRIEVER_INTERACTIONS, body_of(RETRIEVER_INTERACTIONS, interaction_type=["x"] * 60_000))
    assert len(detail) == 1


@pytest.mark.parametrize("stream_fields", [NULLABLE_STRINGS, NULLABLE_INTEGERS, NULLABLE_OBJECTS], ids=["s", "i", "o"])
@BOTH_STREAMS
def test_optional_field_may_be_null(stream: Stream, stream_fields: dict[Stream, tuple[str, ...]]) -> None:
    event = stream.parse(body_of(stream, **dict.fromkeys(stream_fields[stream])))
    assert {name: event[name] for name in stream_fields[stream]} == dict.fromkeys(stream_fields[stream])


def test_all_fifteen_interaction_types() -> None:
    schema = TrackInteractionRequest.model_json_schema()["properties"]["interaction_type"]
    values = schema["items"]["enum"]
    assert len(set(values)) == 15
    event = RETRIEVER_INTERACTIONS.parse(body_of(RETRIEVER_INTERACTIONS, interaction_type=values))
    assert event["interaction_type"] == values


@pytest.mark.parametrize("score", [0, 1, -1, 0.95, 1e308, 10**30], ids=repr)
def test_document_score_is_any_number(score: float) -> None:
    event = RETRIEVER_INTERACTIONS.parse(body_of(RETRIEVER_INTERACTIONS, document_score=score))
    assert event["document_score"] == score


def test_message_speaks_of_json_not_of_python() -> None:
    for body in (b"[]", b'{"event_type": "e", "metadata": 1}'):
        message = refusal(APP_INTERACTIONS, body)[0]["msg"]
        assert message == "Input should be an object"
    assert refusal(RETRIEVER_INTERACTIONS, body_of(RETRIEVER_INTERACTIONS, interaction_type=1))[0]["msg"] == (
        "Input should be an array"
    )


@pytest.mark.parametrize("innermost", ["1", "12345678901234567890"], ids=["short-number", "long-number"])
@pytest.mark.parametrize(("depth", "fits"), [(NESTING_MAX, True), (NESTING_MAX + 1, False)])
def test_nesting_limit_is_the_same_with_and_without_a_long_number(innermost: str, depth: int, fits: bool) -> None:
    text = "[" * (depth - 1) + innermost + "]" * (depth - 1)
    row = {"x": loads(text.encode())}
    if fits:
        assert dumps(row) == b'{"x":%b}' % text.encode()
    else:
        with pytest.raises(Invalid) as caught:
            dumps(row)
        assert caught.value.detail[0]["type"] == "nesting_too_deep"


def test_wide_is_not_deep() -> None:
    body = b'{"event_type": "e", "x": [%b 12345678901234567890]}' % (b"[[]]," * 20_000)
    assert APP_INTERACTIONS.encode(APP_INTERACTIONS.parse(body), "id", "owner", 0).endswith(b",12345678901234567890]}}")
