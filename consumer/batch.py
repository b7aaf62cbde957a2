"""Pure: records of one partition become batches, closed by rows, bytes or age, whichever is first.

A batch is a range [first, end) of offsets and the rows in it. Ranges are contiguous: the next one starts where
the last one ended, so offsets that hold no record (control records, compacted ones) belong to one too.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32


class Record(Protocol):
    """What a batch needs of a Kafka record."""

    @property
    def offset(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def timestamp(self) -> int: ...


@dataclass(frozen=True)
class Limits:
    rows_max: int
    bytes_max: int
    age_s: float


@dataclass(frozen=True)
class Range:
    """Offsets [first, end) of one partition."""

    first: int
    end: int


@dataclass(frozen=True)
class Batch:
    """`rows[i]` is the row, with its newline, of the record at `offsets[i]`. `malformed` holds the offsets of
    records that are no JSON object at all. `fingerprint` is the CRC-32 of the first row's record, `newest_ms`
    the time of the last record, epoch ms."""

    range: Range
    fingerprint: int
    offsets: list[int]
    rows: list[bytes]
    malformed: list[int]
    newest_ms: int


class Filling:
    """Rows that wait for their batch, in order of offset. At most what was fed before the caller saw `full`."""

    def __init__(self, partition: int, first: int, limits: Limits) -> None:
        self._suffix = b',"kafka_partition":%d,"kafka_offset":' % partition
        self._limits = limits
        self._first = first
        self._position = first
        self._reset()

    def _reset(self) -> None:
        self._offsets: list[int] = []
        self._rows: list[bytes] = []
        self._malformed: list[int] = []
        self._newest_ms = 0
        self._since = 0.0
        self.bytes = 0

    @property
    def position(self) -> int:
        """The next offset that is wanted."""
        return self._position

    @property
    def empty(self) -> bool:
        return self._position == self._first

    @property
    def full(self) -> bool:
        return len(self._rows) >= self._limits.rows_max or self.bytes >= self._limits.bytes_max

    def ready_at(self) -> float:
        """The time at which the batch closes by age, on the clock that `add` was given."""
        return self._since + self._limits.age_s

    def add(self, records: Iterable[Record], now: float) -> None:
        """Records in order of offset; those before `position` have been seen and are skipped."""
        if self.empty:
            self._since = now
        suffix, offsets, rows = self._suffix, self._offsets, self._rows
        position, size = self._position, 0
        for record in records:
            offset, value = record.offset, record.value
            if offset < position:
                continue
            position = offset + 1
            if value is None or value[:1] != b"{" or value[-1:] != b"}":
                self._malformed.append(offset)
                continue
            row = b"%b%b%d}\n" % (value[:-1], suffix, offset)
            offsets.append(offset)
            rows.append(row)
            size += len(row)
            self._newest_ms = record.timestamp
        self._position = position
        self.bytes += size

    def skip_to(self, offset: int) -> None:
        """Kafka holds no further record before `offset`."""
        self._position = max(self._position, offset)

    def take(self, end: int | None = None) -> Batch:
        """Close the batch, at `end` if given. What is left stays, as the beginning of the next one.

        A full batch is cut at the limits, so that a burst becomes several batches and not one huge one.
        """
        if end is None:
            end = self._natural_end()
        count = bisect_left(self._offsets, end)
        batch = Batch(
            Range(self._first, end),
            crc32(self._rows[0][: self._rows[0].rindex(self._suffix)]) if count else 0,
            self._offsets[:count],
            self._rows[:count],
            [offset for offset in self._malformed if offset < end],
            self._newest_ms,
        )
        rest = (self._offsets[count:], self._rows[count:], [o for o in self._malformed if o >= end])
        newest_ms, since = self._newest_ms, self._since
        self._reset()
        self._first = end
        self._offsets, self._rows, self._malformed = rest
        self._newest_ms, self._since = newest_ms, since
        self.bytes = sum(map(len, self._rows))
        return batch

    def _natural_end(self) -> int:
        if not self.full:
            return self._position
        size = 0
        for index, row in enumerate(self._rows):
            size += len(row)
            if index + 1 >= self._limits.rows_max or size >= self._limits.bytes_max:
                return self._offsets[index] + 1
        return self._position
