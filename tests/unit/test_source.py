"""The adapter to Kafka: what the library overlooks."""

from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

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


async def test_a_partition_without_a_commit_is_left_out() -> None:
    answer = {FIRST: OffsetAndMetadata(5, "m"), SECOND: OffsetAndMetadata(-1, "")}
    assert await source(answer).committed([FIRST, SECOND]) == {FIRST: (5, "m")}


@pytest.mark.parametrize("answer", [{}, {FIRST: OffsetAndMetadata(5, "m")}])
async def test_a_partition_that_is_not_named_is_no_partition_without_a_commit(
    answer: dict[TopicPartition, OffsetAndMetadata],
) -> None:
    with pytest.raises(KafkaUnavailable):
        await source(answer).committed([FIRST, SECOND])
