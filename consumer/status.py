"""`python -m consumer status`: how far behind each partition is, in records and in seconds."""

import time
from dataclasses import dataclass

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from rich.table import Table

from consumer import ledger
from consumer.reader import LogReader
from consumer.settings import ConsumerSettings
from schemas import kafka
from schemas.streams import STREAMS


@dataclass(frozen=True)
class PartitionStatus:
    """`committed` is None where the group has not begun; `lag_s` is the age of the oldest record not inserted."""

    topic: str
    partition: int
    committed: int | None
    end: int
    lag_records: int
    lag_s: float
    open_intent: bool


async def partition_statuses(settings: ConsumerSettings) -> list[PartitionStatus]:
    """Of every partition of every stream, in order. Raises KafkaError or OSError."""
    connection = kafka.connection(settings)
    admin = AIOKafkaAdminClient(**connection)
    try:
        await admin.start()
        async with LogReader(connection) as reader:
            return await _statuses(settings.group_id, admin, reader)
    finally:
        await admin.close()


async def _statuses(group_id: str, admin: AIOKafkaAdminClient, reader: LogReader) -> list[PartitionStatus]:
    partitions = [partition for stream in STREAMS for partition in reader.partitions(stream.name)]
    if not partitions:
        return []
    committed = await admin.list_consumer_group_offsets(group_id, partitions=partitions)
    bounds = await reader.bounds(partitions)
    statuses = []
    for tp in partitions:
        begin, end = bounds[tp]
        entry = committed.get(tp)
        offset = entry.offset if entry is not None and entry.offset >= 0 else None
        next_offset = max(begin, offset or 0)
        lag = max(0, end - next_offset)
        statuses.append(
            PartitionStatus(
                topic=tp.topic,
                partition=tp.partition,
                committed=offset,
                end=end,
                lag_records=lag,
                lag_s=await _age_s(reader, tp, next_offset) if lag else 0.0,
                open_intent=offset is not None and ledger.decode(offset, entry.metadata or "").intent is not None,
            )
        )
    return statuses


async def _age_s(reader: LogReader, partition: TopicPartition, offset: int) -> float:
    record = await reader.record(partition, offset)
    return max(0.0, time.time() - record.timestamp / 1000) if record else 0.0


def table(statuses: list[PartitionStatus]) -> Table:
    shown = Table(title="Consumer lag")
    for column in ("topic", "partition", "committed", "end", "lag (records)", "lag (s)", "open intent"):
        shown.add_column(column, justify="left" if column == "topic" else "right")
    for status in statuses:
        shown.add_row(
            status.topic,
            str(status.partition),
            "-" if status.committed is None else str(status.committed),
            str(status.end),
            str(status.lag_records),
            f"{status.lag_s:.1f}",
            "yes" if status.open_intent else "",
        )
    return shown
