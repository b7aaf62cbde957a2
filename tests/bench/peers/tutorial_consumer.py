"""The consumer of the tutorials: `json.loads` for each message, `client.insert` of rows, then a commit.

Batches are as large as ours, so that the engine is no worse off. It is not exactly-once: killed between insert and
commit it inserts twice.

`python -m tests.bench.peers.tutorial_consumer --brokers HOST:PORT --clickhouse URL --group NAME --rows N`.
"""

import argparse
import asyncio
import json
from datetime import datetime
from typing import Any

import clickhouse_connect
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from tests.bench.events import TOPIC
from tests.bench.peers.report import Progress

BATCH_ROWS = 50_000
COLUMNS = [
    "event_id",
    "app",
    "received_at",
    "event_type",
    "document_id",
    "position",
    "query",
    "result_count",
    "latency_ms",
    "dwell_ms",
    "session_id",
    "metadata",
    "extra",
    "kafka_partition",
    "kafka_offset",
]
JSON_TEXT = {"metadata", "extra"}


def row(record: "ConsumerRecord[bytes, bytes]") -> list[Any]:
    assert record.value is not None
    event = json.loads(record.value)
    event["received_at"] = datetime.fromisoformat(event["received_at"])
    for column in JSON_TEXT:
        event[column] = json.dumps(event.get(column) or {})
    event["kafka_partition"] = record.partition
    event["kafka_offset"] = record.offset
    return [event.get(column) for column in COLUMNS]


async def run(brokers: str, clickhouse: str, group: str, rows: int) -> None:
    consumer = AIOKafkaConsumer(
        TOPIC, bootstrap_servers=brokers, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    client = clickhouse_connect.get_client(dsn=clickhouse)
    await consumer.start()
    progress = Progress()
    batch: list[list[Any]] = []
    while progress.rows < rows:
        for records in (await consumer.getmany(timeout_ms=200, max_records=10_000)).values():
            batch.extend(map(row, records))
        if len(batch) >= BATCH_ROWS or progress.rows + len(batch) >= rows:
            client.insert(TOPIC, batch, column_names=COLUMNS)
            await consumer.commit()
            progress.add(len(batch))
            batch = []
    progress.print()
    await consumer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--clickhouse", required=True, help="http://host:port/database")
    parser.add_argument("--group", required=True)
    parser.add_argument("--rows", type=int, required=True)
    args = parser.parse_args()
    asyncio.run(run(args.brokers, args.clickhouse, args.group, args.rows))


if __name__ == "__main__":
    main()
