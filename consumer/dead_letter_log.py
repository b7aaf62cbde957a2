"""Reads the dead letters back, and marks them as done.

`<topic>.dead` is an ordinary log: a mark is a record of a letter's own key, without value, whose last header is
`dead.state`. The newest record of a key decides, so a record that is buried once more is open again. What is kept
of a letter is where it lies and why, never the record itself: LETTERS_MAX of them, about 500 bytes each.
"""

import asyncio
import re
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from consumer.dead_letters import SCHEMA_VERSION, WRITE_TIMEOUT_S
from consumer.group import Group
from consumer.migrations import DEAD_LETTER_SUFFIX
from consumer.reader import LogReader
from consumer.source import KafkaUnavailable
from schemas import kafka

LETTERS_MAX = 1_000_000

OPEN, REPLAYED, DROPPED = "open", "replayed", "dropped"
STATE_HEADER = "dead.state"

_ERROR_NAME = re.compile(r"\(([A-Z][A-Z0-9_]{3,})\)")
_COLUMN = re.compile(r"\(while reading the value of key ([\w.]{1,64})\)")


class TooManyDeadLetters(Exception):
    """More than LETTERS_MAX."""


@dataclass(frozen=True, slots=True)
class Letter:
    """`record` are the coordinates of the record that it is about, `log` and `log_offset` its own. `code` is
    ClickHouse's, 0 for what is no JSON object; `reason` its name, and the column. Times are epoch ms."""

    record: TopicPartition
    offset: int
    log: TopicPartition
    log_offset: int
    code: int
    reason: str
    time_ms: int
    record_time_ms: int | None
    state: str

    @property
    def key(self) -> str:
        return f"{self.record.topic}:{self.record.partition}:{self.offset}"


async def letters(group: Group, reader: LogReader, topic: str) -> dict[str, Letter]:
    """Every letter about `topic` by its key, in the order of burial. Raises KafkaUnavailable, TooManyDeadLetters."""
    logs = await group.partitions([topic + DEAD_LETTER_SUFFIX])
    found: dict[str, Letter] = {}
    for log, (begin, end) in (await reader.bounds(logs)).items() if logs else ():
        async for record in reader.records(log, begin, end):
            letter = parsed(log, record)
            if letter is None or letter.record.topic != topic:
                continue
            key = letter.key
            if letter.state == OPEN:
                found.pop(key, None)  # the order is that of the newest burial
                found[key] = letter
            elif key in found:
                found[key] = replace(found[key], state=letter.state)
            else:
                found[key] = letter  # Kafka's retention has taken the letter and not yet its mark
            if len(found) > LETTERS_MAX:
                raise TooManyDeadLetters(f"{topic}{DEAD_LETTER_SUFFIX} holds more than {LETTERS_MAX:,} dead letters")
    return found


def parsed(log: TopicPartition, record: "ConsumerRecord[bytes, bytes]") -> Letter | None:
    """None for a record that is not ours."""
    try:
        topic, partition, offset = (record.key or b"").decode().rsplit(":", 2)
        headers = texts(record)
        return Letter(
            record=TopicPartition(topic, int(partition)),
            offset=int(offset),
            log=log,
            log_offset=record.offset,
            code=int(headers["dead.code"]),
            reason=reason(int(headers["dead.code"]), headers.get("dead.error", "")),
            time_ms=int(headers["dead.time_ms"]),
            record_time_ms=int(headers["dead.record_time_ms"]) if headers.get("dead.record_time_ms") else None,
            state=headers[STATE_HEADER] if is_mark(record) else OPEN,
        )
    except (ValueError, KeyError):
        return None


def is_mark(record: "ConsumerRecord[bytes, bytes]") -> bool:
    # A letter begins with the headers of its record, and those may be anything: the last one is ours.
    return bool(record.headers) and record.headers[-1][0] == STATE_HEADER


def texts(record: "ConsumerRecord[bytes, bytes]") -> dict[str, str]:
    """The headers; of several of one name the last, which is ours."""
    return {name: (value or b"").decode("utf-8", "backslashreplace") for name, value in record.headers}


def reason(code: int, error: str) -> str:
    """The error's name and the column that it is about, without any of the record."""
    if code == 0:
        return "not a JSON object"
    names, column = _ERROR_NAME.findall(error), _COLUMN.search(error)
    return (names[-1] if names else f"error {code}") + (f" in {column.group(1)}" if column else "")


class Marks:
    """`async with Marks(connection) as marks`. Raises KafkaUnavailable."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._producer = AIOKafkaProducer(**connection, acks="all", enable_idempotence=True)

    async def __aenter__(self) -> Self:
        try:
            await self._producer.start()
        except (KafkaError, OSError) as error:
            await kafka.stop(self._producer)
            raise KafkaUnavailable(repr(error)) from error
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await kafka.stop(self._producer)

    async def mark(self, letter: Letter, state: str) -> None:
        """Acknowledged by all in-sync replicas when this returns."""
        headers = [
            ("dead.code", str(letter.code).encode()),
            ("dead.schema_version", SCHEMA_VERSION.encode()),
            ("dead.time_ms", str(time.time_ns() // 1_000_000).encode()),
            ("dead.record_time_ms", str(letter.record_time_ms or "").encode()),
            (STATE_HEADER, state.encode()),
        ]
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                # To the letter's own partition, so that their order is certain.
                await self._producer.send_and_wait(
                    letter.log.topic,
                    key=letter.key.encode(),
                    value=None,
                    headers=headers,
                    partition=letter.log.partition,
                )
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
