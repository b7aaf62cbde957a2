"""The topics of the events: how much is in them, how to fill one fast, how to empty them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from schemas.streams import STREAMS
from tests.bench.events import APP, TOPIC, Rows

RECORDS_PER_BATCH = 100
"""As a gateway writes them under load, or from requests of a hundred events. What reads them pays for each batch."""
BATCHES_UNDER_WAY = 32
METADATA_S_MAX = 30
METADATA_POLL_S = 0.05
DEDUPE_HEADER = ("dedupe", APP.encode())


@dataclass(frozen=True)
class Backlog:
    """Records that lie in the topic and wait; with `has_ids` their ids are their callers', as gateways mark them."""

    rows: int
    has_ids: bool = False


def records(brokers: str) -> int:
    """How many have ever been written to the topics of all events."""
    return sum(asyncio.run(_ends(brokers)).values())


def empty(brokers: str) -> None:
    """Delete the records that are there: a benchmark's log would grow by gigabytes."""
    asyncio.run(_empty(brokers))


def fill(brokers: str, backlog: Backlog, advance: Callable[[int], None]) -> None:
    """`advance` is told how many more rows there are."""
    asyncio.run(_fill(brokers, backlog, advance))


async def _ends(brokers: str) -> dict[TopicPartition, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(s.name, p) for s in STREAMS for p in await _partitions(consumer, s.name)]
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        return ends
    finally:
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    """A broker that has much to do may name no topic at first."""
    async with asyncio.timeout(METADATA_S_MAX):
        while not (partitions := consumer.partitions_for_topic(topic)):
            await consumer._client.force_metadata_update()
            await asyncio.sleep(METADATA_POLL_S)
        return set(partitions)


async def _empty(brokers: str) -> None:
    last = await _ends(brokers)
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        await admin.delete_records({partition: RecordsToDelete(end) for partition, end in last.items()})
    finally:
        await admin.close()


async def _fill(brokers: str, backlog: Backlog, advance: Callable[[int], None]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", max_batch_size=1_000_000)
    await producer.start()
    try:
        partitions = sorted(await producer.partitions_for(TOPIC))
        rows, under_way = Rows(), deque[asyncio.Future[object]]()
        headers = [DEDUPE_HEADER] if backlog.has_ids else []
        left, number = backlog.rows, 0
        while left:
            size = min(left, RECORDS_PER_BATCH)
            now_ms = time.time_ns() // 1_000_000
            batch = producer.create_batch()
            for _ in range(size):
                event_id, value = rows.make(now_ms)
                batch.append(timestamp=now_ms, key=event_id, value=value, headers=headers)
            partition = partitions[number % len(partitions)]
            under_way.append(await producer.send_batch(batch, TOPIC, partition=partition))
            if len(under_way) > BATCHES_UNDER_WAY:
                await under_way.popleft()
            left -= size
            number += 1
            advance(size)
        for answer in under_way:
            await answer
    finally:
        await producer.stop()
