"""The consumer: polls Kafka, hands records to one worker a partition, keeps memory within its bound.

    poll ──> PartitionWorker (fills, closes, commits intent) ──> Inserter ──> ClickHouse

Assignment is the only source of workers: at each rebalance all are cancelled, and new ones start from what the
ledger says. The epoch of that is simply which workers exist: a cancelled one can neither commit nor insert.
"""

import asyncio
import contextlib
from dataclasses import dataclass

import structlog

from consumer import ledger
from consumer.batch import Limits
from consumer.inserter import Inserter
from consumer.landing import Landing
from consumer.metrics import Metrics
from consumer.partition import PartitionWorker
from consumer.recovery import Recovery
from consumer.repeats import Window
from consumer.settings import ConsumerSettings
from consumer.source import Fenced, KafkaSource, KafkaUnavailable, OutOfRange, TopicPartition
from consumer.warm_up import WarmUp

log = structlog.get_logger(__name__)

POLL_TIMEOUT_MS = 200
WORKER_RETRY_S = 5.0


class LogTruncated(Exception):
    """What comes next is not in Kafka any more."""


@dataclass(frozen=True)
class Start:
    """What is known of a partition when it comes to us: its commit, if any (offset and metadata), and the offsets
    [begin, end) that Kafka holds."""

    commit: tuple[int, str] | None
    begin: int
    end: int


class Consumer:
    """`run` until `stop`; one use."""

    def __init__(
        self,
        settings: ConsumerSettings,
        source: KafkaSource,
        inserter: Inserter,
        landing: Landing,
        recovery: Recovery,
        warm_up: WarmUp,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._source = source
        self._ledger = ledger.Ledger(source)
        self._inserter = inserter
        self._landing = landing
        self._recovery = recovery
        self._warm_up = warm_up
        self._metrics = metrics
        self._workers: dict[TopicPartition, PartitionWorker] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._paused: set[TopicPartition] = set()
        self._stopped: set[TopicPartition] = set()
        self._failed: dict[TopicPartition, str] = {}
        self._stopping = asyncio.Event()
        self._assigned_once = False

    @property
    def unready_reason(self) -> str | None:
        """None while it does its work."""
        if not self._assigned_once:
            return "no partitions assigned yet"
        if self._stopped:
            return f"stopped with an alarm: {', '.join(_name(tp) for tp in sorted(self._stopped))}"
        waiting = {**self._landing.alarms, **self._failed}
        if waiting:
            return "; ".join(f"{_name(tp)} waits: {reason}" for tp, reason in sorted(waiting.items()))
        return self._inserter.unready_reason

    def stop(self) -> None:
        """Finish the batches in hand, then return from `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Start the source first. Ends with every worker drained or, past the deadline, cancelled."""
        while not self._stopping.is_set():
            try:
                try:
                    await self._turn()
                except OutOfRange as error:
                    for partition in error.partitions:
                        await self._out_of_range(partition)
            except KafkaUnavailable as error:
                log.warning("kafka poll failed, will be repeated", error=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self._stopping.wait()
        for worker in self._workers.values():
            worker.drain()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._settings.shutdown_deadline_ms / 1000)
        await self._cancel_workers()

    async def _turn(self) -> None:
        """One poll. Raises OutOfRange or KafkaUnavailable."""
        self._hold_back()
        for partition, slabs in (await self._source.poll(POLL_TIMEOUT_MS)).items():
            worker = self._workers.get(partition)
            if worker is not None:
                worker.feed(slabs)
        for partition, worker in list(self._workers.items()):
            # Where offsets hold no record (control records, compacted ones), only the position tells.
            position = await self._source.position(partition)
            if position is not None and self._workers.get(partition) is worker:
                worker.skip_to(position)
            end = self._source.highwater(partition)
            if end is not None:
                self._metrics.lag.labels(partition.topic, partition.partition).set(max(0, end - worker.landed))
            self._metrics.ids.labels(partition.topic, partition.partition).set(worker.ids)

    async def _out_of_range(self, partition: TopicPartition) -> None:
        """Kafka does not hold what comes next. Raises KafkaUnavailable."""
        worker = self._workers.get(partition)
        if worker is not None and worker.warming_up:
            # Only ids of the past: what retention has taken of them meanwhile is lost, and no row with it.
            begin, _ = (await self._source.bounds([partition]))[partition]
            if self._workers.get(partition) is worker and worker.warming_up and begin <= worker.landed:
                log.warning("kafka deletes ids before they are read back", partition=_name(partition), begin=begin)
                worker.skip_to(begin)
                self._source.seek(partition, begin)
                return
        self._halt(partition, "Kafka does not hold the offset that comes next")

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
            limits = self._limits(len(partitions))
            for partition, start in (await self._starts(partitions)).items():
                self._source.pause(partition)
                self._paused.add(partition)
                self._tasks[partition] = asyncio.create_task(self._own(partition, start, limits), name=_name(partition))
            log.info("partitions assigned", partitions=[_name(tp) for tp in sorted(partitions)], age_s=limits.age_s)
        self._metrics.partitions.set(len(partitions))
        self._assigned_once = True

    async def _own(self, partition: TopicPartition, start: Start, limits: Limits) -> None:
        """One partition, until cancelled, drained or fenced. What nobody foresaw is tried again from the ledger."""
        while True:
            try:
                return await self._consume(partition, start, limits)
            except Fenced as error:
                # A rebalance is on its way to us; it makes new workers.
                log.warning("fenced: the group has moved on", partition=_name(partition), error=str(error))
                return None
            except (ledger.UnreadableIntent, LogTruncated) as error:
                self._halt(partition, str(error))
                return None
            except Exception as error:
                log.exception("worker failed, will begin again", partition=_name(partition), retry_s=WORKER_RETRY_S)
                self._failed[partition] = f"{type(error).__name__}: {error}"
            await asyncio.sleep(WORKER_RETRY_S)
            [start] = (await self._starts({partition})).values()

    async def _consume(self, partition: TopicPartition, start: Start, limits: Limits) -> None:
        """From where the ledger says. Raises Fenced, UnreadableIntent, LogTruncated."""
        entry = await self._entry(partition, start)
        window = await self._window(partition, entry, start.begin)
        worker = PartitionWorker(
            partition, entry.offset, entry.intent, limits, window, self._ledger, self._landing, self._metrics
        )
        self._source.seek(partition, worker.position)
        self._workers[partition] = worker
        self._failed.pop(partition, None)
        if self._stopping.is_set():
            worker.drain()
        await worker.run()

    async def _starts(self, partitions: set[TopicPartition]) -> dict[TopicPartition, Start]:
        commits = await self._ledger.read(partitions)
        bounds = await ledger.insistently(self._source.bounds, partitions)
        return {partition: Start(commits.get(partition), *bounds[partition]) for partition in partitions}

    async def _entry(self, partition: TopicPartition, start: Start) -> ledger.Entry:
        """Where to start. Raises UnreadableIntent or LogTruncated: a person must decide."""
        if start.commit is None or start.commit[0] > start.end:
            return await self._recovery.beginning(partition, start.begin, start.end)
        offset, metadata = start.commit
        if offset < start.begin:
            raise LogTruncated(f"Kafka has deleted offsets {offset} to {start.begin - 1}, which were not yet inserted")
        return ledger.decode(offset, metadata)

    async def _window(self, partition: TopicPartition, entry: ledger.Entry, begin: int) -> Window | None:
        """Empty: feeding starts where it does. None if no repeats are to be dropped."""
        settings = self._settings
        if not settings.dedupe_window_s:
            return None
        start = await ledger.insistently(self._warm_up.start, partition, entry, begin)
        return Window(settings.dedupe_window_s, settings.dedupe_ids_max, start)

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
        self._failed.clear()
        self._metrics.stopped_partitions.set(0)
        self._metrics.partitions.set(0)


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
