"""The poll loop: who is read, who waits, and who closes a batch when memory runs short."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from consumer.batch import Limits
from consumer.loop import WORKER_RETRY_S, Consumer, Start
from consumer.metrics import Metrics
from consumer.pace import Pace
from consumer.partition import PartitionWorker
from consumer.raw_batches import Slab
from consumer.settings import ConsumerSettings
from consumer.source import TopicPartition
from tests.unit import virtual_time
from tests.unit.test_batch import Record

PARTITIONS = [TopicPartition("t", number) for number in range(6)]
BUFFER_BYTES = 1_048_576
VALUE = b'{"event_id":"%b"}' % (b"x" * 1_000)
ROW_BYTES = len(VALUE) + len(b',"kafka_partition":0,"kafka_offset":0\n') + 2


class Source:
    """Gives what it is told to, of the partitions that are asked for."""

    cluster_id = ""

    def __init__(self) -> None:
        self.polls: list[tuple[int, set[TopicPartition]]] = []
        self.slabs: dict[TopicPartition, list[Slab]] = {}

    async def poll(self, timeout_ms: int, partitions: set[TopicPartition]) -> dict[TopicPartition, list[Slab]]:
        self.polls.append((timeout_ms, set(partitions)))
        return {partition: self.slabs.pop(partition) for partition in list(self.slabs) if partition in partitions}

    async def position(self, _: TopicPartition) -> int | None:
        return None

    def highwater(self, _: TopicPartition) -> int | None:
        return None

    def pause(self, _: TopicPartition) -> None: ...
    def resume(self, _: TopicPartition) -> None: ...


def consumer_of(source: Source, rows_max: int = 10_000) -> tuple[Consumer, list[PartitionWorker]]:
    settings = ConsumerSettings(batch_bytes_max=BUFFER_BYTES, buffer_bytes_max=BUFFER_BYTES)
    nobody, metrics = cast(Any, None), Metrics(CollectorRegistry())
    consumer = Consumer(settings, cast(Any, source), nobody, nobody, nobody, nobody, metrics)
    for tp in PARTITIONS:
        limits = Limits(rows_max, BUFFER_BYTES, 1.0)
        consumer._workers[tp] = PartitionWorker(tp, 0, None, limits, Pace(8), None, nobody, nobody, metrics)
    return consumer, list(consumer._workers.values())


def slab(bytes_: int) -> Slab:
    return Slab([Record(offset, VALUE) for offset in range(bytes_ // ROW_BYTES)], 0)


async def test_a_full_partition_is_not_asked_for_until_it_has_room() -> None:
    source = Source()
    consumer, workers = consumer_of(source, rows_max=5)
    source.slabs = {tp: [slab(4 * ROW_BYTES)] for tp in PARTITIONS[:3]} | {PARTITIONS[3]: [slab(5 * ROW_BYTES)]}
    await consumer._turn()
    await consumer._turn()
    workers[3]._filling.take()
    await consumer._turn()
    everyone = set(PARTITIONS)
    assert [partitions for _, partitions in source.polls] == [everyone, everyone - {PARTITIONS[3]}, everyone]
    waits_ms = [timeout_ms for timeout_ms, _ in source.polls]
    assert waits_ms[1] < waits_ms[0] == waits_ms[2], "room is noticed soon"


async def test_when_memory_runs_short_the_largest_two_close() -> None:
    source = Source()
    consumer, workers = consumer_of(source)
    shares = [0.05, 0.2, 0.1, 0.15, 0.1, 0.0]
    source.slabs = {tp: [slab(int(share * BUFFER_BYTES))] for tp, share in zip(PARTITIONS, shares, strict=True)}
    await consumer._turn()
    await consumer._turn()
    assert not any(worker.closing for worker in workers), "there is room"
    more = Slab([Record(offset, VALUE) for offset in range(10_000, 10_000 + int(0.2 * BUFFER_BYTES) // ROW_BYTES)], 0)
    source.slabs = {PARTITIONS[2]: [more]}
    for _ in range(3):
        await consumer._turn()
    assert [worker.closing for worker in workers] == [False, True, True, False, False, False]
    assert source.polls[-1][1] == set(PARTITIONS), "and nobody waits yet"


async def test_nobody_is_read_while_memory_is_full_but_who_replays_or_takes_ids_up() -> None:
    source = Source()
    consumer, workers = consumer_of(source)
    source.slabs = {tp: [slab(BUFFER_BYTES // 3 + ROW_BYTES)] for tp in PARTITIONS[:3]}
    await consumer._turn()
    workers[4]._replays = [cast(Any, type("Range", (), {"end": 100}))]
    workers[5]._filling._first = 50
    await consumer._turn()
    assert source.polls[-1][1] == {PARTITIONS[4], PARTITIONS[5]}


async def test_after_a_rebalance_nobody_waits_for_turns_that_were_given_to_workers_of_before() -> None:
    consumer, _ = consumer_of(Source())
    now = time.monotonic()
    for _ in range(200):
        consumer._pace.next_at(now)
    await consumer.revoked()
    assert consumer._pace.next_at(now) == now


async def test_a_batch_that_fills_up_before_its_turn_gives_it_back() -> None:
    _, [worker, *_] = consumer_of(Source(), rows_max=10)
    pace, now = worker._pace, time.monotonic()
    for _ in range(200):
        pace.next_at(now)
    last = pace.next_at(now)
    turn = asyncio.create_task(worker._turn())
    await asyncio.sleep(0)
    worker.feed([slab(10 * ROW_BYTES)])
    await turn
    assert pace.next_at(now) == pytest.approx(last + 1 / 8)


# What nobody foresaw


class Waiting:
    """In place of what a worker does: raises what it is told to, then works until it is cancelled."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.begun: list[Start] = []

    async def __call__(self, _: TopicPartition, start: Start) -> None:
        self.begun.append(start)
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.Event().wait()


class Offsets:
    """In place of what Kafka says of partitions."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    async def __call__(self, partitions: set[TopicPartition]) -> dict[TopicPartition, Start]:
        if self.errors:
            raise self.errors.pop(0)
        return {partition: Start(None, 0, partition.partition) for partition in partitions}


UNFORESEEN = [KeyError("odd"), asyncio.CancelledError()]  # one of a library's own tasks was cancelled, not the worker


@pytest.mark.parametrize("error", UNFORESEEN, ids=repr)
@pytest.mark.parametrize("where", ["worker", "offsets", "both"])
def test_what_nobody_foresaw_ends_no_worker(error: BaseException, where: str) -> None:
    async def scenario() -> None:
        consumer, _ = consumer_of(Source())
        work = Waiting(*([] if where == "offsets" else [error]))
        # The first time they are asked for all partitions together, then for one.
        offsets = Offsets(*([] if where == "worker" else [error] * 2))
        consumer._consume, consumer._starts = work, offsets  # type: ignore[method-assign]
        consumer._landing = cast(Any, SimpleNamespace(alarms={}))
        partition = PARTITIONS[2]
        await consumer.assigned({partition})
        [task] = consumer._tasks.values()
        await asyncio.sleep(WORKER_RETRY_S / 2)
        assert consumer.unready_reason == f"t/2 waits: {type(error).__name__}: {error}"
        await asyncio.sleep(2 * WORKER_RETRY_S)
        assert work.begun == [Start(None, 0, 2)] * (1 if where == "offsets" else 2)
        assert not work.errors
        assert not offsets.errors
        assert not task.done()
        await consumer.revoked()
        assert task.cancelled()

    virtual_time.run(scenario())
