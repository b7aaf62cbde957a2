"""Bodies of answers about events. Ids are ours or of a safe alphabet, so the common ones need no encoder."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson

from schemas.search_sense import Warning
from schemas.validation import Detail


def accepted(event_id: bytes, durability: bytes, warnings: Sequence[Warning]) -> bytes:
    """Of one event."""
    return b'{"success":true,"event_id":"%b","durability":"%b"%b}' % (event_id, durability, _warnings(warnings))


def rehearsed(event_id: bytes, row: bytes, warnings: Sequence[Warning]) -> bytes:
    """Of one event that would be accepted. `row` is what would be stored, as JSON."""
    return b'{"success":true,"dry_run":true,"event_id":"%b","durability":"none","row":%b%b}' % (
        event_id,
        row,
        _warnings(warnings),
    )


def batch(success: bool, results: bytes, warnings: Sequence[Warning], *, dry_run: bool = False) -> bytes:
    """Of many events: one result each, in order, with commas between them."""
    return b'{"success":%b,%b"results":[%b]%b}' % (
        b"true" if success else b"false",
        b'"dry_run":true,' if dry_run else b"",
        results,
        _warnings(warnings),
    )


def accepted_results(event_ids: Sequence[bytes], durability: bytes) -> bytes:
    """Of all events of a batch, if there is nothing else to say: a tenth of the cost of one by one."""
    return _accepted_results(len(event_ids), durability) % tuple(event_ids)


@lru_cache(maxsize=16)  # of at most 85 bytes an event
def _accepted_results(events: int, durability: bytes) -> bytes:
    return b",".join([accepted_result(index, b"%b", durability, ()) for index in range(events)])


def accepted_result(index: int, event_id: bytes, durability: bytes, warnings: Sequence[Warning]) -> bytes:
    return b'{"index":%d,"status":"accepted","event_id":"%b","durability":"%b"%b}' % (
        index,
        event_id,
        durability,
        _warnings(warnings),
    )


def rehearsed_result(index: int, event_id: bytes, row: bytes, warnings: Sequence[Warning]) -> bytes:
    return b'{"index":%d,"status":"accepted","event_id":"%b","durability":"none","row":%b%b}' % (
        index,
        event_id,
        row,
        _warnings(warnings),
    )


def rejected_result(index: int, detail: Sequence[Detail]) -> bytes:
    """The event is at fault: to send it again is of no use."""
    return orjson.dumps({"index": index, "status": "rejected", "detail": detail})


def unavailable_result(index: int, event_id: bytes, error: dict[str, Any]) -> bytes:
    """Nothing is wrong with the event: it is to be sent again, best with this id as its own."""
    return orjson.dumps({"index": index, "status": "unavailable", "event_id": event_id.decode(), "error": error})


def _warnings(warnings: Sequence[Warning]) -> bytes:
    """A further member of an object, or nothing."""
    if not warnings:
        return b""
    return b',"warnings":%b' % orjson.dumps([warning._asdict() for warning in warnings])
