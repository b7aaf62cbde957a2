"""Which records are repeats: a function of the log, wherever one begins to read it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from consumer.batch import Filling, Limits, Range, Suspect
from consumer.repeats import ID_BYTES_MAX, MARGIN_SLOTS, SLOT_MS, Checkpoint, Window, reach_slots
from consumer.settings import ConsumerSettings

LIMITS = Limits(rows_max=1_000, bytes_max=1_000_000, age_s=1.0)
WINDOW_S = 60
REACH_MS = reach_slots(WINDOW_S) * SLOT_MS
NOW_MS = 1_795_328_400_000
DEMO, SHOP = ("dedupe", b"demo"), ("dedupe", b"shop")
REPLAY = ("replay", b"1")

Headers = list[tuple[str, bytes]]


@dataclass
class Record:
    offset: int
    key: bytes | None = b"k"
    headers: Headers = field(default_factory=list)
    timestamp: int = NOW_MS
    value: bytes | None = b"{}"


def window(start: Checkpoint | None = None, ids_max: int = 1_000) -> Window:
    return Window(WINDOW_S, ids_max, start or Checkpoint(0, 0))


def fed(*records: Record, ids_max: int = 1_000) -> Filling:
    filling = Filling(0, 0, LIMITS, window(ids_max=ids_max))
    filling.add(records, now=0)
    return filling


def kept(*marks: tuple[bytes, Headers]) -> list[int]:
    """Indices of those that are no repeats, of records in a row with these keys and headers."""
    return fed(*(Record(offset, *mark) for offset, mark in enumerate(marks))).take().block.offsets


def test_a_marked_id_is_a_row_once() -> None:
    batch = fed(*(Record(offset, b"a", [DEMO]) for offset in range(3))).take()
    assert (batch.range, batch.block.offsets, batch.repeats, batch.suspects) == (Range(0, 3), [0], [1, 2], [])


def test_equal_ids_of_two_owners_are_two_events() -> None:
    assert kept((b"a", [DEMO]), (b"a", [SHOP]), (b"a", [DEMO]), (b"a", [SHOP])) == [0, 1]


def test_what_carries_no_mark_is_never_a_repeat_of_another_such() -> None:
    assert kept((b"a", []), (b"a", []), (b"a", [DEMO]), (b"a", [])) == [0, 1, 2, 3]


def test_a_replay_is_a_row_once_and_its_first_copy_may_come_behind_it() -> None:
    batch = fed(*(Record(o, b"u", h) for o, h in enumerate([[REPLAY], [], [REPLAY], []])), Record(4, b"other")).take()
    assert (batch.block.offsets, batch.repeats) == ([0, 4], [1, 2, 3])
    assert batch.suspects == [Suspect(0, is_callers=False)]


def test_a_replay_with_a_callers_id_is_of_that_id() -> None:
    assert kept((b"a", [DEMO, REPLAY]), (b"a", [DEMO]), (b"a", []), (b"a", [REPLAY]), (b"a", [SHOP, REPLAY])) == [
        0,
        2,  # not of a replay of ours
        3,
        4,
    ]
    batch = fed(Record(0, b"a", [DEMO, REPLAY])).take()
    assert batch.suspects == [Suspect(0, is_callers=True)]


@pytest.mark.parametrize(
    "record",
    [
        Record(0, None, [DEMO]),
        Record(0, b"", [DEMO]),
        Record(0, b"k" * ID_BYTES_MAX, [DEMO]),
        Record(0, b"k", [("dedupe", b"de\0mo")]),
        Record(0, b"k", [("dedupe", b"")]),
        Record(0, b"k", [("traceparent", b"1")]),
        Record(0, b"k", [DEMO], value=b"no object"),
    ],
)
def test_what_is_no_mark_of_a_gateways_marks_nothing(record: Record) -> None:
    filling = Filling(0, 0, LIMITS, ids := window())
    filling.add([record], now=0)
    assert ids.ids == 0
    assert filling.take().repeats == []


def test_an_id_is_remembered_for_the_window_and_a_margin_of_log_time() -> None:
    begin = NOW_MS // SLOT_MS * SLOT_MS
    within, beyond = begin + REACH_MS + SLOT_MS - 1, begin + REACH_MS + SLOT_MS
    assert within - begin >= (WINDOW_S + MARGIN_SLOTS * 60) * 1_000
    for later, offsets in ((within, [0]), (beyond, [0, 1])):
        batch = fed(Record(0, b"a", [DEMO], begin), Record(1, b"a", [DEMO], later)).take()
        assert batch.block.offsets == offsets
    # Any record makes time pass, and none turns it back.
    batch = fed(
        Record(0, b"a", [DEMO], begin), Record(1, timestamp=beyond, value=b"x"), Record(2, b"a", [DEMO], begin)
    ).take()
    assert batch.block.offsets == [0, 2]


def test_a_repeat_is_remembered_as_long_as_a_first_copy() -> None:
    """Whoever begins to read at the repeat takes it for one."""
    records = [Record(n, b"a", [DEMO], NOW_MS + n * REACH_MS) for n in range(5)]
    assert fed(*records).take().block.offsets == [0]


def test_ids_beyond_the_most_are_forgotten_oldest_first() -> None:
    ids = window(ids_max=2)
    filling = Filling(0, 0, LIMITS, ids)
    filling.add([Record(n, key, [DEMO]) for n, key in enumerate([b"a", b"b", b"a", b"c", b"b", b"a"])], now=0)
    # `a` came again before `c` pushed `b` out; `b` then pushed `a` out.
    assert filling.take().block.offsets == [0, 1, 3, 4, 5]
    assert (ids.ids, ids.forgotten) == (2, 3)


def test_ids_of_long_ago_are_forgotten_whenever_anything_comes() -> None:
    for count in (1, 2):  # all at once, and one by one
        ids = window()
        filling = Filling(0, 0, LIMITS, ids)
        filling.add([Record(n, b"a%d" % n, [REPLAY], NOW_MS + n * SLOT_MS) for n in range(count)], now=0)
        assert (ids.ids, len(ids.replayed)) == (count, count)
        filling.add([Record(9, timestamp=NOW_MS + REACH_MS + SLOT_MS)], now=0)
        assert (ids.ids, ids.replayed) == (count - 1, {b"a1"} if count == 2 else set())


@pytest.mark.parametrize(("seconds", "is_allowed"), [(-1, False), (0, True), (59, False), (60, True), (604_801, False)])
def test_the_window_is_a_minute_at_least_or_none(seconds: int, is_allowed: bool) -> None:
    with contextlib.nullcontext() if is_allowed else pytest.raises(ValidationError):
        assert ConsumerSettings(dedupe_window_s=seconds).dedupe_window_s == seconds


def test_repeats_fill_a_batch_too() -> None:
    """Else a flood of them, while ClickHouse is away, would have no bound."""
    filling = fed(*(Record(n, b"a", [DEMO]) for n in range(LIMITS.rows_max + 1)))
    assert filling.full
    assert len(filling.take().repeats) == LIMITS.rows_max
    assert filling.empty


def test_without_a_window_marks_mean_nothing() -> None:
    filling = Filling(0, 0, LIMITS)
    filling.add([Record(n, b"a", [DEMO, REPLAY]) for n in range(3)], now=0)
    batch = filling.take()
    assert (batch.block.offsets, batch.repeats, batch.suspects) == ([0, 1, 2], [], [])
    assert filling.checkpoint(3) is None


def test_a_batch_without_some_of_its_rows_is_the_same_range() -> None:
    batch = fed(*(Record(n, b"%d" % n) for n in range(4))).take()
    rest = batch.without({1, 2})
    assert (rest.range, rest.fingerprint, rest.block.offsets) == (batch.range, batch.fingerprint, [0, 3])
    assert rest.block.rows == [batch.block.rows[0], batch.block.rows[3]]


def test_nothing_is_read_back_where_nothing_is_marked() -> None:
    filling = fed(*(Record(n, b"%d" % n) for n in range(10)))
    assert filling.take(end=4).range == Range(0, 4)
    assert filling.checkpoint(4) == Checkpoint(4, NOW_MS // SLOT_MS)
    filling.add([Record(10, b"a", [DEMO])], now=0)
    assert filling.checkpoint(10) == Checkpoint(10, NOW_MS // SLOT_MS)
    assert filling.checkpoint(11) == Checkpoint(10, NOW_MS // SLOT_MS)
    # Long ago does not count, even if nothing marked came since.
    filling.add([Record(11, b"x", timestamp=NOW_MS + REACH_MS + SLOT_MS)], now=0)
    assert filling.checkpoint(11).offset == 10  # type: ignore[union-attr]
    assert filling.checkpoint(12).offset == 12  # type: ignore[union-attr]


def test_the_time_of_a_log_is_restored_although_what_made_it_is_not_read_back() -> None:
    """A clock was ahead, once: it counts for as long as no other record is newer."""
    log = [
        Record(0, b"x", timestamp=NOW_MS + REACH_MS // 2),
        Record(1, b"a", [DEMO]),
        Record(2, b"y"),
        Record(3, b"a", [DEMO], NOW_MS + REACH_MS + SLOT_MS),
    ]
    filling = fed(*log)
    checkpoint = filling.checkpoint(2)
    assert checkpoint == Checkpoint(1, (NOW_MS + REACH_MS // 2) // SLOT_MS)
    successor = Filling(0, 2, LIMITS, window(checkpoint))
    for record in log[1:]:
        successor.add([record], now=0)
    assert successor.take().repeats == filling.take().repeats == [3]


def test_time_does_not_go_back_behind_what_was_read_back() -> None:
    ids = window(Checkpoint(0, NOW_MS // SLOT_MS))
    filling = Filling(0, 1, LIMITS, ids)
    filling.add([Record(0, timestamp=NOW_MS + REACH_MS), Record(1, timestamp=NOW_MS + REACH_MS // 2)], now=0)
    assert ids.due_ms > NOW_MS + REACH_MS


def test_not_more_is_read_back_than_may_be_remembered() -> None:
    filling = Filling(0, 0, LIMITS, window(ids_max=2))
    filling.add([Record(n, b"%d" % n, [DEMO], NOW_MS + n * SLOT_MS) for n in range(5)], now=0)
    assert filling.checkpoint(2).offset == 0  # type: ignore[union-attr]
    assert filling.checkpoint(5).offset == 2  # type: ignore[union-attr]


def test_what_lies_before_the_range_is_only_remembered() -> None:
    filling = Filling(0, 5, LIMITS, window(Checkpoint(2, 0)))
    assert (filling.position, filling.behind, filling.empty) == (2, 3, True)
    filling.add([Record(2, b"a", [DEMO]), Record(3, b"b")], now=0)
    assert (filling.position, filling.behind, filling.empty, filling.bytes) == (4, 1, True, 0)
    filling.add([Record(3, b"a"), Record(4, b"c", [DEMO]), Record(5, b"a", [DEMO]), Record(6, b"d")], now=0)
    batch = filling.take()
    assert (batch.range, batch.block.offsets, batch.repeats) == (Range(5, 7), [6], [5])


def test_reading_back_ends_where_kafka_holds_nothing_more() -> None:
    filling = Filling(0, 5, LIMITS, window(Checkpoint(2, 0)))
    filling.skip_to(5)
    assert (filling.behind, filling.empty) == (0, True)
    filling.skip_to(6)
    assert filling.take().range == Range(5, 6)


# For any log: what is a repeat is what the definition says, read from the beginning, or from any checkpoint.

bounded = settings(max_examples=400, derandomize=True, deadline=None, database=None)

marks = st.sampled_from([[], [], [DEMO], [DEMO], [SHOP], [REPLAY], [DEMO, REPLAY]])
keys = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
# Mostly onwards, at times far; a replay carries a time of long ago, and another gateway's clock is ahead.
steps_ms = st.sampled_from([0, 20_000, 60_000, REACH_MS // 2, REACH_MS // 2, REACH_MS, REACH_MS + 60_000])
skews_ms = st.sampled_from([0, 0, 0, -20_000, -REACH_MS, -10 * REACH_MS, REACH_MS // 2, REACH_MS])
values = st.sampled_from([b"{}", b"{}", b"{}", b"broken"])
logs = st.lists(st.tuples(st.integers(1, 3), keys, marks, steps_ms, skews_ms, values), max_size=40)


def log_of(drawn: list[tuple[int, bytes, Headers, int, int, bytes]]) -> list[Record]:
    log, offset, now_ms = [], -1, NOW_MS
    for gap, key, headers, step_ms, skew_ms, value in drawn:
        offset, now_ms = offset + gap, now_ms + step_ms
        log.append(Record(offset, key, headers, now_ms + skew_ms, value))
    return log


def repeats_by_definition(log: Sequence[Record], ids_max: int) -> set[int]:
    """Slow and plain: the last record of the same id lies not too far back, in log time and in ids."""
    found = set()
    reach = reach_slots(WINDOW_S)
    slots = [max(record.timestamp for record in log[: n + 1]) // SLOT_MS for n in range(len(log))]

    def scoped(record: Record) -> tuple[bytes, bytes | None] | None:
        """Of a marked record."""
        if record.value == b"broken":
            return None
        owner = dict(record.headers).get("dedupe")
        return (owner or b"", record.key) if record.headers else None

    for n, record in enumerate(log):
        if record.value == b"broken":
            continue
        wanted = scoped(record) or (b"", record.key)
        since: set[tuple[bytes, bytes | None]] = set()
        for earlier in range(n - 1, -1, -1):
            id_ = scoped(log[earlier])
            if slots[n] - slots[earlier] > reach or len(since) == ids_max:
                break
            if id_ == wanted:
                found.add(record.offset)
                break
            since |= {id_} if id_ else set()
    return found


@bounded
@given(drawn=logs, ids_max=st.integers(1, 4))
def test_a_repeat_is_what_the_definition_says(
    drawn: list[tuple[int, bytes, Headers, int, int, bytes]], ids_max: int
) -> None:
    log = log_of(drawn)
    batch = fed(*log, ids_max=ids_max).take()
    assert set(batch.repeats) == repeats_by_definition(log, ids_max)
    assert sorted(batch.block.offsets + batch.repeats + batch.malformed) == [record.offset for record in log]


@bounded
@given(
    drawn=logs,
    ids_max=st.integers(1, 4),
    feeds=st.lists(st.integers(1, 15), min_size=1, max_size=10),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=10),
)
def test_whoever_begins_at_a_checkpoint_finds_the_same_repeats(
    drawn: list[tuple[int, bytes, Headers, int, int, bytes]], ids_max: int, feeds: list[int], cuts: list[int]
) -> None:
    """However far ahead of the batch its records were read, and from any of those checkpoints in turn."""
    log = log_of(drawn)
    whole = set(fed(*log, ids_max=ids_max).take().repeats)
    filling = Filling(0, 0, LIMITS, window(ids_max=ids_max))
    fed_count = turn = first = 0
    end_of_log = log[-1].offset + 1 if log else 0
    while first < end_of_log:
        end = min(first + cuts[turn % len(cuts)], end_of_log)
        while filling.position < end:
            size = feeds[turn % len(feeds)]
            filling.add(log[fed_count : fed_count + size], now=0)
            fed_count += size
        turn += 1
        checkpoint = filling.checkpoint(first)
        assert checkpoint is not None
        assert checkpoint.offset <= first
        filling.take(end)
        successor = Filling(0, first, LIMITS, window(checkpoint, ids_max))
        successor.add([record for record in log if record.offset >= checkpoint.offset], now=0)
        assert set(successor.take(end_of_log).repeats) == {offset for offset in whole if offset >= first}
        if turn % 3 == 0:  # goes on in its place
            filling = Filling(0, end, LIMITS, window(filling.checkpoint(end), ids_max))
            filling.add([record for record in log[:fed_count] if record.offset >= filling.position], now=0)
            filling.skip_to(end)
        first = end


@bounded
@given(drawn=logs, ids_max=st.integers(1, 4), cut=st.integers(0, 40), guess=st.integers(0, 39))
def test_whoever_begins_by_time_finds_the_same_repeats(
    drawn: list[tuple[int, bytes, Headers, int, int, bytes]], ids_max: int, cut: int, guess: int
) -> None:
    """From the first record that is as new as the window's beginning, by the time of any record before."""
    log = log_of(drawn)
    cut = min(cut, len(log))
    if not cut:
        return
    whole = set(fed(*log, ids_max=ids_max).take().repeats)
    oldest_ms = (log[min(guess, cut - 1)].timestamp // SLOT_MS - reach_slots(WINDOW_S)) * SLOT_MS
    start = next(record.offset for record in log if record.timestamp >= oldest_ms)
    first = log[cut].offset if cut < len(log) else log[-1].offset + 1
    filling = Filling(0, first, LIMITS, window(Checkpoint(min(start, first), 0), ids_max))
    filling.add([record for record in log if record.offset >= start], now=0)
    assert set(filling.take(log[-1].offset + 1 if cut < len(log) else first).repeats) == {
        offset for offset in whole if offset >= first
    }
