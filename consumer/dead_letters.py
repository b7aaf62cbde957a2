"""Dead letters: records that no table can take, in topic `<topic>.dead`, keyed `topic:partition:offset`.

A dead letter is acknowledged by all in-sync replicas before its record's offset moves. The same record may get
there twice (a crash in between): its key says that it is one.
"""

import asyncio
import time
from collections.abc import Mapping

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from consumer.migrations import DEAD_LETTER_SUFFIX
from consumer.reader import LogReader
from consumer.settings import ConsumerSettings
from consumer.source import KafkaUnavailable
from schemas import kafka

SCHEMA_VERSION = "1"
WRITE_TIMEOUT_S = 60.0

Reasons = Mapping[int, tuple[int, str]]
"""ClickHouse's error code and text by offset; code 0 for what is no JSON object at all."""


class DeadLetters:
    """Connects when it is first needed, which is hardly ever."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self._connection = kafka.connection(settings)

    async def write(self, partition: TopicPartition, reasons: Reasons) -> None:
        """One attempt to write a letter for each offset. Raises KafkaUnavailable: none, some or all are written."""
        producer = AIOKafkaProducer(**self._connection, acks="all", enable_idempotence=True)
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S), LogReader(self._connection) as reader:
                await producer.start()
                for offset, reason in sorted(reasons.items()):
                    await self._copy(reader, producer, partition, offset, *reason)
        except (KafkaError, OSError, TimeoutError) as error:
            raise KafkaUnavailable(repr(error)) from error
        finally:
            await kafka.stop(producer)

    async def _copy(
        self,
        reader: LogReader,
        producer: AIOKafkaProducer,
        partition: TopicPartition,
        offset: int,
        code: int,
        text: str,
    ) -> None:
        """The raw record, its key and headers, from the log itself: what was made of it since proves nothing."""
        record = await reader.record(partition, offset)
        if record is None or record.offset != offset:
            raise KafkaUnavailable(f"{partition.topic}/{partition.partition} gave no record at {offset}")
        headers = [
            *record.headers,
            ("dead.key", record.key or b""),
            ("dead.code", str(code).encode()),
            ("dead.error", text.encode()),
            ("dead.schema_version", SCHEMA_VERSION.encode()),
            ("dead.time_ms", str(time.time_ns() // 1_000_000).encode()),
            ("dead.record_time_ms", str(record.timestamp).encode()),
        ]
        await producer.send_and_wait(
            partition.topic + DEAD_LETTER_SUFFIX,
            key=f"{partition.topic}:{partition.partition}:{offset}".encode(),
            value=record.value,
            headers=headers,
        )
