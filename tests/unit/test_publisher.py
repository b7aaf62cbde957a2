"""gateway.publisher: what leaves together, for where, and what becomes of it, whatever Kafka does.

Time is virtual, so a deadline is met exactly or not at all.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    TopicAuthorizationFailedError,
)
from aiokafka.partitioner import murmur2
from prometheus_client import CollectorRegistry

from gateway import publisher as publisher_module
from gateway.kafka_batch import Batch, Outcome, PublisherRefusal
from gateway.metrics import Metrics
from gateway.publisher import CONNECT_TIMEOUT_S, LEADER_RETRY_S, START_S_MAX, KafkaPublisher
from gateway.record import OVERHEAD_BYTES, Record, Records
from gateway.settings import GatewaySettings
from schemas.streams import APP_INTERACTIONS
from tests.unit.fake_kafka import FakeKafka, Flight
from tests.unit.virtual_time import VirtualTimeLoop

LOOP_FACTORY = VirtualTimeLoop

TOPIC, OTHER = "app_interactions", "retriever_interactions"
DEADLINE_S = 1.5
BATCH_BYTES_MAX = 16_384
PENDING_BYTES_MAX = 1_000_000

Leaders = dict[TopicPartition, int | None]
Starter = Callable[..., Awaitable[KafkaPublisher]]


def led_by(*brokers: int | None, topic: str = TOPIC) -> Leaders:
    return {TopicPartition(topic, partition): broker for partition, broker in enumerate(brokers)}


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    """One broker, one partition of each topic."""
    kafka = FakeKafka(led_by(1) | led_by(1, topic=OTHER))
    monkeypatch.setattr(publisher_module, "DirectProducer", kafka.producer)
    return kafka


@pytest.fixture
async def start(kafka: FakeKafka) -> AsyncIterator[Starter]:
    """Start a publisher, wait until it has done what it can; stopped at the end of the test."""
    started: list[KafkaPublisher] = []

    async def start(leaders: Leaders | None = None, **limits: int) -> KafkaPublisher:
        if leaders is not None:
            kafka.leaders = leaders
        publisher = make_publisher(**limits)
        started.append(publisher)
        await publisher.start()
        await idle()
        return publisher

    yield start
    kafka.stop_hangs = False
    for publisher in started:
        await publisher.stop(0)


def make_publisher(
    metrics: Metrics | None = None, settled: Callable[[Batch, Outcome], None] = lambda *_: None, **limits: int
) -> KafkaPublisher:
    defaults = {
        "batch_bytes_max": BATCH_BYTES_MAX,
        "pending_bytes_max": PENDING_BYTES_MAX,
        "deadline_ms": int(DEADLINE_S * 1000),
    }
    return KafkaPublisher(
        [TOPIC, OTHER], {}, metrics=metrics or Metrics(CollectorRegistry()), settled=settled, **(defaults | limits)
    )


def publish(publisher: KafkaPublisher, value: bytes, topic: str = TOPIC) -> asyncio.Future[Outcome]:
    return batch_of(publisher, value, topic).outcome


def batch_of(
    publisher: KafkaPublisher, value: bytes, topic: str = TOPIC, *, partition: int | None = None, replay: bool = False
) -> Batch:
    return publisher.publish(Record(topic, partition, b"key", value, 1_763_800_000_123), replay=replay)


async def idle() -> None:
    """Until every task waits for something; on the virtual clock, almost no time."""
    await asyncio.sleep(1e-6)


def now() -> float:
    return asyncio.get_running_loop().time()


# What goes together


async def test_what_arrives_in_one_turn_goes_together_at_once(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    batches = [publisher.publish(Record(TOPIC, None, b"k%d" % n, b"v%d" % n, 1000 + n)) for n in range(3)]
    assert len(set(batches)) == 1  # and so one future
    await idle()

    assert [flight.records for flight in kafka.flights] == [[(b"k%d" % n, b"v%d" % n, 1000 + n) for n in range(3)]]
    assert not batches[0].outcome.done()
    kafka.flights[0].answer()
    assert await batches[0].outcome is Outcome.DELIVERED


async def test_what_arrives_during_a_flight_goes_together_after_it(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    first = publish(publisher, b"first")
    await idle()
    second = publish(publisher, b"second")
    await idle()
    third = publish(publisher, b"third")
    await idle()
    assert len(kafka.flights) == 1
    assert first is not second
    assert second is third

    kafka.flights[0].answer()
    assert await first is Outcome.DELIVERED
    await idle()
    assert [flight.values for flight in kafka.flights] == [[b"first"], [b"second", b"third"]]
    assert not second.done()
    kafka.flights[1].answer()
    assert await second is Outcome.DELIVERED


async def test_topics_do_not_share_a_batch(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1) | led_by(1, topic=OTHER))
    publish(publisher, b"a", TOPIC)
    publish(publisher, b"b", OTHER)
    await idle()
    # One turn, one broker: both go, in the same produce request.
    assert {flight.topic: flight.values for flight in kafka.flights} == {TOPIC: [b"a"], OTHER: [b"b"]}


async def test_full_batch_opens_another(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, 1, 1))
    values = [bytes([n]) * 1000 for n in range(40)]
    outcomes = [publish(publisher, value) for value in values]
    assert len(set(outcomes)) == 3
    await idle()

    assert [flight.partition for flight in kafka.flights] == [0, 1, 2]
    assert all(len(flight.wire) <= BATCH_BYTES_MAX for flight in kafka.flights)
    assert [value for flight in kafka.flights for value in flight.values] == values  # each once, in order
    kafka.flights[1].answer()
    await idle()
    assert [outcome.done() for outcome in dict.fromkeys(outcomes)] == [False, True, False]


async def test_full_batches_wait_for_their_turn(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    outcomes = list(dict.fromkeys(publish(publisher, b"x" * 10_000) for _ in range(3)))
    assert len(outcomes) == 3
    for n, outcome in enumerate(outcomes):
        await idle()
        assert len(kafka.flights) == n + 1
        kafka.flights[n].answer()
        assert await outcome is Outcome.DELIVERED


async def test_what_may_be_a_repeat_is_marked_and_travels_apart(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    for value, replay in ((b"a", False), (b"b", True), (b"c", True), (b"d", False)):
        batch_of(publisher, value, partition=0, replay=replay)
    for n in range(3):
        await idle()
        kafka.flights[n].answer()
    await idle()
    assert [(flight.values, flight.headers) for flight in kafka.flights] == [
        ([b"a"], [[]]),
        ([b"b", b"c"], [[("replay", b"1")], [("replay", b"1")]]),
        ([b"d"], [[]]),
    ]


async def test_batch_knows_its_records(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(None, 1))
    records = [Record(TOPIC, None, b"k%d" % n, b"v%d" % n, 1000 + n) for n in range(3)]
    [batch] = {publisher.publish(record) for record in records}
    await idle()
    assert batch.records() == [record._replace(partition=1) for record in records]
    assert (batch.topic, batch.partition, batch.size) == (TOPIC, 1, 3)


async def test_batch_knows_whose_ids_they_are(kafka: FakeKafka, start: Starter) -> None:
    """Before it has left, too; and that one comes from the spool is nothing that would have to be kept."""
    publisher = await start()
    record = Record(TOPIC, 0, b"order-7", b"", 2**41, b"shop")
    for batch in (publisher.publish(record), publisher.publish(record, replay=True)):
        assert not batch.sent
        assert batch.records() == [record]


async def test_batch_that_expires_in_the_turn_that_it_leaves_is_not_sent(kafka: FakeKafka, start: Starter) -> None:
    """Whoever hears of it then has it read back, and spooled."""
    read: list[Record] = []
    publisher = make_publisher(settled=lambda batch, _: read.extend(batch.records()))
    await publisher.start()
    await idle()
    batch = batch_of(publisher, b"v")
    while not batch.sent:
        await asyncio.sleep(0)
        publisher._dispatch()
    publisher._expire(batch)  # as its timer would
    assert await batch.final is Outcome.EXPIRED
    assert (batch.outcome.result(), [record.value for record in read]) == (Outcome.IN_DOUBT, [b"v"])
    assert not kafka.flights
    batch_of(publisher, b"w")
    await idle()
    assert [flight.values for flight in kafka.flights] == [[b"w"]]
    await publisher.stop(0)


# For where


async def test_record_that_names_a_partition_goes_there(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, 2, 3))
    for partition in (2, 0, 2, 2):
        batch = batch_of(publisher, b"%d" % partition, partition=partition)
        await idle()
        assert (batch.partition, kafka.flights[-1].partition) == (partition, partition)
        kafka.flights[-1].answer()
        await idle()


async def test_partition_that_is_busy_or_leaderless_is_waited_for(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, 2, None))
    first = batch_of(publisher, b"first", partition=1)
    await idle()
    for partition in (1, 2):
        batch_of(publisher, b"waits", partition=partition)
    await idle()
    assert [flight.values for flight in kafka.flights] == [[b"first"]]
    other = batch_of(publisher, b"other", partition=0)
    await idle()
    assert [flight.values for flight in kafka.flights[1:]] == [[b"other"]]
    kafka.flights[1].answer()
    assert await other.outcome is Outcome.DELIVERED

    kafka.leaders |= {TopicPartition(TOPIC, 2): 3}
    kafka.flights[0].answer()
    assert await first.outcome is Outcome.DELIVERED
    await asyncio.sleep(LEADER_RETRY_S)
    assert [(flight.partition, flight.values) for flight in kafka.flights[2:]] == [(1, [b"waits"]), (2, [b"waits"])]


async def test_no_partition_is_neglected_for_those_that_do_not_mind(kafka: FakeKafka, start: Starter) -> None:
    """However much else there is to send."""
    publisher = await start()
    batch_of(publisher, b"live")
    await idle()
    pinned = batch_of(publisher, b"pinned", partition=0)
    for _ in range(3):
        batch_of(publisher, b"live")
        kafka.flights[-1].answer()
        await idle()
    assert [b"pinned"] in [flight.values for flight in kafka.flights]
    assert pinned.sent


async def test_partition_that_does_not_exist_expires_and_holds_nothing_up(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    lost = batch_of(publisher, b"x", partition=7)
    outcome = publish(publisher, b"y")
    await idle()
    kafka.flights[0].answer()
    assert await outcome is Outcome.DELIVERED
    assert await lost.outcome is Outcome.EXPIRED
    assert lost.final.result() is Outcome.EXPIRED


async def test_round_robin_over_partitions(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, 1, 1))
    for n in range(7):
        publish(publisher, b"%d" % n)
        await idle()
        kafka.flights[-1].answer()
        await idle()
    assert [flight.partition for flight in kafka.flights] == [0, 1, 2, 0, 1, 2, 0]


async def test_brokers_do_not_wait_for_each_other(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, 2))
    hung = publish(publisher, b"for the broker that hangs")
    await idle()
    assert kafka.flights[0].partition == 0
    for n in range(5):
        outcome = publish(publisher, b"%d" % n)
        await idle()
        assert kafka.flights[-1].partition == 1
        assert len(kafka.flights) == 2 + n
        kafka.flights[-1].answer()
        assert await outcome is Outcome.DELIVERED
    assert not hung.done()


async def test_one_produce_request_per_broker(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, 1))
    publish(publisher, b"first")
    await idle()
    publish(publisher, b"second")
    await idle()
    assert len(kafka.flights) == 1  # partition 1 is free, its broker is not
    kafka.flights[0].answer()
    await idle()
    assert [flight.partition for flight in kafka.flights] == [0, 1]


async def test_partition_without_leader_is_passed_over(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(None, -1, 2))
    outcome = publish(publisher, b"x")
    await idle()
    assert kafka.flights[0].partition == 2
    kafka.flights[0].answer()
    assert await outcome is Outcome.DELIVERED


@pytest.mark.parametrize("leader", [None, -1])
async def test_leader_that_comes_back_is_found_without_a_new_event(
    kafka: FakeKafka, start: Starter, leader: int | None
) -> None:
    publisher = await start(led_by(leader))
    outcome = publish(publisher, b"x")
    await idle()
    assert not kafka.flights
    assert kafka.metadata_updates == 1  # it has asked who leads now
    kafka.leaders = led_by(7)
    await asyncio.sleep(LEADER_RETRY_S)
    assert [flight.values for flight in kafka.flights] == [[b"x"]]
    kafka.flights[0].answer()
    assert await outcome is Outcome.DELIVERED


async def test_leader_that_comes_back_is_found_while_another_broker_hangs(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, None))
    publish(publisher, b"for the broker that hangs")
    await idle()
    outcome = publish(publisher, b"x")
    await idle()
    kafka.leaders = led_by(1, 2)
    await asyncio.sleep(LEADER_RETRY_S)
    assert [(flight.partition, flight.values) for flight in kafka.flights[1:]] == [(1, [b"x"])]
    kafka.flights[1].answer()
    assert await outcome is Outcome.DELIVERED


async def test_leaders_are_asked_for_at_a_steady_pace(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(None))
    for _ in range(50):
        publish(publisher, b"x" * 10_000)
        await idle()
    await asyncio.sleep(1)
    assert kafka.metadata_updates <= 1 + 1 / LEADER_RETRY_S


# Deadlines


async def test_never_sent_by_its_deadline_is_expired(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(None))
    sent_at = now()
    assert await publish(publisher, b"x") is Outcome.EXPIRED
    assert now() - sent_at == pytest.approx(DEADLINE_S)

    kafka.leaders = led_by(1)
    after = publish(publisher, b"after")
    await asyncio.sleep(LEADER_RETRY_S)
    assert [flight.values for flight in kafka.flights] == [[b"after"]]  # what expired never leaves
    kafka.flights[0].answer()
    assert await after is Outcome.DELIVERED


async def test_sent_and_unanswered_by_its_deadline_is_in_doubt(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    sent_at = now()
    outcome = publish(publisher, b"x")
    assert await outcome is Outcome.IN_DOUBT
    assert now() - sent_at == pytest.approx(DEADLINE_S)

    waits = publish(publisher, b"next")
    await idle()
    assert len(kafka.flights) == 1  # the first is still under way
    kafka.flights[0].answer()  # late
    await idle()
    assert outcome.result() is Outcome.IN_DOUBT
    kafka.flights[1].answer()
    assert await waits is Outcome.DELIVERED


async def test_deadline_counts_from_the_first_record(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(None))
    opened_at = now()
    publish(publisher, b"first")
    await asyncio.sleep(DEADLINE_S * 0.9)
    assert await publish(publisher, b"second") is Outcome.EXPIRED
    assert now() - opened_at == pytest.approx(DEADLINE_S)


async def test_what_waits_behind_a_hung_broker_expires(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    sent = publish(publisher, b"sent")
    await idle()
    waiting = publish(publisher, b"waiting")
    assert [await sent, await waiting] == [Outcome.IN_DOUBT, Outcome.EXPIRED]


# Kafka's own answer


@pytest.mark.parametrize("outcome", [Outcome.DELIVERED, Outcome.FAILED, Outcome.EXPIRED])
async def test_final_answer_comes_with_the_outcome(kafka: FakeKafka, start: Starter, outcome: Outcome) -> None:
    publisher = await start(led_by(None if outcome is Outcome.EXPIRED else 1))
    batch = batch_of(publisher, b"x")
    await idle()
    assert not batch.final.done()
    if outcome is Outcome.DELIVERED:
        kafka.flights[0].answer()
    elif outcome is Outcome.FAILED:
        kafka.flights[0].refuse(ProducerClosed())
    assert await batch.outcome is outcome
    assert batch.final.result() is outcome


@pytest.mark.parametrize("late", [Outcome.DELIVERED, Outcome.FAILED])
async def test_final_answer_of_what_was_in_doubt_comes_late(kafka: FakeKafka, start: Starter, late: Outcome) -> None:
    publisher = await start()
    batch = batch_of(publisher, b"x")
    assert await batch.outcome is Outcome.IN_DOUBT
    await asyncio.sleep(3600)
    assert not batch.final.done()
    if late is Outcome.DELIVERED:
        kafka.flights[0].answer()
    else:
        kafka.flights[0].refuse(NotLeaderForPartitionError())
    assert await batch.final is late
    assert batch.outcome.result() is Outcome.IN_DOUBT


async def test_final_answer_when_nobody_will_give_one(kafka: FakeKafka, start: Starter) -> None:
    """Its producer is replaced, or stopped."""
    publisher = await start(led_by(1, 2))
    for _ in range(2):
        hung = batch_of(publisher, b"hung")
        await idle()
        refused = batch_of(publisher, b"refused")
        await idle()
        assert await hung.outcome is Outcome.IN_DOUBT
        kafka.flights[-1].refuse(OutOfOrderSequenceNumber())
        assert await refused.final is Outcome.FAILED
        assert await hung.final is Outcome.IN_DOUBT
        await idle()
    hung = batch_of(publisher, b"hung")
    await idle()
    await publisher.stop(0)
    assert hung.outcome.result() is hung.final.result() is Outcome.IN_DOUBT


async def test_every_batch_is_told_of_once(kafka: FakeKafka) -> None:
    told: list[tuple[Batch, Outcome]] = []
    publisher = make_publisher(settled=lambda batch, outcome: told.append((batch, outcome)))
    await publisher.start()
    await idle()
    delivered = batch_of(publisher, b"delivered")
    await idle()
    kafka.flights[0].answer()
    await idle()
    in_doubt = batch_of(publisher, b"in doubt")
    await idle()
    expired = batch_of(publisher, b"expired")
    await asyncio.sleep(DEADLINE_S)
    kafka.flights[1].answer()
    await idle()
    failed = batch_of(publisher, b"failed", replay=True)
    await idle()
    kafka.flights[2].refuse(ProducerClosed())
    await idle()
    await publisher.stop(1)
    assert told == [
        (delivered, Outcome.DELIVERED),
        (in_doubt, Outcome.IN_DOUBT),
        (expired, Outcome.EXPIRED),
        (failed, Outcome.FAILED),
    ]


# Bounds


async def test_pending_bytes_are_bounded(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    value = b"x" * 9_900  # and overhead: 100 of them fit a million bytes
    fit = PENDING_BYTES_MAX // (len(b"key") + len(value) + OVERHEAD_BYTES)
    for _ in range(fit):
        publish(publisher, value)
    with pytest.raises(PublisherRefusal) as caught:
        publish(publisher, value)
    assert caught.value.reason == "overloaded"
    await idle()

    kafka.flights[0].answer()  # what has landed makes room for as much
    await idle()
    room_again = publish(publisher, value)
    with pytest.raises(PublisherRefusal):
        publish(publisher, value)
    assert not room_again.done()


@pytest.mark.parametrize(
    "leaders", [led_by(None), led_by(1)], ids=["what expired makes room", "what is in doubt keeps its room"]
)
async def test_room_after_the_deadline(kafka: FakeKafka, start: Starter, leaders: Leaders) -> None:
    publisher = await start(leaders, pending_bytes_max=16_000)
    await publish(publisher, b"x" * 15_000)
    if kafka.flights:
        with pytest.raises(PublisherRefusal):
            publish(publisher, b"x" * 15_000)
        kafka.flights[0].answer()
        await idle()
    publish(publisher, b"x" * 15_000)


async def test_record_larger_than_a_batch_is_refused_and_leaves_nothing_behind(
    kafka: FakeKafka, start: Starter
) -> None:
    publisher = await start()
    before = publish(publisher, b"before")
    for _ in range(1000):  # a thousand times more than may be pending, if any were
        with pytest.raises(PublisherRefusal) as caught:
            publish(publisher, b"x" * BATCH_BYTES_MAX)
        assert caught.value.reason == "record_too_large"
    after = publish(publisher, b"after")
    for outcome in dict.fromkeys((before, after)):
        await idle()
        kafka.flights[-1].answer()
        assert await outcome is Outcome.DELIVERED
    assert [value for flight in kafka.flights for value in flight.values] == [b"before", b"after"]


async def test_largest_record_that_fits_is_taken(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    outcome = publish(publisher, b"x" * (BATCH_BYTES_MAX - OVERHEAD_BYTES - len(b"key")))
    await idle()
    kafka.flights[0].answer()
    assert await outcome is Outcome.DELIVERED


@pytest.mark.parametrize("number", [b"9e15", b"1e15", b"-9e15", b"1e-5", b"12345678901234567890"], ids=bytes.decode)
async def test_by_default_the_record_of_the_largest_event_fits(number: bytes, kafka: FakeKafka, start: Starter) -> None:
    """Short spellings of long numbers grow: `9e15,` becomes `9000000000000000.0,`."""
    settings = GatewaySettings()
    head, tail = b'{"event_type":"e","x":[', b"1]}"
    body = head + (number + b",") * ((settings.event_bytes_max - len(head + tail)) // (len(number) + 1)) + tail
    row = APP_INTERACTIONS.encode(APP_INTERACTIONS.parse(body), "f" * 64, "s" * 200, 0)
    publisher = await start(batch_bytes_max=settings.batch_bytes_max, pending_bytes_max=settings.pending_bytes_max)
    outcome = publisher.publish(Record(TOPIC, None, b"f" * 64, row, 0)).outcome
    await idle()
    assert json.loads(kafka.flights[0].values[0])["event_type"] == "e"
    kafka.flights[0].answer()
    assert await outcome is Outcome.DELIVERED


# Connecting


async def test_refuses_until_connected(kafka: FakeKafka, start: Starter) -> None:
    publisher = make_publisher()
    assert publisher.unready_reason == "not connected to Kafka yet"
    with pytest.raises(PublisherRefusal) as caught:
        publish(publisher, b"x")
    assert caught.value.reason == "kafka_unavailable"

    publisher = await start()
    assert publisher.unready_reason is None
    publish(publisher, b"x")


async def test_connects_idempotent_and_for_all_replicas(kafka: FakeKafka, start: Starter) -> None:
    await start()
    options = kafka.producers[0].options
    assert options["acks"] == "all"
    assert options["enable_idempotence"] is True
    assert options["max_batch_size"] == BATCH_BYTES_MAX


@pytest.mark.parametrize(
    "fault",
    [
        KafkaConnectionError("no broker"),
        OSError("no route"),
        TopicAuthorizationFailedError(),
        ValueError("odd"),
        asyncio.CancelledError(),
        None,
    ],
    ids=["kafka", "os", "authorization", "unforeseen", "a cancellation of its own", "hangs"],
)
async def test_tries_again_until_it_connects(kafka: FakeKafka, start: Starter, fault: BaseException | None) -> None:
    kafka.start_faults = [fault] * 20
    publisher = await start()
    await asyncio.sleep(CONNECT_TIMEOUT_S + 0.1)
    assert publisher.unready_reason is not None
    assert type(fault or TimeoutError()).__name__ in publisher.unready_reason
    with pytest.raises(PublisherRefusal):
        publish(publisher, b"x")

    await asyncio.sleep(20 * (CONNECT_TIMEOUT_S + 5.0))
    assert publisher.unready_reason is None
    assert len(kafka.producers) == 21
    assert all(producer.client.closed for producer in kafka.producers[:-1])
    outcome = publish(publisher, b"x")
    await idle()
    kafka.flights[0].answer()
    assert await outcome is Outcome.DELIVERED


async def test_start_waits_for_the_first_connection_but_not_for_long(kafka: FakeKafka) -> None:
    kafka.start_faults = [OSError("no route")] * 2
    for connected, seconds in ((True, 0.6), (False, START_S_MAX)):
        publisher = make_publisher()
        began_at = now()
        await publisher.start()
        assert now() - began_at == pytest.approx(seconds)
        assert (publisher.unready_reason is None) is connected
        await publisher.stop(0)
        kafka.start_faults = [None]


async def test_backs_off_between_attempts(kafka: FakeKafka, start: Starter) -> None:
    kafka.start_faults = [OSError("no route")] * 1000
    await start()
    await asyncio.sleep(100)
    assert 20 <= len(kafka.producers) <= 26  # 0.2 s, doubled up to 5 s


# Refusals


@pytest.mark.parametrize(
    "error",
    [
        MessageSizeTooLargeError(),
        OutOfOrderSequenceNumber(),
        NotLeaderForPartitionError(),
        ProducerClosed(),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", ["handed over", "answered"])
async def test_refused_batch_has_failed_and_the_producer_is_replaced(
    kafka: FakeKafka, start: Starter, error: Exception, when: str
) -> None:
    publisher = await start()
    if when == "handed over":
        kafka.send_fault = error
        refused = publish(publisher, b"refused")
        await idle()
        kafka.send_fault = None
    else:
        refused = publish(publisher, b"refused")
        await idle()
        kafka.flights[0].refuse(error)
    assert await refused is Outcome.FAILED
    await idle()

    old, new = kafka.producers
    assert old.client.closed
    assert not new.client.closed
    assert publisher.unready_reason is None
    outcome = publish(publisher, b"next")
    await idle()
    assert kafka.flights[-1].producer is new
    assert kafka.flights[-1].values == [b"next"]
    kafka.flights[-1].answer()
    assert await outcome is Outcome.DELIVERED


async def test_while_the_producer_is_replaced(kafka: FakeKafka, start: Starter) -> None:
    """What waits goes on waiting, what arrives is refused."""
    publisher = await start()
    publish(publisher, b"refused")
    await idle()
    waiting = publish(publisher, b"waiting")
    kafka.start_faults = [OSError("not yet")]
    kafka.flights[0].refuse(OutOfOrderSequenceNumber())
    await idle()

    assert publisher.unready_reason == "OSError: not yet"
    with pytest.raises(PublisherRefusal) as caught:
        publish(publisher, b"x")
    assert caught.value.reason == "kafka_unavailable"

    await asyncio.sleep(1)
    assert kafka.flights[-1].values == [b"waiting"]
    kafka.flights[-1].answer()
    assert await waiting is Outcome.DELIVERED


async def test_old_producer_that_does_not_stop_is_closed(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    kafka.stop_hangs = True
    publish(publisher, b"refused")
    await idle()
    kafka.flights[0].refuse(OutOfOrderSequenceNumber())
    await asyncio.sleep(CONNECT_TIMEOUT_S + 0.1)
    assert kafka.producers[0].client.closed
    assert publisher.unready_reason is None


async def test_one_refusal_replaces_the_producer_once(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(1, 2, 3))
    outcomes = []
    for n in range(3):
        outcomes.append(publish(publisher, b"%d" % n))
        await idle()
    for flight in kafka.flights:
        flight.refuse(OutOfOrderSequenceNumber())
    assert [await outcome for outcome in outcomes] == [Outcome.FAILED] * 3
    await idle()
    assert len(kafka.producers) == 2


async def test_late_refusal_of_what_was_in_doubt_replaces_the_producer(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    outcome = publish(publisher, b"x")
    assert await outcome is Outcome.IN_DOUBT
    kafka.flights[0].refuse(OutOfOrderSequenceNumber())
    await idle()
    assert outcome.result() is Outcome.IN_DOUBT
    assert len(kafka.producers) == 2


async def test_what_a_replaced_producer_had_under_way_frees_nothing_of_the_new_one(
    kafka: FakeKafka, start: Starter
) -> None:
    publisher = await start(led_by(1, 2))
    unanswered = batch_of(publisher, b"unanswered")
    await idle()
    publish(publisher, b"refused")
    await idle()
    kafka.flights[1].refuse(OutOfOrderSequenceNumber())
    await idle()
    assert unanswered.final.result() is Outcome.IN_DOUBT  # nobody will answer for it any more
    for value in (b"busy 1", b"busy 2", b"waits"):
        publish(publisher, value)
        await idle()
    assert [flight.values for flight in kafka.flights[2:]] == [[b"busy 1"], [b"busy 2"]]


async def test_unforeseen_error_is_a_failure_and_holds_nothing_up(kafka: FakeKafka, start: Starter) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    publisher = await start()
    kafka.send_fault = AssertionError("Unrecognized partition")
    assert await publish(publisher, b"x") is Outcome.FAILED
    kafka.send_fault = None
    outcome = publish(publisher, b"next")
    await idle()
    kafka.flights[0].answer()
    assert await outcome is Outcome.DELIVERED


# Stopping


async def test_stop_waits_for_what_is_under_way_and_what_waits(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    under_way = publish(publisher, b"under way")
    await idle()
    waiting = publish(publisher, b"waiting")
    stop = asyncio.create_task(publisher.stop(10))
    for n, outcome in enumerate((under_way, waiting)):
        await asyncio.sleep(0.1)
        assert not stop.done()
        kafka.flights[n].answer()
        assert await outcome is Outcome.DELIVERED
    await stop
    assert kafka.producers[0].client.closed
    with pytest.raises(PublisherRefusal):
        publish(publisher, b"too late")


@pytest.mark.parametrize("stop_hangs", [False, True])
@pytest.mark.parametrize("deadline_s", [0, 0.5, 1.0])
async def test_stop_ends_by_its_deadline_whatever_kafka_does(
    kafka: FakeKafka, start: Starter, deadline_s: float, stop_hangs: bool
) -> None:
    publisher = await start()
    kafka.stop_hangs = stop_hangs
    under_way = publish(publisher, b"never answered")
    await idle()
    publish(publisher, b"waits")
    stopped_at = now()
    await publisher.stop(deadline_s)
    assert now() - stopped_at <= deadline_s + 1e-3
    assert kafka.producers[0].client.closed
    assert await under_way is Outcome.IN_DOUBT  # it was sent: it may arrive


async def test_stop_tells_the_callers_of_what_never_left(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(led_by(None), deadline_ms=60_000)
    batch = batch_of(publisher, b"x")
    await idle()
    await publisher.stop(1)
    assert batch.outcome.done()
    assert batch.outcome.result() is batch.final.result() is Outcome.EXPIRED


async def test_stop_of_an_idle_producer_that_hangs(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start()
    kafka.stop_hangs = True
    stopped_at = now()
    await publisher.stop(3)
    assert now() - stopped_at <= 3.001
    assert kafka.producers[0].client.closed


@pytest.mark.parametrize("fault", [OSError("no route"), None], ids=["between attempts", "during one"])
async def test_stop_while_it_connects(kafka: FakeKafka, start: Starter, fault: Exception | None) -> None:
    kafka.start_faults = [fault] * 10
    publisher = await start()
    stopped_at = now()
    await publisher.stop(5)
    assert now() - stopped_at < 0.1
    assert all(producer.client.closed for producer in kafka.producers)
    attempts = len(kafka.producers)
    await asyncio.sleep(100)
    assert len(kafka.producers) == attempts


@pytest.mark.parametrize("after_s", [0.5, 1.5], ids=["while it starts one", "while it closes one"])
@pytest.mark.parametrize("fault", [OSError("no route"), None], ids=["in vain", "in time"])
async def test_stop_when_aiokafka_swallows_the_cancellation(
    kafka: FakeKafka, start: Starter, fault: Exception | None, after_s: float
) -> None:
    kafka.swallows_cancellation = True
    if fault is not None:
        kafka.start_faults = [fault] * 10
    publisher = await start()
    await asyncio.sleep(after_s)
    await publisher.stop(5)
    attempts = len(kafka.producers)
    await asyncio.sleep(100)
    assert len(kafka.producers) == attempts
    assert all(producer.client.closed for producer in kafka.producers)


async def test_stop_shares_its_deadline_between_all_it_waits_for(kafka: FakeKafka, start: Starter) -> None:
    publisher = await start(deadline_ms=60_000)
    publish(publisher, b"refused")
    await idle()
    publish(publisher, b"waits")
    kafka.swallows_cancellation = True
    kafka.flights[0].refuse(OutOfOrderSequenceNumber())
    await idle()  # the old producer is being closed, which takes a second
    stopped_at = now()
    await publisher.stop(1.5)
    assert now() - stopped_at <= 1.501


# Metrics


async def test_outcomes_are_counted_by_record(kafka: FakeKafka) -> None:
    kafka.leaders = led_by(1)
    registry = CollectorRegistry()
    publisher = make_publisher(Metrics(registry))
    await publisher.start()
    await idle()

    async def batch(size: int) -> Flight:
        for _ in range(size):
            publish(publisher, b"x")
        await idle()
        return kafka.flights[-1]

    (await batch(3)).answer()
    await idle()
    in_doubt = await batch(4)
    await asyncio.sleep(DEADLINE_S)
    in_doubt.answer()
    await idle()
    kafka.leaders = led_by(None)
    for _ in range(5):
        publish(publisher, b"x")
    await asyncio.sleep(DEADLINE_S)
    kafka.leaders = led_by(1)
    (await batch(6)).refuse(ProducerClosed())
    await idle()
    await publisher.stop(1)

    def published(outcome: str) -> float | None:
        return registry.get_sample_value("gateway_events_published_total", {"stream": TOPIC, "outcome": outcome})

    assert {o.value: published(o.value) for o in Outcome} == {"delivered": 3, "in_doubt": 4, "expired": 5, "failed": 6}
    assert registry.get_sample_value("gateway_batch_records_sum", {"stream": TOPIC}) == 18


async def test_copies_of_a_callers_id_meet_in_one_partition(kafka: FakeKafka, start: Starter) -> None:
    """Chosen as Kafka's own clients do, and marked with the owner within which the id holds."""
    publisher = await start(led_by(1, 2, 3))
    ids = [b"order-%d" % n for n in range(30)]
    batches = {id_: publisher.publish(Record(TOPIC, None, id_, b"v", 1_000, b"shop")) for id_ in ids}
    await idle()
    for flight in kafka.flights:
        flight.answer()
    await idle()
    assert {id_: batch.partition for id_, batch in batches.items()} == {
        id_: (murmur2(id_) & 0x7FFFFFFF) % 3 for id_ in ids
    }
    assert {batch.partition for batch in batches.values()} == {0, 1, 2}
    assert {header for flight in kafka.flights for [header] in flight.headers} == {("dedupe", b"shop")}
    again = publisher.publish(Record(TOPIC, None, ids[0], b"v", 2_000, b"shop"), replay=True)
    await idle()
    assert again.partition == batches[ids[0]].partition
    assert kafka.flights[-1].headers == [[("dedupe", b"shop"), ("replay", b"1")]]


async def test_who_leaves_alone_is_told_so(kafka: FakeKafka, start: Starter) -> None:
    """For its broker: it need not wait for others to share a request with."""
    publisher = await start(led_by(1, 1, 2))

    async def flights(*partitions: int) -> list[bool]:
        for partition in partitions:
            publisher.publish(Record(TOPIC, partition, b"k", b"v", 1_000))
        await idle()
        found = sorted((flight.partition, flight.alone) for flight in kafka.flights if not flight.reply.done())
        assert [partition for partition, _ in found] == sorted(partitions)
        for flight in kafka.flights:
            if not flight.reply.done():
                flight.answer()
        await idle()
        return [alone for _, alone in found]

    assert await flights(0) == [True]
    assert await flights(0, 1) == [False, False]
    assert await flights(0, 2) == [True, True]
    assert await flights(2, 1, 0) == [False, False, True]


async def test_a_topic_that_gets_more_partitions_has_ids_in_all_of_them(kafka: FakeKafka, start: Starter) -> None:
    """From the next metadata on, whoever asked for it."""
    publisher = await start(led_by(1, 1))
    ids = [b"order-%d" % n for n in range(30)]

    async def partitions() -> set[int | None]:
        batches = [publisher.publish(Record(TOPIC, None, id_, b"v", 1_000, b"shop")) for id_ in ids]
        await idle()
        while any(not flight.reply.done() for flight in kafka.flights):
            for flight in kafka.flights:
                if not flight.reply.done():
                    flight.answer()
            await idle()
        return {batch.partition for batch in batches}

    assert await partitions() == {0, 1}
    kafka.lead(led_by(1, 1, 1, 1))
    assert await partitions() == {0, 1, 2, 3}
    kafka.lead({})
    with pytest.raises(PublisherRefusal):
        await partitions()
    kafka.lead(led_by(1, 1, 1))
    assert await partitions() == {0, 1, 2}


# Many at once


@pytest.mark.parametrize("seed", range(100))
async def test_many_at_once_are_as_one_by_one(kafka: FakeKafka, start: Starter, seed: int) -> None:
    """In the same batches, in the same order, and with the same refusals; and the room they take is the same."""
    random = Random(seed)
    leaders = random.choice(
        [led_by(1, 2, 3), {}]
    )  # a topic that Kafka does not know: no partition for what has a scope
    limits = {"pending_bytes_max": random.choice([30_000, 60_000, 1_000_000])}
    often = random.choice([0.02, 0.3])
    records = Records(TOPIC, 1_000)
    for n in range(random.choice([1, 10, 400])):
        size = random.choice([10, 100, 3_000, BATCH_BYTES_MAX] if random.random() < often else [10, 100])
        scope = b"shop" if random.random() < often / 10 else None
        records.append(Record(TOPIC, None, b"%032d" % n, b"v" * size, 1_000, scope))
    together, apart = await start(leaders, **limits), await start(leaders, **limits)
    for _ in range(2):  # the second time there are batches that wait
        found = [place for place, count in together.publish_all(records) for _ in range(count)]
        expected: list[Batch | PublisherRefusal] = []
        for record in records:
            try:
                expected.append(apart.publish(record))
            except PublisherRefusal as refusal:
                expected.append(refusal)
                if refusal.reason == "kafka_unavailable":
                    break
        assert [str(place) for place in found if isinstance(place, PublisherRefusal)] == [
            str(place) for place in expected if isinstance(place, PublisherRefusal)
        ]
        batches = dict(zip(expected, found, strict=True))
        assert [batches[place] for place in expected] == found
        for theirs, ours in batches.items():
            if isinstance(theirs, Batch):
                assert isinstance(ours, Batch)
                assert (ours.lane, ours.size, ours.bytes) == (theirs.lane, theirs.size, theirs.bytes)
                assert ours.builder.size() == theirs.builder.size()
        assert together._pending_bytes == apart._pending_bytes
        assert together._pending_bytes <= limits["pending_bytes_max"]
    for theirs, ours in batches.items():
        if isinstance(theirs, Batch) and isinstance(ours, Batch):
            assert ours.records() == theirs.records()


async def test_what_comes_behind_one_that_no_partition_is_known_for_is_not_looked_at(
    kafka: FakeKafka, start: Starter
) -> None:
    publisher = await start({})
    anywhere = Record(TOPIC, None, b"k", b"v", 1)
    records = Records(TOPIC, 1)
    for record in (anywhere, anywhere, anywhere._replace(scope=b"shop"), anywhere):
        records.append(record)
    (first, _), (second, _), (unavailable, count) = publisher.publish_all(records)
    assert isinstance(first, Batch)
    assert first is second
    assert isinstance(unavailable, PublisherRefusal)
    assert (unavailable.reason, count) == ("kafka_unavailable", 1)
    assert first.size == 2
