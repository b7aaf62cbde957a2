"""Reads single records by their coordinates, outside of any group."""

from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from consumer.source import KafkaUnavailable

FETCH_TIMEOUT_MS = 5_000


class LogReader:
    """`async with LogReader(connection) as log: await log.record(partition, offset)`. Raises KafkaUnavailable."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._consumer = AIOKafkaConsumer(**connection, enable_auto_commit=False, auto_offset_reset="none")

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as error:
            await self._consumer.stop()
            raise KafkaUnavailable(repr(error)) from error
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._consumer.stop()

    async def record(self, partition: TopicPartition, offset: int) -> "ConsumerRecord[bytes, bytes] | None":
        """The record at `offset`, or the first one behind it; None if Kafka holds neither, or gives none in time."""
        try:
            if partition not in self._consumer.assignment():
                self._consumer.assign([partition])
            self._consumer.seek(partition, offset)
            fetched = await self._consumer.getmany(partition, timeout_ms=FETCH_TIMEOUT_MS, max_records=1)
        except OffsetOutOfRangeError:
            return None
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
        records = fetched.get(partition)
        return records[0] if records else None

    async def bounds(self, partitions: list[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """First offset that Kafka holds and the one after the last."""
        try:
            begins = await self._consumer.beginning_offsets(partitions)
            ends = await self._consumer.end_offsets(partitions)
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
        return {tp: (begins[tp], ends[tp]) for tp in partitions}

    def partitions(self, topic: str) -> list[TopicPartition]:
        """Of a topic, in order; none if there is no such topic."""
        return [TopicPartition(topic, p) for p in sorted(self._consumer.partitions_for_topic(topic) or ())]
