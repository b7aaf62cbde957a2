"""consumer.reader against real Kafka: what goes wrong on the way out is an outage like any other."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from consumer.reader import LogReader
from consumer.source import KafkaUnavailable
from deploy.local.process import HOST, Process

PARTITION = TopicPartition("read", 0)


async def test_a_kafka_that_dies_while_it_is_read_is_an_outage(own_kafka: tuple[Process, int]) -> None:
    """And no CancelledError, which would end the task that reads without a word: aiokafka raises one for a fetch that
    it cancels while it waits to be tried again, which is what all of them do now."""
    broker, port = own_kafka
    connection = {"bootstrap_servers": f"{HOST}:{port}"}
    admin = AIOKafkaAdminClient(**connection)
    await admin.start()
    await admin.create_topics([NewTopic(PARTITION.topic, num_partitions=1, replication_factor=1)])
    await admin.close()
    async with AIOKafkaProducer(**connection) as producer:
        await producer.send_and_wait(PARTITION.topic, b"a record", partition=PARTITION.partition)
    offsets = []

    async def read() -> None:
        async with LogReader(connection) as log:
            async for record in log.records(PARTITION, 0, 2):
                offsets.append(record.offset)
                await asyncio.to_thread(broker.kill)

    reading = asyncio.create_task(read())
    await asyncio.wait({reading})
    assert not reading.cancelled()
    assert isinstance(reading.exception(), KafkaUnavailable)
    assert offsets == [0]
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        _, left = await asyncio.wait(left, timeout=10)
    assert not left, "nothing of it goes on"


async def test_a_kafka_that_is_not_there_is_an_outage(own_kafka: tuple[Process, int]) -> None:
    broker, port = own_kafka
    broker.kill()
    with pytest.raises(KafkaUnavailable):
        async with LogReader({"bootstrap_servers": f"{HOST}:{port}"}):
            pass
