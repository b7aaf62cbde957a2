"""gateway.direct_producer against real Kafka, which hangs, dies and returns: each acknowledged batch is there once.

Requests are given up sooner than a stopped Kafka goes on, so that it reads some of them after their repeats.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local.process import HOST, Process
from gateway.direct_producer import DirectProducer

TOPIC = "direct"
PARTITIONS = [TopicPartition(TOPIC, number) for number in range(4)]
BATCHES = 1_500  # a partition
REQUEST_TIMEOUT_MS = 1_500
SUSPENDED_S = 4.0


@pytest.fixture
async def producer(own_kafka: tuple[Process, int]) -> AsyncIterator[DirectProducer]:
    _, port = own_kafka
    admin = AIOKafkaAdminClient(bootstrap_servers=f"{HOST}:{port}")
    await admin.start()
    await admin.create_topics([NewTopic(TOPIC, num_partitions=len(PARTITIONS), replication_factor=1)])
    await admin.close()
    producer = DirectProducer(
        bootstrap_servers=f"{HOST}:{port}",
        acks="all",
        enable_idempotence=True,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    async with producer:
        await producer.partitions_for(TOPIC)
        yield producer


async def log_of(port: int, partition: TopicPartition) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=f"{HOST}:{port}", enable_auto_commit=False)
    async with consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        values: list[bytes] = []
        while await consumer.position(partition) < end:
            found = await consumer.getmany(partition, timeout_ms=1_000)
            values += [record.value for records in found.values() for record in records]
        return values


async def test_every_acknowledged_batch_is_there_once(own_kafka: tuple[Process, int], producer: DirectProducer) -> None:
    broker, port = own_kafka
    retried: list[int] = []  # sizes of what the routine had to send
    acknowledged = 0
    milestones = {len(PARTITIONS) * BATCHES * part // 6: asyncio.Event() for part in range(1, 6)}
    drain = producer._message_accumulator.drain_by_nodes

    def counted(*args: object, **options: object) -> object:
        drained = drain(*args, **options)
        retried.extend(len(batches) for batches in drained[0].values())
        return drained

    producer._message_accumulator.drain_by_nodes = counted

    async def send_all(partition: TopicPartition) -> list[bytes]:
        nonlocal acknowledged
        values = []
        for number in range(BATCHES):
            batch = [b"%d-%d-%d" % (partition.partition, number, each) for each in range(1 + number % 3)]
            builder = producer.create_batch()
            for value in batch:
                assert builder.append(timestamp=None, key=None, value=value)
            leader = producer.client.cluster.leader_for_partition(partition)
            await producer.send_to(1 if leader in (None, -1) else leader, partition, builder)
            values += batch
            acknowledged += 1
            if acknowledged in milestones:
                milestones[acknowledged].set()
        return values

    sending = [asyncio.create_task(send_all(partition)) for partition in PARTITIONS]
    for number, milestone in enumerate(milestones.values()):
        await milestone.wait()
        if number % 2:
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
        else:
            broker.suspend()
            try:
                await asyncio.sleep(SUSPENDED_S)
            finally:
                broker.resume()
    sent = await asyncio.gather(*sending)
    assert [await log_of(port, partition) for partition in PARTITIONS] == sent
    assert sum(retried) >= len(milestones), "nothing went wrong, so nothing was shown"
