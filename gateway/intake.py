"""From a checked event to its record: its id, its times, what is kept of its sender, and what is odd about it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from gateway import clock, event_ids
from gateway.callers import Caller
from gateway.record import Record
from schemas.layouts import Layout
from schemas.search_sense import Warning
from schemas.streams import Stream
from schemas.validation import Invalid, dumps

_NO_ID = Warning("event_id_invalid", ("event_id",), f"Not taken for the event's id, which is {event_ids.RULE}")
_NO_TIME = {
    "timestamp_invalid": Warning("timestamp_invalid", ("timestamp",), "Not taken for a time: ISO 8601 or epoch ms"),
    "sent_at_invalid": Warning("sent_at_invalid", ("sent_at",), "Not taken for a time: ISO 8601 or epoch ms"),
}


class Sender(NamedTuple):
    """What all events of a request share. `context` are columns that tell of who sent them; with `is_anonymous` no
    session is kept."""

    caller: Caller
    context: Mapping[str, Any]
    is_anonymous: bool


Prepared = tuple[Record, Sequence[Warning]]
"""A record, and what is odd about its event."""

PreparedAlike = tuple[list[bytes], list[bytes], list[Sequence[Warning]]]
"""The keys and the values of records, and what is odd about each of their events; empty if nothing is."""


def prepare(
    stream: Stream,
    sender: Sender,
    event: dict[str, Any],
    received_ms: int,
    event_id: str | None,
    timestamp: object = None,
    sent_at: object = None,
    layout: Layout | None = None,
    head: bytes | None = None,
    new_id: Callable[[], bytes] = event_ids.new,
) -> Prepared:
    """Of a checked event, which is used up. `event_id` is what the request says, if it does; `timestamp` and `sent_at`
    are for events that have none.

    The `layout` of the event and the `head` of its row, with the sender's context, are found out if they are not given.
    Raises `schemas.validation.Invalid` if the row would be nested too deep.
    """
    caller = sender.caller
    if layout is None:
        layout = stream.layouts.of(event)
    if head is None:
        head = stream.head(caller.name, received_ms, sender.context)
    warnings: Sequence[Warning] = stream.warnings(event)
    if event_id is None and "event_id" in event and event["event_id"] is not None:
        if event_ids.is_id(event["event_id"]):
            event_id = event["event_id"]
        else:
            warnings = [*warnings, _NO_ID]
    if "timestamp" in event or "sent_at" in event or timestamp is not None or sent_at is not None:
        times, odd = clock.times(event, received_ms, timestamp=timestamp, sent_at=sent_at)
        if times:
            head = b"%b,%b" % (head, dumps(dict(times))[1:-1])
        if odd:
            warnings = [*warnings, *map(_NO_TIME.__getitem__, odd)]
    if sender.is_anonymous:
        event["session_id"] = None
    elif caller.session_id and event.get("session_id") is None:
        event["session_id"] = caller.session_id
    if event_id is None:
        key, scope = new_id(), None
    else:
        key, scope = event_id.encode(), caller.name.encode()
    value = stream.row(event, key, head, layout)
    # half the cost of Record(...)
    return tuple.__new__(Record, (stream.name, None, key, value, received_ms, scope)), warnings


def prepare_alike(
    stream: Stream, sender: Sender, events: Sequence[Any], head: bytes, new_ids: Iterator[bytes]
) -> PreparedAlike | None:
    """What `prepare` makes of events that are not checked yet, at half the cost: all have the same names, and none says
    anything of its id, its time or its session that is not simply kept. None, and the events are as they were, where
    that is not so, or one of them may be wrong."""
    if sender.is_anonymous or sender.caller.session_id:
        return None
    checked = stream.layouts.check_alike(events)
    if checked is None or not checked[0].is_plain:
        return None
    layout, columns = checked
    warnings: list[Sequence[Warning]] = list(map(stream.warnings, events)) if stream.may_warn(columns) else []
    keys = list(islice(new_ids, len(events)))
    try:
        values = stream.rows(events, keys, head, layout)
    except Invalid:
        return None
    return keys, values, warnings
