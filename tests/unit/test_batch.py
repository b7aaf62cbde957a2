"""Batches: ranges are contiguous, every row is in exactly one, limits close them."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from consumer.batch import Batch, Filling, Limits, Range

LIMITS = Limits(rows_max=3, bytes_max=10_000, age_s=1.0)


@dataclass
class Record:
    offset: int
    value: bytes | None = b'{"event_id":"x"}'
    timestamp: int = 0
    key: bytes | None = b"x"
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def records(*offsets: int) -> list[Record]:
    return [Record(offset) for offset in offsets]


def test_a_row_is_the_record_with_its_coordinates() -> None:
    filling = Filling(2, 7, LIMITS)
    filling.add([Record(7, b'{"event_id":"a","extra":{}}', 1_000)], now=0)
    batch = filling.take()
    assert batch.block.rows == [b'{"event_id":"a","extra":{},"kafka_partition":2,"kafka_offset":7}\n']
    assert (batch.range, batch.block.offsets, batch.newest_ms) == (Range(7, 8), [7], 1_000)


def test_offsets_without_a_record_belong_to_a_range_too() -> None:
    filling = Filling(0, 10, LIMITS)
    filling.add(records(12, 15), now=0)
    filling.skip_to(20)
    assert filling.take().range == Range(10, 20)
    filling.skip_to(25)
    batch = filling.take()
    assert (batch.range, batch.block.rows) == (Range(20, 25), [])


def test_what_was_seen_is_skipped() -> None:
    filling = Filling(0, 5, LIMITS)
    filling.add(records(3, 4, 5), now=0)
    filling.add(records(5, 6), now=0)
    assert filling.take().block.offsets == [5, 6]


def test_closes_by_rows_and_keeps_the_rest() -> None:
    filling = Filling(0, 0, LIMITS)
    filling.add(records(*range(8)), now=0)
    assert filling.full
    assert [filling.take().range for _ in range(3)] == [Range(0, 3), Range(3, 6), Range(6, 8)]
    assert filling.empty
    assert filling.bytes == 0


def test_closes_by_bytes() -> None:
    filling = Filling(0, 0, Limits(rows_max=100, bytes_max=1_000, age_s=1.0))
    filling.add([Record(offset, b'{"query":"%b"}' % (b"q" * 500)) for offset in range(5)], now=0)
    assert filling.full
    assert filling.take().range == Range(0, 2)


def test_closes_by_age_of_its_first_row() -> None:
    filling = Filling(0, 0, LIMITS)
    filling.add(records(0), now=10.0)
    filling.add(records(1), now=10.9)
    assert not filling.full
    assert filling.ready_at() == 11.0
    filling.take()
    filling.add(records(2), now=12.0)
    assert filling.ready_at() == 13.0


def test_a_replay_is_cut_where_its_intent_says_whatever_the_limits() -> None:
    filling = Filling(0, 0, LIMITS)
    filling.add(records(*range(10)), now=0)
    assert filling.take(end=7).range == Range(0, 7)
    assert filling.take(end=8).range == Range(7, 8)


def test_what_is_no_object_is_set_apart() -> None:
    filling = Filling(0, 0, LIMITS)
    filling.add([Record(0, None), Record(1, b""), Record(2, b"[1]"), Record(3), Record(4, b'{"cut":')], now=0)
    batch = filling.take()
    assert (batch.block.offsets, batch.malformed, batch.range) == ([3], [0, 1, 2, 4], Range(0, 5))


def test_the_fingerprint_is_the_first_records_and_ignores_its_coordinates() -> None:
    def fingerprint(partition: int, value: bytes) -> int:
        filling = Filling(partition, 0, LIMITS)
        filling.add([Record(0, value), Record(1)], now=0)
        return filling.take().fingerprint

    assert fingerprint(0, b'{"event_id":"a"}') == fingerprint(1, b'{"event_id":"a"}')
    assert fingerprint(0, b'{"event_id":"a"}') != fingerprint(0, b'{"event_id":"b"}')


@given(
    gaps=st.lists(st.integers(1, 4), max_size=60),
    feeds=st.lists(st.integers(1, 15), min_size=1, max_size=20),
    rows_max=st.integers(1, 7),
    malformed=st.sets(st.integers(0, 240)),
)
def test_every_record_is_in_exactly_one_range(
    gaps: list[int], feeds: list[int], rows_max: int, malformed: set[int]
) -> None:
    offsets = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    log = [Record(o, b"broken" if o in malformed else b'{"event_id":"%d"}' % o) for o in offsets]
    filling = Filling(1, 0, Limits(rows_max, 10_000, 1.0))
    batches: list[Batch] = []
    while log or not filling.empty:
        size = feeds[len(batches) % len(feeds)]
        filling.add(log[:size], now=0)
        log = log[size:]
        if filling.full or not log:
            batches.append(filling.take())
    assert [o for b in batches for o in sorted(b.block.offsets + b.malformed)] == offsets
    position = 0
    for batch in batches:
        assert batch.range.first == position
        position = batch.range.end
        assert len(batch.block.rows) <= rows_max
        assert all(batch.range.first <= o < batch.range.end for o in batch.block.offsets + batch.malformed)
