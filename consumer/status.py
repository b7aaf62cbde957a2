"""`python -m consumer status`: how far behind each partition is, in records and in seconds."""

import time
from dataclasses import dataclass

from aiokafka import TopicPartition
from rich.table import Table

from consumer import ledger
from consumer.group import Group
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
    """Of every partition of every stream, in order. Raises KafkaUnavailable."""
    async with Group(settings) as group, LogReader(kafka.connection(settings)) as reader:
        partitions = await group.partitions(stream.name for stream in STREAMS)
        commits = await group.commits(partitions)
        bounds = await reader.bounds(partitions)
        return [await _status(reader, tp, commits.get(tp), *bounds[tp]) for tp in partitions]


async def _status(
    reader: LogReader, tp: TopicPartition, commit: tuple[int, str] | None, begin: int, end: int
) -> PartitionStatus:
    offset = commit[0] if commit else None
    next_offset = max(begin, offset or 0)
    lag = max(0, end - next_offset)
    return PartitionStatus(
        topic=tp.topic,
        partition=tp.partition,
        committed=offset,
        end=end,
        lag_records=lag,
        lag_s=await _age_s(reader, tp, next_offset) if lag else 0.0,
        open_intent=commit is not None and ledger.is_open(*commit),
    )


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
