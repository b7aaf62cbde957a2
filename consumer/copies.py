"""Finds copies of events in a table: rows of the same event under other Kafka coordinates.

For what the window of `repeats` cannot tell: a replay from a gateway's spool may be older than the window, and its
first copy carries no mark. And for audits, where a record has no row. An event is its id, its owner and when it was
received: for an id of ours to the millisecond, for a caller's id about then, because each copy has its own time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from consumer.batch import Batch
from consumer.clickhouse import ClickHouse
from consumer.repeats import ID_BYTES_MAX
from schemas.streams import STREAMS

LOOKUP_IDS = 1_000  # in one query
LOOKUP_SPAN_MS = 3_600_000  # of what one query asks for by range, so that it reads few granules

OWNERS = {stream.name: stream.owner for stream in STREAMS}


@dataclass(frozen=True)
class Sought:
    """An event at the Kafka coordinates of its record. `within_ms` is how much sooner or later a copy of it may have
    been received; None: at any time, which reads all of the owner's rows. A record without a mark is no repeat but of
    a replay that lies before it."""

    partition: int
    offset: int
    event_id: str
    owner: str
    received_ms: int
    within_ms: int | None = 0
    is_marked: bool = True


def sought(topic: str, partition: int, offset: int, value: bytes, within_ms: int | None) -> Sought | None:
    """The event in a row or a record's value; None if it is none of a gateway's."""
    try:
        document = orjson.loads(value)
        event_id, owner = document["event_id"], document[OWNERS[topic]]
        received = datetime.fromisoformat(document["received_at"])
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(event_id, str) or not isinstance(owner, str) or len(event_id) + len(owner) > ID_BYTES_MAX:
        return None
    if received.tzinfo is None:
        received = received.replace(tzinfo=UTC)
    return Sought(partition, offset, event_id, owner, round(received.timestamp() * 1000), within_ms)


def suspected(topic: str, partition: int, batch: Batch, within_ms: int) -> list[Sought]:
    """The events of a batch's suspects; `within_ms` is for callers' ids."""
    if not batch.suspects:
        return []
    is_callers = dict(batch.suspects)
    return [
        event
        for offset, row in zip(batch.block.offsets, batch.block.rows, strict=True)
        if offset in is_callers
        and (event := sought(topic, partition, offset, row, within_ms if is_callers[offset] else 0))
    ]


def held_by_batch(topic: str, batch: Batch, events: Sequence[Sought]) -> set[Sought]:
    """Those of the events that an earlier row of their own batch is. Only of ids of ours: a caller's carry a mark in
    every copy, so the window has told them already."""
    wanted = {event.event_id.encode(): event for event in events if event.within_ms == 0}
    found: set[Sought] = set()
    if not wanted:
        return found
    for offset, row in zip(batch.block.offsets, batch.block.rows, strict=True):
        event = wanted.get(_event_id(row))
        if event is not None and offset < event.offset:
            earlier = sought(topic, event.partition, offset, row, 0)
            if earlier and (earlier.owner, earlier.received_ms) == (event.owner, event.received_ms):
                found.add(event)
    return found


def held(clickhouse: ClickHouse, topic: str, events: Sequence[Sought]) -> set[Sought]:
    """Those of the events that the table holds a copy of. Raises ClickHouseUnavailable."""
    found = set()
    for chunk in chunks(events):
        rows: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        for event_id, owner, *rest in clickhouse.query(query(clickhouse.database, topic, chunk)):
            rows.setdefault((event_id, owner), []).append((int(rest[0]), int(rest[1]), int(rest[2])))
        for event in chunk:
            if any(is_copy(event, *row) for row in rows.get((event.event_id, event.owner), ())):
                found.add(event)
    return found


def is_copy(event: Sought, received_ms: int, partition: int, offset: int) -> bool:
    """Whether a row with the event's id and owner is a copy of it. Its own row is not: a range may be sent again."""
    if (partition, offset) == (event.partition, event.offset):
        return False
    if not event.is_marked and (partition != event.partition or offset > event.offset):
        return False
    return event.within_ms is None or abs(received_ms - event.received_ms) <= event.within_ms


def chunks(events: Sequence[Sought]) -> Iterator[list[Sought]]:
    """What one query asks for: one `within_ms`, a short time where that makes a range, not too many."""
    chunk: list[Sought] = []
    for event in sorted(events, key=lambda event: (event.within_ms is None, event.within_ms or 0, event.received_ms)):
        if chunk and (
            len(chunk) == LOOKUP_IDS
            or event.within_ms != chunk[0].within_ms
            or (event.within_ms and event.received_ms > chunk[0].received_ms + LOOKUP_SPAN_MS)
        ):
            yield chunk
            chunk = []
        chunk.append(event)
    if chunk:
        yield chunk


def query(database: str, topic: str, chunk: Sequence[Sought]) -> str:
    """Bounds on what the table is partitioned and ordered by keep it from reading more than it must."""
    owner = OWNERS[topic]
    bounds = [f"{owner} IN ({_texts(event.owner for event in chunk)})"]
    within_ms = chunk[0].within_ms
    if within_ms == 0:
        bounds.append(f"received_at IN ({_texts(_sql_time(event.received_ms) for event in chunk)})")
    elif within_ms is not None:
        first, last = _sql_time(chunk[0].received_ms - within_ms), _sql_time(chunk[-1].received_ms + within_ms)
        bounds.append(f"received_at BETWEEN '{first}' AND '{last}'")
    bounds.append(f"event_id IN ({_texts(event.event_id for event in chunk)})")
    return (
        f"SELECT event_id, {owner}, toUnixTimestamp64Milli(received_at), kafka_partition, kafka_offset "
        f"FROM `{database}`.`{topic}` WHERE {' AND '.join(bounds)}"
    )


def _texts(values: Iterator[str]) -> str:
    quoted = {value.replace("\\", "\\\\").replace("'", "\\'") for value in values}
    return ", ".join(f"'{value}'" for value in sorted(quoted))


def _sql_time(time_ms: int) -> str:
    """Of the column's own zone, UTC."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


_EVENT_ID = b'{"event_id":"'


def _event_id(row: bytes) -> bytes:
    """Of a row as gateways write it, without parsing: there are many, and few are asked for."""
    start = len(_EVENT_ID)
    return row[start : row.find(b'"', start)] if row.startswith(_EVENT_ID) else b""
