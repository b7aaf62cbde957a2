"""gateway.intake.prepare_alike: many events at once become what each becomes by itself, or are left as they were."""

import copy
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.callers import Caller
from gateway.intake import Sender, prepare, prepare_alike
from gateway.registry import App
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, Stream
from schemas.validation import NESTING_MAX, Invalid

RECEIVED_MS = 1_790_000_000_123
APP_EVENT: dict[str, Any] = {"event_type": "click", "document_id": "d", "position": 2, "metadata": {"a": [1]}, "x": "y"}
RETRIEVER_EVENT: dict[str, Any] = {"document_id": "d", "interaction_type": ["view"], "position": 0, "z": None}
EVENTS = {APP_INTERACTIONS.name: APP_EVENT, RETRIEVER_INTERACTIONS.name: RETRIEVER_EVENT}
EACH_STREAM = pytest.mark.parametrize("stream", [APP_INTERACTIONS, RETRIEVER_INTERACTIONS], ids=lambda s: s.name)

VALUES = st.sampled_from(
    [
        "click",
        "",
        "é\u2028",
        0,
        7,
        -1,
        2.0,
        2.5,
        2**63 - 1,
        2**63,
        2**70,
        True,
        None,
        [],
        ["view"],
        ["view", "nope"],
        {},
    ]
)
NAMES = ("event_type", "document_id", "position", "interaction_type", "metadata", "result_count", "x", "extra")


def sender(session_id: str | None = None, *, is_anonymous: bool = False) -> Sender:
    return Sender(Caller("demo", App(), None, session_id), {"bot_reason": "http_client:curl"}, is_anonymous)


def ids() -> Iterator[bytes]:
    return (b"id-%d" % number for number in range(1_000))


def alike(stream: Stream, events: list[Any], by: Sender) -> Any:
    head = stream.head("demo", RECEIVED_MS, by.context)
    prepared = prepare_alike(stream, by, events, head, ids())
    if prepared is None:
        return None
    keys, values, warnings = prepared
    return keys, values, warnings or [[]] * len(events)


def each(stream: Stream, events: list[Any], by: Sender) -> Any:
    """Keys, values and warnings; None if an event is wrong."""
    new_id = ids().__next__
    prepared = []
    try:
        for event in events:
            stream.check(event)
            prepared.append(prepare(stream, by, event, RECEIVED_MS, None, new_id=new_id))
    except (Invalid, TypeError):
        return None
    assert {(record.topic, record.partition, record.timestamp_ms, record.scope) for record, _ in prepared} <= {
        (stream.name, None, RECEIVED_MS, None)
    }
    keys, values = [record.key for record, _ in prepared], [record.value for record, _ in prepared]
    return keys, values, [warnings for _, warnings in prepared]


def assert_the_same(stream: Stream, events: list[Any], by: Sender) -> bool:
    """Whether they were prepared together."""
    before = copy.deepcopy(events)
    for event in copy.deepcopy(events):  # so that names are known
        if isinstance(event, dict):
            try:
                stream.check(event)
            except Invalid:
                continue
    together = alike(stream, events, by)
    if together is None:
        assert events == before
        return False
    assert together == each(stream, before, by)
    return True


@EACH_STREAM
def test_events_with_the_same_names_are_prepared_together(stream: Stream) -> None:
    events = [{**EVENTS[stream.name], "position": position} for position in range(100)]
    assert assert_the_same(stream, events, sender())


@EACH_STREAM
@settings(max_examples=1_500, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_whatever_their_values_are(stream: Stream, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    varied = [{name: data.draw(VALUES) for name in names} for _ in range(data.draw(st.integers(1, 4)))]
    assert_the_same(stream, [{**EVENTS[stream.name], **values} for values in varied], sender())


@EACH_STREAM
@pytest.mark.parametrize("name", ["event_id", "timestamp", "sent_at"])
def test_what_the_gateway_reads_is_for_each_by_itself(stream: Stream, name: str) -> None:
    assert not assert_the_same(stream, [{**EVENTS[stream.name], name: "a"}] * 2, sender())


@EACH_STREAM
@pytest.mark.parametrize("by", [sender("s"), sender(is_anonymous=True)], ids=["session", "anonymous"])
def test_what_changes_their_session_is_for_each_by_itself(stream: Stream, by: Sender) -> None:
    assert not assert_the_same(stream, [dict(EVENTS[stream.name]) for _ in range(2)], by)


@EACH_STREAM
@pytest.mark.parametrize("odd", [{}, [], "x", None, 7, Invalid([{"loc": ["body"], "msg": "m", "type": "t"}])], ids=repr)
@pytest.mark.parametrize("at", [0, 1])
def test_what_is_no_event(stream: Stream, odd: Any, at: int) -> None:
    events = [dict(EVENTS[stream.name])]
    events.insert(at, odd)
    assert alike(stream, events, sender()) is None
    assert events[1 - at] == EVENTS[stream.name]


@EACH_STREAM
def test_other_names_or_another_order(stream: Stream) -> None:
    event = EVENTS[stream.name]
    assert not assert_the_same(stream, [dict(event), {**event, "other": 1}], sender())
    assert not assert_the_same(stream, [dict(event), dict(reversed(event.items()))], sender())


@EACH_STREAM
def test_one_that_is_nested_too_deep_leaves_all_as_they_were(stream: Stream) -> None:
    deep: Any = 1
    for _ in range(NESTING_MAX):
        deep = [deep]
    event = EVENTS[stream.name]
    events = [{**event, "extra": 5, "deep": value} for value in (1, deep, 2)]
    for known in copy.deepcopy(events[:1]):
        stream.check(known)
    assert alike(stream, events, sender()) is None
    assert events == [{**event, "extra": 5, "deep": value} for value in (1, deep, 2)]


@example(count=250)
@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(count=st.integers(1, 300))
def test_each_has_an_id_of_its_own(count: int) -> None:
    keys, values, _ = alike(APP_INTERACTIONS, [dict(APP_EVENT) for _ in range(count)], sender())
    assert keys == [b"id-%d" % number for number in range(count)]
    assert [orjson.loads(value)["event_id"] for value in values] == [key.decode() for key in keys]
