"""gateway.direct_producer over aiokafka's own sender, accumulator and sequence numbers: nothing lost, nothing twice.

Only the client is scripted: `tests/unit/scripted_kafka.py` is a Kafka that keeps the rules for sequence numbers.
"""

import asyncio
import gc
import inspect
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CoordinatorNotAvailableError,
    CorrelationIdError,
    DuplicateSequenceNumber,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    KafkaStorageError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    RequestTimedOutError,
    StaleMetadata,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.producer import producer as aiokafka_producer
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.producer.producer import AIOKafkaProducer
from aiokafka.producer.sender import Sender, SendProduceReqHandler
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.produce import ProduceRequest, ProduceRequestStruct
from prometheus_client import CollectorRegistry

from gateway import direct_producer
from gateway.direct_producer import DirectProducer, LeanRequest
from gateway.kafka_batch import Outcome
from gateway.metrics import Metrics
from gateway.publisher import KafkaPublisher
from gateway.record import Record
from schemas import kafka as kafka_clients
from tests.unit.scripted_kafka import (
    METADATA_S,
    REQUEST_TIMEOUT_S,
    Fault,
    ScriptedKafka,
    Sent,
    answers,
    hangs,
    loses_the_answer,
    moves,
    raises,
)
from tests.unit.virtual_time import VirtualTimeLoop

TOPIC = "app_interactions"
P0, P1, P2, P3 = (TopicPartition(TOPIC, partition) for partition in range(4))
BACKOFF_S = 0.1
STOP_S_MAX = 4 * REQUEST_TIMEOUT_S  # the routine ends the request that it has under way, and asks for metadata
SEEDS = 60
DEAD_ROUTINE = "Sender._fail_all"  # aiokafka's own callback, which fails where there are no transactions


class CountingLoop(VirtualTimeLoop):
    """Tells of each of its turns before it."""

    each_turn: Callable[[], None] | None = None

    def _run_once(self) -> None:
        if self.each_turn is not None:
            self.each_turn()
        super()._run_once()  # type: ignore[misc]


LOOP_FACTORY = CountingLoop


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> ScriptedKafka:
    """Two brokers, four partitions."""
    kafka = ScriptedKafka({P0: 1, P1: 1, P2: 2, P3: 2})
    monkeypatch.setattr(aiokafka_producer, "AIOKafkaClient", kafka.client)
    return kafka


@pytest.fixture(autouse=True)
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop was told: exceptions in callbacks, and those that nobody has looked at. There must be none."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    gc.freeze()  # what is older need not be looked through
    yield found
    await idle()
    gc.collect()
    gc.unfreeze()
    assert not found, found


@asynccontextmanager
async def started(kafka: ScriptedKafka) -> AsyncIterator[DirectProducer]:
    """Stopped at the end, which must not take for ever."""
    producer = new_producer()
    await producer.start()
    yield producer
    async with asyncio.timeout(STOP_S_MAX):
        await producer.stop()
    assert producer.client.closed


@pytest.fixture
async def producer(kafka: ScriptedKafka) -> AsyncIterator[DirectProducer]:
    async with started(kafka) as producer:
        yield producer


def new_producer() -> DirectProducer:
    return DirectProducer(
        acks="all", enable_idempotence=True, request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000), linger_ms=0
    )


async def idle() -> None:
    """Until every task waits for something; on the virtual clock, almost no time."""
    await asyncio.sleep(1e-6)


def batch_of(producer: DirectProducer, *values: bytes) -> BatchBuilder:
    builder = producer.create_batch()
    for value in values:
        assert builder.append(timestamp=1_795_328_400_000, key=None, value=value)
    return builder


@pytest.fixture(params=[False, True], ids=["together", "alone"])
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to leave."""
    monkeypatch.setitem(send.__kwdefaults__, "alone", request.param)


both_ways = pytest.mark.usefixtures("alone")


def send(
    producer: DirectProducer,
    partition: TopicPartition,
    *values: bytes,
    broker: int | None = None,
    alone: bool = False,
) -> asyncio.Task[None]:
    """To the leader as far as the producer knows it; in a task, as `gateway.publisher` does."""
    broker = broker or producer.client.cluster.leader_for_partition(partition)
    batch = batch_of(producer, *values)
    return asyncio.get_running_loop().create_task(producer.send_to(broker, partition, batch, alone=alone))


def is_tidy(producer: DirectProducer) -> bool:
    """Nothing is left behind that `stop` or the routine would look at."""
    accumulator = producer._message_accumulator
    return not accumulator._pending_batches and not any(accumulator._batches.values())


# Names


def test_the_private_names_are_where_they_were() -> None:
    """What has moved is in the message; then see whether `gateway/direct_producer.py` still does what it says."""
    moved = [
        f"{function.__qualname__} takes {parameters}"
        for function, wanted in (
            (MessageBatch.__init__, "self tp builder ttl linger_time"),
            (MessageBatch.set_producer_state, "self producer_id producer_epoch base_sequence"),
            (MessageBatch.drain_ready, "self"),
            (MessageBatch.failure, "self exception"),
            (MessageAccumulator._pop_batch, "self tp"),
            (MessageAccumulator._wakeup, "fut"),
            (MessageAccumulator.waiter, "self"),
            (MessageAccumulator.reenqueue, "self batch"),
            (MessageAccumulator.fail_all, "self exception"),
            (TransactionManager.sequence_number, "self tp"),
            (TransactionManager.increment_sequence_number, "self tp increment"),
            (SendProduceReqHandler.__init__, "self sender batches"),
            (BatchBuilder.append, "self timestamp key value headers"),
            (BatchBuilder.close, "self"),
            (SendProduceReqHandler.do, "self node_id"),
            (SendProduceReqHandler.create_request, "self"),
            (ProduceRequest.__init__, "self transactional_id required_acks timeout topics"),
            (ProduceRequest.build, "self request_struct_class"),
        )
        if (parameters := " ".join(inspect.signature(function).parameters)) != wanted
    ]
    moved += [
        f"{owner.__qualname__}: {text}"
        for owner, texts in (
            (
                AIOKafkaProducer.__init__,
                "self._message_accumulator = MessageAccumulator(|self._sender = Sender(|self._txn_manager = Transac",
            ),
            (
                AIOKafkaProducer.stop,
                "create_task(self._message_accumulator.close())|self._sender.sender_task,|await self._sender.close()",
            ),
            (
                MessageAccumulator.__init__,
                "self._batches = collections.defaultdict(collections.deque)|self._pending_batches = set()"
                "|self._closed = False|self._exception = None|self._batch_ttl = |self._linger_time = ",
            ),
            (MessageAccumulator.create_builder, "return BatchBuilder(|self._batch_size,|self._compression_type,"),
            (
                BatchBuilder.__init__,
                "self._builder = DefaultRecordBatchBuilder(|self._relative_offset = 0|self._closed = False",
            ),
            (
                BatchBuilder.append,
                "if self._closed:|metadata = self._builder.append(|self._relative_offset,|timestamp,|self.close()"
                "|self._relative_offset += 1",
            ),
            (BatchBuilder._build, "self.close()|if self._buffer is None:|self._builder.build()|return self._buffer"),
            (
                ProduceRequest.__init__,
                "self._transactional_id = transactional_id|self._timeout = timeout|self._topics = topics",
            ),
            (SendProduceReqHandler.create_request, "request = ProduceRequest(|return request"),
            (SendProduceReqHandler.do, "request = self.create_request()"),
            (MessageAccumulator.close, "self._closed = True|await self.flush()"),
            (MessageAccumulator.fail_all, "self._exception = exception|in self._pending_batches:"),
            (
                MessageAccumulator.flush,
                "batch.future for batches in self._batches.values() for batch in batches"
                "|batch.future for batch in self._pending_batches",
            ),
            (
                MessageAccumulator.reenqueue,
                "self._batches[tp].appendleft(batch)|self._pending_batches.remove(batch)|batch.reset_drain()",
            ),
            (
                MessageAccumulator._pop_batch,
                "self._batches[tp].popleft()|not_retry = batch.retry_count == 0|batch.drain_ready()"
                "|self._pending_batches.add(batch)|self._txn_manager.sequence_number(batch.tp)"
                "|self._txn_manager.increment_sequence_number(batch.tp, batch.record_count)",
            ),
            (MessageBatch.__init__, "self.future = create_future()|self._retry_count = 0"),
            (MessageBatch.drain_ready, "self._retry_count += 1"),
            (MessageBatch.done, "if not self.future.done():"),
            (MessageBatch.failure, "if not self.future.done():"),
            (Sender._sender_routine, "waiters.add(self._message_accumulator.waiter())|drain_by_nodes("),
            (Sender._send_produce_req, "handler = SendProduceReqHandler(self, batches)|await handler.do(node_id)"),
            (
                SendProduceReqHandler.do,
                "await self._client.send(node_id, request)|await asyncio.sleep(self._default_backoff)"
                "|self._sender._message_accumulator.reenqueue(batch)|await self._client._maybe_wait_metadata()",
            ),
            (SendProduceReqHandler._can_retry, "self._sender._txn_manager is None and|return error.retriable"),
        )
        for text in texts.split("|")
        if text not in inspect.getsource(owner)
    ]
    assert not moved, f"aiokafka has moved what gateway/direct_producer.py leans on: {'; '.join(moved)}"


def test_every_private_name_of_the_module_is_looked_for_above() -> None:
    """Else one that is added would be missed."""
    looked_for = inspect.getsource(test_the_private_names_are_where_they_were)
    names = set(re.findall(r"\.(_[a-z]\w*)", inspect.getsource(direct_producer)))
    ours = {"_leaving", "_requests", *(name for name in vars(DirectProducer) if re.match("_[a-z]", name))}
    assert ours.isdisjoint(re.findall(r"\b_[a-z]\w*", inspect.getsource(AIOKafkaProducer)))
    names -= ours
    assert names
    assert {name for name in names if name not in looked_for} == set()


# What a batch holds


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_batch_is_what_it_would_be_if_appended_to_one_by_one(producer: DirectProducer, seed: int) -> None:
    random = Random(seed)
    headers: list[tuple[str, bytes]] = random.choice([[], [("dedupe", b"shop"), ("replay", b"1")]])
    ours, theirs = producer.create_batch(), BatchBuilder(16_384, 0)  # aiokafka's default
    appended: list[tuple[bytes, bytes, int, list[tuple[str, bytes]]]] = []
    for _ in range(random.choice([1, 3])):
        timestamp_ms = random.choice([0, 1_795_328_400_000])
        keys = [b"k%d" % n for n in range(random.randrange(9))]
        values = [b"v" * random.choice([0, 100, 5_000]) for _ in keys]
        taken = 0
        for key, value in zip(keys, values, strict=True):
            if theirs.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                break
            taken += 1
        if random.random() < 0.5:
            assert ours.extend(keys, values, timestamp_ms, headers) == taken
        else:
            added = [ours.add(key, value, timestamp_ms, headers) for key, value in zip(keys, values, strict=True)]
            assert added == [True] * taken + [False] * (len(keys) - taken)
        assert ours.closed() is theirs.closed()
        assert ours.record_count() == theirs.record_count()
        appended += [(*each, timestamp_ms, headers) for each in zip(keys[:taken], values[:taken], strict=True)]
    assert ours._build() == theirs._build()
    assert ours.extend([b"late"], [b""], 1, []) == 0
    assert not ours.add(b"late", b"", 1, [])
    assert [(*record, list(its_headers)) for *record, its_headers in ours.read()] == appended


@pytest.mark.parametrize("version", ProduceRequest._CLASSES, ids=lambda version: f"v{version.API_VERSION}")
@pytest.mark.parametrize(
    "topics",
    [
        [(TOPIC, [(3, b"")])],
        [(TOPIC, [(3, b"a")])],
        [(TOPIC, [(3, bytearray(range(256)) * 4_000)])],
        [(TOPIC, [(70_000, b"a"), (0, b"bb"), (2, b"")]), ("caf\xe9", [(1, bytearray(b"c"))])],
    ],
    ids=["nothing", "a byte", "a megabyte", "several"],
)
def test_the_bytes_of_a_request_are_those_that_aiokafka_makes(
    version: type[ProduceRequestStruct], topics: list[tuple[str, list[tuple[int, bytes]]]]
) -> None:
    fields = (None, -1, 10_000, topics)
    assert LeanRequest(*fields).build(version).encode() == ProduceRequest(*fields).build(version).encode()


@both_ways
async def test_a_batch_that_was_sent_waits_for_no_collector(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    """A megabyte each, which the collector would not see for thousands of them."""
    await send(producer, P0, b"first")
    await idle()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await send(producer, P0, b"another")
        await idle()
        assert gc.collect() < 10
    finally:
        gc.enable()


# What Kafka answers


@both_ways
async def test_a_good_answer_needs_no_routine(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    for number in range(3):
        await send(producer, P0, b"a%d" % number, b"b%d" % number)
    assert [(sent.sequence, sent.by_routine) for sent in kafka.sent] == [(0, False), (2, False), (4, False)]
    assert {sent.producer for sent in kafka.sent} == {(1001, 3)}
    assert kafka.log[P0] == [b"a0", b"b0", b"a1", b"b1", b"a2", b"b2"]
    await idle()
    assert is_tidy(producer)


RETRIABLE_ANSWERS = [
    NotLeaderForPartitionError,
    LeaderNotAvailableError,
    UnknownTopicOrPartitionError,
    RequestTimedOutError,
    CoordinatorNotAvailableError,
    NotEnoughReplicasError,
    NotEnoughReplicasAfterAppendError,
    KafkaStorageError,
]
RETRIABLE_FAILURES = [
    KafkaConnectionError,
    NodeNotReadyError,
    RequestTimedOutError,
    CorrelationIdError,
    StaleMetadata,
    CoordinatorNotAvailableError,
]
RETRIABLE = [
    *(pytest.param(answers(error.errno), id=f"answer-{error.__name__}") for error in RETRIABLE_ANSWERS),
    *(pytest.param(raises(error()), id=f"failure-{error.__name__}") for error in RETRIABLE_FAILURES),
    *(pytest.param(loses_the_answer(error()), id=f"appended-{error.__name__}") for error in RETRIABLE_FAILURES),
    pytest.param(hangs(), id="hangs"),
]


@both_ways
@pytest.mark.parametrize("times", [1, 2, 7])
@pytest.mark.parametrize("fault", RETRIABLE)
async def test_what_may_be_tried_again_is_the_same_batch(
    kafka: ScriptedKafka, producer: DirectProducer, fault: Fault, times: int
) -> None:
    """Same producer, epoch and sequence number: Kafka knows it again if it has it already."""
    await send(producer, P0, b"before")
    kafka.faults.extend([fault] * times)
    await send(producer, P0, b"one", b"two")
    await send(producer, P0, b"after")
    first, *attempts, last = kafka.sent
    assert {sent.on_the_wire for sent in attempts} == {(P0, first.producer, 1, (b"one", b"two"))}
    assert [sent.by_routine for sent in attempts] == [False] + [True] * times
    assert (last.producer, last.sequence, last.by_routine) == (first.producer, 3, False)
    assert kafka.log[P0] == [b"before", b"one", b"two", b"after"]
    await idle()
    assert is_tidy(producer)


@both_ways
async def test_a_duplicate_is_a_success(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    """Kafka has it, and does not know any more where."""
    kafka.faults.append(answers(DuplicateSequenceNumber.errno))
    await send(producer, P0, b"one")
    kafka.faults.extend([answers(NotLeaderForPartitionError.errno), answers(DuplicateSequenceNumber.errno)])
    await send(producer, P1, b"two")
    assert len(kafka.sent) == 3


@both_ways
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (answers(MessageSizeTooLargeError.errno), MessageSizeTooLargeError),
        (answers(OutOfOrderSequenceNumber.errno), OutOfOrderSequenceNumber),
        (answers(TopicAuthorizationFailedError.errno), TopicAuthorizationFailedError),
        (answers(InvalidProducerEpoch.errno), ProducerFenced),
        (raises(MessageSizeTooLargeError()), MessageSizeTooLargeError),
        (raises(KafkaError("anything")), KafkaError),
    ],
    ids=["too large", "out of order", "not allowed", "fenced", "too large to send", "anything"],
)
async def test_what_kafka_does_not_take_is_raised(
    kafka: ScriptedKafka, producer: DirectProducer, fault: Fault, raised: type[Exception], is_first: bool
) -> None:
    """At once, or when the routine tries again; other partitions do not mind."""
    if not is_first:
        kafka.faults.append(answers(NotLeaderForPartitionError.errno))
    kafka.faults.append(fault)
    with pytest.raises(raised) as found:
        await send(producer, P0, b"one")
    assert type(found.value) is raised
    await send(producer, P1, b"two")
    assert kafka.log == {P1: [b"two"]}
    await idle()
    assert is_tidy(producer)


@both_ways
@pytest.mark.parametrize("error", [ValueError(), OSError(), KeyError(), AssertionError()], ids=repr)
async def test_the_unexpected_is_raised_as_kafkas(
    kafka: ScriptedKafka, producer: DirectProducer, error: Exception
) -> None:
    """The publisher replaces a producer that raises a KafkaError; this one has a gap in its sequence."""
    kafka.faults.append(raises(error))
    with pytest.raises(KafkaError) as found:
        await send(producer, P0, b"one")
    assert error in (found.value, found.value.__cause__)
    await idle()
    assert not producer._message_accumulator._batches


@both_ways
async def test_sequences_have_no_gaps_over_many_batches(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    """Four partitions at once, every third request fails in one of the ways above."""
    faults = [each.values[0] for each in RETRIABLE if each.id != "hangs"]
    asked = 0

    async def now_and_then(kafka: ScriptedKafka, sent: Sent) -> int:
        nonlocal asked
        asked += 1
        if asked % 3 == 0:
            return await faults[asked // 3 % len(faults)](kafka, sent)
        return kafka.append(sent)

    async def send_many(partition: TopicPartition) -> list[bytes]:
        values = []
        for number in range(60):
            batch = [b"%d-%d-%d" % (partition.partition, number, each) for each in range(1 + number % 4)]
            await send(producer, partition, *batch)
            values += batch
        return values

    kafka.fault = now_and_then
    values = await asyncio.gather(*map(send_many, (P0, P1, P2, P3)))
    assert [kafka.log[partition] for partition in (P0, P1, P2, P3)] == values
    for partition in (P0, P1, P2, P3):
        distinct = dict.fromkeys(sent.on_the_wire for sent in kafka.sent if sent.partition == partition)
        starts = [sequence for _, _, sequence, _ in distinct]
        sizes = [len(values) for *_, values in distinct]
        assert starts == [sum(sizes[:index]) for index in range(len(sizes))]
    await idle()
    assert is_tidy(producer)


@both_ways
async def test_a_leader_may_move_to_a_broker_that_is_busy(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    """The routine does not know of what goes directly: neither waits for the other, neither is lost."""
    answered = asyncio.Event()
    kafka.faults.extend([hangs(answered), moves(P0, 2)])
    other = send(producer, P2, b"other")
    await idle()
    await send(producer, P0, b"moved")
    assert [(sent.broker, sent.partition, sent.by_routine) for sent in kafka.sent] == [
        (2, P2, False),
        (1, P0, False),
        (2, P0, True),
    ]
    assert not other.done()
    answered.set()
    await other
    await asyncio.gather(send(producer, P0, b"next"), send(producer, P2, b"next"))
    assert kafka.log == {P2: [b"other", b"next"], P0: [b"moved", b"next"]}


@both_ways
async def test_a_leader_that_moves_back_and_forth(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    """While each broker has a batch of another partition, and answers that one with errors, too."""
    for number in range(20):
        kafka.faults.extend([moves(P0, 2), raises(KafkaConnectionError()), moves(P0, 1)])
        await asyncio.gather(*(send(producer, each, b"%d" % number) for each in (P0, P1, P2)))
    assert kafka.log == {each: [b"%d" % number for number in range(20)] for each in (P0, P1, P2)}


@both_ways
async def test_a_partition_without_leader_is_waited_for(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    leader = kafka.leaders.pop(P0)
    kafka.faults.append(answers(LeaderNotAvailableError.errno))
    sending = send(producer, P0, b"one")
    await asyncio.sleep(10 * (BACKOFF_S + METADATA_S))
    assert not sending.done()
    kafka.leaders[P0] = leader
    await sending
    assert kafka.log[P0] == [b"one"]


# What leaves together


async def test_what_leaves_alone_waits_for_no_other(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    together = send(producer, P0, b"one")
    alone = send(producer, P1, b"one", alone=True)
    await asyncio.gather(together, alone)
    assert kafka.requests == [(1, [P1]), (1, [P0])]


async def test_batches_for_one_broker_leave_in_one_request(kafka: ScriptedKafka, producer: DirectProducer) -> None:
    for number in range(3):
        await asyncio.gather(*(send(producer, each, b"%d" % number) for each in (P0, P2, P1, P3)))
    assert kafka.requests == [(1, [P0, P1]), (2, [P2, P3])] * 3
    assert kafka.log == {each: [b"0", b"1", b"2"] for each in (P0, P1, P2, P3)}
    assert {sent.by_routine for sent in kafka.sent} == {False}
    await send(producer, P1, b"alone")
    assert kafka.requests[-1] == (1, [P1])


async def test_large_batches_leave_in_requests_of_a_bounded_size(
    kafka: ScriptedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them at once, and the largest alone."""
    topic = [TopicPartition("wide", number) for number in range(10)]
    kafka.leaders |= dict.fromkeys(topic, 1)
    monkeypatch.setattr(direct_producer, "REQUEST_BYTES_MAX", 5_000)
    sizes = [100, 2_000, 2_000, 2_000, 9_000, 100, 100, 4_000, 4_000, 100]
    async with started(kafka) as producer:
        await asyncio.gather(*(send(producer, each, bytes(size)) for each, size in zip(topic, sizes, strict=True)))
    requests = [[partition.partition for partition in partitions] for _, partitions in kafka.requests]
    assert requests == [[0, 1, 2], [3], [4], [5, 6, 7], [8, 9]]
    assert {partition: len(values) for partition, values in kafka.log.items()} == dict.fromkeys(topic, 1)


async def test_each_of_those_that_leave_together_has_its_own_answer(
    kafka: ScriptedKafka, producer: DirectProducer
) -> None:
    kafka.leaders[P2] = producer.client.leaders[P2] = 1
    kafka.faults.extend([answers(MessageSizeTooLargeError.errno), NOT_LEADER])
    refused, moved, taken = (send(producer, each, b"one") for each in (P0, P1, P2))
    await idle()
    assert isinstance(refused.exception(), MessageSizeTooLargeError)
    assert (taken.done(), moved.done()) == (True, False), "whoever is tried again holds nobody up"
    await moved
    assert kafka.log == {P1: [b"one"], P2: [b"one"]}
    assert [sent.by_routine for sent in kafka.sent] == [False, False, False, True]


@pytest.mark.parametrize("error", [ValueError(), KafkaError("anything")], ids=repr)
async def test_what_becomes_of_a_request_becomes_of_each_in_it(
    kafka: ScriptedKafka, producer: DirectProducer, error: Exception
) -> None:
    kafka.faults.append(raises(error))
    results = await asyncio.gather(*(send(producer, each, b"one") for each in (P0, P1)), return_exceptions=True)
    assert all(isinstance(result, KafkaError) for result in results)
    assert kafka.log == {}


@both_ways
@pytest.mark.parametrize("cancelled", [P0, P1])
@pytest.mark.parametrize("turns", range(5))
async def test_whoever_is_cancelled_takes_nobody_along(
    kafka: ScriptedKafka, producer: DirectProducer, cancelled: TopicPartition, turns: int
) -> None:
    kafka.fault = slow
    sending = {each: send(producer, each, b"one") for each in (P0, P1)}
    for _ in range(turns):
        await asyncio.sleep(0)
    sending.pop(cancelled).cancel()
    [other] = sending
    await sending[other]
    assert kafka.log[other] == [b"one"]


@both_ways
async def test_no_request_outlives_stop(kafka: ScriptedKafka) -> None:
    kafka.fault, kafka.metadata_hangs = hangs(), True
    producer = new_producer()
    await producer.start()
    before = asyncio.all_tasks()
    sending = [send(producer, each, b"one") for each in (P0, P1, P2)]
    await idle()
    assert asyncio.all_tasks() > before
    for task in sending:
        task.cancel()
    await idle()
    await kafka_clients.stop(producer, 1)
    await idle()
    assert asyncio.all_tasks() <= before


# Whoever does not wait


async def slow(kafka: ScriptedKafka, sent: Sent) -> int:
    await asyncio.sleep(0.05)
    return kafka.append(sent)


async def slow_refusal(kafka: ScriptedKafka, sent: Sent) -> int:
    await asyncio.sleep(0.05)
    return int(NotLeaderForPartitionError.errno)


async def slow_loss(kafka: ScriptedKafka, sent: Sent) -> int:
    await slow(kafka, sent)
    raise KafkaConnectionError


NOT_LEADER = answers(NotLeaderForPartitionError.errno)
AWAY = [
    pytest.param(NOT_LEADER, id="not leader"),
    pytest.param(raises(NodeNotReadyError()), id="not ready"),
    pytest.param(hangs(), id="hangs"),
]
COURSES: dict[str, list[Fault]] = {
    "good": [slow],
    "refused twice": [slow_refusal, slow_refusal, slow],
    "answers lost": [slow_loss, slow_loss, slow_loss, slow],
    "refused at once": [NOT_LEADER, NOT_LEADER, NOT_LEADER],
    "hangs": [hangs(), hangs(), slow],
    "refused for good": [slow_refusal, answers(MessageSizeTooLargeError.errno)],
    "a bug": [raises(ValueError("a bug"))],
}


@dataclass
class Run:
    """One batch that takes the course, cancelled in this turn of the loop; `turns` is how many it had."""

    course: str
    turn: int
    kafka: ScriptedKafka
    turns: int = 0

    async def __call__(self, producer: DirectProducer) -> str:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        await idle()
        self.kafka.faults.extend(COURSES[self.course])
        sending = send(producer, P0, b"one", b"two")

        def count() -> None:
            self.turns += 1
            if self.turns == self.turn:
                sending.cancel()

        loop.each_turn = count
        try:
            await asyncio.wait({sending})
        finally:
            loop.each_turn = None
        if sending.cancelled():
            return "cancelled"
        return "raised" if sending.exception() else "returned"


def check_log(kafka: ScriptedKafka, partition: TopicPartition, result: str, *values: bytes) -> None:
    """All of a batch or nothing, once."""
    allowed = [0, 1] if result != "returned" else [1]
    assert [kafka.log[partition].count(value) for value in values] in [[times] * len(values) for times in allowed]


@both_ways
@pytest.mark.parametrize("ending", ["stop", "stop while Kafka hangs", "wait", "wait, refused", "send another"])
@pytest.mark.parametrize("course", COURSES)
async def test_whoever_is_cancelled_leaves_no_trouble(
    kafka: ScriptedKafka, complaints: list[dict[str, Any]], course: str, ending: str
) -> None:
    """In any turn of the loop, which is at any `await`: `stop` ends, nobody complains, nothing is there twice."""
    run = Run(course, -1, kafka)
    async with started(kafka) as producer:
        await run(producer)
    assert run.turns > 1
    for turn in range(1, run.turns + 3):
        where = f"cancelled in turn {turn} of {run.turns}"
        kafka.log.clear()
        kafka.sent.clear()
        kafka.faults.clear()
        kafka.leaders[P0] = 1
        kafka.fault = None
        try:
            async with started(kafka) as producer:
                result = await Run(course, turn, kafka)(producer)
                check_log(kafka, P0, result, b"one", b"two")
                if ending == "stop while Kafka hangs":
                    kafka.faults.clear()
                    kafka.fault = hangs()
                if ending == "wait, refused":  # what the routine has may have to go back once more
                    kafka.faults.extend([NOT_LEADER, raises(KafkaConnectionError())])
                if ending.startswith("wait"):
                    await asyncio.sleep(3 * REQUEST_TIMEOUT_S)
                    assert producer._sender.sender_task.done() is False
                if ending == "send another":
                    kafka.faults.clear()
                    another = "returned"
                    try:
                        async with asyncio.timeout(STOP_S_MAX):
                            await producer.send_to(1, P0, batch_of(producer, b"three"))
                    except KafkaError:
                        another = "raised"
                    assert "one" not in result or another == "returned"
                    check_log(kafka, P0, another, b"three")
            check_log(kafka, P0, result, b"one", b"two")
            assert {sent.producer[1] for sent in kafka.sent} <= {3}, "a batch without its producer's number"
            await idle()
            assert not complaints
        except BaseException as error:
            error.add_note(where)
            raise


# Stopping


@both_ways
async def test_stop_waits_for_what_is_under_way(kafka: ScriptedKafka) -> None:
    """In a request, in the pause before the next one, and with the routine."""
    kafka.faults.extend([slow, slow_refusal, NOT_LEADER])
    async with started(kafka) as producer:
        sending = [send(producer, each, b"one") for each in (P0, P1, P2)]
        await idle()
    await asyncio.gather(*sending)
    assert kafka.log == {each: [b"one"] for each in (P0, P1, P2)}
    assert is_tidy(producer)


@both_ways
@pytest.mark.parametrize("after_s", [0.0, BACKOFF_S / 2, BACKOFF_S + METADATA_S / 2, 1.0])
@pytest.mark.parametrize("fault", AWAY)
async def test_stop_may_be_given_up_while_kafka_is_away(kafka: ScriptedKafka, fault: Fault, after_s: float) -> None:
    """As the publisher does when it replaces a producer: it gives up, then cancels who waits."""
    kafka.fault = fault
    producer = new_producer()
    await producer.start()
    sending = [send(producer, each, b"one") for each in (P0, P2)]
    await asyncio.sleep(after_s)
    await kafka_clients.stop(producer, 1)
    assert producer.client.closed
    await asyncio.sleep(1)
    for task in sending:
        task.cancel()
    results = await asyncio.gather(*sending, return_exceptions=True)
    assert {type(result) for result in results} == {asyncio.CancelledError}
    await asyncio.sleep(STOP_S_MAX)


def is_left_behind(complaint: dict[str, Any]) -> bool:
    """aiokafka's `stop` does not end its routine when it is given up; nothing of ours waits for that."""
    task = complaint.get("task")
    return "was destroyed" in complaint["message"] and task.get_coro().__qualname__ == "Sender._sender_routine"


@pytest.mark.parametrize("metadata_hangs", [False, True])
@pytest.mark.parametrize("after_s", [0.0, BACKOFF_S / 2, BACKOFF_S + METADATA_S / 2, 1.0])
@pytest.mark.parametrize("fault", AWAY)
async def test_the_publisher_stops_in_time_while_kafka_is_away(
    kafka: ScriptedKafka, complaints: list[dict[str, Any]], fault: Fault, after_s: float, metadata_hangs: bool
) -> None:
    """Its deliveries are cancelled wherever they are, then the producer is stopped: no error comes of it."""
    publisher = KafkaPublisher(
        [TOPIC],
        {},
        batch_bytes_max=16_384,
        pending_bytes_max=1_000_000,
        deadline_ms=1_500,
        metrics=Metrics(CollectorRegistry()),
    )
    await publisher.start()
    kafka.fault, kafka.metadata_hangs = fault, metadata_hangs
    batches = [publisher.publish(Record(TOPIC, each.partition, b"key", b"one", 1)) for each in (P0, P2)]
    await asyncio.sleep(after_s)
    began_s = asyncio.get_running_loop().time()
    await publisher.stop(5)
    assert asyncio.get_running_loop().time() <= began_s + 5 + 1e-3
    assert [batch.final.result() for batch in batches] == [Outcome.IN_DOUBT] * 2
    await asyncio.sleep(STOP_S_MAX)
    gc.collect()
    complaints[:] = [each for each in complaints if not is_left_behind(each)]


@both_ways
async def test_stop_ends_although_the_routine_has_a_batch_of_somebody_who_was_cancelled(kafka: ScriptedKafka) -> None:
    """And has to put it back while `stop` waits for the routine."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def refusal(_: ScriptedKafka, __: Sent) -> int:
        asked.set()
        await answered.wait()
        return int(NotLeaderForPartitionError.errno)

    async with started(kafka) as producer:
        kafka.faults.extend([NOT_LEADER, refusal])
        sending = send(producer, P0, b"one")
        await asked.wait()
        sending.cancel()
        await asyncio.wait({sending})
        asyncio.get_running_loop().call_later(1, answered.set)
    check_log(kafka, P0, "cancelled", b"one")


async def test_nobody_can_send_after_stop(kafka: ScriptedKafka) -> None:
    async with started(kafka) as producer:
        pass
    with pytest.raises(ProducerClosed):
        await producer.send_to(1, P0, batch_of(producer, b"one"))
    assert kafka.sent == []


# A dead routine


@asynccontextmanager
async def dead_routine(
    kafka: ScriptedKafka, complaints: list[dict[str, Any]]
) -> AsyncIterator[tuple[DirectProducer, asyncio.Event]]:
    """A producer and what lets its routine die."""
    asked, die = asyncio.Event(), asyncio.Event()

    async def bug(_: ScriptedKafka, __: Sent) -> int:
        asked.set()
        await die.wait()
        raise ValueError("a bug")

    async with started(kafka) as producer:
        kafka.faults.extend([NOT_LEADER, bug])
        victim = send(producer, P3, b"victim")
        await asked.wait()
        yield producer, die
        with pytest.raises(KafkaError):
            await victim
    complaints[:] = [each for each in complaints if DEAD_ROUTINE not in each["message"]]


@both_ways
async def test_whoever_sends_when_the_routine_is_dead_has_its_error(
    kafka: ScriptedKafka, complaints: list[dict[str, Any]]
) -> None:
    async with dead_routine(kafka, complaints) as (producer, die):
        die.set()
        await idle()
        for _ in range(2):
            with pytest.raises(KafkaError, match="Unexpected error during batch delivery"):
                await send(producer, P0, b"one")
    assert kafka.log == {}


@both_ways
@pytest.mark.parametrize("after_s", [0.01, 0.05, 0.06, 0.16])
@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(fault, id=fault.__name__) for fault in (slow, slow_refusal, slow_loss)),
        pytest.param(answers(MessageSizeTooLargeError.errno), id="too large"),
        pytest.param(raises(NodeNotReadyError()), id="not ready"),
    ],
)
async def test_the_routine_dies_while_a_batch_is_under_way(
    kafka: ScriptedKafka, complaints: list[dict[str, Any]], fault: Fault, after_s: float
) -> None:
    """A KafkaError, or Kafka has it; nobody waits for a routine that is not there."""
    async with dead_routine(kafka, complaints) as (producer, die):
        kafka.faults.append(fault)
        sending = send(producer, P0, b"one")
        await asyncio.sleep(after_s)
        die.set()
        async with asyncio.timeout(STOP_S_MAX):
            await asyncio.wait({sending})
        error = sending.exception()
        assert error is None or isinstance(error, KafkaError), repr(error)
        check_log(kafka, P0, "raised" if error else "returned", b"one")


@both_ways
@pytest.mark.parametrize("turns", range(6))
async def test_a_caller_is_cancelled_while_the_routine_dies(
    kafka: ScriptedKafka, complaints: list[dict[str, Any]], turns: int
) -> None:
    """The error that nobody waits for any more is no exception that "was never retrieved"."""
    async with dead_routine(kafka, complaints) as (producer, die):
        kafka.faults.append(hangs())
        sending = send(producer, P0, b"one")
        await idle()
        die.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises((asyncio.CancelledError, KafkaError)):
            await sending
    assert kafka.log == {}


# At random


@dataclass
class Storm:
    """What Kafka and its callers do, by seed."""

    seed: int
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    async def __call__(self, kafka: ScriptedKafka, sent: Sent) -> int:
        """A fault for any request."""
        choose = self.random.random
        await asyncio.sleep(choose() * 0.02)
        if choose() < 0.1:
            kafka.leaders[sent.partition] = 3 - kafka.leaders[sent.partition]
        what = choose()
        if what < 0.6:
            code = kafka.append(sent)
            await asyncio.sleep(choose() * 0.02)
            return code
        if what < 0.7:  # the request is lost
            raise self.random.choice([KafkaConnectionError, NodeNotReadyError, RequestTimedOutError])
        if what < 0.8:  # its answer is
            kafka.append(sent)
            raise self.random.choice([KafkaConnectionError, RequestTimedOutError])
        if what < 0.85:  # it arrives, after its sender has given it up
            asyncio.get_running_loop().call_later(choose() * 2, kafka.append, sent)
            raise RequestTimedOutError
        if what < 0.95:
            return int(self.random.choice(RETRIABLE_ANSWERS).errno)
        if what < 0.955:
            return int(MessageSizeTooLargeError.errno)
        await asyncio.sleep(2 * REQUEST_TIMEOUT_S)
        return kafka.append(sent)


@both_ways
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_every_batch_is_there_once_whatever_happens(kafka: ScriptedKafka, seed: int) -> None:
    """In order; one that was refused, or whose caller was cancelled, once or not at all, and whenever it likes.

    As with the publisher, a producer that has refused a batch, or whose batch was cancelled, gets no more of them: it
    is stopped while others are under way.
    """
    storm = Storm(seed)
    results: dict[TopicPartition, list[tuple[str, list[bytes]]]] = {each: [] for each in kafka.leaders}

    async def send_many(producer: DirectProducer, partition: TopicPartition, spoiled: asyncio.Event) -> None:
        while len(results[partition]) < 25 and not spoiled.is_set():
            number = len(results[partition])
            values = [b"%d-%d-%d" % (*partition[1:], number, each) for each in range(storm.random.randint(1, 3))]
            sending = send(producer, partition, *values)
            if storm.random.random() < 0.02:
                asyncio.get_running_loop().call_later(storm.random.random() * 0.3, sending.cancel)
            await asyncio.wait({sending})
            result = "cancelled" if sending.cancelled() else "raised" if sending.exception() else "returned"
            if not sending.cancelled() and (error := sending.exception()):
                assert isinstance(error, KafkaError), repr(error)
            results[partition].append((result, values))
            if result != "returned":
                spoiled.set()
            await asyncio.sleep(storm.random.random() * 0.01)

    try:
        kafka.fault = storm
        while any(len(each) < 25 for each in results.values()):
            spoiled = asyncio.Event()
            producer = new_producer()
            await producer.start()
            senders = [asyncio.ensure_future(send_many(producer, each, spoiled)) for each in kafka.leaders]
            closing = asyncio.ensure_future(_stop_when(spoiled, producer, senders))
            async with asyncio.timeout(100 * STOP_S_MAX):
                await asyncio.gather(*senders)
                spoiled.set()
                await closing
        await asyncio.sleep(10)  # what is late has arrived
        for partition, of_partition in results.items():
            log = kafka.log[partition]
            assert len(log) == len(set(log)), "twice"
            assert [values for _, values in of_partition if 0 < len(set(log) & set(values)) < len(values)] == []
            returned = [value for result, values in of_partition if result == "returned" for value in values]
            known = set(returned)
            assert [value for value in log if value in known] == returned
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


async def _stop_when(spoiled: asyncio.Event, producer: DirectProducer, senders: list[asyncio.Future[None]]) -> None:
    """As the publisher replaces a producer."""
    await spoiled.wait()
    async with asyncio.timeout(100 * STOP_S_MAX):
        await producer.stop()
