"""What to do when the ledger alone does not say: it is asked of the table, by offsets.

Two questions. *May this range be sent again under its token?* Only while ClickHouse still remembers the token:
after a quarter of the table's deduplication window what is missing is inserted, found by anti-join on the Kafka
coordinates. *Where does a partition begin that has no commit?* Behind what the table holds of it, if the table
holds rows of this very log; at the first record otherwise.
"""

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import orjson
import structlog

from consumer.batch import Range
from consumer.clickhouse import ClickHouse
from consumer.inserter import Inserter
from consumer.ledger import Entry, Intent, insistently
from consumer.metrics import Metrics
from consumer.reader import LogReader
from consumer.source import TopicPartition

log = structlog.get_logger(__name__)

CLOCK_SKEW_MAX_MS = 60_000  # that ClickHouse's clock may be behind ours; `doctor` tells when it is more
TAIL_OFFSETS = 200_000  # behind the last row of a partition, how far back batches may have been in flight
TAIL_RANGE_OFFSETS = 50_000

_WINDOW = re.compile(r"\b(?:non_)?replicated_deduplication_window = (\d+)")


class Recovery:
    def __init__(
        self, clickhouse: ClickHouse, inserter: Inserter, connection: dict[str, Any], metrics: Metrics
    ) -> None:
        self._clickhouse = clickhouse
        self._inserter = inserter
        self._connection = connection
        self._metrics = metrics

    def outstanding(
        self, partition: TopicPartition, offsets: Sequence[int], rows: Sequence[bytes], intent: Intent
    ) -> Sequence[bytes]:
        """Which of the rows to send again for an intent: all while the table remembers its token,
        those that it does not hold afterwards. Raises ClickHouseUnavailable."""
        if not intent.of_old and self.is_token_remembered(partition.topic, intent.opened_ms):
            return rows
        missing = self.missing(partition, offsets, rows)
        log.warning(
            "an intent outlived the deduplication window, its range was compared with the table",
            topic=partition.topic,
            partition=partition.partition,
            first=offsets[0],
            last=offsets[-1],
            rows=len(rows),
            missing=len(missing),
        )
        self._metrics.reconciled.labels(partition.topic).inc()
        return missing

    def is_token_remembered(self, table: str, opened_ms: int) -> bool:
        """Whether a token first sent at `opened_ms` is surely among those that the table remembers."""
        found = _WINDOW.search(self._clickhouse.engine(table))
        window = int(found.group(1)) if found else 0
        # A block has one time of insertion, and two blocks of a partition never share it but by accident, which
        # the quarter leaves room for.
        [(blocks,)] = self._clickhouse.query(
            f"SELECT uniqExact(kafka_partition, inserted_at) FROM `{self._clickhouse.database}`.`{table}` "
            "WHERE inserted_at >= fromUnixTimestamp64Milli({since:Int64})",
            {"since": max(0, opened_ms - CLOCK_SKEW_MAX_MS)},
        )
        return int(blocks) < window // 4

    def missing(self, partition: TopicPartition, offsets: Sequence[int], rows: Sequence[bytes]) -> list[bytes]:
        """Those of the rows that the table does not hold. Raises ClickHouseUnavailable.

        By coordinates and event id: the coordinates alone may be those of an earlier topic of the same name. A row
        whose id we cannot read goes by them nevertheless, so that it does not land again each time it is looked for.
        """
        held = set(
            self._clickhouse.query(
                f"SELECT kafka_offset, event_id FROM `{self._clickhouse.database}`.`{partition.topic}` "
                "WHERE kafka_partition = {partition:UInt32} AND kafka_offset BETWEEN {first:UInt64} AND {last:UInt64}",
                {"partition": partition.partition, "first": offsets[0], "last": offsets[-1]},
            )
        )
        held |= {(offset, None) for offset, _ in held}
        return [row for offset, row in zip(offsets, rows, strict=True) if (offset, _event_id(row)) not in held]

    async def beginning(self, partition: TopicPartition, begin: int, end: int) -> Entry:
        """Where to start in a partition without a commit, of which Kafka holds [begin, end).

        The tail of what the table holds comes as an open intent of old, so that it is compared offset by offset.
        """
        held = await self._inserter.insist(partition.topic, lambda: self._last_row(partition))
        if held is None:
            return Entry(begin, None)
        last, event_id = held
        if not begin <= last < end or await insistently(self._key_at, partition, last) != event_id:
            log.warning(
                "the table holds rows of another log under this name; starting at the first record",
                topic=partition.topic,
                partition=partition.partition,
                begin=begin,
                table_last=last,
            )
            return Entry(begin, None)
        first = max(begin, last + 1 - TAIL_OFFSETS)
        log.warning(
            "no commit, but the table holds rows of this partition; resuming behind them",
            topic=partition.topic,
            partition=partition.partition,
            compared_from=first,
            table_last=last,
        )
        ranges = tuple(
            Range(start, min(start + TAIL_RANGE_OFFSETS, last + 1))
            for start in range(first, last + 1, TAIL_RANGE_OFFSETS)
        )
        return Entry(first, Intent(ranges, opened_ms=0))

    async def _last_row(self, partition: TopicPartition) -> tuple[int, str] | None:
        """Offset and event id of the partition's last row in the table."""
        [(rows, last, event_id)] = await self._inserter.call(
            self._clickhouse.query,
            "SELECT count(), max(kafka_offset), argMax(event_id, kafka_offset) "
            f"FROM `{self._clickhouse.database}`.`{partition.topic}` WHERE kafka_partition = {{partition:UInt32}}",
            {"partition": partition.partition},
        )
        return (int(last), str(event_id)) if rows else None

    async def _key_at(self, partition: TopicPartition, offset: int) -> str | None:
        """Raises KafkaUnavailable."""
        async with LogReader(self._connection) as reader:
            record = await reader.record(partition, offset)
        if record is None or record.offset != offset or record.key is None:
            return None
        return bytes(record.key).decode("utf-8", "replace")


def _event_id(row: bytes) -> str | None:
    """None for a row that cannot be read, or has none."""
    try:
        document = orjson.loads(row)
    except ValueError:
        return None
    event_id = document.get("event_id") if isinstance(document, dict) else None
    return event_id if isinstance(event_id, str) else None


def rest_token(token: str, rows: Sequence[bytes]) -> str:
    """For what was missing of a range: another block than the whole, so another token."""
    return f"{token}/rest-{crc32(b''.join(rows)):08x}"
