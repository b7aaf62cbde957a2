"""Records by the slab instead of one by one: the only module that leans on private names of aiokafka.

For each record `getmany` makes a ConsumerRecord, walks a generator and notes a position: two thirds of what a row costs
its consumer. What parses a record batch is compiled, and quick. So a batch is handed on as the list that it is parsed
into, small ones joined and large ones cut to slabs. CRCs, aborted transactions, control records, gaps and positions are
left to aiokafka's own code, which takes each batch here for one record, at its last offset.

The version is pinned, and `tests/unit/test_raw_batches.py` says what has moved when another one is tried.
"""

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition, conn
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords

SLAB_RECORDS = 500
"""More would not fit the processor's cache when rows are made of it."""


@dataclass(frozen=True, slots=True)
class Slab:
    """1 to SLAB_RECORDS records of one partition, in order of offset.

    They have `offset`, `timestamp`, `key`, `value` and `headers`, as aiokafka's parser makes them. `newest_ms` is
    the newest of their timestamps, or of those of their batches.
    """

    records: list[Any]
    newest_ms: int


def read_without_pauses(bytes_max: int) -> None:
    """Connections made from now on take an answer of so many bytes as it comes. aiokafka's stop listening to the
    socket whenever 128 KiB are there, and begin again at once, for it wants the whole answer: a tenth of what reading
    costs. What is buffered is an answer at most, as before."""
    conn.READER_LIMIT = bytes_max // 2  # asyncio's streams pause at twice their limit


def hand_on_slabs(consumer: AIOKafkaConsumer) -> None:
    """From now on `getmany` gives Slabs, and its `max_records` counts them. For a consumer that has been started,
    of which nothing has been read."""
    fetcher = consumer._fetcher
    fetcher._records = _Fetched(fetcher._records)


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What the fetcher holds for its reader: results of fetches, and errors."""

    def __setitem__(self, partition: TopicPartition, result: Any) -> None:
        if type(result) is FetchResult:
            result._partition_records = _Slabs(result._partition_records)
        super().__setitem__(partition, result)


class _Slabs(PartitionRecords):  # type: ignore[misc]
    def __init__(self, fetched: PartitionRecords) -> None:
        fetched._records_iterator = None  # would keep itself, and all that was fetched, until the collector comes
        super().__init__(
            fetched._tp,
            _Batches(fetched._records),
            fetched._aborted_transactions,
            fetched.next_fetch_offset,
            fetched._key_deserializer,
            fetched._value_deserializer,
            fetched._check_crcs,
            fetched._isolation_level,
        )

    def _unpack_records(self) -> Iterator[Slab]:
        return _slabs(weakref.proxy(self))  # for the same reason: what is paused is thrown away half read

    def _consumer_record(self, tp: TopicPartition, batch: "_Batch") -> Slab:
        """What aiokafka would make a ConsumerRecord of. A batch may begin before the offset that was asked for."""
        records, first = batch.records, self.next_fetch_offset
        if records[0].offset < first:
            records = [record for record in records if record.offset >= first]
        newest_ms = batch.newest_ms
        return Slab(records, max(r.timestamp or 0 for r in records) if newest_ms is None else newest_ms)


def _slabs(fetched: Any) -> Iterator[Slab]:
    """Whenever something is yielded, `next_fetch_offset` is behind it, and before what is left of its batch."""
    records: list[Any] = []
    newest_ms = -1
    for batch in PartitionRecords._unpack_records(fetched):
        records += batch.records
        newest_ms = max(newest_ms, batch.newest_ms)
        behind = fetched.next_fetch_offset
        while len(records) > SLAB_RECORDS:
            head, records = records[:SLAB_RECORDS], records[SLAB_RECORDS:]
            fetched.next_fetch_offset = records[0].offset
            yield Slab(head, newest_ms)
        fetched.next_fetch_offset = behind
        if len(records) == SLAB_RECORDS:
            yield Slab(records, newest_ms)
            records, newest_ms = [], -1
    if records:
        yield Slab(records, newest_ms)


class _Batches:
    """aiokafka's MemoryRecords, as far as `PartitionRecords` asks."""

    def __init__(self, parsed: Any) -> None:
        self.has_next = parsed.has_next
        self._next_batch = parsed.next_batch

    def next_batch(self) -> "_Batch":
        return _Batch(self._next_batch())


class _Batch:
    """A record batch that iterates as if it were one record, at the last offset; or none, if it has none left."""

    def __init__(self, parsed: Any) -> None:
        self._parsed = parsed
        self.records: list[Any] = []
        self.offset = -1

    def __getattr__(self, name: str) -> Any:
        """What `PartitionRecords` asks of a batch besides its records."""
        return getattr(self._parsed, name)

    def __next__(self) -> Any:
        """Of a control batch: its marker."""
        return next(self._parsed)

    def __iter__(self) -> "Iterator[_Batch]":
        self.records = list(self._parsed)
        if self.records:
            self.offset = self.records[-1].offset
            yield self

    @property
    def newest_ms(self) -> int | None:
        """As the broker has noted it; None for the formats before 2, which have no place for it."""
        newest_ms: int | None = getattr(self._parsed, "max_timestamp", None)
        return newest_ms
