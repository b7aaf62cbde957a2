"""From a checked event to its record: its id, its times, what is kept of its sender, and what is odd about it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from uuid_utils import uuid7

from gateway import clock, event_ids
from gateway.callers import Caller
from gateway.record import Record
from schemas.search_sense import Warning
from schemas.streams import Stream

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


class Prepared(NamedTuple):
    record: Record
    warnings: Sequence[Warning]


def prepare(
    stream: Stream,
    sender: Sender,
    event: dict[str, Any],
    received_ms: int,
    event_id: str | None,
    *,
    timestamp: object = None,
    sent_at: object = None,
) -> Prepared:
    """`event_id` is what the request says, if it does; `timestamp` and `sent_at` are for events that have none.

    Raises `schemas.validation.Invalid` if the row would be nested too deep.
    """
    caller, context = sender.caller, sender.context
    warnings = stream.warnings(event)
    if event_id is None and event.get("event_id") is not None:
        if event_ids.is_id(event["event_id"]):
            event_id = event["event_id"]
        else:
            warnings = [*warnings, _NO_ID]
    if "timestamp" in event or "sent_at" in event or timestamp is not None or sent_at is not None:
        times, odd = clock.times(event, received_ms, timestamp=timestamp, sent_at=sent_at)
        context = {**context, **times}
        warnings = [*warnings, *map(_NO_TIME.__getitem__, odd)]
    if sender.is_anonymous:
        event["session_id"] = None
    elif caller.session_id and event.get("session_id") is None:
        event["session_id"] = caller.session_id
    scope = None if event_id is None else caller.name.encode()
    if event_id is None:
        event_id = str(uuid7())
    value = stream.encode(event, event_id, caller.name, received_ms, context)
    return Prepared(Record(stream.name, None, event_id.encode(), value, received_ms, scope), warnings)
