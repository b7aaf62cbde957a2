"""Which rows are copies of an event, and how the table is asked for them."""

from dataclasses import replace

import pytest

from consumer import copies
from consumer.batch import Batch, Range, Suspect
from consumer.block import Block
from consumer.copies import LOOKUP_IDS, LOOKUP_SPAN_MS, Sought, chunks, held_by_batch, is_copy, query, sought, suspected
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS

TOPIC = APP_INTERACTIONS.name
NOW_MS = 1_795_328_400_123
HOUR_MS = 3_600_000


def row(event_id: str, received_ms: int = NOW_MS, owner: str = "demo") -> bytes:
    return APP_INTERACTIONS.encode({"event_type": "view"}, event_id, owner, received_ms) + b"\n"


def batch_of(*rows: bytes, suspects: list[Suspect]) -> Batch:
    block = Block(0).of(enumerate(rows, 10))
    return Batch(Range(10, 10 + len(rows)), 0, block, [], [], suspects, NOW_MS)


def event(event_id: str = "a", received_ms: int = NOW_MS, within_ms: int | None = 0) -> Sought:
    return Sought(0, 5, event_id, "demo", received_ms, within_ms)


def test_an_event_is_read_from_its_row() -> None:
    assert sought(TOPIC, 0, 5, row("a"), 7) == Sought(0, 5, "a", "demo", NOW_MS, 7)
    value = RETRIEVER_INTERACTIONS.encode({"document_id": "d"}, "b", "shop", NOW_MS)
    assert sought(RETRIEVER_INTERACTIONS.name, 0, 5, value, 0) == Sought(0, 5, "b", "shop", NOW_MS)
    without_zone = b'{"event_id":"a","app":"demo","received_at":"2026-11-22 06:20:00.123"}'
    assert sought(TOPIC, 0, 5, without_zone, 0) == Sought(0, 5, "a", "demo", NOW_MS)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[1]",
        b"{",
        b"{}",
        b'{"event_id":"a","app":"demo"}',
        b'{"event_id":"a","app":"demo","received_at":17}',
        b'{"event_id":"a","app":"demo","received_at":"then"}',
        b'{"event_id":1,"app":"demo","received_at":"2026-11-22T06:20:00Z"}',
        b'{"event_id":"a","app":null,"received_at":"2026-11-22T06:20:00Z"}',
        b'{"event_id":"%b","app":"demo","received_at":"2026-11-22T06:20:00Z"}' % (b"a" * 300),
    ],
)
def test_what_is_no_event_of_a_gateways_is_not_sought(value: bytes) -> None:
    assert sought(TOPIC, 0, 5, value, 0) is None


def test_a_copy_has_other_coordinates_and_was_received_then() -> None:
    assert is_copy(event(), NOW_MS, 0, 4)
    assert is_copy(event(), NOW_MS, 1, 5)
    assert not is_copy(event(), NOW_MS, 0, 5)
    assert not is_copy(event(), NOW_MS + 1, 0, 4)
    assert is_copy(event(within_ms=HOUR_MS), NOW_MS - HOUR_MS, 0, 4)
    assert not is_copy(event(within_ms=HOUR_MS), NOW_MS + HOUR_MS + 1, 0, 4)
    assert is_copy(event(within_ms=None), 0, 0, 4)
    unmarked = replace(event(), is_marked=False)
    assert is_copy(unmarked, NOW_MS, 0, 4)
    assert not is_copy(unmarked, NOW_MS, 0, 6)
    assert not is_copy(unmarked, NOW_MS, 1, 4)


def test_a_query_asks_for_so_many_of_one_kind_and_a_short_time() -> None:
    events = [event(str(n), NOW_MS + n * HOUR_MS) for n in range(LOOKUP_IDS + 1)]
    assert [len(chunk) for chunk in chunks(events)] == [LOOKUP_IDS, 1]
    events = [event(str(n), NOW_MS - n * LOOKUP_SPAN_MS // 4, HOUR_MS) for n in range(10)]
    assert [len(chunk) for chunk in chunks(events)] == [5, 5]
    assert [[e.within_ms for e in chunk] for chunk in chunks([event(within_ms=w) for w in (None, 5, 0)])] == [
        [0],
        [5],
        [None],
    ]
    assert list(chunks([])) == []


def test_a_query_is_bounded_by_what_the_table_is_ordered_by() -> None:
    asked = query("db", TOPIC, [event("it's\\"), event("b", NOW_MS + 1_000)])
    assert "FROM `db`.`app_interactions` WHERE app IN ('demo')" in asked
    assert "AND received_at IN ('2026-11-22 06:20:00.123', '2026-11-22 06:20:01.123')" in asked
    assert "AND event_id IN ('b', 'it\\'s\\\\')" in asked
    asked = query("db", TOPIC, [event("a", within_ms=1_000), event("b", NOW_MS + 1_000, 1_000)])
    assert "received_at BETWEEN '2026-11-22 06:19:59.123' AND '2026-11-22 06:20:02.123'" in asked
    assert "received_at BETWEEN" not in query("db", TOPIC, [event(within_ms=None)])
    assert "retriever IN" in query("db", RETRIEVER_INTERACTIONS.name, [event()])


def test_only_suspects_are_sought() -> None:
    batch = batch_of(row("a"), row("b"), row("c"), suspects=[Suspect(10, False), Suspect(12, True)])
    assert suspected(TOPIC, 3, batch, HOUR_MS) == [
        Sought(3, 10, "a", "demo", NOW_MS, 0),
        Sought(3, 12, "c", "demo", NOW_MS, HOUR_MS),
    ]
    assert suspected(TOPIC, 3, batch_of(row("a"), suspects=[]), HOUR_MS) == []
    assert suspected(TOPIC, 3, batch_of(b"{}\n", suspects=[Suspect(10, False)]), HOUR_MS) == []


def test_an_earlier_row_of_the_batch_is_a_copy_too() -> None:
    suspects = [Suspect(11, False), Suspect(13, False), Suspect(15, False)]
    batch = batch_of(
        row("a"), row("a"), row("b", NOW_MS + 1), row("b"), b'{"odd":1}\n', row("c"), row("c"), suspects=suspects
    )
    events = suspected(TOPIC, 0, batch, HOUR_MS)
    # Not `b`, which was received at another time, nor `c`, whose copy comes later.
    assert {found.offset for found in held_by_batch(TOPIC, batch, events)} == {11}


def test_what_the_table_holds_is_found() -> None:
    class Table:
        database = "db"

        def query(self, _: str) -> list[tuple[object, ...]]:
            return [("a", "demo", NOW_MS, 0, 4), ("b", "demo", NOW_MS, 0, 5), ("c", "shop", NOW_MS, 0, 4)]

    events = [event("a"), event("b"), event("c"), event("d")]
    assert copies.held(Table(), TOPIC, events) == {event("a")}  # type: ignore[arg-type]
