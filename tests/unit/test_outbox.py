"""gateway.outbox: an event is in Kafka or on the disk when its caller is told so, and in the end in Kafka.

Kafka and the spool are fakes, the publisher and the breaker are real; time is virtual.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, ProducerClosed, TopicAuthorizationFailedError
from aiokafka.partitioner import murmur2
from prometheus_client import CollectorRegistry

from gateway import publisher as publisher_module
from gateway.breaker import CONSECUTIVE_MAX, COOL_DOWN_S
from gateway.kafka_batch import PublisherRefusal
from gateway.metrics import Metrics
from gateway.outbox import REPLAY_IDLE_S, SPOOL_TIMEOUT_S, KafkaOutbox, Refusal
from gateway.publisher import KafkaPublisher
from gateway.record import Durability, Record, Records
from gateway.spool import SpoolRefusal
from tests.unit.fake_kafka import FakeKafka, Flight
from tests.unit.fake_spool import FakeSpool
from tests.unit.test_publisher import BATCH_BYTES_MAX, DEADLINE_S, OTHER, TOPIC, idle, led_by, now
from tests.unit.virtual_time import VirtualTimeLoop

LOOP_FACTORY = VirtualTimeLoop

NOT_CONNECTED: list[Exception | None] = [KafkaConnectionError("no broker")] * 1000
PENDING_BYTES_MAX = 60_000


def record(number: int, *, topic: str = TOPIC, size: int = 10) -> Record:
    return Record(topic, None, b"k%03d" % number, b"v%03d" % number + b"x" * size, 1_000 + number)


def together(*records: Record) -> Records:
    """As those of one request, which have one time."""
    of_request = Records(TOPIC, 1_000)
    for each in records:
        of_request.append(each)
    return of_request


class Gateway:
    """The outbox and all that is around it."""

    def __init__(self) -> None:
        self.kafka = FakeKafka(led_by(1) | led_by(1, topic=OTHER))
        self.spool = FakeSpool()
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.publisher = KafkaPublisher(
            [TOPIC, OTHER],
            {},
            batch_bytes_max=BATCH_BYTES_MAX,
            pending_bytes_max=PENDING_BYTES_MAX,
            deadline_ms=int(DEADLINE_S * 1000),
            metrics=metrics,
        )
        self.outbox = KafkaOutbox(self.publisher, self.spool, metrics, replay_records_per_s=2_000)  # type: ignore[arg-type]
        self.publisher.settled = self.outbox.settled

    async def start(self) -> None:
        await self.outbox.start()
        await idle()

    def publish(self, *records: Record) -> list[asyncio.Future[Durability | Refusal]]:
        """As callers do: they ask, and some while later look what came of it."""
        return [asyncio.ensure_future(self.outbox.publish(each)) for each in records]

    async def refusal(self, record: Record) -> Refusal:
        place = await self.outbox.publish(record)
        assert isinstance(place, Exception)
        return place

    @property
    def flights(self) -> list[Flight]:
        return self.kafka.flights

    @property
    def taken(self) -> list[bytes]:
        """Keys of what Kafka has acknowledged, in order."""
        return [
            key
            for flight in self.flights
            if flight.reply.done() and not flight.reply.cancelled() and flight.reply.exception() is None
            for key, _, _ in flight.records
        ]

    async def answer_for(self, seconds: float) -> None:
        """Kafka is well: it answers at once."""
        ends_at = now() + seconds
        while now() < ends_at:
            for flight in self.flights:
                if not flight.reply.done():
                    flight.answer()
            await asyncio.sleep(0.01)

    async def open_the_breaker(self) -> None:
        """With failures that leave nothing behind."""
        for _ in range(CONSECUTIVE_MAX):
            self.outbox._breaker.record(False, now())

    def counted(self, name: str, topic: str = TOPIC, **labels: str) -> float:
        return self.registry.get_sample_value(f"gateway_events_{name}_total", {"stream": topic, **labels}) or 0


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    gateway = Gateway()
    monkeypatch.setattr(publisher_module, "DirectProducer", gateway.kafka.producer)
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    yield gateway
    if not gateway.spool.closed:
        await gateway.outbox.stop(0)
    assert not unhandled


# Where an event goes


async def test_delivered(gateway: Gateway) -> None:
    await gateway.start()
    callers = gateway.publish(*map(record, range(3)))
    await idle()
    assert not any(caller.done() for caller in callers)
    [flight] = gateway.flights
    assert flight.headers == [[]] * 3  # nobody downstream pays for what is no repeat
    flight.answer()
    assert await asyncio.gather(*callers) == ["kafka"] * 3
    assert not gateway.spool.appends


@pytest.mark.parametrize("leader", [1, None], ids=["sent", "never sent"])
async def test_no_answer_by_the_deadline(gateway: Gateway, leader: int | None) -> None:
    gateway.kafka.leaders = led_by(leader)
    await gateway.start()
    asked_at = now()
    assert await asyncio.gather(*gateway.publish(*map(record, range(3)))) == ["spool"] * 3
    assert now() - asked_at == pytest.approx(DEADLINE_S, abs=0.01)
    partition = None if leader is None else 0
    # One append for all the callers of a batch; what may have arrived stays with its partition.
    assert gateway.spool.appends == [[record(n)._replace(partition=partition) for n in range(3)]]


async def test_refused_by_kafka(gateway: Gateway) -> None:
    await gateway.start()
    callers = gateway.publish(*map(record, range(3)))
    await idle()
    gateway.flights[0].refuse(ProducerClosed())
    assert await asyncio.gather(*callers) == ["spool"] * 3
    assert len(gateway.spool.appends) == 1


async def test_not_connected_is_spooled_at_once(gateway: Gateway) -> None:
    gateway.kafka.start_faults = NOT_CONNECTED
    await gateway.start()
    asked_at = now()
    for n in range(10):
        assert await gateway.outbox.publish(record(n)) == "spool"
    assert now() - asked_at < 0.001
    assert list(gateway.spool.kept.values()) == [record(n) for n in range(10)]
    assert gateway.outbox.unready_reason is None


async def test_open_breaker_is_spooled_without_waiting(gateway: Gateway) -> None:
    await gateway.start()
    for n in range(CONSECUTIVE_MAX):
        assert await gateway.outbox.publish(record(n)) == "spool"
    sent = len(gateway.flights)
    asked_at = now()
    for n in range(10, 20):
        assert await gateway.outbox.publish(record(n)) == "spool"
    assert now() - asked_at < 0.001
    assert len(gateway.flights) == sent
    assert gateway.outbox.unready_reason is None


async def test_probe_closes_the_breaker(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.open_the_breaker()
    assert await gateway.outbox.publish(record(0)) == "spool"
    gateway.spool.kept.clear()
    await asyncio.sleep(COOL_DOWN_S[0])
    [probe] = gateway.publish(record(1))
    await idle()
    assert await gateway.outbox.publish(record(2)) == "spool"  # one probe, not two
    gateway.flights[0].answer()
    assert await probe == "kafka"
    [after] = gateway.publish(record(3))
    await idle()
    gateway.flights[-1].answer()
    assert await after == "kafka"


async def test_too_large_and_too_much_are_refused_and_not_spooled(gateway: Gateway) -> None:
    await gateway.start()
    assert (await gateway.refusal(record(0, size=BATCH_BYTES_MAX))).reason == "record_too_large"
    callers = gateway.publish(*(record(n, size=10_000) for n in range(6)))
    await idle()
    refusals = [caller.result() for caller in callers if caller.done()]
    assert [refusal.reason for refusal in refusals if isinstance(refusal, PublisherRefusal)] == ["overloaded"]
    assert not gateway.spool.appends
    await gateway.answer_for(1)


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("reason", ["spool_full", "spool_failed", None])
async def test_neither_kafka_nor_spool(gateway: Gateway, reason: str | None, connected: bool) -> None:
    if not connected:
        gateway.kafka.start_faults = NOT_CONNECTED
    await gateway.start()
    if reason is None:
        gateway.spool.append_s = 1e6
    else:
        gateway.spool.fault = SpoolRefusal(reason, "No room")
    asked_at = now()
    answers = await asyncio.gather(*gateway.publish(*map(record, range(3))))
    assert now() - asked_at <= DEADLINE_S + SPOOL_TIMEOUT_S + 0.01
    assert [answer.reason for answer in answers if isinstance(answer, SpoolRefusal)] == [reason or "spool_failed"] * 3
    assert gateway.counted("accepted", durability="spool") == 0
    if not connected:
        assert gateway.outbox.unready_reason is not None
        assert "no broker" in gateway.outbox.unready_reason
        gateway.spool.fault, gateway.spool.append_s = None, 0.0
        assert await gateway.outbox.publish(record(9)) == "spool"
        assert gateway.outbox.unready_reason is None


async def test_ready_again_when_a_probe_is_due(gateway: Gateway) -> None:
    """A gateway that is not ready gets no events, and would never find out that Kafka is back."""
    await gateway.start()
    await gateway.open_the_breaker()
    gateway.spool.fault = SpoolRefusal("spool_full", "No room")
    assert (await gateway.refusal(record(0))).reason == "spool_full"
    assert gateway.outbox.unready_reason is not None
    await asyncio.sleep(COOL_DOWN_S[0])
    assert gateway.outbox.unready_reason is None


@pytest.mark.parametrize("kafka", ["answers", "hangs"])
async def test_one_caller_who_is_cancelled_does_not_hurt_the_others(gateway: Gateway, kafka: str) -> None:
    await gateway.start()
    gateway.spool.append_s = 0.1
    callers = gateway.publish(*map(record, range(4)))
    await idle()
    callers[0].cancel()
    await idle()
    if kafka == "answers":
        gateway.flights[0].answer()
    else:
        await asyncio.sleep(DEADLINE_S + 0.05)
        callers[1].cancel()  # while it is spooled
    answers = await asyncio.gather(*callers, return_exceptions=True)
    expected = {"answers": ["kafka"] * 3, "hangs": ["spool"] * 2}[kafka]
    assert answers[-len(expected) :] == expected
    assert len(gateway.spool.appends) == (kafka == "hangs")
    if kafka == "hangs":
        assert gateway.spool.records == 4


# Many at once


async def test_all_of_a_batch_are_delivered_with_one_wait(gateway: Gateway) -> None:
    await gateway.start()
    task = asyncio.ensure_future(gateway.outbox.publish_all(together(*map(record, range(100)))))
    await gateway.answer_for(1)
    assert await task == ["kafka"] * 100
    assert len(gateway.flights) == 1
    assert gateway.counted("accepted", durability="kafka") == 100


async def test_all_of_a_batch_go_to_the_spool_when_kafka_hangs(gateway: Gateway) -> None:
    await gateway.start()
    assert await gateway.outbox.publish_all(together(*(record(n, size=3_000) for n in range(10)))) == ["spool"] * 10
    assert gateway.spool.records == 10
    await gateway.open_the_breaker()
    assert await gateway.outbox.publish_all(together(*map(record, range(20, 30)))) == ["spool"] * 10
    assert len(gateway.spool.appends[-1]) == 10  # one append for all of them


@pytest.mark.parametrize("breaker", ["closed", "open"])
async def test_a_batch_is_taken_at_once(gateway: Gateway, breaker: str) -> None:
    """Its caller may forget what it was while it still waits to hear where it is."""
    await gateway.start()
    if breaker == "open":
        await gateway.open_the_breaker()
    records = together(*map(record, range(20, 30)))
    values = list(records.values)
    places = gateway.outbox.publish_all(records)
    records.values.clear()
    assert await places == ["spool"] * 10
    assert [each.value for each in gateway.spool.appends[-1]] == values


async def test_each_of_a_batch_has_its_own_fate(gateway: Gateway) -> None:
    """One too large, and one too many: the others do not suffer."""
    await gateway.start()
    records = [record(0), record(1, size=BATCH_BYTES_MAX), record(2), *(record(n, size=9_000) for n in range(3, 10))]
    task = asyncio.ensure_future(gateway.outbox.publish_all(together(*records)))
    await gateway.answer_for(1)
    first, too_large, third, *large = await task
    assert (first, third) == ("kafka", "kafka")
    assert isinstance(too_large, PublisherRefusal)
    assert too_large.reason == "record_too_large"
    assert large.count("kafka") == 6
    [overloaded] = [result for result in large if isinstance(result, PublisherRefusal)]
    assert overloaded.reason == "overloaded"
    assert sorted(gateway.taken) == [r.key for r, result in zip(records, await task, strict=True) if result == "kafka"]


async def test_what_kafka_cannot_be_asked_about_is_spooled(gateway: Gateway) -> None:
    """In the middle of a batch: what is before it goes to Kafka, what is behind it need not be asked for."""
    gateway.kafka.leaders = {}
    await gateway.start()
    records = [record(0), record(1)._replace(scope=b"shop"), record(2)]
    task = asyncio.ensure_future(gateway.outbox.publish_all(together(*records)))
    await idle()
    assert [kept.key for kept in gateway.spool.kept.values()] == [b"k001", b"k002"]
    assert gateway.outbox._breaker._consecutive == 1
    gateway.kafka.leaders = led_by(1)
    await gateway.answer_for(1)
    assert await task == ["kafka", "spool", "spool"]


async def test_a_rescue_is_not_done_again_by_who_looks_late(gateway: Gateway) -> None:
    """One who waits for several batches comes to the second one when others have long had it spooled."""
    gateway.kafka.leaders = led_by(1, 2) | led_by(1, topic=OTHER)
    await gateway.start()
    first, second = (record(n)._replace(scope=b"shop") for n in range(2))  # whose keys say: partitions 1 and 0
    task = asyncio.ensure_future(gateway.outbox.publish_all(together(first, second)))
    [neighbour] = gateway.publish(record(2)._replace(partition=0))
    await idle()
    [flight] = [flight for flight in gateway.flights if flight.partition == 0]
    flight.refuse(TopicAuthorizationFailedError())
    assert await neighbour == "spool"
    gateway.spool.kept.clear()  # and Kafka has it since
    assert await task == ["spool", "spool"]
    assert sorted(each.key for append in gateway.spool.appends for each in append) == [b"k000", b"k001", b"k002"]
    assert gateway.counted("accepted", durability="spool") == 3


async def test_batch_is_told_when_it_is_nowhere(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.open_the_breaker()
    gateway.spool.fault = SpoolRefusal("spool_full", "full")
    results = await gateway.outbox.publish_all(together(*map(record, range(5))))
    assert [result.reason for result in results if isinstance(result, SpoolRefusal)] == ["spool_full"] * 5


# Kafka's late answer


async def test_late_answer_takes_the_records_out_again(gateway: Gateway) -> None:
    await gateway.start()
    await asyncio.gather(*gateway.publish(*map(record, range(3))))
    await asyncio.sleep(60)
    assert gateway.spool.records == 3
    assert len(gateway.flights) == 1  # held back from replay
    gateway.flights[0].answer()
    await gateway.answer_for(60)
    assert gateway.spool.records == 0
    assert len(gateway.flights) == 1
    assert gateway.counted("late_answers") == 3
    assert gateway.counted("replayed") == 0


async def test_late_answer_waits_for_the_append(gateway: Gateway) -> None:
    await gateway.start()
    gateway.spool.append_s = 1.0
    [caller] = gateway.publish(record(0))
    await asyncio.sleep(DEADLINE_S + 0.5)
    gateway.flights[0].answer()
    assert await caller == "spool"
    await gateway.answer_for(10)
    assert gateway.spool.records == 0
    assert gateway.taken == [b"k000"]


async def test_answer_at_the_very_deadline(gateway: Gateway) -> None:
    await gateway.start()
    [caller] = gateway.publish(record(0))
    await idle()
    asyncio.get_running_loop().call_at(gateway.outbox._loop.time() - 1e-6 + DEADLINE_S, gateway.flights[0].answer)
    assert await caller in ("spool", "kafka")
    await gateway.answer_for(10)
    assert gateway.spool.records == 0
    assert gateway.taken == [b"k000"]


async def test_late_refusal_has_them_replayed_to_the_same_partition(gateway: Gateway) -> None:
    gateway.kafka.leaders = led_by(None, 1) | led_by(1, topic=OTHER)
    await gateway.start()
    await asyncio.gather(*gateway.publish(*map(record, range(3))))
    gateway.kafka.leaders = led_by(1, 1, 1) | led_by(1, topic=OTHER)
    gateway.flights[0].refuse(ProducerClosed())
    await gateway.answer_for(10)
    assert gateway.spool.records == 0
    assert gateway.taken == [b"k000", b"k001", b"k002"]
    assert {flight.partition for flight in gateway.flights} == {1}


async def test_late_answer_for_what_never_came_onto_the_disk(gateway: Gateway) -> None:
    await gateway.start()
    gateway.spool.fault = SpoolRefusal("spool_full", "No room")
    assert (await gateway.refusal(record(0))).reason == "spool_full"
    gateway.flights[0].answer()
    await gateway.answer_for(1)
    assert gateway.counted("late_answers") == 0


# Replay


async def test_replay_is_oldest_first_marked_and_changes_nothing(gateway: Gateway) -> None:
    gateway.kafka.start_faults = NOT_CONNECTED[:4]  # longer than `start` waits
    gateway.kafka.leaders = led_by(1, 2) | led_by(1, topic=OTHER)
    await gateway.start()
    records = [record(n, size=3_000) for n in range(20)]
    for each in records:
        assert await gateway.outbox.publish(each) == "spool"
    assert not gateway.flights
    gateway.spool.kept[3] = records[2] = records[2]._replace(partition=1)
    await gateway.answer_for(30)
    assert gateway.spool.records == 0
    wire = [each for flight in gateway.flights for each in flight.records]
    assert set(wire) == {(r.key, r.value, r.timestamp_ms) for r in records}
    assert len(wire) == 20
    assert all(headers == [("replay", b"1")] for flight in gateway.flights for headers in flight.headers)
    [pinned] = [flight for flight in gateway.flights if b"k002" in [key for key, _, _ in flight.records]]
    assert pinned.partition == 1
    for partition in (0, 1):
        keys = [key for flight in gateway.flights if flight.partition == partition for key, _, _ in flight.records]
        assert keys == sorted(keys)
    # A replay that is cut short is done again, and all copies of a record must meet in one partition.
    partitions = {key: flight.partition for flight in gateway.flights for key, _, _ in flight.records}
    assert {key: murmur2(key) % 2 for key in partitions if key != b"k002"} == {
        key: partition for key, partition in partitions.items() if key != b"k002"
    }
    assert gateway.counted("replayed") == 20


async def test_replay_pauses_while_kafka_is_away_and_resumes_without_a_new_event(gateway: Gateway) -> None:
    gateway.kafka.start_faults = NOT_CONNECTED[:4]  # longer than `start` waits
    await gateway.start()
    for n in range(10):
        await gateway.outbox.publish(record(n))
    await asyncio.sleep(0.9)
    assert not gateway.flights
    await asyncio.sleep(20)  # connected, and hanging: a probe goes, and not much more
    assert 1 <= sum(len(flight.records) for flight in gateway.flights) < 10
    assert gateway.spool.records == 10
    await gateway.answer_for(60)
    assert gateway.spool.records == 0
    assert sorted(gateway.taken) == [record(n).key for n in range(10)]


async def test_replay_keeps_to_its_rate(gateway: Gateway) -> None:
    gateway.outbox._replay_records_per_s = 100
    for n in range(1_000):
        gateway.spool.kept[n + 1] = record(n, size=2_000)
    await gateway.start()
    await gateway.answer_for(5)
    assert 300 < len(gateway.taken) < 700
    await gateway.answer_for(10)
    assert gateway.spool.records == 0


async def test_what_the_publisher_refuses_midway_is_replayed_later_and_nothing_twice(gateway: Gateway) -> None:
    for n in range(20):
        gateway.spool.kept[n + 1] = record(n, size=10_000)  # five of them are all that may wait
    await gateway.start()
    await gateway.answer_for(30)
    assert gateway.taken == [record(n).key for n in range(20)]
    assert gateway.spool.records == 0


async def test_live_events_do_not_wait_for_the_replay(gateway: Gateway) -> None:
    for n in range(500):
        gateway.spool.kept[n + 1] = record(n, size=1_000)
    await gateway.start()
    await gateway.answer_for(0.5)
    assert gateway.spool.records
    [caller] = gateway.publish(record(900))
    await gateway.answer_for(0.1)
    assert caller.result() == "kafka"
    [live] = [flight for flight in gateway.flights if b"k900" in [key for key, _, _ in flight.records]]
    assert live.headers == [[]]


# Stopping


async def test_stop_lets_a_replay_under_way_end(gateway: Gateway) -> None:
    """What Kafka has acknowledged leaves the spool, or each restart would send it once more."""
    gateway.spool.kept = {n + 1: record(n) for n in range(5)}
    await gateway.start()
    await asyncio.sleep(2 * REPLAY_IDLE_S)
    assert [len(flight.records) for flight in gateway.flights] == [5]
    stop = asyncio.create_task(gateway.outbox.stop(5))
    await asyncio.sleep(0.1)
    gateway.flights[0].answer()
    await stop
    assert gateway.spool.records == 0
    assert gateway.spool.closed


@pytest.mark.parametrize("leader", [1, None], ids=["sent", "never sent"])
async def test_stop_spools_what_kafka_has_not_taken(gateway: Gateway, leader: int | None) -> None:
    gateway.kafka.leaders = led_by(leader)
    await gateway.start()
    callers = gateway.publish(*map(record, range(3)))
    await idle()
    gateway.spool.append_s = 0.5
    await gateway.outbox.stop(1)
    assert await asyncio.gather(*callers) == ["spool"] * 3
    assert gateway.spool.records == 3


# What is counted


async def test_every_event_is_accounted_for(gateway: Gateway) -> None:
    """accepted by the spool = replayed + late answers + still there; accepted by Kafka = delivered, live."""
    await gateway.start()
    callers = gateway.publish(record(0), record(1), record(2, topic=OTHER))
    await gateway.answer_for(0.1)
    late = gateway.publish(record(3), record(4))
    await idle()
    late_flight = gateway.flights[-1]
    await asyncio.sleep(DEADLINE_S + 0.1)
    late_flight.answer()
    await gateway.answer_for(1)
    failed = gateway.publish(*(record(n, topic=OTHER if n % 2 else TOPIC) for n in range(5, 10)))
    await idle()
    for flight in gateway.flights[-2:]:
        flight.refuse(ProducerClosed())
    assert [await caller for caller in [*callers, *late, *failed]] == ["kafka"] * 3 + ["spool"] * 7
    await gateway.answer_for(10)
    gateway.spool.fault = SpoolRefusal("spool_full", "No room")
    assert (await gateway.refusal(record(10))).reason == "spool_full"
    gateway.flights[-1].answer()
    await gateway.answer_for(1)
    gateway.spool.fault = None
    await gateway.open_the_breaker()
    assert await gateway.outbox.publish(record(11)) == "spool"

    counts = {
        topic: (
            gateway.counted("accepted", topic, durability="kafka"),
            gateway.counted("accepted", topic, durability="spool"),
            gateway.counted("replayed", topic),
            gateway.counted("late_answers", topic),
        )
        for topic in (TOPIC, OTHER)
    }
    assert counts == {TOPIC: (2, 5, 2, 2), OTHER: (1, 3, 3, 0)}
    assert gateway.spool.records == 1
    await asyncio.sleep(REPLAY_IDLE_S)
    assert gateway.registry.get_sample_value("gateway_spool_records") == 1
    assert gateway.registry.get_sample_value("gateway_spool_bytes") == record(11).bytes
