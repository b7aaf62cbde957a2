"""Records that leave for Kafka together, and what becomes of them."""

import asyncio
import enum
from typing import NamedTuple, TypeVar

from gateway.direct_producer import RecordBuilder
from gateway.record import Durability, Record, Records, bytes_of
from gateway.spool import SpoolRefusal

DEDUPE_HEADER = "dedupe"  # whose caller gave the id
REPLAY_HEADER = ("replay", b"1")  # from the spool

T = TypeVar("T")


class Outcome(enum.Enum):
    """What became of a batch. Only DELIVERED may be answered with 200."""

    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"  # never sent: it will not arrive
    IN_DOUBT = "in_doubt"  # sent, and no answer in time: it may still arrive


class Lane(NamedTuple):
    """Where records wait: for one partition, or (None) for whichever is free."""

    topic: str
    partition: int | None


class PublisherRefusal(Exception):
    """The record was not taken: nothing of it is anywhere. `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SharedFuture(asyncio.Future[T]):
    """Awaited by many: one who is cancelled leaves it alone, and learns of it once the others have their answer.

    `asyncio.shield` is for that, too, and costs each who waits more than all the rest of waiting.
    """

    def cancel(self, msg: object = None) -> bool:
        return False


class Batch:
    """Records of one topic that leave together: `size` of them, and `bytes` in all.

    `outcome` is there within the deadline. `final` is Kafka's own answer, or that there will be none: it comes with the
    outcome, or after an IN_DOUBT. `durable` is what the records' callers wait on: where the records are, or why they
    are nowhere. Whoever listens to `KafkaPublisher.settled` says so.
    """

    __slots__ = (
        "builder",
        "bytes",
        "durable",
        "final",
        "lane",
        "opened_at",
        "outcome",
        "partition",
        "replay",
        "sent",
        "timer",
    )

    def __init__(self, lane: Lane, replay: bool, builder: RecordBuilder, loop: asyncio.AbstractEventLoop) -> None:
        self.lane = lane
        self.replay = replay
        self.builder = builder
        self.bytes = 0
        self.opened_at = loop.time()
        self.outcome: SharedFuture[Outcome] = SharedFuture(loop=loop)
        self.durable: SharedFuture[Durability | PublisherRefusal | SpoolRefusal] = SharedFuture(loop=loop)
        self.final: asyncio.Future[Outcome] = loop.create_future()
        self.partition = lane.partition
        self.sent = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def topic(self) -> str:
        return self.lane.topic

    def settle(self, outcome: Outcome) -> bool:
        """Unless it has its outcome. A result, not an exception: one exception object raised in a thousand callers
        would collect a thousand tracebacks."""
        if self.timer is not None:
            self.timer.cancel()
        if self.outcome.done():
            return False
        self.outcome.set_result(outcome)
        return True

    @property
    def size(self) -> int:
        return int(self.builder.record_count())

    def append(self, record: Record) -> bool:
        """Whether there was room."""
        headers = [] if record.scope is None else [(DEDUPE_HEADER, record.scope)]
        if self.replay:
            headers.append(REPLAY_HEADER)
        if not self.builder.add(record.key, record.value, record.timestamp_ms, headers):
            return False
        self.bytes += record.bytes
        return True

    def extend(self, records: Records, first: int) -> int:
        """How many of these there was room for, from the index `first` on. They have ids of ours."""
        keys, values = records.keys[first:], records.values[first:]
        count = self.builder.extend(keys, values, records.timestamp_ms, [])
        if first == 1 and count == len(keys):  # as is usual
            self.bytes += records.bytes - records[0].bytes
        else:
            self.bytes += bytes_of(keys[:count], values[:count])
        return count

    def records(self) -> list[Record]:
        """Read back from what leaves, or would have left: a thousand batches are delivered for one that must be kept,
        and what nobody keeps is made of memory that the processor's cache still has. No more can be appended."""
        topic, partition = self.topic, self.partition
        return [
            Record(topic, partition, key, value, timestamp_ms, dict(headers).get(DEDUPE_HEADER))
            for key, value, timestamp_ms, headers in self.builder.read()
        ]
