"""An idempotent producer whose batches leave at once: the only module here that leans on private names of aiokafka.

`send_batch` hands a batch to a routine that wakes, looks through all partitions, starts a task, waits for several
things at a time, and wakes again for the answer: a sixth of what a single event costs at 64 connections. Who knows that
the partition and its broker are free, as `gateway.publisher` does, needs none of that. So a batch takes its sequence
number and its request is sent; what may be tried again goes back to the routine, under the same sequence number.

The version is pinned, and `tests/unit/test_direct_producer.py` says what has moved when another one is tried.
"""

import copy

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.producer.sender import SendProduceReqHandler


class DirectProducer(AIOKafkaProducer):  # type: ignore[misc]
    async def send_to(self, broker: int, partition: TopicPartition, builder: BatchBuilder) -> None:
        """Returns once Kafka has the batch, however often that takes; `broker` is the partition's leader, as far as is
        known. One batch a partition at a time.

        Raises KafkaError: Kafka does not take it. Whoever is cancelled does not know.
        """
        accumulator = self._message_accumulator
        if accumulator._closed:
            raise ProducerClosed
        if accumulator._exception is not None:
            raise copy.copy(accumulator._exception)
        batch = MessageBatch(partition, builder, accumulator._batch_ttl, accumulator._linger_time)
        accumulator._batches[partition].append(batch)
        accumulator._pop_batch(partition)
        try:
            await SendProduceReqHandler(self._sender, {partition: batch}).do(broker)
            if not batch.future.done():  # it is back in the accumulator
                accumulator._wakeup(accumulator.waiter())
            await batch.future
        finally:
            if not batch.future.done():  # nobody waits for it any more: `stop` need not, either
                accumulator._pending_batches.add(batch)  # where it is looked for when its future ends
                batch.future.cancel()
