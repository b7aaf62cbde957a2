"""The adapter to Kafka: what the library overlooks."""

import asyncio
from typing import Any, cast

import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from structlog.testing import capture_logs

from consumer import source as adapter
from consumer.__main__ import _start
from consumer.settings import ConsumerSettings
from consumer.source import KafkaSource, KafkaUnavailable

FIRST, SECOND = TopicPartition("t", 0), TopicPartition("t", 1)


class Admin:
    def __init__(self, answer: dict[TopicPartition, OffsetAndMetadata]) -> None:
        self._answer = answer

    async def list_consumer_group_offsets(self, group: str, partitions: Any) -> dict[TopicPartition, OffsetAndMetadata]:
        return self._answer


def source(answer: dict[TopicPartition, OffsetAndMetadata]) -> KafkaSource:
    made = KafkaSource(ConsumerSettings(), ["t"])
    made._admin = Admin(answer)
    return made


class Committer:
    """Takes its time: until the timers that are due have had their turn."""

    async def commit(self, _: object) -> None:
        due = asyncio.Event()
        asyncio.get_running_loop().call_later(adapter.SLOW_S, due.set)
        await due.wait()


async def test_a_partition_without_a_commit_is_left_out() -> None:
    answer = {FIRST: OffsetAndMetadata(5, "m"), SECOND: OffsetAndMetadata(-1, "")}
    assert await source(answer).committed([FIRST, SECOND]) == {FIRST: (5, "m")}


@pytest.mark.parametrize("answer", [{}, {FIRST: OffsetAndMetadata(5, "m")}])
async def test_a_partition_that_is_not_named_is_no_partition_without_a_commit(
    answer: dict[TopicPartition, OffsetAndMetadata],
) -> None:
    with pytest.raises(KafkaUnavailable):
        await source(answer).committed([FIRST, SECOND])


@pytest.mark.parametrize(("slow_s", "lines"), [(0.0, 1), (3_600.0, 0)])
async def test_what_is_waited_for_is_said_once(monkeypatch: pytest.MonkeyPatch, slow_s: float, lines: int) -> None:
    made = KafkaSource(ConsumerSettings(), ["t"])
    made._consumer = cast(Any, Committer())
    monkeypatch.setattr(adapter, "SLOW_S", slow_s)
    with capture_logs() as logs:
        commit = asyncio.create_task(made.commit(FIRST, 5, ""))
        if slow_s:
            await asyncio.sleep(0)
            commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
    assert [(entry["waiting_for"], entry["offset"]) for entry in logs] == [("a commit", 5)] * lines


class Rebalancing:
    """A consumer whose group does not find together."""

    async def getmany(self, *_: TopicPartition, **__: int) -> None:
        await asyncio.Event().wait()


async def test_a_poll_ends_while_the_group_does_not_find_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made = KafkaSource(ConsumerSettings(), ["t"])
    made._consumer = cast(Any, Rebalancing())
    monkeypatch.setattr(adapter, "REBALANCE_POLL_S", 0.0)
    assert await made.poll(0, [FIRST]) == {}


async def test_a_signal_does_not_wait_for_the_group() -> None:
    class Joining:
        async def start(self, _: object) -> None:
            stopping.set()
            await asyncio.Event().wait()

    stopping, joining, nobody = asyncio.Event(), cast(Any, Joining()), cast(Any, None)
    assert not await _start(joining, nobody, stopping)
