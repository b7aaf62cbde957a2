"""One table against the log of its name: the comparing behind `consumer.audit`.

ClickHouse sums a hash of the offsets per CHUNK_OFFSETS, and the sum is compared with that of the numbers themselves.
Only chunks that differ are looked into, one at a time: row by row and, where rows are missing, record by record.
"""

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from consumer import copies, dead_letter_log
from consumer.clickhouse import ClickHouse
from consumer.dead_letter_log import Letter
from consumer.group import Group
from consumer.reader import LogReader
from consumer.repeats import DEDUPE_HEADER, MARGIN_SLOTS, REPLAY_HEADER, SLOT_MS
from consumer.source import ConsumerRecord, TopicPartition
from schemas.streams import Stream

CHUNK_OFFSETS = 50_000
EXAMPLES_MAX = 20
CLOCK_MARGIN_MS = 3_600_000  # between those who make records and ClickHouse; more of it only makes us look closer
SUM_OFFSETS = 100_000_000  # in one query, which takes seconds: each must end within insert_timeout_ms
REPEATED_OFFSETS = 10_000_000  # of a topic, the newest: among them repeated ids are counted
SEEK_OFFSETS = 5_000  # that cost about as much to read as to leap over


@dataclass
class PartitionAudit:
    """Of offsets [first, end). `repeats_dropped` are records without a row, of events that have one elsewhere.
    `earlier` are rows of an earlier log, `repeated` event ids at several offsets (among the newest), None where they
    were not counted; the offsets are the first few."""

    topic: str
    partition: int
    first: int
    end: int
    rows: int = 0
    duplicates: int = 0
    gaps: int = 0
    dead_letters: int = 0
    repeats_dropped: int = 0
    empty: int = 0
    expired: int = 0
    earlier: int = 0
    repeated: int | None = None
    duplicate_offsets: list[int] = field(default_factory=list)
    gap_offsets: list[int] = field(default_factory=list)
    note: str = ""

    @property
    def is_wrong(self) -> bool:
        return bool(self.duplicates or self.gaps)

    def duplicate(self, offset: int, rows: int) -> None:
        self.duplicates += rows
        if len(self.duplicate_offsets) < EXAMPLES_MAX:
            self.duplicate_offsets.append(offset)

    def gap(self, offset: int, count: int = 1) -> None:
        self.gaps += count
        if len(self.gap_offsets) < EXAMPLES_MAX:
            self.gap_offsets.append(offset)


class TableAudit:
    """One table, against the log of its name."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        group: Group,
        reader: LogReader,
        stream: Stream,
        expired_ms: int,
        repeat_ms: int,
    ) -> None:
        self._clickhouse = clickhouse
        self._group = group
        self._reader = reader
        self._topic = stream.name
        self._owner = stream.owner
        self._table = f"`{clickhouse.database}`.`{stream.name}`"
        self._expired_ms = expired_ms
        self._repeat_ms = repeat_ms + (MARGIN_SLOTS + 1) * SLOT_MS
        self._letters: dict[str, Letter] | None = None

    async def run(self, scopes: Mapping[TopicPartition, PartitionAudit], count_repeated: bool) -> None:
        if not scopes:
            return
        born_ms = {tp: await self._born_ms(tp, scope) for tp, scope in scopes.items()}
        sums = await self._sums(scopes, born_ms)
        for tp, scope in scopes.items():
            expected = await self._expected(scope)
            for chunk in range(scope.first // CHUNK_OFFSETS, (scope.end - 1) // CHUNK_OFFSETS + 1):
                rows, total, earlier = sums.get((tp.partition, chunk), (0, 0, 0))
                if (rows, total) == expected[chunk]:
                    scope.rows += rows
                    scope.earlier += earlier
                else:
                    first = max(scope.first, chunk * CHUNK_OFFSETS)
                    await self._examine(tp, scope, first, min(scope.end, (chunk + 1) * CHUNK_OFFSETS))
        if count_repeated:
            repeated = await self._repeated(scopes)
            for tp, scope in scopes.items():
                scope.repeated = repeated.get(tp.partition, 0)

    async def count_lost(self, tp: TopicPartition, scope: PartitionAudit, begin: int) -> None:
        """What Kafka has deleted behind the scope, before its offset `begin`, and the table does not hold either."""
        if scope.end < begin:
            [(held,)] = await self._query(
                f"SELECT uniqExact(kafka_offset) FROM {self._table} WHERE {_within(tp, scope.end, begin)}"
            )
            if held < begin - scope.end:
                scope.gap(scope.end, begin - scope.end - held)

    async def _born_ms(self, tp: TopicPartition, scope: PartitionAudit) -> int:
        """Rows inserted before this time are of another log: it is well before the scope's first record was made."""
        record = await self._reader.record(tp, scope.first)
        return max(0, record.timestamp - CLOCK_MARGIN_MS) if record else 0

    async def _sums(
        self, scopes: Mapping[TopicPartition, PartitionAudit], born_ms: Mapping[TopicPartition, int]
    ) -> dict[tuple[int, int], tuple[int, int, int]]:
        """By partition and chunk: rows, the sum of their offsets' hashes, and rows of an earlier log."""
        since = ", ".join(f"kafka_partition = {tp.partition}, {born_ms[tp]}" for tp in scopes)
        sums = {}
        for within in slices(scopes, SUM_OFFSETS):
            for partition, chunk, rows, total, earlier in await self._query(
                f"WITH inserted_at >= fromUnixTimestamp64Milli(toInt64(multiIf({since}, 0))) AS ours "
                f"SELECT kafka_partition, intDiv(kafka_offset, {CHUNK_OFFSETS}) AS chunk, "
                "countIf(ours), sumIf(cityHash64(kafka_offset), ours), countIf(NOT ours) "
                f"FROM {self._table} WHERE {within} GROUP BY kafka_partition, chunk"
            ):
                sums[partition, chunk] = (rows, total, earlier)
        return sums

    async def _expected(self, scope: PartitionAudit) -> dict[int, tuple[int, int]]:
        """By chunk: what `_sums` finds where each offset has one row."""
        found = await self._query(
            f"SELECT intDiv(number, {CHUNK_OFFSETS}) AS chunk, count(), sum(cityHash64(number)) "
            f"FROM numbers({scope.first}, {scope.end - scope.first}) GROUP BY chunk"
        )
        return {chunk: (rows, total) for chunk, rows, total in found}

    async def _examine(self, tp: TopicPartition, scope: PartitionAudit, first: int, end: int) -> None:
        """Offset by offset, at most CHUNK_OFFSETS of them."""
        # The letters before the rows: one that is replayed meanwhile has its row before it has its mark.
        letters = await self._dead_letters()
        held: dict[int, dict[str, int]] = {}
        for offset, event_id, rows in await self._query(
            f"SELECT kafka_offset, event_id, count() FROM {self._table} WHERE kafka_partition = {tp.partition} "
            f"AND kafka_offset >= {first} AND kafka_offset < {end} GROUP BY kafka_offset, event_id"
        ):
            held.setdefault(offset, {})[event_id] = rows
        suspects = {offset for offset in range(first, end) if offset not in held}
        if any(len(ids) > 1 for ids in held.values()):
            suspects.update(range(first, end))  # rows of two logs: only the log itself tells which are of this one
        for offset, ids in held.items():
            if offset not in suspects:
                self._count_rows(scope, offset, ids, set(ids))
        missing: dict[int, copies.Sought | None] = {}
        for run in runs(suspects):
            async for record in self._reader.records(tp, run.start, run.stop):
                if record.offset not in suspects:
                    continue
                suspects.discard(record.offset)
                ids = held.get(record.offset, {})
                wanted = event_ids(record)
                ours = wanted & ids.keys() if wanted else set(ids)  # what names no id can only be told by its offset
                self._count_rows(scope, record.offset, ids, ours)
                letter = letters.get(f"{tp.topic}:{tp.partition}:{record.offset}")
                if not ours and not self._is_accounted_for(scope, record, letter):
                    missing[record.offset] = self._event(record)
        repeats = await self._repeats([event for event in missing.values() if event])
        for offset in missing:
            if offset in repeats:
                scope.repeats_dropped += 1
            else:
                scope.gap(offset)
        scope.empty += len(suspects)
        scope.earlier += sum(sum(held[offset].values()) for offset in suspects if offset in held)

    def _count_rows(self, scope: PartitionAudit, offset: int, ids: Mapping[str, int], ours: set[str]) -> None:
        for event_id, rows in ids.items():
            if event_id not in ours:
                scope.earlier += rows
                continue
            scope.rows += 1
            if rows > 1:
                scope.duplicate(offset, rows - 1)

    def _is_accounted_for(
        self, scope: PartitionAudit, record: "ConsumerRecord[bytes, bytes]", letter: Letter | None
    ) -> bool:
        # A letter about the record of an earlier log is none about this one.
        is_dead = (
            letter is not None
            and letter.state != dead_letter_log.REPLAYED
            and letter.record_time_ms in (None, record.timestamp)
        )
        if is_dead:
            scope.dead_letters += 1
        elif self._expired_ms and received_before(record, self._expired_ms):
            scope.expired += 1
        else:
            return False
        return True

    def _event(self, record: "ConsumerRecord[bytes, bytes]") -> copies.Sought | None:
        """What to look for to tell a repeat from a gap."""
        names = {name for name, _ in record.headers}
        within_ms = self._repeat_ms if DEDUPE_HEADER in names else 0
        event = copies.sought(self._topic, record.partition, record.offset, record.value or b"", within_ms)
        return replace(event, is_marked=not names.isdisjoint({DEDUPE_HEADER, REPLAY_HEADER})) if event else None

    async def _repeats(self, events: list[copies.Sought]) -> set[int]:
        """Offsets of those that have a row elsewhere."""
        found = await asyncio.to_thread(copies.held, self._clickhouse, self._topic, events)
        # Each repeat may be the first copy for the next one, so the row may be of any time.
        rest = [replace(event, within_ms=None) for event in events if event.within_ms and event not in found]
        found |= await asyncio.to_thread(copies.held, self._clickhouse, self._topic, rest)
        return {event.offset for event in found}

    async def _repeated(self, scopes: Mapping[TopicPartition, PartitionAudit]) -> dict[int, int]:
        """Event ids of one owner at more than one offset, by partition: a caller's id always goes to the same one."""
        recent = REPEATED_OFFSETS // len(scopes)
        within = " OR ".join(
            _within(tp, max(scope.first, scope.end - recent), scope.end) for tp, scope in scopes.items()
        )
        found = await self._query(
            "SELECT kafka_partition, count() FROM ("
            f"SELECT kafka_partition, cityHash64({self._owner}, event_id) AS id FROM {self._table} WHERE {within} "
            "GROUP BY kafka_partition, id HAVING min(kafka_offset) < max(kafka_offset)) GROUP BY kafka_partition"
        )
        return dict(found)

    async def _dead_letters(self) -> dict[str, Letter]:
        if self._letters is None:
            self._letters = await dead_letter_log.letters(self._group, self._reader, self._topic)
        return self._letters

    async def _query(self, sql: str) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(self._clickhouse.query, sql)


def slices(scopes: Mapping[TopicPartition, PartitionAudit], offsets_max: int) -> Iterator[str]:
    """Conditions that together are all of the scopes, each true of about `offsets_max` offsets, in whole chunks."""
    step = max(1, offsets_max // len(scopes) // CHUNK_OFFSETS) * CHUNK_OFFSETS
    todo = {tp: scope.first for tp, scope in scopes.items()}
    while todo:
        ends = {tp: min((first // CHUNK_OFFSETS) * CHUNK_OFFSETS + step, scopes[tp].end) for tp, first in todo.items()}
        yield " OR ".join(_within(tp, first, ends[tp]) for tp, first in todo.items())
        todo = {tp: end for tp, end in ends.items() if end < scopes[tp].end}


def runs(offsets: Collection[int]) -> Iterator[range]:
    """What to read to see all of them."""
    first = end = -1
    for offset in sorted(offsets):
        if end >= 0 and offset >= end + SEEK_OFFSETS:
            yield range(first, end)
            end = -1
        if end < 0:
            first = offset
        end = offset + 1
    if end >= 0:
        yield range(first, end)


def _within(tp: TopicPartition, first: int, end: int) -> str:
    return f"(kafka_partition = {tp.partition} AND kafka_offset >= {first} AND kafka_offset < {end})"


def event_ids(record: "ConsumerRecord[bytes, bytes]") -> set[str]:
    """What the row of a record may have as its event id: the value says it, and the key should say the same."""
    key = record.key.decode("utf-8", "replace") if record.key is not None else None
    return {event_id for event_id in (key, _field(record, "event_id")) if isinstance(event_id, str)}


def received_before(record: "ConsumerRecord[bytes, bytes]", time_ms: int) -> bool:
    """Whether the table's TTL takes a record's row at `time_ms`: `received_at` is ISO text, so it can be compared."""
    received_at = _field(record, "received_at")
    limit = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_ms / 1000))
    return isinstance(received_at, str) and received_at < limit


def _field(record: "ConsumerRecord[bytes, bytes]", name: str) -> Any:
    try:
        document = orjson.loads(record.value or b"")
    except ValueError:
        return None
    return document.get(name) if isinstance(document, dict) else None
