"""The ledger: which range of a partition is being inserted, kept in the group's own offset commits.

A committed offset says that everything before it is in ClickHouse. Its metadata may carry an intent: ranges
from that offset on whose INSERT was, or is about to be, sent. Whoever owns the partition next sends exactly
those again, under the same token, before anything else. Why this is exactly once: DESIGN.md. It also says from where
to read the log to know repeats again; metadata without that was not written by a consumer that drops them.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import orjson
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from consumer.batch import Batch, Range
from consumer.repeats import Checkpoint
from consumer.source import KafkaSource, KafkaUnavailable, TopicPartition

log = structlog.get_logger(__name__)

CODEC_VERSION = 1
METADATA_BYTES_MAX = 4096  # the broker's default for offset.metadata.max.bytes
KAFKA_BACKOFF_MAX_S = 10.0

P = ParamSpec("P")
T = TypeVar("T")


class UnreadableIntent(Exception):
    """Metadata that is not ours or of a newer build: nobody may guess what it meant."""


@dataclass(frozen=True)
class Intent:
    """`opened_ms` is the wall time at which the first of the ranges was opened, epoch ms.

    Zero or less makes it an intent *of old*: its rows may have landed in other blocks, so no token speaks for them,
    the table does. What is then found missing goes under tokens that carry this number, so that each such intent
    (a rewind, say) can put back what an earlier one has put back before.
    """

    ranges: tuple[Range, ...]
    opened_ms: int

    @property
    def of_old(self) -> bool:
        return self.opened_ms <= 0

    def encode(self, remembered: Checkpoint | None = None) -> str:
        """At most METADATA_BYTES_MAX for any number of ranges that a consumer has in flight.

        Where a rewind has filled them up, `remembered` has to be found out by other means, once.
        """
        ranges = [[range_.first, range_.end] for range_ in self.ranges]
        document: dict[str, object] = {"v": CODEC_VERSION, "r": ranges, "t": self.opened_ms}
        if remembered is not None:
            full = orjson.dumps({**document, "w": [remembered.offset, remembered.slot]})
            if len(full) <= METADATA_BYTES_MAX:
                return full.decode()
        return orjson.dumps(document).decode()


def encode_closed(remembered: Checkpoint | None) -> str:
    """Metadata of a commit with nothing open: an intent of nothing, as which earlier builds read it, too."""
    return "" if remembered is None else Intent((), 0).encode(remembered)


@dataclass(frozen=True)
class Entry:
    """What the ledger says of a partition: everything before `offset` has landed, `intent` may have.

    `remembered` is where to start reading for the ids that count at `offset`; None where it does not say.
    """

    offset: int
    intent: Intent | None
    remembered: Checkpoint | None = None


def decode(offset: int, metadata: str) -> Entry:
    """Raises UnreadableIntent."""
    if not metadata:
        return Entry(offset, None)
    try:
        document = orjson.loads(metadata)
        if document["v"] != CODEC_VERSION:
            raise UnreadableIntent(f"intent of codec version {document['v']}, this build reads {CODEC_VERSION}")
        ranges = tuple(Range(int(first), int(end)) for first, end in document["r"])
        intent = Intent(ranges, int(document["t"]))
        remembered = Checkpoint(*map(int, document["w"])) if "w" in document else None
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableIntent(f"commit metadata is no intent: {metadata[:100]!r}") from error
    position = offset
    for range_ in ranges:
        if range_.first != position or range_.end <= range_.first:
            raise UnreadableIntent(f"intent does not continue offset {offset}: {metadata[:100]!r}")
        position = range_.end
    if remembered is not None and remembered.offset > offset:
        raise UnreadableIntent(f"ids are remembered from behind offset {offset} on: {metadata[:100]!r}")
    return Entry(offset, intent if ranges else None, remembered)


def is_open(offset: int, metadata: str) -> bool:
    """Whether there may be an intent: what cannot be read may be one."""
    try:
        return decode(offset, metadata).intent is not None
    except UnreadableIntent:
        return True


class Ledger:
    """Reads and writes it through the group's commits, for as long as Kafka takes to answer."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    async def read(self, partitions: set[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """Offset and metadata of each partition that has a commit; `decode` makes an Entry of them."""
        return await insistently(self._source.committed, partitions)

    async def open(self, partition: TopicPartition, intent: Intent, remembered: Checkpoint | None) -> None:
        """Everything before the intent has landed, and its ranges are about to be inserted. Raises Fenced."""
        await insistently(self._source.commit, partition, intent.ranges[0].first, intent.encode(remembered))

    async def close(self, partition: TopicPartition, offset: int, remembered: Checkpoint | None) -> None:
        """Everything before `offset` has landed, and nothing is open. Raises Fenced."""
        await insistently(self._source.commit, partition, offset, encode_closed(remembered))

    def token(self, partition: TopicPartition, batch: Batch, intent: Intent) -> str:
        """ClickHouse's `insert_deduplication_token` for a range: it names the range, not what was made of it.

        The fingerprint of the range's first record tells a topic from another one that was made under its
        name later, whose offsets start over.
        """
        first, end = batch.range.first, batch.range.end
        old = f"/old{intent.opened_ms}" if intent.of_old else ""
        place = f"{self._source.cluster_id}/{partition.topic}/{partition.partition}"
        return f"{place}/{first}-{end}/{batch.fingerprint:08x}{old}"


async def insistently(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Repeat a call to Kafka for as long as Kafka is away, and say so: nothing goes on meanwhile."""

    def repeated(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        log.warning(
            "kafka does not answer, will be asked again",
            call=getattr(call, "__qualname__", repr(call)),
            attempt=state.attempt_number,
            seconds=round(state.seconds_since_start or 0.0, 1),
            error=str(error),
        )

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(KafkaUnavailable),
        wait=wait_random_exponential(multiplier=0.1, max=KAFKA_BACKOFF_MAX_S),
        before_sleep=repeated,
    )
    result: T = await retrying(call, *args, **kwargs)
    return result
