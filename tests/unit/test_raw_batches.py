"""Slabs hold what aiokafka's own `PartitionRecords` gives, and lean on names that are still there."""

import gc
import importlib.metadata
import inspect
import struct
import tomllib
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition, conn
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, FetchError, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer import raw_batches
from consumer.raw_batches import SLAB_RECORDS, hand_on_slabs

TP = TopicPartition("t", 3)
NOW_MS = 1_795_328_400_000
ABORT_KEY, COMMIT_KEY = b"\0\0\0\0", b"\0\0\0\1"


def batch(
    offsets: list[int],
    *,
    next_offset: int = 0,
    producer_id: int = -1,
    is_transactional: bool = False,
    control_key: bytes = b"",
    codec: int = 0,
) -> bytes:
    """As it lies in a log; `next_offset` is behind records that compaction has taken from its end."""
    base = offsets[0]
    builder = DefaultRecordBatchBuilder(2, codec, int(is_transactional), producer_id, 0, 0, 1_000_000)
    for offset in offsets:
        headers = [("dedupe", b"demo")] if offset % 3 == 0 else []
        key = control_key or (b"k%d" % offset if offset % 5 else None)
        assert builder.append(offset - base, NOW_MS + offset, key, b'{"n":%d}' % offset, headers)
    made = bytearray(builder.build())
    struct.pack_into(">q", made, 0, base)
    attributes, last_delta = struct.unpack_from(">hi", made, 21)
    struct.pack_into(
        ">hi", made, 21, attributes | (0x20 if control_key else 0), max(last_delta, next_offset - 1 - base)
    )
    struct.pack_into(">I", made, 17, calc_crc32c(bytes(made[21:])))
    return bytes(made)


def partition_records(
    log: bytes, first: int = 0, aborted: list[tuple[int, int]] | None = None, isolation: int = READ_COMMITTED
) -> PartitionRecords:
    return PartitionRecords(TP, MemoryRecords(log), aborted, first, None, None, True, isolation)


def fields(record: Any) -> tuple[Any, ...]:
    return record.offset, record.timestamp, record.key, record.value, list(record.headers)


def slabs_of(fetched: PartitionRecords) -> Any:
    """As a consumer would hand them on."""
    assignment = SimpleNamespace(active=True)
    consumer = SimpleNamespace(_fetcher=SimpleNamespace(_records=OrderedDict()))
    consumer._fetcher._records[TP] = FetchResult(TP, assignment=assignment, partition_records=fetched, backoff=0)
    hand_on_slabs(consumer)
    return consumer._fetcher._records[TP]._partition_records


def test_the_version_is_pinned_and_the_one_that_is_installed() -> None:
    """Private names may move in any release: whoever raises the version runs this file first."""
    project = tomllib.loads(Path(__file__, "../../../pyproject.toml").resolve().read_text())
    [pinned] = [each for each in project["project"]["dependencies"] if each.startswith("aiokafka")]
    assert pinned == f"aiokafka=={importlib.metadata.version('aiokafka')}"


def test_the_private_names_are_where_they_were() -> None:
    """What has moved is in the message; then see whether `consumer/raw_batches.py` still does what it says."""
    moved = []
    parameters = list(inspect.signature(PartitionRecords.__init__).parameters)[1:]
    wanted = (
        "tp records aborted_transactions fetch_offset key_deserializer value_deserializer check_crcs isolation_level"
    )
    if parameters != wanted.split():
        moved.append(f"PartitionRecords.__init__ takes {parameters}")
    made = partition_records(batch([0]))
    attributes = [f"_{name}" for name in wanted.split() if name != "fetch_offset"]
    moved += [
        f"PartitionRecords.{name}"
        for name in (*attributes, "next_fetch_offset", "_unpack_records", "_consumer_record")
        if not hasattr(made, name)
    ]
    result = FetchResult(TP, assignment=None, partition_records=made, backoff=0)
    if getattr(result, "_partition_records", None) is not made:
        moved.append("FetchResult._partition_records")
    moved += [
        f"{owner.__qualname__}: {text}"
        for owner, text in (
            (fetcher.Fetcher, "self._records = collections.OrderedDict()"),
            (fetcher.Fetcher, "self._records[tp] = FetchResult("),
            (PartitionRecords.__init__, "self._records_iterator = self._unpack_records()"),
            (AIOKafkaConsumer, "self._fetcher = Fetcher("),
            (conn.AIOKafkaConnection, "asyncio.StreamReader(limit=READER_LIMIT,"),
            (PartitionRecords._unpack_records, "consumer_record = self._consumer_record(tp, record)"),
            (PartitionRecords._unpack_records, "self.next_fetch_offset = record.offset + 1"),
            (PartitionRecords._unpack_records, "for record in next_batch:"),
        )
        if text not in inspect.getsource(owner)
    ]
    parsed = MemoryRecords(batch([0]))
    moved += [f"MemoryRecords.{name}" for name in ("has_next", "next_batch") if not hasattr(parsed, name)]
    record_batch = parsed.next_batch()
    if not isinstance(record_batch, DefaultRecordBatch) or not hasattr(record_batch, "max_timestamp"):
        moved.append("DefaultRecordBatch.max_timestamp")
    assert not moved, f"aiokafka has moved what consumer/raw_batches.py leans on: {'; '.join(moved)}"


def test_small_batches_are_joined_and_large_ones_cut() -> None:
    """A poll is bounded by their number, whatever the batches are."""
    small, large = [batch([n]) for n in range(3)], batch(list(range(3, 3 + 2 * SLAB_RECORDS)))
    slabs = list(slabs_of(partition_records(b"".join([*small, large, batch([9_000])]))))
    assert [len(slab.records) for slab in slabs] == [SLAB_RECORDS, SLAB_RECORDS, 4]
    assert slabs[-1].newest_ms == NOW_MS + 9_000


def test_positions_move_with_what_is_handed_on() -> None:
    """Else a poll that ends between two slabs would skip records, or give them twice."""
    sizes = [SLAB_RECORDS - 1, 1, SLAB_RECORDS, 5, 3 * SLAB_RECORDS, 2]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    log = b"".join(batch(list(range(first, first + size))) for first, size in zip(starts, sizes, strict=True))
    slabs = slabs_of(partition_records(log))
    for slab in slabs:
        assert slabs.next_fetch_offset == slab.records[-1].offset + 1


def test_a_damaged_batch_is_not_handed_on() -> None:
    damaged = bytearray(batch([1, 2]))
    damaged[-3] ^= 1
    with pytest.raises(CorruptRecordException):
        list(slabs_of(partition_records(batch([0]) + bytes(damaged))))


def test_a_batch_of_an_old_format_tells_its_time_by_its_records() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1_000_000)
    for offset in range(3):
        builder.append(offset, NOW_MS - offset, b"k", b"{}")
    [slab] = slabs_of(partition_records(bytes(builder.build())))
    assert ([record.offset for record in slab.records], slab.newest_ms) == ([0, 1, 2], NOW_MS)


def test_errors_of_fetches_pass_and_so_does_what_comes_later() -> None:
    consumer = SimpleNamespace(_fetcher=SimpleNamespace(_records=OrderedDict()))
    hand_on_slabs(consumer)
    held = consumer._fetcher._records
    held[TP] = error = FetchError(error=ValueError(), backoff=0)
    assert held[TP] is error
    held[TP] = FetchResult(TP, assignment=None, partition_records=partition_records(batch([4, 5])), backoff=0)
    [slab] = held[TP]._partition_records
    assert [record.offset for record in slab.records] == [4, 5]


@pytest.mark.parametrize("is_read", [True, False])
def test_what_is_thrown_away_is_gone_without_the_collector(is_read: bool) -> None:
    """It holds megabytes, and the collector rests."""
    fetched = partition_records(b"".join(batch(list(range(n, n + SLAB_RECORDS))) for n in (0, SLAB_RECORDS)))
    slabs = slabs_of(fetched)
    if is_read:
        next(slabs)
    gone = weakref.ref(fetched), weakref.ref(slabs)
    gc.disable()
    try:
        del fetched, slabs
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


batches = st.lists(
    st.tuples(
        st.sampled_from(["plain", "plain", "committed", "aborted", "commit", "abort"]),
        st.lists(st.integers(1, 3), min_size=1, max_size=6),  # steps between offsets: compaction leaves gaps
        st.integers(0, 2),  # offsets taken from the end
        st.sampled_from([0, 0, 1]),  # codec: none or gzip
    ),
    max_size=12,
)


def logs(drawn: list[tuple[str, list[int], int, int]]) -> Iterator[tuple[bytes, list[tuple[int, int]], int]]:
    offset, log, aborted = 0, b"", []
    for kind, steps, taken, codec in drawn:
        if kind in ("commit", "abort"):
            key = ABORT_KEY if kind == "abort" else COMMIT_KEY
            producer = 7 if kind == "abort" else 8
            log += batch([offset], producer_id=producer, is_transactional=True, control_key=key)
            offset += 1
            continue
        offsets = [offset + sum(steps[:n]) for n in range(len(steps))]
        end = offsets[-1] + 1 + taken
        producer = {"plain": -1, "committed": 8, "aborted": 7}[kind]
        if kind == "aborted":
            aborted.append((7, offset))
        log += batch(offsets, next_offset=end, producer_id=producer, is_transactional=kind != "plain", codec=codec)
        offset = end
    yield log, aborted, offset


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(
    drawn=batches,
    start=st.integers(0, 40),
    isolation=st.sampled_from([READ_COMMITTED, READ_UNCOMMITTED]),
    slab_records=st.integers(1, 10),
)
def test_the_records_are_those_that_aiokafka_gives(
    drawn: list[tuple[str, list[int], int, int]], start: int, isolation: int, slab_records: int
) -> None:
    """Wherever the fetch began; gaps, control records, aborted transactions and compressed batches included."""
    [(log, aborted, end)] = logs(drawn)
    start = min(start, end)
    plain = partition_records(log, start, aborted, isolation)
    expected = [fields(record) for record in plain]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_batches, "SLAB_RECORDS", slab_records)
        slabs = slabs_of(partition_records(log, start, aborted, isolation))
        found = []
        for slab in slabs:
            position = slabs.next_fetch_offset
            assert [r for r in expected if r[0] < position] == found + [fields(record) for record in slab.records]
            assert len(slab.records) <= slab_records
            assert slab.newest_ms >= max(record.timestamp for record in slab.records)
            found += [fields(record) for record in slab.records]
    assert found == expected
    assert slabs.next_fetch_offset == plain.next_fetch_offset


def test_the_control_records_above_are_kafkas() -> None:
    assert ControlRecord.parse(ABORT_KEY) == ABORT_MARKER
    assert ControlRecord.parse(COMMIT_KEY) != ABORT_MARKER
