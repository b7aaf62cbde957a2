"""A spool in memory, for the virtual clock, which threads would not keep: the same promises, and faults on demand."""

import asyncio
from collections.abc import Sequence

from gateway.record import Record
from gateway.spool import SpoolRefusal


class FakeSpool:
    """`append_s`: how long an append takes. `fault`: what every append raises instead."""

    def __init__(self) -> None:
        self.kept: dict[int, Record] = {}
        self.appends: list[list[Record]] = []
        self.append_s = 0.0
        self.fault: SpoolRefusal | None = None
        self.closed = False
        self._next_id = 1

    @property
    def records(self) -> int:
        return len(self.kept)

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.kept.values())

    async def open(self) -> None: ...

    async def append(self, records: Sequence[Record]) -> None:
        assert not self.closed
        self.appends.append(list(records))
        await asyncio.sleep(self.append_s)
        if self.fault is not None:
            raise self.fault
        for record in records:
            self.kept[self._next_id] = record
            self._next_id += 1

    async def oldest(self, bytes_max: int, *, skip: int = 0) -> list[tuple[int, Record]]:
        await asyncio.sleep(0)
        items = list(self.kept.items())
        found, size = items[:skip], 0
        for item in items[skip:]:
            size += item[1].bytes
            if len(found) > skip and size > bytes_max:
                break
            found.append(item)
        return found

    async def find(self, records: Sequence[Record]) -> list[int]:
        await asyncio.sleep(0)
        wanted = {record._replace(partition=None, value=b"") for record in records}
        return [id_ for id_, r in self.kept.items() if r._replace(partition=None, value=b"") in wanted]

    async def remove(self, ids: Sequence[int]) -> None:
        assert not self.closed
        await asyncio.sleep(0)
        for id_ in ids:
            self.kept.pop(id_, None)

    async def close(self) -> None:
        self.closed = True
