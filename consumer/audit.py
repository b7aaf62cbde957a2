"""Compares the tables with the log: is every record below the committed offsets in its table, exactly once?

Cheap where all is well, one sum a table. Memory is bounded; time is by what is wrong, which is looked into row by
row and record by record (`audit_table`).

What is no gap: offsets without a record (control records, compacted, deleted by retention), dead letters unless
they were replayed, records older than the table's TTL, repeats of an event that has a row elsewhere. What is no
duplicate: one event id at several offsets (a caller repeated it later than the window for that), rows of an earlier
log of the same name (another event id at the same offset). These are reported as information. What is not noticed: a
row that is missing where one of an earlier log, inserted less than an hour before this log's records were made, has
its offset; one that is missing of an event that its caller repeated, and that has a row elsewhere.
"""

import asyncio
import re
import time
from collections.abc import Mapping

from consumer.audit_table import PartitionAudit, TableAudit
from consumer.clickhouse import ClickHouse
from consumer.group import Group
from consumer.reader import LogReader
from consumer.settings import ConsumerSettings
from consumer.source import TopicPartition
from schemas import kafka
from schemas.streams import STREAMS

REPEAT_MS_MIN = 3_600_000  # the window may have been wider than it is now

_TTL_DAYS = re.compile(r"TTL toDateTime\(received_at\) \+ toIntervalDay\((\d+)\)")


async def audit(
    settings: ConsumerSettings,
    clickhouse: ClickHouse,
    since_ms: int | None = None,
    *,
    at_least_from: Mapping[TopicPartition, int] | None = None,
    count_repeated: bool = False,
) -> list[PartitionAudit]:
    """Every partition of every stream, from the first record of `since_ms` (epoch ms; None: all that Kafka holds),
    or from its offset in `at_least_from` if that is earlier, up to the committed offset.

    Raises KafkaUnavailable, ClickHouseUnavailable, TooManyDeadLetters.
    """
    connection = kafka.connection(settings)
    audits: list[PartitionAudit] = []
    async with Group(settings) as group, LogReader(connection) as reader:
        for stream in STREAMS:
            partitions = await group.partitions([stream.name])
            if not partitions:
                continue
            # The commits first: what lands while we look is behind them.
            commits = await group.commits(partitions)
            ttl_ms = await asyncio.to_thread(_ttl_ms, clickhouse, stream.name)
            expired_ms = time.time_ns() // 1_000_000 - ttl_ms if ttl_ms else 0
            from_ms = max(since_ms or 0, expired_ms)
            firsts = await reader.offsets_at(partitions, from_ms) if from_ms else {}
            bounds = await reader.bounds(partitions)
            scopes = {
                tp: _scope(tp, commits.get(tp), firsts.get(tp, 0), (at_least_from or {}).get(tp), *bounds[tp])
                for tp in partitions
            }
            repeat_ms = max(settings.dedupe_window_s * 1000, REPEAT_MS_MIN)
            table = TableAudit(clickhouse, group, reader, stream, expired_ms, repeat_ms)
            for tp, scope in scopes.items():
                await table.count_lost(tp, scope, bounds[tp][0])
            await table.run({tp: scope for tp, scope in scopes.items() if scope.first < scope.end}, count_repeated)
            audits += scopes.values()
    return audits


def _scope(
    tp: TopicPartition, commit: tuple[int, str] | None, first: int, at_least_from: int | None, begin: int, end: int
) -> PartitionAudit:
    """What there is to be audited of a partition of which Kafka holds [begin, end)."""
    if commit is None:
        return PartitionAudit(
            tp.topic, tp.partition, begin, begin, note="the group has not begun" if end > begin else ""
        )
    committed = commit[0]
    if committed > end:
        note = f"committed at {committed}, beyond the log's end at {end}: the topic was made anew"
        return PartitionAudit(tp.topic, tp.partition, begin, begin, note=note)
    if committed < begin:
        note = f"Kafka has deleted {committed} to {begin - 1} before the group committed them"
        return PartitionAudit(tp.topic, tp.partition, committed, committed, note=note)
    first = first if at_least_from is None else min(first, at_least_from)
    return PartitionAudit(tp.topic, tp.partition, min(max(first, begin), committed), committed)


def _ttl_ms(clickhouse: ClickHouse, table: str) -> int:
    """0 without."""
    days = _TTL_DAYS.search(clickhouse.engine(table))
    return int(days.group(1)) * 86_400_000 if days else 0
