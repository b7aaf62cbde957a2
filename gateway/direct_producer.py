"""An idempotent producer whose batches leave at once: the only module here that leans on private names of aiokafka.

`send_batch` hands a batch to a routine that wakes, looks through all partitions, starts a task, waits for several
things at a time, and wakes again for the answer: a sixth of what a single event costs at 64 connections. Who knows that
the partition and its broker are free, as `gateway.publisher` does, needs none of that. So a batch takes its sequence
number and leaves, in one request with all that leave for its broker in the same turn of the event loop; what may be
tried again goes back to the routine, under the same sequence number. And records are appended to a batch without what
aiokafka does for each (serializers, named arguments), and a batch is not copied on its way into the request.

The version is pinned, and `tests/unit/test_direct_producer.py` says what has moved when another one is tried.
"""

import asyncio
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, repeat
from struct import Struct
from typing import Any, TypeAlias

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.protocol.produce import ProduceRequest, ProduceRequestStruct
from aiokafka.record.memory_records import MemoryRecords

REQUEST_BYTES_MAX = 4_194_304

Batches: TypeAlias = dict[TopicPartition, MessageBatch]


class RecordBuilder(BatchBuilder):  # type: ignore[misc]
    """What a batch's records are appended to, many at a time: less than half of what `append` costs for each."""

    def add(self, key: bytes, value: bytes, timestamp_ms: int, headers: list[tuple[str, bytes]]) -> bool:
        """Whether there was room for it; if not, none is taken any more."""
        if self._closed:
            return False
        if self._builder.append(self._relative_offset, timestamp_ms, key, value, headers) is None:
            self.close()
            return False
        self._relative_offset += 1
        return True

    def extend(
        self, keys: Sequence[bytes], values: Sequence[bytes], timestamp_ms: int, headers: list[tuple[str, bytes]]
    ) -> int:
        """As `add` of each in turn, with the same headers: how many of them, from the first on, there was room for."""
        if self._closed:
            return 0
        first: int = self.record_count()
        offset = first
        append = self._builder.append
        try:
            for metadata in map(append, count(first), repeat(timestamp_ms), keys, values, repeat(headers)):
                if metadata is None:
                    self.close()
                    break
                offset += 1
        finally:
            self._relative_offset = offset
        return offset - first

    def read(self) -> Iterator[tuple[bytes, bytes, int, tuple[tuple[str, bytes], ...]]]:
        """Key, value, timestamp (ms) and headers of each record. No more can be appended."""
        batch = MemoryRecords(bytes(self._build())).next_batch()
        return ((record.key, record.value, record.timestamp, record.headers) for record in batch or ())


_COUNT = Struct(">i")
_NAME_LENGTH = Struct(">h")
_PARTITION_AND_LENGTH = Struct(">ii")


class LeanRequest(ProduceRequest):  # type: ignore[misc]
    """Is encoded without the copies that aiokafka makes of each batch: eight, of up to a megabyte."""

    def build(self, version: type[ProduceRequestStruct]) -> ProduceRequestStruct:
        """The topics are the last field: an array of names, each with its array of partitions and their records."""
        struct = super().build(version)
        struct.topics = []
        pieces = [struct.encode()[: -_COUNT.size], _COUNT.pack(len(self._topics))]
        for topic, partitions in self._topics:
            name = topic.encode()
            pieces += [_NAME_LENGTH.pack(len(name)), name, _COUNT.pack(len(partitions))]
            for partition, records in partitions:
                pieces += [_PARTITION_AND_LENGTH.pack(partition, len(records)), records]
        struct.encode = partial(b"".join, pieces)
        return struct


class Produce(SendProduceReqHandler):  # type: ignore[misc]
    def create_request(self) -> LeanRequest:
        request = super().create_request()
        return LeanRequest(request._transactional_id, request.required_acks, request._timeout, request._topics)


class DirectProducer(AIOKafkaProducer):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._leaving: dict[int, Batches] = {}  # by broker, in this turn of the loop
        self._requests: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """As aiokafka's, which knows nothing of the requests that are under way."""
        try:
            await super().stop()
        finally:
            for request in self._requests:
                request.cancel()

    def create_batch(self) -> RecordBuilder:
        return RecordBuilder(self._message_accumulator._batch_size, self._message_accumulator._compression_type)

    async def send_to(
        self, broker: int, partition: TopicPartition, builder: RecordBuilder, *, alone: bool = False
    ) -> None:
        """Returns once Kafka has the batch, however often that takes; `broker` is the partition's leader, as far as is
        known. One batch a partition at a time. If it is `alone`, it need not wait for others that leave in this turn.

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
            if alone:
                await self._request(broker, {partition: batch})
            else:
                self._leave_soon(broker, partition, batch)
            await batch.future
        finally:
            if batch.future.done() and not batch.future.cancelled():
                accumulator._pending_batches.discard(batch)
                batch.future.exception()  # has been looked at, even if we did not get as far as waiting for it
            else:  # nobody waits for it any more: `stop` need not, either
                batch.future.cancel()  # still pending: the routine may have it, and takes it from there

    def _leave_soon(self, broker: int, partition: TopicPartition, batch: MessageBatch) -> None:
        leaving = self._leaving.get(broker)
        if leaving is None:
            leaving = self._leaving[broker] = {}
            asyncio.get_running_loop().call_soon(self._leave, broker)
        leaving[partition] = batch

    def _leave(self, broker: int) -> None:
        """In one request, or more if they are large: each has to arrive in its time."""
        together: Batches = {}
        bytes_together = 0
        for partition, batch in self._leaving.pop(broker).items():
            bytes_ = len(batch.get_data_buffer())
            if together and bytes_together + bytes_ > REQUEST_BYTES_MAX:
                self._begin(broker, together)
                together, bytes_together = {}, 0
            together[partition] = batch
            bytes_together += bytes_
        self._begin(broker, together)

    def _begin(self, broker: int, batches: Batches) -> None:
        request = asyncio.get_running_loop().create_task(self._request(broker, batches))
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)

    async def _request(self, broker: int, batches: Batches) -> None:
        try:
            await Produce(self._sender, batches).do(broker)
        except Exception as error:
            for batch in batches.values():
                unexpected = KafkaError(f"Unexpected error: {error!r}")
                unexpected.__cause__ = error
                batch.failure(unexpected)
        if not all(batch.future.done() for batch in batches.values()):  # some are back in the accumulator
            accumulator = self._message_accumulator
            accumulator._wakeup(accumulator.waiter())
