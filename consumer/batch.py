"""Pure: records of one partition become batches, closed by rows, bytes or age, whichever is first.

A batch is a range [first, end) of offsets and the rows in it. Ranges are contiguous: the next one starts where
the last one ended, so offsets that hold no record (control records, compacted ones), or a repeat, belong to one too.
"""

from bisect import bisect_left
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self
from zlib import crc32

from consumer.repeats import Checkpoint, MarkedRecord, Verdict, Window

NEVER_MS = 2**63
NOTHING: frozenset[bytes] = frozenset()


class Record(MarkedRecord, Protocol):
    """What a batch needs of a Kafka record."""

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


class Suspect(NamedTuple):
    """A row of which the table may hold a copy under other coordinates; with a caller's id, or with one of ours."""

    offset: int
    is_callers: bool


@dataclass(frozen=True)
class Batch:
    """`rows[i]` is the row, with its newline, of the record at `offsets[i]`. `malformed` holds the offsets of
    records that are no JSON object at all, `repeats` those of records that are no row again; `suspects` are among the
    rows. `fingerprint` is the CRC-32 of the first row's record, `newest_ms` the time of the last record, epoch ms."""

    range: Range
    fingerprint: int
    offsets: list[int]
    rows: list[bytes]
    malformed: list[int]
    repeats: list[int]
    suspects: list[Suspect]
    newest_ms: int

    def without(self, offsets: Set[int]) -> Self:
        """The same range, less the rows of these offsets."""
        kept = [index for index, offset in enumerate(self.offsets) if offset not in offsets]
        return replace(self, offsets=[self.offsets[i] for i in kept], rows=[self.rows[i] for i in kept])


class Filling:
    """Rows that wait for their batch, in order of offset. At most what was fed before the caller saw `full`.

    With a window, feeding starts where that starts: of what lies before `first`, only ids are taken up.
    """

    def __init__(self, partition: int, first: int, limits: Limits, window: Window | None = None) -> None:
        self._suffix = b',"kafka_partition":%d,"kafka_offset":' % partition
        self._limits = limits
        self._window = window
        self._due_ms = NEVER_MS if window is None else window.due_ms
        self._first = first
        self._position = first if window is None else window.start.offset
        self._reset()

    def _reset(self) -> None:
        self._offsets: list[int] = []
        self._rows: list[bytes] = []
        self._malformed: list[int] = []
        self._repeats: list[int] = []
        self._suspects: list[Suspect] = []
        self._newest_ms = 0
        self._since = 0.0
        self.bytes = 0

    @property
    def position(self) -> int:
        """The next offset that is wanted."""
        return self._position

    @property
    def behind(self) -> int:
        """Offsets still to be read before the first one that can be a row."""
        return max(0, self._first - self._position)

    @property
    def empty(self) -> bool:
        return self._position <= self._first

    @property
    def full(self) -> bool:
        return len(self._rows) + len(self._repeats) >= self._limits.rows_max or self.bytes >= self._limits.bytes_max

    def ready_at(self) -> float:
        """The time at which the batch closes by age, on the clock that `add` was given."""
        return self._since + self._limits.age_s

    def add(self, records: Sequence[Record], now: float) -> None:
        """Records in order of offset; those before `position` have been seen and are skipped."""
        if self._position < self._first:
            records = self._take_up(records)
        if self.empty:
            self._since = now
        suffix, offsets, rows = self._suffix, self._offsets, self._rows
        window, due_ms = self._window, self._due_ms
        replayed = NOTHING if window is None else window.replayed
        position, size, newest = self._position, 0, None
        for record in records:
            offset, value = record.offset, record.value
            if offset < position:
                continue
            position = offset + 1
            if record.timestamp >= due_ms and window is not None:
                due_ms = window.advance(offset, record.timestamp)
            if value is None or value[:1] != b"{" or value[-1:] != b"}":
                self._malformed.append(offset)
                continue
            if (record.headers or (replayed and record.key in replayed)) and window is not None:
                verdict = window.judge(record)
                if verdict is Verdict.REPEAT:
                    self._repeats.append(offset)
                    continue
                if verdict is not Verdict.FRESH:
                    self._suspects.append(Suspect(offset, verdict is Verdict.SUSPECT_OF_CALLERS))
            row = b"%b%b%d}\n" % (value[:-1], suffix, offset)
            offsets.append(offset)
            rows.append(row)
            size += len(row)
            newest = record
        if newest is not None:
            self._newest_ms = newest.timestamp
        self._position, self._due_ms = position, due_ms
        self.bytes += size

    def _take_up(self, records: Sequence[Record]) -> Sequence[Record]:
        """The ids of records that lie before the range; the records that do not."""
        window, due_ms, position, first = self._window, self._due_ms, self._position, self._first
        assert window is not None, "nobody else starts before the range"
        taken = len(records)
        for index, record in enumerate(records):
            offset = record.offset
            if offset < position:
                continue
            if offset >= first:
                taken = index
                break
            position = offset + 1
            if record.timestamp >= due_ms:
                due_ms = window.advance(offset, record.timestamp)
            if record.headers and _is_object(record.value):
                window.judge(record)
        self._position, self._due_ms = position, due_ms
        return records[taken:]

    def skip_to(self, offset: int) -> None:
        """Kafka holds no further record before `offset`."""
        self._position = max(self._position, offset)

    def checkpoint(self, offset: int) -> Checkpoint | None:
        """Where to start feeding to begin a range at `offset`, which has been reached; None without a window."""
        return None if self._window is None else self._window.checkpoint(offset)

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
            [offset for offset in self._repeats if offset < end],
            [suspect for suspect in self._suspects if suspect.offset < end],
            self._newest_ms,
        )
        rest = (self._offsets[count:], self._rows[count:], [o for o in self._malformed if o >= end])
        rest_of_repeats = ([o for o in self._repeats if o >= end], [s for s in self._suspects if s.offset >= end])
        newest_ms, since = self._newest_ms, self._since
        self._reset()
        self._first = end
        self._offsets, self._rows, self._malformed = rest
        self._repeats, self._suspects = rest_of_repeats
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


def _is_object(value: bytes | None) -> bool:
    """As far as can be told at a glance. `add` spells this out, since a call would cost it a tenth of its time."""
    return value is not None and value[:1] == b"{" and value[-1:] == b"}"
