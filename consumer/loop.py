"""The consumer: polls Kafka, hands records to one worker a partition, keeps memory within its bound.

    poll ──> PartitionWorker (fills, closes, commits intent) ──> Inserter ──> ClickHouse

Assignment is the only source of workers: at each rebalance all are cancelled, and new ones start from what the
ledger says. The epoch of that is simply which workers exist: a cancelled one can neither commit nor insert.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass

import structlog

from consumer import ledger
from consumer.batch import Limits
from consumer.inserter import Inserter
from consumer.landing import Landing
from consumer.metrics import Metrics
from consumer.pace import Pace
from consumer.partition import PartitionWorker
from consumer.recovery import Recovery
from consumer.repeats import Window
from consumer.settings import ConsumerSettings
from consumer.source import Fenced, KafkaSource, KafkaUnavailable, OutOfRange, TopicPartition
from consumer.warm_up import WarmUp

log = structlog.get_logger(__name__)

POLL_TIMEOUT_MS = 200
HELD_POLL_TIMEOUT_MS = 20  # while some are held back: until what is being inserted makes room for them
HURRY_SHARE = 0.75  # of the memory for rows, from which on batches close for want of it
HURRIED_MAX = 2  # one that is being inserted, and one to come: fewer and larger ones cost ClickHouse less
ROUND_S = 0.2  # between two looks at every partition, of which there may be many
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
        self._pace = Pace(settings.inserts_per_second_max)
        self._looked_at = 0.0
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
        wanted = self._workers.keys() - self._paused
        polled = await self._source.poll(HELD_POLL_TIMEOUT_MS if self._paused else POLL_TIMEOUT_MS, wanted)
        for partition, slabs in polled.items():
            worker = self._workers.get(partition)
            if worker is not None:
                worker.feed(slabs)
        if not polled or time.monotonic() - self._looked_at > ROUND_S:
            await self._look_round()
            self._looked_at = time.monotonic()

    async def _look_round(self) -> None:
        for partition, worker in list(self._workers.items()):
            # Where offsets hold no record (control records, compacted ones), only the position tells.
            position = await self._source.position(partition)
            if position is not None and self._workers.get(partition) is worker:
                worker.skip_to(position)
            end = self._source.highwater(partition)
            if end is not None:
                worker.know_end(end)
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
        if buffered >= self._settings.buffer_bytes_max * HURRY_SHARE:
            self._hurry()
        for partition, worker in self._workers.items():
            # A replay must be read to its end before it frees anything, and what is warmed up takes no room for rows.
            is_exempt = worker.replaying or worker.warming_up
            pause = partition in self._stopped or worker.full or (memory_full and not is_exempt)
            if pause and partition not in self._paused:
                self._source.pause(partition)
                self._paused.add(partition)
            elif not pause and partition in self._paused:
                self._source.resume(partition)
                self._paused.discard(partition)

    def _hurry(self) -> None:
        """Memory runs short: the largest batches close, unless enough are on their way. With many partitions none might
        ever be full."""
        idle = HURRIED_MAX - sum(worker.closing for worker in self._workers.values())
        if idle > 0:
            waiting = [worker for worker in self._workers.values() if not worker.closing and not worker.replaying]
            for worker in sorted(waiting, key=lambda worker: worker.bytes)[-idle:]:
                if worker.bytes:
                    worker.hurry()

    # What the source tells of the group. aiokafka swallows what these raise, so they do not raise.

    async def revoked(self) -> None:
        await self._cancel_workers()

    async def assigned(self, partitions: set[TopicPartition]) -> None:
        await self._cancel_workers()
        if partitions:
            starts: dict[TopicPartition, Start] = {}
            try:
                starts = await self._starts(partitions)
            except (Exception, asyncio.CancelledError) as error:
                _reraise_own_cancellation(error)
                log.exception("the group's offsets cannot be read, each partition will ask for its own")
            for partition in partitions:
                self._source.pause(partition)
                self._paused.add(partition)
                self._tasks[partition] = asyncio.create_task(
                    self._own(partition, starts.get(partition)), name=_name(partition)
                )
            log.info("partitions assigned", partitions=[_name(tp) for tp in sorted(partitions)])
        self._metrics.partitions.set(len(partitions))
        self._assigned_once = True

    async def _own(self, partition: TopicPartition, start: Start | None) -> None:
        """One partition, until cancelled, drained or fenced. What nobody foresaw is tried again from the ledger."""
        while True:
            try:
                return await self._consume(partition, start or (await self._starts({partition}))[partition])
            except Fenced as error:
                # A rebalance is on its way to us; it makes new workers.
                log.warning("fenced: the group has moved on", partition=_name(partition), error=str(error))
                return None
            except (ledger.UnreadableIntent, LogTruncated) as error:
                self._halt(partition, str(error))
                return None
            except (Exception, asyncio.CancelledError) as error:
                _reraise_own_cancellation(error)
                log.exception("worker failed, will begin again", partition=_name(partition), retry_s=WORKER_RETRY_S)
                self._failed[partition] = f"{type(error).__name__}: {error}"
            await asyncio.sleep(WORKER_RETRY_S)
            start = None

    async def _consume(self, partition: TopicPartition, start: Start) -> None:
        """From where the ledger says. Raises Fenced, UnreadableIntent, LogTruncated."""
        entry = await self._entry(partition, start)
        window = await self._window(partition, entry, start.begin)
        settings = self._settings
        worker = PartitionWorker(
            partition,
            entry.offset,
            entry.intent,
            Limits(settings.batch_rows_max, settings.batch_bytes_max, settings.batch_age_ms_max / 1000),
            self._pace,
            window,
            self._ledger,
            self._landing,
            self._metrics,
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
        self._pace.forget()
        self._metrics.stopped_partitions.set(0)
        self._metrics.partitions.set(0)


def _reraise_own_cancellation(error: BaseException) -> None:
    """Any other CancelledError came out of a library, of a task that it cancelled itself: a fault like another. To let
    it through would end our task without a word."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
