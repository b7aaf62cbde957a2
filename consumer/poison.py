"""Finds the rows that no table can take, by dry runs: ClickHouse parses them and writes nothing.

Its error names the first bad row, so a slice costs one dry run more than it has bad rows. Slices keep a batch
full of bad rows from being sent over and over.
"""

from collections.abc import Callable, Sequence

from consumer.clickhouse import RowRejected

SLICE_ROWS = 500

Parse = Callable[[bytes], None]
"""Parses rows and writes nothing. Raises RowRejected for the first bad one."""


def find(rows: Sequence[bytes], parse: Parse) -> dict[int, RowRejected]:
    """Index and error of every row that `parse` rejects. What else `parse` raises comes through."""
    bad: dict[int, RowRejected] = {}
    for first in range(0, len(rows), SLICE_ROWS):
        start, end = first, min(first + SLICE_ROWS, len(rows))
        while start < end:
            try:
                parse(b"".join(rows[start:end]))
                break
            except RowRejected as error:
                named = start + (error.row or 0)
            index, bad_row = _blame(rows, start, end, named, parse)
            bad[index] = bad_row
            start = index + 1
    return bad


def _blame(rows: Sequence[bytes], start: int, end: int, named: int, parse: Parse) -> tuple[int, RowRejected]:
    """The first row that is rejected alone: the one that was named, the one before it (whose braces closed too
    early, so that its rest was read as a row), or whichever it is."""
    for index in (named, named - 1, *range(start, end)):
        if start <= index < end:
            try:
                parse(rows[index])
            except RowRejected as error:
                return index, error
    raise InseparableRows(f"{end - start} rows are rejected together, and each is accepted alone")


class InseparableRows(Exception):
    """No single row is at fault."""
