"""`python -m consumer intents`: the ranges whose INSERT was announced and not yet closed, and what is known of them.

While a consumer runs there is nearly always one a busy partition. One that stays tells of a consumer that was
killed, or of one that waits for ClickHouse: `age` says how long.
"""

import asyncio
import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from rich.table import Table
from rich.text import Text

from consumer import ledger, moments
from consumer.clickhouse import ClickHouse
from consumer.group import Group
from consumer.inserter import Inserter
from consumer.metrics import Metrics
from consumer.recovery import Recovery
from consumer.settings import ConsumerSettings
from consumer.source import TopicPartition
from schemas import kafka
from schemas.streams import STREAMS

RANGES_SHOWN_MAX = 3


@dataclass(frozen=True)
class OpenIntent:
    """`entry` is None where the metadata cannot be read, and `unreadable` says why. `rows` are those that the
    table holds of the ranges; `remembered` whether it surely still knows their tokens."""

    partition: TopicPartition
    entry: ledger.Entry | None
    rows: int = 0
    remembered: bool = False
    unreadable: str = ""


async def open_intents(settings: ConsumerSettings, clickhouse: ClickHouse) -> list[OpenIntent]:
    """Of every partition that has one. Raises KafkaUnavailable or ClickHouseUnavailable."""
    connection = kafka.connection(settings)
    async with Group(settings) as group:
        commits = await group.commits(await group.partitions(stream.name for stream in STREAMS))
    metrics = Metrics(CollectorRegistry())
    recovery = Recovery(clickhouse, Inserter(clickhouse, metrics), connection, metrics)
    intents = []
    for partition, commit in sorted(commits.items()):
        try:
            entry = ledger.decode(*commit)
        except ledger.UnreadableIntent as error:
            intents.append(OpenIntent(partition, None, unreadable=str(error)))
            continue
        if entry.intent is None:
            continue
        ranges = entry.intent.ranges
        rows = await asyncio.to_thread(_rows, clickhouse, partition, ranges[0].first, ranges[-1].end)
        remembered = not entry.intent.of_old and await asyncio.to_thread(
            recovery.is_token_remembered, partition.topic, entry.intent.opened_ms
        )
        intents.append(OpenIntent(partition, entry, rows, remembered))
    return intents


def _rows(clickhouse: ClickHouse, partition: TopicPartition, first: int, end: int) -> int:
    [(rows,)] = clickhouse.query(
        f"SELECT count() FROM `{clickhouse.database}`.`{partition.topic}` "
        f"WHERE kafka_partition = {partition.partition} AND kafka_offset >= {first} AND kafka_offset < {end}"
    )
    return int(rows)


def table(intents: list[OpenIntent]) -> Table:
    shown = Table(title="Open intents")
    for column in ("topic", "partition", "ranges", "offsets", "rows in the table", "age", "token"):
        shown.add_column(column, justify="left" if column in ("topic", "ranges", "token") else "right")
    for found in intents:
        topic, partition = found.partition
        intent = found.entry.intent if found.entry else None
        if intent is None:
            shown.add_row(topic, str(partition), Text(found.unreadable), "", "", "", "")
            continue
        ranges = [f"{range_.first} to {range_.end - 1}" for range_ in intent.ranges]
        rest = len(ranges) - RANGES_SHOWN_MAX
        of_old = intent.of_old
        shown.add_row(
            topic,
            str(partition),
            Text(", ".join(ranges[:RANGES_SHOWN_MAX]) + (f" and {rest} more" if rest > 0 else "")),
            str(intent.ranges[-1].end - intent.ranges[0].first),
            str(found.rows),
            "of old" if of_old else moments.age(time.time() - intent.opened_ms / 1000),
            "remembered" if found.remembered else "to be compared with the table",
        )
    return shown
