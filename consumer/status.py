"""`python -m consumer status`: how far behind each partition is, in records and in seconds."""

import time
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from rich.table import Table

from consumer import ledger
from consumer.settings import ConsumerSettings
from schemas import kafka
from schemas.streams import STREAMS

FETCH_TIMEOUT_MS = 5_000


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
    reader = AIOKafkaConsumer(**connection, enable_auto_commit=False)
    try:
        await admin.start()
        await reader.start()
        partitions = [
            TopicPartition(stream.name, partition)
            for stream in STREAMS
            for partition in sorted(reader.partitions_for_topic(stream.name) or ())
        ]
        if not partitions:
            return []
        committed = await admin.list_consumer_group_offsets(settings.group_id, partitions=partitions)
        begins = await reader.beginning_offsets(partitions)
        ends = await reader.end_offsets(partitions)
        statuses = []
        for tp in partitions:
            entry = committed.get(tp)
            offset = entry.offset if entry is not None and entry.offset >= 0 else None
            next_offset = max(begins[tp], offset or 0)
            lag = max(0, ends[tp] - next_offset)
            statuses.append(
                PartitionStatus(
                    topic=tp.topic,
                    partition=tp.partition,
                    committed=offset,
                    end=ends[tp],
                    lag_records=lag,
                    lag_s=await _age_s(reader, tp, next_offset) if lag else 0.0,
                    open_intent=offset is not None and ledger.decode(offset, entry.metadata or "").intent is not None,
                )
            )
        return statuses
    finally:
        await reader.stop()
        await admin.close()


async def _age_s(reader: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> float:
    reader.assign([partition])
    reader.seek(partition, offset)
    fetched = await reader.getmany(partition, timeout_ms=FETCH_TIMEOUT_MS, max_records=1)
    records = fetched.get(partition)
    return max(0.0, time.time() - records[0].timestamp / 1000) if records else 0.0


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
