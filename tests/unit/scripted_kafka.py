"""Kafka's brokers as aiokafka's own producer sees them, in place of `AIOKafkaClient`: no network, faults on demand.

They keep Kafka's rules for the sequence numbers of idempotent producers, so what a test finds in `log` is what a
consumer would. Nobody but a test's faults makes them slow, deaf or forgetful.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    RequestTimedOutError,
)
from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v7
from aiokafka.record.default_records import DefaultRecordBatch

METADATA_S = 0.02
REQUEST_TIMEOUT_S = 10.0
REMEMBERED = 5  # batches a producer and partition, for which Kafka knows a repeat


class Sent(NamedTuple):
    """A batch in a produce request. `by_routine`: aiokafka's own sending routine has sent it."""

    broker: int
    partition: TopicPartition
    producer: tuple[int, int]
    sequence: int
    values: tuple[bytes, ...]
    by_routine: bool

    @property
    def on_the_wire(self) -> tuple[Any, ...]:
        """What no retry may change."""
        return self.partition, self.producer, self.sequence, self.values


Fault = Callable[["ScriptedKafka", Sent], Awaitable[int]]
"""In place of the leader's answer: an error code, or it raises what aiokafka's client would."""


@dataclass
class ScriptedKafka:
    """`faults` are used up, one a batch; `fault` is what each batch meets when there are none of them. One that raises
    is of the whole request. `requests` are broker and partitions of each."""

    leaders: dict[TopicPartition, int]
    faults: deque[Fault] = field(default_factory=deque)
    fault: Fault | None = None
    metadata_hangs: bool = False
    sent: list[Sent] = field(default_factory=list)
    requests: list[tuple[int, list[TopicPartition]]] = field(default_factory=list)
    log: dict[TopicPartition, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    clients: list["ScriptedClient"] = field(default_factory=list)
    _accepted: dict[Any, deque[int]] = field(default_factory=dict)  # the sequence numbers of batches
    _next: Counter[Any] = field(default_factory=Counter)

    def client(self, **_: Any) -> "ScriptedClient":
        """In place of the class `AIOKafkaClient`."""
        self.clients.append(ScriptedClient(self))
        return self.clients[-1]

    async def take(self, sent: Sent) -> int:
        """As the leader does, unless a fault says otherwise."""
        if self.faults:
            return await self.faults.popleft()(self, sent)
        return await self.fault(self, sent) if self.fault else self.append(sent)

    def append(self, sent: Sent) -> int:
        """The error code."""
        if self.leaders[sent.partition] != sent.broker:
            return int(NotLeaderForPartitionError.errno)
        of = (sent.producer, sent.partition)
        accepted = self._accepted.setdefault(of, deque(maxlen=REMEMBERED))
        if sent.sequence in accepted:
            return 0
        if sent.producer[0] != -1 and sent.sequence != self._next[of]:
            return int(OutOfOrderSequenceNumber.errno)
        accepted.append(sent.sequence)
        self._next[of] += len(sent.values)
        self.log[sent.partition] += sent.values
        return 0


class ScriptedClient:
    """The part of AIOKafkaClient that a producer uses. `cluster` is as old as the last look."""

    _client_id = "scripted"

    def __init__(self, kafka: ScriptedKafka) -> None:
        self.kafka = kafka
        self.leaders = dict(kafka.leaders)
        self.cluster = self
        self.closed = False
        self._md_update_fut: asyncio.Future[bool] | None = None
        self._exchanges: set[asyncio.Future[int]] = set()

    def leader_for_partition(self, partition: TopicPartition) -> int | None:
        return self.leaders.get(partition)

    def add_listener(self, _: Callable[[Any], None]) -> None:
        pass

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {each.partition for each in self.leaders if each.topic == topic} or None

    async def bootstrap(self) -> None:
        pass

    def get_random_node(self) -> int:
        return next(iter(self.kafka.leaders.values()))

    async def _wait_on_metadata(self, topic: str) -> set[int] | None:
        return self.partitions_for_topic(topic)

    def force_metadata_update(self) -> Awaitable[bool]:
        loop = asyncio.get_running_loop()
        if self._md_update_fut is None:
            self._md_update_fut = loop.create_future()
            if not self.kafka.metadata_hangs and not self.closed:
                loop.call_later(METADATA_S, self._update_metadata)
        return asyncio.shield(self._md_update_fut)

    def _update_metadata(self) -> None:
        if not self.closed:  # as in AIOKafkaClient: whoever waits for metadata of a closed one, waits for ever
            self.leaders = dict(self.kafka.leaders)
            updated, self._md_update_fut = self._md_update_fut, None
            assert updated is not None
            updated.set_result(True)

    async def _maybe_wait_metadata(self) -> None:
        if self._md_update_fut is not None:
            await asyncio.shield(self._md_update_fut)

    async def send(self, node_id: int, request: Any, *, group: object = None) -> Any:
        if not isinstance(request, ProduceRequest):
            return SimpleNamespace(error_code=0, producer_id=1_000 + len(self.kafka.clients), producer_epoch=3)
        task = asyncio.current_task()
        assert task is not None
        by_routine = task.get_coro().__qualname__ == "Sender._send_produce_req"  # type: ignore[union-attr]
        answers = []
        topics = ProduceRequest_v7.decode(request.build(ProduceRequest_v7).encode()).topics
        self.kafka.requests.append(
            (node_id, [TopicPartition(topic, each) for topic, them in topics for each, _ in them])
        )
        for topic, partitions in topics:
            for partition, wire in partitions:
                sent = _sent(node_id, TopicPartition(topic, partition), wire, by_routine)
                self.kafka.sent.append(sent)
                code = await self._exchange(sent)
                answers.append((topic, [(partition, code, -1, -1, 0)]))
        return SimpleNamespace(API_VERSION=7, topics=answers)

    async def _exchange(self, sent: Sent) -> int:
        exchange = asyncio.ensure_future(self.kafka.take(sent))
        self._exchanges.add(exchange)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await asyncio.wait({exchange})
        except TimeoutError:
            raise RequestTimedOutError from None
        finally:
            self._exchanges.discard(exchange)
            exchange.cancel()
        if exchange.cancelled():
            raise KafkaConnectionError("Connection closed")
        return exchange.result()

    async def close(self) -> None:
        self.closed = True
        for exchange in self._exchanges:
            exchange.cancel()


def _sent(broker: int, partition: TopicPartition, wire: bytes, by_routine: bool) -> Sent:
    batch = DefaultRecordBatch(bytes(wire))
    producer = batch.producer_id, batch.producer_epoch
    sequence = batch.base_sequence
    return Sent(broker, partition, producer, sequence, tuple(record.value for record in batch), by_routine)


# Faults


def answers(code: int) -> Fault:
    """With this error; the batch is not in the log."""

    async def fault(_: ScriptedKafka, __: Sent) -> int:
        return code

    return fault


def raises(error: BaseException) -> Fault:
    """What the client says of a request; it has not arrived."""

    async def fault(_: ScriptedKafka, __: Sent) -> int:
        raise error

    return fault


def loses_the_answer(error: BaseException) -> Fault:
    """The batch is in the log, and its sender does not know."""

    async def fault(kafka: ScriptedKafka, sent: Sent) -> int:
        kafka.append(sent)
        raise error

    return fault


def hangs(until: asyncio.Event | None = None) -> Fault:
    """No answer for now, or ever."""

    async def fault(kafka: ScriptedKafka, sent: Sent) -> int:
        await (until or asyncio.Event()).wait()
        return kafka.append(sent)

    return fault


def moves(partition: TopicPartition, broker: int) -> Fault:
    """To another leader, just before the request arrives."""

    async def fault(kafka: ScriptedKafka, sent: Sent) -> int:
        kafka.leaders[partition] = broker
        return kafka.append(sent)

    return fault
