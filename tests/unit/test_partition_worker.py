"""One partition: when its batches close, what it keeps of them, and what the ledger hears before anything is sent."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from consumer import partition
from consumer.batch import Batch, Limits, Range
from consumer.ledger import Intent
from consumer.metrics import Metrics
from consumer.pace import Pace
from consumer.partition import PartitionWorker
from consumer.raw_batches import Slab
from consumer.source import TopicPartition
from tests.unit.test_batch import Record

TP = TopicPartition("t", 0)
ROWS_MAX = 10
NEVER_S = 3_600.0


class Stores:
    """Ledger and landing: notes what happens in which order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.batches: list[weakref.ref[Batch]] = []
        self.happened = asyncio.Event()
        self.may_land = asyncio.Event()
        self.may_land.set()

    async def open(self, _: TopicPartition, intent: Intent, __: object) -> None:
        self._note("open", intent.ranges)

    async def close(self, _: TopicPartition, offset: int, __: object) -> None:
        self._note("close", offset)

    def token(self, _: TopicPartition, batch: Batch, __: Intent) -> str:
        return f"{batch.range.first}-{batch.range.end}"

    async def land(self, _: object, batch: Batch) -> None:
        await self.may_land.wait()
        self.batches.append(weakref.ref(batch))
        self._note("land", batch.range)

    def _note(self, what: str, value: object) -> None:
        self.events.append((what, value))
        self.happened.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.happened.clear()
                await self.happened.wait()

    @property
    def landed(self) -> list[Range]:
        return [value for what, value in self.events if what == "land"]


@asynccontextmanager
async def running(stores: Stores, age_s: float = NEVER_S) -> AsyncIterator[PartitionWorker]:
    limits, metrics, store = Limits(ROWS_MAX, 10**6, age_s), Metrics(CollectorRegistry()), cast(Any, stores)
    worker = PartitionWorker(TP, 0, None, limits, Pace(1_000), None, store, store, metrics)
    task = asyncio.create_task(worker.run())
    yield worker
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def slab(first: int, count: int) -> Slab:
    return Slab([Record(offset) for offset in range(first, first + count)], 0)


async def settled() -> None:
    """Whatever can go on without time passing has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_intent_comes_first_and_the_next_one_closes_it() -> None:
    stores = Stores()
    async with running(stores) as worker:
        worker.feed([slab(0, 2 * ROWS_MAX)])
        await stores.until(lambda: ("close", 20) in stores.events)
    assert stores.events == [
        ("open", (Range(0, 10),)),
        ("land", Range(0, 10)),
        ("open", (Range(10, 20),)),
        ("land", Range(10, 20)),
        ("close", 20),
    ]


async def test_a_batch_that_has_landed_is_let_go() -> None:
    """With many partitions that is most of the memory."""
    stores = Stores()
    async with running(stores) as worker:
        worker.feed([slab(0, ROWS_MAX)])
        await stores.until(lambda: ("close", 10) in stores.events)
        await settled()
        gc.collect()
        assert [batch() for batch in stores.batches] == [None]


async def test_who_is_hurried_closes_once() -> None:
    stores = Stores()
    async with running(stores) as worker:
        worker.feed([slab(0, 3)])
        await settled()
        assert not stores.landed
        assert not worker.closing
        worker.hurry()
        assert worker.closing
        await stores.until(lambda: stores.landed == [Range(0, 3)])
        worker.feed([slab(3, 3)])
        await settled()
        assert (stores.landed, worker.closing) == ([Range(0, 3)], False)


async def test_a_batch_under_way_counts_as_closing() -> None:
    stores = Stores()
    stores.may_land.clear()
    async with running(stores) as worker:
        worker.feed([slab(0, ROWS_MAX)])
        await settled()
        assert (worker.closing, worker.full) == (True, False)
        stores.may_land.set()
        await stores.until(lambda: ("close", 10) in stores.events)
        assert not worker.closing


@pytest.mark.parametrize(("end", "waits"), [(4, False), (5, False), (6, True), (1_000, True)])
async def test_age_closes_no_batch_that_a_backlog_fills(end: int, waits: bool) -> None:
    """Four rows are there; one more in Kafka makes no difference, two do."""
    async with running(Stores()) as worker:
        worker.know_end(end)
        worker.feed([slab(0, 4)])
        assert worker._fills_anyway() is waits
        worker.hurry()
        assert not worker._fills_anyway()


async def test_a_backlog_that_has_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "FILL_AGES_MAX", 1_000_000)
    stores = Stores()
    async with running(stores, age_s=0.01) as worker:
        worker.know_end(6)
        worker.feed([slab(0, 4)])
        await settled()
        worker.feed([slab(4, 2)])
        await stores.until(lambda: stores.landed == [Range(0, 6)])


async def test_a_backlog_that_does_not_come_is_not_waited_for_without_end() -> None:
    stores = Stores()
    async with running(stores, age_s=0.001) as worker:
        worker.know_end(1_000)
        worker.feed([slab(0, 4)])
        await stores.until(lambda: stores.landed == [Range(0, 4)])
