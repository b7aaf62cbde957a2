"""For any JSON object: what is read back from the row is what was sent, or it was refused. Nothing else happens."""

import json
from typing import Any

import jsonschema
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.fields import INT64_MAX, INT64_MIN
from schemas.retriever_interaction import TrackInteractionRequest
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, STREAMS, Stream
from schemas.validation import Invalid
from tests.unit.json_corpus import REFUSED_TEXTS, REFUSED_VALUES

# Nothing of a failure is kept beside the repository: what is found goes into the corpus.
bounded = settings(max_examples=150, derandomize=True, deadline=None, database=None)

# Where a reader changes its mind: sizes of machine integers, digits that make `loads` read twice.
EDGES = [s * (2**n + d) for n in (31, 32, 53, 63, 64, 127, 1000) for d in (-1, 0, 1) for s in (1, -1)]
EDGES += [10**18, 10**18 - 1, 10**19, -(10**18), 10**308, 0]

integers = st.integers() | st.sampled_from(EDGES) | st.integers(-(10**308), 10**308)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, 1e15, 1e16, 5e-324, 1e22])
texts = st.text() | st.sampled_from(["", "\0", "a\0b", "\u2028", "\uffff", "\U0001f600", "1" * 40, '"\\', "\x7f"])
scalars = st.none() | st.booleans() | integers | floats | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)

# Names that are columns, or words with a meaning elsewhere: as extra fields they must mean nothing.
RESERVED = ["event_id", "app", "retriever", "received_at", "extra", "kafka_partition", "kafka_offset", "__proto__", ""]
int64s = st.integers(INT64_MIN, INT64_MAX)
objects = st.dictionaries(texts, values, max_size=4)

APP_FIELDS = st.fixed_dictionaries(
    {"event_type": texts},
    optional={
        "document_id": st.none() | texts,
        "position": st.none() | int64s,
        "query": st.none() | texts,
        "result_count": st.none() | int64s,
        "latency_ms": st.none() | int64s,
        "dwell_ms": st.none() | int64s,
        "session_id": st.none() | texts,
        "metadata": st.none() | objects,
    },
)
INTERACTION_TYPES = TrackInteractionRequest.model_json_schema()["properties"]["interaction_type"]["items"]["enum"]
RETRIEVER_FIELDS = st.fixed_dictionaries(
    {
        "document_id": texts,
        "interaction_type": st.lists(st.sampled_from(INTERACTION_TYPES), min_size=1, max_size=5),
        "position": st.integers(0, INT64_MAX),
    },
    optional={
        "execution_id": st.none() | texts,
        "query_snapshot": st.none() | objects,
        "document_score": st.none() | floats | integers,
        "result_set_size": st.none() | st.integers(1, INT64_MAX),
        "session_id": st.none() | texts,
        "metadata": st.none() | objects,
    },
)
extras = st.dictionaries(texts | st.sampled_from(RESERVED), values, max_size=5)
spellings = st.sampled_from([{"ensure_ascii": True}, {"ensure_ascii": False, "indent": 1}])


def exactly(value: Any) -> str:
    """Text that is equal only for the same value of the same kind: `1` is not `1.0`, `-0.0` is not `0.0`."""
    return json.dumps(value, sort_keys=True)


def row_of(stream: Stream, event: dict[str, Any], spelling: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(event, **spelling).encode()
    row: dict[str, Any] = json.loads(stream.encode(stream.parse(body), "the-id", "the-owner", 1_763_800_000_123))
    return row


@bounded
@given(fields=APP_FIELDS, extra=extras, spelling=spellings)
def test_app_event_is_read_back_as_it_was_sent(
    fields: dict[str, Any], extra: dict[str, Any], spelling: dict[str, Any]
) -> None:
    extra = {name: value for name, value in extra.items() if name not in APP_INTERACTIONS.fields}
    row = row_of(APP_INTERACTIONS, {**extra, **fields}, spelling)
    expected = {"event_id": "the-id", "app": "the-owner", "received_at": "2025-11-22T08:26:40.123Z", **fields}
    if extra:
        expected["extra"] = extra
    assert exactly(row) == exactly(expected)


@bounded
@given(fields=RETRIEVER_FIELDS, extra=extras, spelling=spellings)
def test_retriever_event_is_read_back_as_it_was_sent(
    fields: dict[str, Any], extra: dict[str, Any], spelling: dict[str, Any]
) -> None:
    extra = {name: value for name, value in extra.items() if name not in RETRIEVER_INTERACTIONS.fields}
    row = row_of(RETRIEVER_INTERACTIONS, {**extra, **fields}, spelling)
    expected = {"event_id": "the-id", "retriever": "the-owner", "received_at": "2025-11-22T08:26:40.123Z", **fields}
    if extra:
        expected["extra"] = extra
    assert exactly(row) == exactly(expected)


fragments = st.sampled_from(
    [
        *REFUSED_VALUES.values(),
        *REFUSED_TEXTS.values(),
        *(
            b'{"event_type":',
            b'"a"',
            b'"position":',
            b'"interaction_type":["view"]',
            b'"document_id":"d"',
            b'"metadata":',
        ),
        *(b"{", b"}", b"[", b"]", b",", b":", b"1", b"-", b"e9", b"2.0", b"null", b"12345678901234567890", b'"x":'),
    ]
)


@bounded
@given(body=st.binary(max_size=60) | st.lists(fragments, max_size=12).map(b"".join))
def test_any_bytes_are_refused_or_become_a_row(body: bytes) -> None:
    for stream in STREAMS:
        try:
            value = stream.encode(stream.parse(body), "id", "owner", 0)
        except Invalid as invalid:
            orjson.dumps(invalid.detail)  # the answer can be written
            continue
        assert json.loads(value)["event_id"] == "id"
        assert b"\n" not in value  # one row is one line


def or_anything(fields: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A valid event of which some fields, perhaps none, have any value at all."""
    wrong = st.dictionaries(st.sampled_from(["position", "session_id", "metadata", *FIELD_NAMES]), values, max_size=2)
    return st.builds(lambda valid, wrong: {**valid, **wrong}, fields, wrong)


FIELD_NAMES = sorted(APP_INTERACTIONS.fields | RETRIEVER_INTERACTIONS.fields)
WHOLE_NUMBERS = ("position", "result_count", "latency_ms", "dwell_ms", "result_set_size")
SCHEMAS = {stream: jsonschema.Draft202012Validator(stream.model.model_json_schema()) for stream in STREAMS}


def is_allowed(stream: Stream, event: dict[str, Any]) -> bool:
    """By the published schema, and by the bound of 64 bits that it does not state."""
    numbers = [event[name] for name in WHOLE_NUMBERS if name in stream.fields and event.get(name) is not None]
    return SCHEMAS[stream].is_valid(event) and all(INT64_MIN <= number <= INT64_MAX for number in numbers)


@bounded
@given(app_event=or_anything(APP_FIELDS), retriever_event=or_anything(RETRIEVER_FIELDS))
def test_what_the_schema_allows_is_taken_and_nothing_else(
    app_event: dict[str, Any], retriever_event: dict[str, Any]
) -> None:
    """And stored as it was sent: only a whole float in a field of integers becomes an integer."""
    for stream, event in ((APP_INTERACTIONS, app_event), (RETRIEVER_INTERACTIONS, retriever_event)):
        try:
            row = row_of(stream, event, {})
        except Invalid:
            assert not is_allowed(stream, event)
            continue
        assert is_allowed(stream, event)
        for name in event.keys() & stream.fields:
            expected = int(event[name]) if name in WHOLE_NUMBERS and event[name] is not None else event[name]
            assert exactly(row[name]) == exactly(expected)
