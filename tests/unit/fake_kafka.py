"""Kafka as the publisher sees it: the small slice of DirectProducer that it uses, answered by hand.

The batches are aiokafka's own, so what a test reads from a flight is what a broker would.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition
from aiokafka.record.default_records import DefaultRecordBatch

from gateway.direct_producer import RecordBuilder


@dataclass
class Flight:
    """A batch on its way to a broker."""

    producer: "FakeProducer"
    topic: str
    partition: int
    wire: bytes
    reply: asyncio.Future[None]
    alone: bool  # whether no other left for its broker in the same turn

    @property
    def records(self) -> list[tuple[bytes, bytes, int]]:
        """Key, value and timestamp of each record."""
        return [(record.key, record.value, record.timestamp) for record in DefaultRecordBatch(self.wire)]

    @property
    def values(self) -> list[bytes]:
        return [value for _, value, _ in self.records]

    @property
    def headers(self) -> list[list[tuple[str, bytes]]]:
        """Of each record."""
        return [record.headers for record in DefaultRecordBatch(self.wire)]

    def answer(self) -> None:
        self.reply.set_result(None)

    def refuse(self, error: Exception) -> None:
        self.reply.set_exception(error)


@dataclass
class FakeKafka:
    """`leaders`: broker by partition, None while it has no leader. `start_faults`: what the next producers' starts
    raise; None lets one hang. `send_fault`: what every hand-over raises. `swallows_cancellation`: as aiokafka does
    in places, a start or stop that is cancelled ends as if it had not been."""

    leaders: dict[TopicPartition, int | None]
    start_faults: list[BaseException | None] = field(default_factory=list)
    send_fault: Exception | None = None
    stop_hangs: bool = False
    swallows_cancellation: bool = False
    producers: list["FakeProducer"] = field(default_factory=list)
    flights: list[Flight] = field(default_factory=list)
    metadata_updates: int = 0
    listeners: list[Callable[[Any], None]] = field(default_factory=list)

    def producer(self, **options: Any) -> "FakeProducer":
        """In place of the class `DirectProducer`."""
        self.producers.append(FakeProducer(self, options))
        return self.producers[-1]

    # What the publisher finds at `producer.client.cluster`:

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {partition.partition for partition in self.leaders if partition.topic == topic} or None

    def leader_for_partition(self, partition: TopicPartition) -> int | None:
        return self.leaders.get(partition)

    def add_listener(self, listener: Callable[[Any], None]) -> None:
        self.listeners.append(listener)

    def lead(self, leaders: dict[TopicPartition, int | None]) -> None:
        """From now on, as new metadata says."""
        self.leaders = leaders
        for listener in self.listeners:
            listener(self)


class FakeClient:
    def __init__(self, kafka: FakeKafka) -> None:
        self.cluster = kafka
        self.closed = False

    def force_metadata_update(self) -> None:
        self.cluster.metadata_updates += 1

    async def close(self) -> None:
        self.closed = True


class FakeProducer:
    def __init__(self, kafka: FakeKafka, options: dict[str, Any]) -> None:
        self._kafka = kafka
        self.options = options
        self.client = FakeClient(kafka)

    async def start(self) -> None:
        await self._pause()
        if self._kafka.start_faults:
            fault = self._kafka.start_faults.pop(0)
            if fault is None:
                await asyncio.Event().wait()
            else:
                raise fault

    async def stop(self) -> None:
        if self._kafka.stop_hangs:
            await asyncio.Event().wait()
        await self._pause()
        await self.client.close()

    async def _pause(self) -> None:
        if self._kafka.swallows_cancellation:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    async def partitions_for(self, topic: str) -> set[int] | None:
        return self._kafka.partitions_for_topic(topic)

    def create_batch(self) -> RecordBuilder:
        return RecordBuilder(self.options["max_batch_size"], 0)

    async def send_to(self, broker: int, partition: TopicPartition, builder: RecordBuilder, *, alone: bool) -> None:
        assert broker == self._kafka.leaders[partition]
        if self._kafka.send_fault is not None:
            raise self._kafka.send_fault
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kafka.flights.append(Flight(self, *partition, bytes(builder._build()), reply, alone))
        await reply
