"""The limit of a consumer on aiokafka: `getmany`, with the fetch sizes of our own, and nothing done with the records.

`python -m tests.bench.peers.getmany_alone --brokers HOST:PORT --rows N`.
"""

import argparse

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.source import FETCH_BYTES_MAX, PARTITION_FETCH_BYTES_MAX
from tests.bench.events import TOPIC
from tests.bench.peers.report import Progress


async def run(brokers: str, rows: int) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=brokers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=FETCH_BYTES_MAX,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
        fetch_max_wait_ms=100,
    )
    await consumer.start()
    while not (partitions := consumer.partitions_for_topic(TOPIC)):
        await consumer._client.force_metadata_update()
    consumer.assign([TopicPartition(TOPIC, partition) for partition in partitions])
    progress = Progress()
    while progress.rows < rows:
        records = await consumer.getmany(timeout_ms=200, max_records=10_000)
        progress.add(sum(map(len, records.values())))
    progress.print()
    await consumer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--rows", type=int, required=True)
    args = parser.parse_args()
    uvloop.run(run(args.brokers, args.rows))


if __name__ == "__main__":
    main()
