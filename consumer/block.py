"""Pure: the text of one INSERT, and where in it each row lies.

Rows are made of many records at once, which costs a quarter of making them one by one; nobody needs a list of them
unless something goes wrong. What is known of them are runs: rows of consecutive offsets, a line each.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Self, TypeGuard

_FIRST, _LAST, _ALL_BUT_LAST = itemgetter(0), itemgetter(-1), itemgetter(slice(None, -1))
_OPENING, _CLOSING = {b"{"[0]}, {b"}"[0]}


@dataclass(slots=True)
class Run:
    """`count` rows of the offsets from `first` on, a line each; `text` holds them."""

    first: int
    count: int
    text: bytes

    def lines(self) -> list[bytes]:
        """The rows, each with its newline. One by itself may be of several lines: JSON lets it."""
        if self.count == 1:
            return [self.text]
        return [line + b"\n" for line in self.text.split(b"\n")[:-1]]

    def cut(self, count: int) -> "tuple[Run, Run]":
        lines = self.lines()
        head, rest = b"".join(lines[:count]), b"".join(lines[count:])
        return Run(self.first, count, head), Run(self.first + count, self.count - count, rest)


class Block:
    """Rows in order of offset. A row is its record with two more columns, `kafka_partition` and `kafka_offset`."""

    def __init__(self, partition: int, runs: Sequence[Run] = ()) -> None:
        self._partition = partition
        self._row = b'%%b,"kafka_partition":%d,"kafka_offset":%%d}\n' % partition
        self._runs = list(runs)
        self.count = sum(run.count for run in runs)
        self.bytes = sum(len(run.text) for run in runs)

    def extend(self, values: Sequence[bytes], first: int) -> None:
        """With records at the offsets from `first` on, all of which are objects (`are_objects`)."""
        count = len(values)
        fields: list[object] = [None] * (2 * count)
        fields[::2] = map(_ALL_BUT_LAST, values)
        fields[1::2] = range(first, first + count)
        text = self._row * count % tuple(fields)
        if text.count(b"\n") == count:
            self._add(Run(first, count, text))
        else:
            for offset, value in enumerate(values, first):
                self._add(Run(offset, 1, self._row % (value[:-1], offset)))

    def _add(self, run: Run) -> None:
        self._runs.append(run)
        self.count += run.count
        self.bytes += len(run.text)

    @property
    def text(self) -> bytes:
        """All rows."""
        return b"".join([run.text for run in self._runs])

    @property
    def offsets(self) -> list[int]:
        """Of each row."""
        return [offset for run in self._runs for offset in range(run.first, run.first + run.count)]

    @property
    def rows(self) -> list[bytes]:
        """Each with its newline."""
        return [line for run in self._runs for line in run.lines()]

    @property
    def head(self) -> bytes:
        """Of the first row what its record has given; nothing if there is none."""
        if not self._runs:
            return b""
        row = self._runs[0].lines()[0]
        return row[: row.rindex(b',"kafka_partition":%d,' % self._partition)]

    def end_at(self, rows_max: int, bytes_max: int) -> int | None:
        """The offset behind the row that reaches one of these; None if none does."""
        count = size = 0
        for run in self._runs:
            if count + run.count < rows_max and size + len(run.text) < bytes_max:
                count += run.count
                size += len(run.text)
                continue
            for index, line in enumerate(run.lines(), 1):
                size += len(line)
                if count + index >= rows_max or size >= bytes_max:
                    return run.first + index
        return None

    def cut(self, end: int) -> tuple[Self, Self]:
        """The rows before offset `end`, and the others."""
        index = bisect_left(self._runs, end, key=attrgetter("first"))
        head, rest = self._runs[:index], self._runs[index:]
        if head and head[-1].first + head[-1].count > end:
            last = head.pop()
            before, behind = last.cut(end - last.first)
            head.append(before)
            rest.insert(0, behind)
        return type(self)(self._partition, head), type(self)(self._partition, rest)

    def of(self, rows: Iterable[tuple[int, bytes]]) -> Self:
        """A block of the same partition, of these offsets and rows."""
        return type(self)(self._partition, [Run(offset, 1, row) for offset, row in rows])

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
