"""The adapter to Kafka: what the library overlooks."""

import asyncio
from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from structlog.testing import capture_logs

from consumer import source as adapter
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
    committer: Any = Committer()
    made._consumer = committer
    monkeypatch.setattr(adapter, "SLOW_S", slow_s)
    with capture_logs() as logs:
        commit = asyncio.create_task(made.commit(FIRST, 5, ""))
        if slow_s:
            await asyncio.sleep(0)
            commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
    assert [(entry["waiting_for"], entry["offset"]) for entry in logs] == [("a commit", 5)] * lines
