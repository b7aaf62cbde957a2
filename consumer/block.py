"""Pure: the text of one INSERT, and where in it each row lies.

Rows are made of many records at once, which costs a quarter of making them one by one. Nobody needs a list of them
unless something goes wrong: till then all that is known is which offsets follow each other.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence, Set
from operator import attrgetter, itemgetter
from typing import NamedTuple, Self, TypeGuard

_FIRST, _LAST, _ALL_BUT_LAST = itemgetter(0), itemgetter(-1), itemgetter(slice(None, -1))
_OPENING, _CLOSING = {b"{"[0]}, {b"}"[0]}


class Run(NamedTuple):
    """Rows of the offsets [first, end), as `text` holds them."""

    first: int
    end: int
    text: bytes


class Block:
    """Rows in order of offset. A row is its record with two more columns, `kafka_partition` and `kafka_offset`, and
    a newline."""

    def __init__(self, partition: int, runs: Sequence[Run] = ()) -> None:
        self._partition = partition
        self._place = b',"kafka_partition":%d,"kafka_offset":' % partition
        self._runs = list(runs)
        self.count = sum(run.end - run.first for run in runs)
        self.bytes = sum(len(run.text) for run in runs)

    def extend(self, values: Sequence[bytes], first: int) -> None:
        """With records at the offsets from `first` on, all of which are objects (`are_objects`)."""
        count = len(values)
        fields: list[object] = [None] * (2 * count)
        fields[::2] = map(_ALL_BUT_LAST, values)
        fields[1::2] = range(first, first + count)
        text = (b"%b" + self._place + b"%d}\n") * count % tuple(fields)
        self._runs.append(Run(first, first + count, text))
        self.count += count
        self.bytes += len(text)

    @property
    def texts(self) -> list[bytes]:
        """All rows, in any number of parts."""
        return [run.text for run in self._runs]

    @property
    def offsets(self) -> list[int]:
        """Of each row."""
        return [offset for run in self._runs for offset in range(run.first, run.end)]

    @property
    def rows(self) -> list[bytes]:
        """One by one."""
        return [row for run in self._runs for row in self._rows(run)]

    @property
    def head(self) -> bytes:
        """Of the first row what its record has given; nothing if there is none."""
        if not self._runs:
            return b""
        row = self._rows(self._runs[0])[0]
        return row[: row.rindex(self._place)]

    def _rows(self, run: Run) -> list[bytes]:
        lines = [line + b"\n" for line in run.text.split(b"\n")[:-1]]
        if len(lines) == run.end - run.first:
            return lines
        # JSON may have several lines, though no gateway writes it so.
        rows, start = [], 0
        for offset in range(run.first, run.end):
            last = b"%b%d}\n" % (self._place, offset)
            end = run.text.find(last, start) + len(last)
            rows.append(run.text[start:end])
            start = end
        return rows

    def end_at(self, rows_max: int, bytes_max: int) -> int | None:
        """The offset behind the row that reaches one of these; None if none does."""
        count = size = 0
        for run in self._runs:
            rows = run.end - run.first
            if count + rows < rows_max and size + len(run.text) < bytes_max:
                count += rows
                size += len(run.text)
                continue
            for index, row in enumerate(self._rows(run), 1):
                size += len(row)
                if count + index >= rows_max or size >= bytes_max:
                    return run.first + index
        return None

    def cut(self, end: int) -> tuple[Self, Self]:
        """The rows before offset `end`, and the others."""
        index = bisect_left(self._runs, end, key=attrgetter("first"))
        head, rest = self._runs[:index], self._runs[index:]
        if head and head[-1].end > end:
            last = head.pop()
            rows, count = self._rows(last), end - last.first
            head.append(Run(last.first, end, b"".join(rows[:count])))
            rest.insert(0, Run(end, last.end, b"".join(rows[count:])))
        return type(self)(self._partition, head), type(self)(self._partition, rest)

    def of(self, rows: Iterable[tuple[int, bytes]]) -> Self:
        """A block of the same partition, of these offsets and rows."""
        return type(self)(self._partition, [Run(offset, offset + 1, row) for offset, row in rows])

    def without(self, offsets: Set[int]) -> Self:
        """Less the rows of these offsets."""
        return self.of(pair for pair in zip(self.offsets, self.rows, strict=True) if pair[0] not in offsets)


def is_object(value: bytes | None) -> bool:
    """As far as can be told at a glance."""
    return value is not None and value[:1] == b"{" and value[-1:] == b"}"


def are_objects(values: Sequence[bytes | None]) -> TypeGuard[Sequence[bytes]]:
    """Whether each is, in a third of the time."""
    try:
        return set(map(_FIRST, values)) == _OPENING and set(map(_LAST, values)) == _CLOSING  # type: ignore[arg-type]
    except (TypeError, IndexError):  # of None, or of nothing
        return False
