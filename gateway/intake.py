"""From a checked event to its record: its id, its times, what is kept of its sender, and what is odd about it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, repeat
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


_new_record = partial(tuple.__new__, Record)  # half the cost of Record(...)

Prepared = tuple[Record, Sequence[Warning]]
"""A record, and what is odd about its event."""


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
    return _new_record((stream.name, None, key, value, received_ms, scope)), warnings


def prepare_alike(
    stream: Stream, sender: Sender, events: Sequence[Any], received_ms: int, head: bytes, new_ids: Iterator[bytes]
) -> tuple[list[Record], list[Sequence[Warning]]] | None:
    """What `prepare` makes of events that are not checked yet, at a third less: all have the same names, and none says
    anything of its id, its time or its session that is not simply kept. None, and the events are as they were, where
    that is not so, or one of them may be wrong."""
    if sender.is_anonymous or sender.caller.session_id:
        return None
    layout = stream.layouts.check_alike(events)
    if layout is None or not layout.is_plain:
        return None
    warnings: list[Sequence[Warning]] = list(map(stream.warnings, events))
    keys = list(islice(new_ids, len(events)))
    try:
        values = stream.rows(events, keys, head, layout)
    except Invalid:
        return None
    columns = zip(repeat(stream.name), repeat(None), keys, values, repeat(received_ms), repeat(None), strict=False)
    return list(map(_new_record, columns)), warnings
