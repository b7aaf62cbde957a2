"""The consumer group seen from outside it: what it has committed, who is in it, and commits made in its name.

Kafka takes a commit from outside only while the group has no members, so nothing is pulled from under a running
consumer. Each call ends within ANSWER_TIMEOUT_S.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NoError,
    NotCoordinatorForGroupError,
    OffsetMetadataTooLargeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from consumer.settings import ConsumerSettings
from consumer.source import KafkaUnavailable
from schemas import kafka

ANSWER_TIMEOUT_S = 30.0
COORDINATOR_TIMEOUT_S = 15.0  # a fresh cluster makes the topic of the offsets when it is first asked for it

T = TypeVar("T")


class GroupActive(Exception):
    """The group has members: what was wanted is only possible while it has none."""


class IntentRefused(Exception):
    """The broker's `offset.metadata.max.bytes` is too small for an intent."""


class Group:
    """`async with Group(settings) as group`. Every call raises KafkaUnavailable."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self.id = settings.group_id
        self._connection = kafka.connection(settings)
        self._admin = AIOKafkaAdminClient(**self._connection)

    async def __aenter__(self) -> Self:
        try:
            await self._admin.start()
        except (KafkaError, OSError) as error:
            await kafka.stop(self._admin)
            raise KafkaUnavailable(repr(error)) from error
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await kafka.stop(self._admin)

    async def commits(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """Offset and metadata of each partition that has a commit."""
        wanted = list(partitions)
        if not wanted:
            return {}

        async def fetch() -> dict[TopicPartition, tuple[int, str]]:
            found = await self._admin.list_consumer_group_offsets(self.id, partitions=wanted)
            # aiokafka does not look at the answer's own error code (the coordinator is loading, say): then the
            # answer names no partitions, while a good one names all that were asked for.
            if any(partition not in found for partition in wanted):
                raise GroupLoadInProgressError
            return {tp: (entry.offset, entry.metadata or "") for tp, entry in found.items() if entry.offset >= 0}

        return await _answer(fetch)

    async def members(self) -> list[str]:
        """`client id at host` of each."""

        async def describe() -> list[str]:
            [response] = await self._admin.describe_consumer_groups([self.id])
            [(code, _, _, _, _, members, *_)] = response.groups
            if code:
                raise for_code(code)
            return [f"{client_id} at {host.lstrip('/')}" for _, client_id, host, *_ in members]

        return await _answer(describe)

    async def commit(self, entries: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Offset and metadata of each partition. Raises GroupActive or IntentRefused: nothing was committed."""
        consumer = AIOKafkaConsumer(
            **self._connection, group_id=self.id, enable_auto_commit=False, auto_offset_reset="none"
        )

        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await consumer.start()
                consumer.assign(list(entries))
                await consumer.commit(dict(entries))
        except CommitFailedError as error:
            raise GroupActive(f"group {self.id!r} has members") from error
        except OffsetMetadataTooLargeError as error:
            raise IntentRefused("the broker's offset.metadata.max.bytes is too small for this intent") from error
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(repr(error)) from error
        finally:
            await kafka.stop(consumer)

    async def partitions(self, topics: Iterable[str]) -> list[TopicPartition]:
        """Of those of the topics that there are, in order."""

        async def describe() -> list[TopicPartition]:
            found = []
            for topic in await self._admin.describe_topics(list(topics)):
                error = for_code(topic["error_code"])
                if error is UnknownTopicOrPartitionError:
                    continue
                if error is not NoError:
                    raise error(topic["topic"])
                found += [TopicPartition(topic["topic"], entry["partition"]) for entry in topic["partitions"]]
            return sorted(found)

        return await _answer(describe)

    async def cluster(self) -> dict[str, Any]:
        """`cluster_id`, `controller_id`, `brokers`."""
        return await _answer(self._admin.describe_cluster)

    async def topics(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Kafka's description of each topic: `error_code`, `partitions` with `leader`, `replicas` and `isr`."""

        async def describe() -> dict[str, dict[str, Any]]:
            return {topic["topic"]: topic for topic in await self._admin.describe_topics(names)}

        return await _answer(describe)

    async def configs(self, resources: list[Any]) -> dict[str, dict[str, str | None]]:
        """Configuration by name of each resource (aiokafka's ConfigResource)."""

        async def describe() -> dict[str, dict[str, str | None]]:
            configs = {}
            for response in await self._admin.describe_configs(resources):
                for code, _, _, name, entries in response.resources:
                    if code:
                        raise for_code(code)
                    configs[name] = {entry[0]: entry[1] for entry in entries}
            return configs

        return await _answer(describe)


async def _answer(call: Callable[[], Awaitable[T]]) -> T:
    """Raises KafkaUnavailable."""
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(
            (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, GroupLoadInProgressError)
        ),
        wait=wait_fixed(0.2),
        stop=stop_after_delay(COORDINATOR_TIMEOUT_S),
        reraise=True,
    )
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            result: T = await retrying(call)
            return result
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(repr(error)) from error
