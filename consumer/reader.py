"""Reads records by their coordinates, outside of any group: single ones, or ranges of them."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from consumer.source import KafkaUnavailable
from schemas import kafka

START_TIMEOUT_S = 30.0
FETCH_TIMEOUT_MS = 5_000
POLL_TIMEOUT_MS = 100
STOP_TIMEOUT_S = 1.0


class LogReader:
    """`async with LogReader(connection) as log: await log.record(partition, offset)`. Raises KafkaUnavailable."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._consumer = AIOKafkaConsumer(
            **connection,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=POLL_TIMEOUT_MS,
        )

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._consumer.start()
                # It knows no topics yet, and asks for none of its own accord.
                await self._consumer._client.force_metadata_update()
        except BaseException as error:
            await kafka.stop(self._consumer, STOP_TIMEOUT_S)
            if isinstance(error, KafkaError | OSError):
                raise KafkaUnavailable(repr(error)) from error
            raise
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await kafka.stop(self._consumer, STOP_TIMEOUT_S)

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

    async def records(
        self, partition: TopicPartition, first: int, end: int
    ) -> "AsyncIterator[ConsumerRecord[bytes, bytes]]":
        """Every record that Kafka holds of [first, end), in order; nothing else may be read meanwhile."""
        if first >= end:
            return
        try:
            if partition not in self._consumer.assignment():
                self._consumer.assign([partition])
            self._consumer.seek(partition, first)
            position, moved_at = first, time.monotonic()
            while position < end:
                try:
                    # Not for long: offsets that hold no record end no wait, they only move the position.
                    fetched = await self._consumer.getmany(partition, timeout_ms=POLL_TIMEOUT_MS)
                    reached = await self._consumer.position(partition)
                except OffsetOutOfRangeError:
                    # Deleted while we read.
                    reached = (await self._consumer.beginning_offsets([partition]))[partition]
                    self._consumer.seek(partition, reached)
                    fetched = {}
                for record in fetched.get(partition, ()):
                    if record.offset >= end:
                        return
                    yield record
                if reached > position:
                    position, moved_at = reached, time.monotonic()
                elif time.monotonic() - moved_at > FETCH_TIMEOUT_MS / 1000:
                    raise KafkaUnavailable(f"{partition.topic}/{partition.partition} gave no record from {position} on")
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error

    async def offsets_at(self, partitions: list[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        """The first offset whose record is of `time_ms` (epoch ms) or later; the partition's end if none is."""
        try:
            found = await self._consumer.offsets_for_times(dict.fromkeys(partitions, time_ms))
            ends = await self._consumer.end_offsets(partitions)
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
        return {tp: ends[tp] if found[tp] is None else found[tp].offset for tp in partitions}

    async def bounds(self, partitions: list[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """First offset that Kafka holds and the one after the last."""
        try:
            begins = await self._consumer.beginning_offsets(partitions)
            ends = await self._consumer.end_offsets(partitions)
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
        return {tp: (begins[tp], ends[tp]) for tp in partitions}

    def partitions(self, topic: str) -> list[TopicPartition]:
        """Of a topic, in order; none if there is no such topic. To be asked before anything is read."""
        return [TopicPartition(topic, p) for p in sorted(self._consumer.partitions_for_topic(topic) or ())]
