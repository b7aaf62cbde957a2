"""Where reading begins for the ids that must be known again."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self, cast

import pytest
from prometheus_client import CollectorRegistry

from consumer import warm_up
from consumer.batch import Limits, Range
from consumer.ledger import Entry, Intent
from consumer.loop import Consumer
from consumer.metrics import Metrics
from consumer.pace import Pace
from consumer.partition import PartitionWorker
from consumer.repeats import SLOT_MS, Checkpoint, Window, reach_slots
from consumer.settings import ConsumerSettings
from consumer.source import TopicPartition
from consumer.warm_up import WarmUp

TP = TopicPartition("app_interactions", 3)
WINDOW_S = 3_600
REACH_MS = reach_slots(WINDOW_S) * SLOT_MS
NOW_MS = 1_795_328_400_000


@dataclass
class Record:
    offset: int
    timestamp: int


class Log:
    """Holds records of one partition, and reads like LogReader."""

    def __init__(self, *records: Record) -> None:
        self._records = records
        self.read: list[int] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def records(self, _: TopicPartition, first: int, end: int) -> AsyncIterator[Record]:
        for record in self._records:
            if first <= record.offset < end:
                self.read.append(record.offset)
                yield record

    async def offsets_at(self, partitions: list[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        at = [record.offset for record in self._records if record.timestamp >= time_ms]
        return dict.fromkeys(partitions, at[0] if at else self._records[-1].offset + 1)


async def start(monkeypatch: pytest.MonkeyPatch, log: Log, entry: Entry, begin: int = 0) -> Checkpoint:
    monkeypatch.setattr(warm_up, "LogReader", lambda _: log)
    return await WarmUp({}, WINDOW_S).start(TP, entry, begin)


async def test_the_ledger_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for remembered in (Checkpoint(30, 7), Checkpoint(50, 7)):
        assert await start(monkeypatch, Log(), Entry(50, None, remembered)) == remembered
    intent = Intent((Range(50, 60),), NOW_MS)
    assert await start(monkeypatch, Log(), Entry(50, intent, Checkpoint(30, 7)), begin=40) == Checkpoint(40, 7)


async def test_a_log_that_begins_there_has_nothing_to_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await start(monkeypatch, Log(), Entry(50, None), begin=50) == Checkpoint(50, 0)


async def test_otherwise_the_time_of_a_record_before_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    begins_ms = (NOW_MS // SLOT_MS) * SLOT_MS - REACH_MS
    log = Log(
        Record(10, begins_ms - 1),
        Record(20, begins_ms),
        Record(30, begins_ms - 5),
        Record(4_000, NOW_MS),
        Record(4_001, NOW_MS - 9 * REACH_MS),
        Record(4_050, NOW_MS + REACH_MS),
    )
    assert await start(monkeypatch, log, Entry(4_050, None)) == Checkpoint(20, 0)
    assert log.read == [4_000, 4_001]
    # One that is older only makes us read more.
    assert await start(monkeypatch, Log(*log._records[:3], log._records[4]), Entry(4_050, None)) == Checkpoint(10, 0)


async def test_where_few_offsets_hold_a_record_more_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await start(monkeypatch, Log(Record(10, NOW_MS)), Entry(5_000, None)) == Checkpoint(10, 0)
    assert await start(monkeypatch, Log(Record(10, NOW_MS)), Entry(50_000, None), begin=5) == Checkpoint(5, 0)


# Retention may delete what is being read back; then it begins anew with what is left.


class Source:
    """Holds [begin, …), and notes where it is told to go."""

    cluster_id = ""

    def __init__(self, begin: int) -> None:
        self._begin = begin
        self.sought: list[int] = []

    async def bounds(self, partitions: list[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        return dict.fromkeys(partitions, (self._begin, 1_000))

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.sought.append(offset)


@pytest.mark.parametrize(("begin", "position"), [(40, 40), (50, 50), (51, None)])
async def test_what_kafka_deletes_meanwhile_is_passed_over(begin: int, position: int | None) -> None:
    source, settings, metrics = Source(begin), ConsumerSettings(), Metrics(CollectorRegistry())
    nobody = cast(Any, None)
    consumer = Consumer(settings, cast(Any, source), nobody, nobody, nobody, nobody, metrics)
    window = Window(WINDOW_S, 1_000, Checkpoint(10, 0))
    worker = PartitionWorker(TP, 50, None, Limits(10, 1_000, 1.0), Pace(8), window, nobody, nobody, metrics)
    consumer._workers[TP] = worker
    await consumer._out_of_range(TP)
    if position is None:  # of its rows some are gone, too
        assert TP in consumer._stopped
        return
    assert not consumer._stopped
    assert source.sought == [position]
    assert worker.position == position
    assert worker.warming_up is (position < 50)
