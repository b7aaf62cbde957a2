"""Pure: records of one partition become batches, closed by rows, bytes or age, whichever is first.

A batch is a range [first, end) of offsets and the rows in it. Ranges are contiguous: the next one starts where
the last one ended, so offsets that hold no record (control records, compacted ones), or a repeat, belong to one too.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple, Protocol, Self
from zlib import crc32

from consumer.block import Block, are_objects, is_object
from consumer.repeats import Checkpoint, MarkedRecord, Verdict, Window

NEVER_MS = 2**63
NOTHING: frozenset[bytes] = frozenset()
_VALUE, _HEADERS, _KEY, _TIMESTAMP = map(attrgetter, ("value", "headers", "key", "timestamp"))


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
    """`malformed` holds the offsets of records that are no JSON object at all, `repeats` those of records that are no
    row again; `suspects` are among the rows. `fingerprint` is the CRC-32 of the first row's record, `newest_ms` the
    time of the last records, epoch ms."""

    range: Range
    fingerprint: int
    block: Block
    malformed: list[int]
    repeats: list[int]
    suspects: list[Suspect]
    newest_ms: int

    def without(self, offsets: Set[int]) -> Self:
        """The same range, less the rows of these offsets."""
        return replace(self, block=self.block.without(offsets))


class Filling:
    """Rows that wait for their batch, in order of offset. At most what was fed before the caller saw `full`.

    With a window, feeding starts where that starts: of what lies before `first`, only ids are taken up.
    """

    def __init__(self, partition: int, first: int, limits: Limits, window: Window | None = None) -> None:
        self._limits = limits
        self._window = window
        self._due_ms = NEVER_MS if window is None else window.due_ms
        self._first = first
        self._position = first if window is None else window.start.offset
        self._block = Block(partition)
        self._malformed: list[int] = []
        self._repeats: list[int] = []
        self._suspects: list[Suspect] = []
        self._newest_ms = 0
        self._since = 0.0

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
    def rows(self) -> int:
        return self._block.count

    @property
    def bytes(self) -> int:
        return self._block.bytes

    @property
    def full(self) -> bool:
        limits = self._limits
        return self._block.count + len(self._repeats) >= limits.rows_max or self._block.bytes >= limits.bytes_max

    @property
    def age_s(self) -> float:
        """At which the batch closes."""
        return self._limits.age_s

    def ready_at(self) -> float:
        """The time at which the batch closes by age, on the clock that `add` was given."""
        return self._since + self._limits.age_s

    def add(self, records: Sequence[Record], now: float, newest_ms: int | None = None) -> None:
        """Records in order of offset; those before `position` have been seen and are skipped. None of them is newer
        than `newest_ms`, if that is known."""
        if self._position < self._first:
            records, newest_ms = self._take_up(records), None
        if not records:
            return
        if self.empty:
            self._since = now
        newest_ms = max(map(_TIMESTAMP, records)) if newest_ms is None else newest_ms
        if not self._add_plain(records, newest_ms):
            self._add_each(records)
        self._newest_ms = newest_ms

    def _add_plain(self, records: Sequence[Record], newest_ms: int) -> bool:
        """All at once, if nothing is to be said of any of them: the rule for those whose callers give no ids."""
        first, count = records[0].offset, len(records)
        if first < self._position or records[-1].offset - first != count - 1 or newest_ms >= self._due_ms:
            return False
        if self._window is not None and (
            any(map(_HEADERS, records))
            or (self._window.replayed and not self._window.replayed.isdisjoint(map(_KEY, records)))
        ):
            return False
        values = list(map(_VALUE, records))
        if not are_objects(values):
            return False
        self._block.extend(values, first)
        self._position = first + count
        return True

    def _add_each(self, records: Sequence[Record]) -> None:
        window, due_ms, position = self._window, self._due_ms, self._position
        replayed = NOTHING if window is None else window.replayed
        values: list[bytes] = []  # of rows in a row, from offset `first` on
        first = position
        for record in records:
            offset, value = record.offset, record.value
            if offset < position:
                continue
            position = offset + 1
            if record.timestamp >= due_ms and window is not None:
                due_ms = window.advance(offset, record.timestamp)
            # is_object, spelt out: a call would cost a tenth of the whole.
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
            if offset != first + len(values):
                if values:
                    self._block.extend(values, first)
                values, first = [], offset
            values.append(value)
        if values:
            self._block.extend(values, first)
        self._position, self._due_ms = position, due_ms

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
            if record.headers and is_object(record.value):
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
            end = self._block.end_at(self._limits.rows_max, self._limits.bytes_max) or self._position
        block, self._block = self._block.cut(end)
        batch = Batch(
            Range(self._first, end),
            crc32(block.head),
            block,
            [offset for offset in self._malformed if offset < end],
            [offset for offset in self._repeats if offset < end],
            [suspect for suspect in self._suspects if suspect.offset < end],
            self._newest_ms,
        )
        self._malformed = [offset for offset in self._malformed if offset >= end]
        self._repeats = [offset for offset in self._repeats if offset >= end]
        self._suspects = [suspect for suspect in self._suspects if suspect.offset >= end]
        self._first = end
        return batch
