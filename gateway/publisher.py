"""Group commit to Kafka: what arrives while one produce request is under way forms the next batch.

No linger when idle, large batches under load, and one future a batch: every caller whose record is in it
waits on the same one. Promise: a batch is `DELIVERED` only once all in-sync replicas have it. Limits:
`pending_bytes_max` bytes that wait or are under way, one batch under way per partition, one produce
request per broker (aiokafka's rule; a batch closed any earlier would only be a smaller one), and
`deadline_ms` from a batch's first record to its outcome.

A record that does not name a partition goes to whichever is free when its batch leaves, so a broker that
hangs holds up one batch of each of its partitions and nothing else.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from gateway.direct_producer import DirectProducer
from gateway.kafka_batch import Batch, Lane, Outcome, PublisherRefusal
from gateway.metrics import Metrics
from gateway.partitioner import partition_of
from gateway.record import Record, Records
from schemas import kafka

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_MS = 10_000  # a broker that hangs is given up on, and asked again, after that
START_S_MAX = 2.0
CONNECT_TIMEOUT_S = 10.0
CONNECT_BACKOFF_S = (0.2, 5.0)
LEADER_RETRY_S = 0.1
TURNS_MAX = 12  # of the event loop, that a batch waits for more


class KafkaPublisher:
    """Start it with a running event loop; it connects, and reconnects, by itself."""

    def __init__(
        self,
        topics: Iterable[str],
        connection: dict[str, Any],
        *,
        batch_bytes_max: int,
        pending_bytes_max: int,
        deadline_ms: int,
        metrics: Metrics,
        settled: Callable[[Batch, Outcome], None] = lambda *_: None,
    ) -> None:
        self._connection = connection
        self._batch_bytes_max = batch_bytes_max
        self._pending_bytes_max = pending_bytes_max
        self._deadline_s = deadline_ms / 1000
        self._metrics = metrics
        self.settled = settled
        self._topics = tuple(topics)
        self._waiting: dict[tuple[str, int | None], deque[Batch]] = {}  # by Lane
        self._next_partition = dict.fromkeys(self._topics, 0)
        self._partition_counts: dict[str, int] = {}  # by topic, as the metadata says; aiokafka makes a set to tell
        self._pending_bytes = 0
        self._producer: DirectProducer | None = None
        self._busy: set[TopicPartition] = set()
        self._busy_brokers: set[int] = set()
        self._dispatch_due = False
        self._leader_retry_due = False
        self._deliveries: dict[asyncio.Task[None], DirectProducer] = {}
        self._connector: asyncio.Task[None] | None = None
        self._stopping = False
        self.unready_reason: str | None = "not connected to Kafka yet"

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = asyncio.create_task(self._connect(), name="kafka-connect")
        # The first callers should find Kafka, if it is there, but must not wait for it.
        await asyncio.wait({self._connector}, timeout=START_S_MAX)

    def publish(self, record: Record, *, replay: bool = False) -> Batch:
        """Queue a record; its batch. Raises PublisherRefusal: no connection, no room, too large.

        `replay` marks it as one that comes from the spool and may have been sent before. Wherever another copy of a
        record is possible, its key decides on the partition: all copies meet in one, where the consumer drops all but
        the first.
        """
        producer = self._producer
        if producer is None:
            raise PublisherRefusal("kafka_unavailable", "Kafka cannot be reached")
        size = record.bytes
        if self._pending_bytes + size > self._pending_bytes_max:
            raise PublisherRefusal("overloaded", "Too many events wait for Kafka")
        partition = record.partition
        if partition is None and (replay or record.scope is not None):
            count = self._partition_counts.get(record.topic) or self._count_partitions(producer, record.topic)
            partition = partition_of(record.key, count)
        waiting = self._waiting.get((record.topic, partition))
        if waiting is None:
            waiting = self._waiting[Lane(record.topic, partition)] = deque()
        batch = waiting[-1] if waiting else None
        if batch is None or batch.replay is not replay or not batch.append(record):
            if size > self._batch_bytes_max:
                raise PublisherRefusal("record_too_large", "The record is larger than a batch may be")
            batch = Batch(Lane(record.topic, partition), replay, producer.create_batch(), self._loop)
            batch.append(record)
            batch.timer = self._loop.call_later(self._deadline_s, self._expire, batch)
            waiting.append(batch)
            self._dispatch_soon()
        self._pending_bytes += size
        return batch

    def _count_partitions(self, producer: DirectProducer, topic: str) -> int:
        """Raises PublisherRefusal for a topic that is not known."""
        partitions = producer.client.cluster.partitions_for_topic(topic)
        if not partitions:
            raise PublisherRefusal("kafka_unavailable", "Kafka does not know the topic")
        self._partition_counts[topic] = len(partitions)
        return len(partitions)

    def publish_all(self, records: Records) -> list[tuple[Batch | PublisherRefusal, int]]:
        """What `publish` says of them in turn, and of how many, up to one for which there is no Kafka: there would be
        none for the next. If there is room for all, only the first in each batch costs as much as alone."""
        together = not records.scopes and self._pending_bytes + records.bytes <= self._pending_bytes_max
        places: list[tuple[Batch | PublisherRefusal, int]] = []
        at = 0
        while at < len(records):
            count = 1
            try:
                batch = self.publish(records[at])
            except PublisherRefusal as refusal:
                places.append((refusal, count))
                if refusal.reason == "kafka_unavailable":
                    break
            else:
                if together:
                    before = batch.bytes
                    count += batch.extend(records, at + 1)
                    self._pending_bytes += batch.bytes - before
                places.append((batch, count))
            at += count
        return places

    async def stop(self, deadline_s: float) -> None:
        """Wait for what is under way, at most `deadline_s` in all; then let go, whatever Kafka does."""
        ends_at = self._loop.time() + deadline_s
        self._stopping = True
        if self._connector is not None:
            self._connector.cancel()
            await asyncio.wait({self._connector}, timeout=deadline_s)
        waiting = {batch.outcome for batches in self._waiting.values() for batch in batches}
        pending = waiting | self._deliveries.keys()
        if pending:
            await asyncio.wait(pending, timeout=max(0.0, ends_at - self._loop.time()))
        producer, self._producer = self._producer, None
        for batch in [batch for batches in self._waiting.values() for batch in batches]:
            self._expire(batch)
        for task in self._deliveries:
            task.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        if producer is not None:
            await kafka.stop(producer, max(0.0, ends_at - self._loop.time()))

    def _dispatch_soon(self) -> None:
        """On the first turn of the loop that brings no more records, so that what arrives together goes together: the
        callers of the last batch, who have just had their answers, send their next events in a few turns."""
        if not self._dispatch_due:
            self._dispatch_due = True
            self._loop.call_soon(self._await_quiet, TURNS_MAX, self._pending_bytes)

    def _await_quiet(self, turns: int, pending_bytes: int) -> None:
        if turns and self._pending_bytes != pending_bytes:
            self._loop.call_soon(self._await_quiet, turns - 1, self._pending_bytes)
        else:
            self._dispatch()

    def _dispatch(self) -> None:
        """Send waiting batches to free partitions of free brokers, round robin; who has sent is last next time."""
        self._dispatch_due = False
        producer = self._producer
        if producer is None:
            return
        cluster = producer.client.cluster
        leaving: list[tuple[Batch, TopicPartition, int]] = []
        leaderless = False
        for lane, waiting in list(self._waiting.items()):
            if not waiting:
                continue
            topic, pinned = lane
            partitions = sorted(cluster.partitions_for_topic(topic) or ()) if pinned is None else [pinned]
            first = self._next_partition[topic] if pinned is None else 0
            for step in range(len(partitions)):
                if not waiting:
                    break
                partition = TopicPartition(topic, partitions[(first + step) % len(partitions)])
                broker = cluster.leader_for_partition(partition)
                if broker is None or broker == -1:
                    leaderless = True
                elif broker not in self._busy_brokers and partition not in self._busy:
                    if pinned is None:
                        self._next_partition[topic] = first + step + 1
                    self._busy.add(partition)
                    leaving.append((waiting.popleft(), partition, broker))
                    self._waiting[lane] = self._waiting.pop(lane)
            if waiting and (leaderless or not partitions):
                self._look_for_leaders(producer)
        batches = Counter(broker for _, _, broker in leaving)
        for batch, partition, broker in leaving:
            self._send(producer, batch, partition, broker, alone=batches[broker] == 1)
        self._busy_brokers |= batches.keys()

    def _look_for_leaders(self, producer: DirectProducer) -> None:
        """Ask for metadata, then dispatch again: what is under way may hang, and its end never bring us back."""
        if not self._leader_retry_due:
            self._leader_retry_due = True
            producer.client.force_metadata_update()
            self._loop.call_later(LEADER_RETRY_S, self._retry_leaders)

    def _retry_leaders(self) -> None:
        self._leader_retry_due = False
        self._dispatch_soon()

    def _send(
        self, producer: DirectProducer, batch: Batch, partition: TopicPartition, broker: int, *, alone: bool
    ) -> None:
        batch.partition = partition.partition
        batch.sent = True
        task = self._loop.create_task(self._deliver(producer, batch, partition, broker, alone=alone))
        self._deliveries[task] = producer
        task.add_done_callback(self._deliveries.pop)

    async def _deliver(
        self, producer: DirectProducer, batch: Batch, partition: TopicPartition, broker: int, *, alone: bool
    ) -> None:
        """One batch, until Kafka has answered, however late."""
        outcome = Outcome.FAILED
        try:
            if batch.outcome.done():  # its deadline came just before us, and what was in it is elsewhere
                outcome = Outcome.EXPIRED
                return
            await producer.send_to(broker, partition, batch.builder, alone=alone)
            outcome = Outcome.DELIVERED
        except (KafkaError, OSError) as error:
            log.error(
                "kafka refused a batch",
                topic=partition.topic,
                partition=partition.partition,
                error=repr(error),
            )
            # With idempotence a refused batch leaves a gap in the sequence, and a fatal error a dead sender.
            self._replace(producer)
        except asyncio.CancelledError:
            outcome = Outcome.IN_DOUBT  # `stop` lets go of it; Kafka may still get it
            raise
        finally:
            self._pending_bytes -= batch.bytes
            if producer is self._producer:
                self._busy.discard(partition)
                self._busy_brokers.discard(broker)
                self._dispatch_soon()
            batch.final.set_result(outcome)
            self._settle(batch, outcome)

    def _expire(self, batch: Batch) -> None:
        if not batch.sent:
            self._waiting[batch.lane].remove(batch)
            self._pending_bytes -= batch.bytes
            batch.final.set_result(Outcome.EXPIRED)
            self._settle(batch, Outcome.EXPIRED)
        else:
            self._settle(batch, Outcome.IN_DOUBT)

    def _settle(self, batch: Batch, outcome: Outcome) -> None:
        if batch.settle(outcome):
            self._metrics.batch(batch.topic, outcome.value, batch.size, self._loop.time() - batch.opened_at)
            self.settled(batch, outcome)

    def _replace(self, producer: DirectProducer) -> None:
        if producer is self._producer and not self._stopping:
            self._producer = None
            self.unready_reason = "the connection to Kafka is being replaced"
            self._connector = self._loop.create_task(self._connect(producer), name="kafka-connect")

    async def _connect(self, replaced: DirectProducer | None = None) -> None:
        """Until there is a producer that knows every topic."""
        if replaced is not None:
            await kafka.stop(replaced, CONNECT_TIMEOUT_S)
            for task, producer in list(self._deliveries.items()):
                if producer is replaced:
                    task.cancel()  # nobody will answer for it any more
        backoff_s, backoff_max_s = CONNECT_BACKOFF_S
        while True:
            producer = DirectProducer(
                **self._connection,
                acks="all",
                enable_idempotence=True,
                max_batch_size=self._batch_bytes_max,
                metadata_max_age_ms=60_000,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
            )
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await producer.start()
                    for topic in self._topics:
                        await producer.partitions_for(topic)
            except (Exception, asyncio.CancelledError) as error:
                # Whatever it is: nothing is lost, and nobody else would try again. aiokafka swallows cancellations of
                # ours, and raises some that are none.
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                if self.unready_reason != reason and not self._stopping:
                    log.warning("cannot use kafka yet", reason=reason, topics=self._topics)
                    self.unready_reason = reason
                await kafka.stop(producer, CONNECT_TIMEOUT_S)
                if self._stopping:
                    return
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, backoff_max_s)
            else:
                break
        if self._stopping:
            await kafka.stop(producer, CONNECT_TIMEOUT_S)
            return
        self._busy.clear()
        self._busy_brokers.clear()
        self._producer = producer
        self._partition_counts.clear()
        producer.client.cluster.add_listener(lambda _: self._partition_counts.clear())
        self.unready_reason = None
        log.info("connected to kafka", topics=self._topics)
        self._dispatch_soon()
