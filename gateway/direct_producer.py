"""An idempotent producer whose batches leave at once: the only module here that leans on private names of aiokafka.

`send_batch` hands a batch to a routine that wakes, looks through all partitions, starts a task, waits for several
things at a time, and wakes again for the answer: a sixth of what a single event costs at 64 connections. Who knows that
the partition and its broker are free, as `gateway.publisher` does, needs none of that. So a batch takes its sequence
number and its request is sent; what may be tried again goes back to the routine, under the same sequence number.

The version is pinned, and `tests/unit/test_direct_producer.py` says what has moved when another one is tried.
"""

import copy

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.producer.sender import SendProduceReqHandler


class DirectProducer(AIOKafkaProducer):  # type: ignore[misc]
    async def send_to(self, broker: int, partition: TopicPartition, builder: BatchBuilder) -> None:
        """Returns once Kafka has the batch, however often that takes; `broker` is the partition's leader, as far as is
        known. One batch a partition at a time.

        Raises KafkaError: Kafka does not take it. Whoever is cancelled does not know.
        """
        accumulator, numbers = self._message_accumulator, self._txn_manager
        if accumulator._closed:
            raise ProducerClosed
        if accumulator._exception is not None:
            raise copy.copy(accumulator._exception)
        batch = MessageBatch(partition, builder, accumulator._batch_ttl, accumulator._linger_time)
        # As `_pop_batch` does, which would take an older batch of the partition if one waits there.
        batch.set_producer_state(numbers.producer_id, numbers.producer_epoch, numbers.sequence_number(partition))
        numbers.increment_sequence_number(partition, batch.record_count)
        batch.drain_ready()
        accumulator._pending_batches.add(batch)  # where `stop` and the routine look for it
        try:
            await SendProduceReqHandler(self._sender, {partition: batch}).do(broker)
            if not batch.future.done():  # it is back in the accumulator
                accumulator._wakeup(accumulator.waiter())
            await batch.future
        except KafkaError:
            raise
        except Exception as error:
            raise KafkaError(f"Unexpected error: {error!r}") from error
        finally:
            if batch.future.done() and not batch.future.cancelled():
                accumulator._pending_batches.discard(batch)
                batch.future.exception()  # has been looked at, even if we did not get as far as waiting for it
            else:  # nobody waits for it any more: `stop` need not, either
                batch.future.cancel()  # still pending: the routine may have it, and takes it from there
