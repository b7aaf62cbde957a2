"""The consumer: polls Kafka, hands records to one worker a partition, keeps memory within its bound.

    poll ──> PartitionWorker (fills, closes, commits intent) ──> Inserter ──> ClickHouse

Assignment is the only source of workers: at each rebalance all are cancelled, and new ones start from what the
ledger says. The epoch of that is simply which workers exist: a cancelled one can neither commit nor insert.
"""

import asyncio
import contextlib

import structlog

from consumer import ledger
from consumer.batch import Limits
from consumer.inserter import Inserter
from consumer.landing import Landing
from consumer.metrics import Metrics
from consumer.partition import PartitionWorker
from consumer.recovery import Recovery
from consumer.settings import ConsumerSettings
from consumer.source import Fenced, KafkaSource, KafkaUnavailable, OutOfRange, TopicPartition

log = structlog.get_logger(__name__)

POLL_TIMEOUT_MS = 200


class LogTruncated(Exception):
    """What comes next is not in Kafka any more."""


class Consumer:
    """`run` until `stop`; one use."""

    def __init__(
        self,
        settings: ConsumerSettings,
        source: KafkaSource,
        inserter: Inserter,
        landing: Landing,
        recovery: Recovery,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._source = source
        self._ledger = ledger.Ledger(source)
        self._inserter = inserter
        self._landing = landing
        self._recovery = recovery
        self._metrics = metrics
        self._workers: dict[TopicPartition, PartitionWorker] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._paused: set[TopicPartition] = set()
        self._stopped: set[TopicPartition] = set()
        self._stopping = asyncio.Event()
        self._assigned_once = False

    @property
    def unready_reason(self) -> str | None:
        """None while it does its work."""
        if not self._assigned_once:
            return "no partitions assigned yet"
        if self._stopped:
            return f"stopped with an alarm: {', '.join(_name(tp) for tp in sorted(self._stopped))}"
        if self._landing.alarms:
            return "; ".join(f"{_name(tp)} waits: {reason}" for tp, reason in sorted(self._landing.alarms.items()))
        return self._inserter.unready_reason

    def stop(self) -> None:
        """Finish the batches in hand, then return from `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Start the source first. Ends with every worker drained or, past the deadline, cancelled."""
        while not self._stopping.is_set():
            try:
                await self._turn()
            except OutOfRange as error:
                for partition in error.partitions:
                    self._halt(partition, "Kafka does not hold the offset that comes next")
            except KafkaUnavailable as error:
                log.warning("kafka poll failed, will be repeated", error=str(error))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), 1)
        for worker in self._workers.values():
            worker.drain()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._settings.shutdown_deadline_ms / 1000)
        await self._cancel_workers()

    async def _turn(self) -> None:
        """One poll. Raises OutOfRange or KafkaUnavailable."""
        self._hold_back()
        for partition, records in (await self._source.poll(POLL_TIMEOUT_MS)).items():
            worker = self._workers.get(partition)
            if worker is not None:
                worker.feed(records)
        for partition, worker in list(self._workers.items()):
            # Where offsets hold no record (control records, compacted ones), only the position tells.
            position = await self._source.position(partition)
            if position is not None and self._workers.get(partition) is worker:
                worker.skip_to(position)
            end = self._source.highwater(partition)
            if end is not None:
                self._metrics.lag.labels(partition.topic, partition.partition).set(max(0, end - worker.landed))

    def _hold_back(self) -> None:
        """Pause partitions whose worker is full, and all of them while memory is."""
        buffered = sum(worker.bytes for worker in self._workers.values())
        self._metrics.buffered_bytes.set(buffered)
        memory_full = buffered >= self._settings.buffer_bytes_max
        for partition, worker in self._workers.items():
            # A replay must be read to its end before it frees anything, so it is not held back.
            pause = (
                partition in self._stopped or worker.full or (memory_full and worker.bytes > 0 and not worker.replaying)
            )
            if pause and partition not in self._paused:
                self._source.pause(partition)
                self._paused.add(partition)
            elif not pause and partition in self._paused:
                self._source.resume(partition)
                self._paused.discard(partition)

    # What the source tells of the group. aiokafka swallows what these raise, so they do not raise.

    async def revoked(self) -> None:
        await self._cancel_workers()

    async def assigned(self, partitions: set[TopicPartition]) -> None:
        await self._cancel_workers()
        if partitions:
            commits = await self._ledger.read(partitions)
            bounds = await ledger.insistently(self._source.bounds, partitions)
            limits = self._limits(len(partitions))
            for partition in partitions:
                self._source.pause(partition)
                self._paused.add(partition)
                owning = self._own(partition, commits.get(partition), bounds[partition], limits)
                self._tasks[partition] = asyncio.create_task(owning, name=_name(partition))
            log.info("partitions assigned", partitions=[_name(tp) for tp in sorted(partitions)], age_s=limits.age_s)
        self._metrics.partitions.set(len(partitions))
        self._assigned_once = True

    async def _own(
        self, partition: TopicPartition, commit: tuple[int, str] | None, bounds: tuple[int, int], limits: Limits
    ) -> None:
        """One partition, from where the ledger says until cancelled or drained."""
        try:
            entry = await self._entry(partition, commit, *bounds)
            worker = PartitionWorker(
                partition, entry.offset, entry.intent, limits, self._ledger, self._landing, self._metrics
            )
            self._source.seek(partition, entry.offset)
            self._workers[partition] = worker
            await worker.run()
        except Fenced as error:
            # A rebalance is on its way to us; it makes new workers.
            log.warning("fenced: the group has moved on", partition=_name(partition), error=str(error))
        except (ledger.UnreadableIntent, LogTruncated) as error:
            self._halt(partition, str(error))
        except Exception as error:
            log.exception("worker failed", partition=_name(partition))
            self._halt(partition, f"{type(error).__name__}: {error}")

    async def _entry(
        self, partition: TopicPartition, commit: tuple[int, str] | None, begin: int, end: int
    ) -> ledger.Entry:
        """Where to start. Raises UnreadableIntent or LogTruncated: a person must decide."""
        if commit is None or commit[0] > end:
            return await self._recovery.beginning(partition, begin, end)
        if commit[0] < begin:
            raise LogTruncated(f"Kafka has deleted offsets {commit[0]} to {begin - 1}, which were not yet inserted")
        return ledger.decode(*commit)

    def _limits(self, partitions: int) -> Limits:
        """With many partitions each closes its batches later: ClickHouse wants few large inserts."""
        settings = self._settings
        age_s = max(settings.batch_age_ms_max / 1000, partitions / settings.inserts_per_second_max)
        return Limits(settings.batch_rows_max, settings.batch_bytes_max, age_s)

    def _halt(self, partition: TopicPartition, reason: str) -> None:
        """Leave one partition alone, loudly, and go on with the others."""
        log.error("partition stopped, it needs help", partition=_name(partition), reason=reason)
        self._stopped.add(partition)
        self._metrics.stopped_partitions.set(len(self._stopped))

    async def _cancel_workers(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._workers.clear()
        self._tasks.clear()
        self._paused.clear()
        self._stopped.clear()
        self._metrics.stopped_partitions.set(0)
        self._metrics.partitions.set(0)


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
