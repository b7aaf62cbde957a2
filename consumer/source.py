"""Adapter to Kafka as a group consumer: the only module that imports aiokafka's consumer.

What it adds: commits carry metadata, library errors become `Fenced` (somebody else owns the partition: drop
what you hold) or `KafkaUnavailable` (try again), and assignment changes reach one listener.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from consumer.raw_batches import SLAB_RECORDS, Slab, hand_on_slabs, read_without_pauses
from consumer.settings import ConsumerSettings
from schemas import kafka

__all__ = [
    "ConsumerRecord",
    "Fenced",
    "KafkaSource",
    "KafkaUnavailable",
    "Listener",
    "OutOfRange",
    "Slab",
    "TopicPartition",
]

log = structlog.get_logger(__name__)

POLL_SLABS_MAX = 10_000 // SLAB_RECORDS  # bounds the time between two turns of the event loop
NONE = TopicPartition("", -1)  # stands for no partition in `getmany`, which takes none for all of them
REBALANCE_POLL_S = 1.0  # how much longer a poll takes at most, while the group finds together
CLOSE_TIMEOUT_S = 10.0
SLOW_S = 5.0  # aiokafka repeats by itself, without an end and without a word, what another attempt may mend
# Twice as much is no faster, and takes 20 to 40 MB more: what was fetched is held twice while it is read.
FETCH_BYTES_MAX = 8_388_608
PARTITION_FETCH_BYTES_MAX = 2_097_152

_FENCING = (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


class Fenced(Exception):
    """The group has moved on without us."""


class KafkaUnavailable(Exception):
    """No answer, or one that may differ next time."""


class OutOfRange(Exception):
    """Kafka does not hold the offset that we want next: it was deleted, or never there."""

    def __init__(self, partitions: set[TopicPartition]) -> None:
        super().__init__(", ".join(f"{tp.topic}/{tp.partition}" for tp in sorted(partitions)))
        self.partitions = partitions


class Listener(Protocol):
    """Told of every rebalance, before Kafka is: a partition revoked here may have an owner elsewhere next."""

    async def revoked(self) -> None: ...
    async def assigned(self, partitions: set[TopicPartition]) -> None: ...


class KafkaSource:
    def __init__(self, settings: ConsumerSettings, topics: list[str]) -> None:
        self._settings = settings
        self._topics = topics
        self._connection = kafka.connection(settings)
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self.cluster_id = ""

    async def start(self, listener: Listener) -> None:
        """Raises KafkaUnavailable."""
        settings = self._settings
        try:
            self._admin = AIOKafkaAdminClient(**self._connection)
            await self._admin.start()
            self.cluster_id = str((await self._admin.describe_cluster())["cluster_id"])
            read_without_pauses(FETCH_BYTES_MAX)
            self._consumer = AIOKafkaConsumer(
                **self._connection,
                group_id=settings.group_id,
                group_instance_id=settings.group_instance_id,
                enable_auto_commit=False,
                auto_offset_reset="none",  # where to begin is the ledger's decision
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=settings.session_timeout_ms // 5,
                # Being slow is no reason to be thrown out: heartbeats say that we live.
                max_poll_interval_ms=2**31 - 1,
                fetch_max_bytes=FETCH_BYTES_MAX,
                max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
                fetch_max_wait_ms=100,
                metadata_max_age_ms=60_000,
            )
            self._consumer.subscribe(self._topics, listener=_Rebalance(listener))
            with _told_when_slow("a place in the group"):
                await self._consumer.start()
            hand_on_slabs(self._consumer)
        except (KafkaError, OSError) as error:
            await self.stop()
            raise KafkaUnavailable(repr(error)) from error

    async def stop(self) -> None:
        """Leave the group, or at least the process: with Kafka away this takes little more than CLOSE_TIMEOUT_S."""
        clients = [client for client in (self._consumer, self._admin) if client is not None]
        self._consumer = self._admin = None
        await asyncio.gather(*(kafka.stop(client, CLOSE_TIMEOUT_S) for client in clients))

    async def poll(self, timeout_ms: int, partitions: Collection[TopicPartition]) -> dict[TopicPartition, list[Slab]]:
        """Records of these partitions, POLL_SLABS_MAX slabs at most. Raises OutOfRange or KafkaUnavailable.

        What has been fetched of others is kept: aiokafka would throw away what it has of a paused partition, and
        fetch it again. Ends in time even in a rebalance, for which aiokafka waits however long it takes.
        """
        try:
            # Nothing is lost by it: once aiokafka has taken records out of its hands, it waits for nothing.
            async with asyncio.timeout(timeout_ms / 1000 + REBALANCE_POLL_S):
                slabs: dict[TopicPartition, list[Slab]] = await self._started.getmany(
                    *(partitions or (NONE,)), timeout_ms=timeout_ms, max_records=POLL_SLABS_MAX
                )
        except TimeoutError:
            return {}
        except NoOffsetForPartitionError:
            return {}  # a group without commits, met before the ledger's seek; the next poll has a position
        except OffsetOutOfRangeError as error:
            raise OutOfRange(set(error.args[0])) from error
        except KafkaError as error:
            raise KafkaUnavailable(repr(error)) from error
        return slabs

    async def commit(self, partition: TopicPartition, offset: int, metadata: str) -> None:
        """One attempt. Raises Fenced or KafkaUnavailable."""
        try:
            with _told_when_slow("a commit", topic=partition.topic, partition=partition.partition, offset=offset):
                await self._started.commit({partition: (offset, metadata)})
        except _FENCING as error:
            raise Fenced(repr(error)) from error
        except KafkaError as error:
            raise KafkaUnavailable(repr(error)) from error

    async def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """Offset and metadata of each partition that has a commit. Raises KafkaUnavailable.

        By the admin client: the consumer's own `committed()` drops the metadata.
        """
        wanted = set(partitions)
        try:
            with _told_when_slow("the group's offsets"):
                found = await self._admin_client.list_consumer_group_offsets(
                    self._settings.group_id, partitions=list(wanted)
                )
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
        # aiokafka overlooks the answer's own error: while the coordinator loads, it names no partition at all,
        # and what may be an open intent would pass for none.
        if not found.keys() >= wanted:
            raise KafkaUnavailable("the group coordinator does not know the group's offsets yet")
        return {tp: (entry.offset, entry.metadata or "") for tp, entry in found.items() if entry.offset >= 0}

    async def bounds(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """First offset that Kafka holds and the one after the last. Raises KafkaUnavailable."""
        partitions = list(partitions)
        try:
            with _told_when_slow("the ends of partitions"):
                begins = await self._started.beginning_offsets(partitions)
                ends = await self._started.end_offsets(partitions)
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
        return {tp: (begins[tp], ends[tp]) for tp in partitions}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._started.seek(partition, offset)

    def pause(self, partition: TopicPartition) -> None:
        self._started.pause(partition)

    def resume(self, partition: TopicPartition) -> None:
        self._started.resume(partition)

    async def position(self, partition: TopicPartition) -> int | None:
        """Offset of the next record that `poll` would return; None if the partition is not ours any more."""
        try:
            return int(await self._started.position(partition))
        except IllegalStateError:
            return None

    def highwater(self, partition: TopicPartition) -> int | None:
        """The partition's end at the last fetch; None before it, or if the partition is not ours any more."""
        try:
            end: int | None = self._started.highwater(partition)
        except IllegalStateError:
            return None
        return end

    @property
    def _started(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "start() first"
        return self._consumer

    @property
    def _admin_client(self) -> AIOKafkaAdminClient:
        assert self._admin is not None, "start() first"
        return self._admin


@contextmanager
def _told_when_slow(what: str, **context: object) -> Iterator[None]:
    """One line in the log if this takes longer than SLOW_S: nothing else would say what is waited for."""
    telling = partial(log.warning, "kafka takes long", waiting_for=what, **context)
    timer = asyncio.get_running_loop().call_later(SLOW_S, telling)
    try:
        yield
    finally:
        timer.cancel()


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """aiokafka logs and swallows what a listener raises, so ours must not raise."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._listener.revoked()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        await self._listener.assigned(assigned)
