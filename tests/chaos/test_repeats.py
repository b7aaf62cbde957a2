"""One row an event, however often its caller or a gateway's spool sends it, and whatever dies in between."""

import asyncio
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from pydantic import SecretStr

from consumer import audit_report
from consumer.audit import audit
from consumer.audit_table import PartitionAudit
from consumer.clickhouse import ClickHouse
from consumer.repeats import SLOT_MS, reach_slots
from consumer.settings import ConsumerSettings
from deploy.local.stack import Stack
from tests.chaos.arena import PARTITIONS, TOPIC, Arena, Copy, arena
from tests.chaos.faulty_clickhouse import FaultyClickHouse

EVENTS = 400
REACH_MS = reach_slots(3_600) * SLOT_MS
STEPS = ["after_intent", "during_insert", "after_insert", "after_close"]
STATIC = {"CONSUMER_GROUP_INSTANCE_ID": "the-one"}  # its successor need not wait for the end of its session


@dataclass
class Callers:
    """What they and the gateways send, and the rows that are due for it: the first copy of each event.

    Their time begins in the past, since Kafka refuses records of the future, and the topic anew, since the time of a
    log never goes back.
    """

    arena: Arena
    now_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000 - 4 * REACH_MS)
    rows: set[tuple[str, str, int]] = field(default_factory=set)
    records: int = 0

    def copy(self, event_id: str | None = None, **fields: object) -> Copy:
        """A new event, or a copy of one that is received now."""
        self.now_ms += 1
        return Copy(event_id or str(uuid.uuid4()), self.now_ms, **fields)  # type: ignore[arg-type]

    def events(self, count: int = EVENTS) -> list[Copy]:
        """Half of them with callers' ids."""
        return [self.copy(is_marked=index % 2 == 0, partition=None) for index in range(count)]

    def again(self, copies: Iterable[Copy]) -> list[Copy]:
        return [self.copy(copy.event_id, owner=copy.owner) for copy in copies if copy.is_marked]

    def send(self, copies: Sequence[Copy], rows: Iterable[Copy] = ()) -> list[tuple[int, int]]:
        """`rows` are those that are to land; where each landed in the log."""
        self.rows |= {copy.row for copy in rows}
        self.records += len(copies)
        return self.arena.put(copies)

    def wait_landed(self) -> None:
        """Everything that was sent until now: behind it, in each partition, something that must land."""
        last = [self.copy(is_marked=False, partition=partition) for partition in range(PARTITIONS)]
        self.send(last, last)
        ids = ", ".join(f"'{copy.event_id}'" for copy in last)
        self.arena.wait_until(
            lambda: self.arena.value(f"SELECT count() FROM app_interactions WHERE event_id IN ({ids})") == PARTITIONS
        )

    def reckon(self) -> None:
        """Exactly the rows that are due, each counted once; the audit knows why the others are none."""
        a = self.arena
        for consumer in a.consumers:
            consumer.stop()
        rows = a.value(
            "SELECT groupArray((toString(app), event_id, toUnixTimestamp64Milli(received_at))) FROM app_interactions"
        )
        assert sorted(rows) == sorted(self.rows), f"seed {a.seed}\n{a.logs(lines=40)}"
        assert a.value("SELECT sum(events) FROM rollup") == len(self.rows)
        dropped = self.records - len(self.rows)
        assert audit_report.verdict(asyncio.run(self.audit())) == (
            f"OK: {len(self.rows):,} records are in the tables exactly once"
            + (f", {dropped:,} are repeats of others." if dropped else ".")
        )

    async def audit(self) -> list[PartitionAudit]:
        """Of this topic's whole log: its records are of times of their own."""
        a = self.arena
        settings = ConsumerSettings(
            kafka_bootstrap_servers=a.stack.endpoints.kafka_bootstrap_servers,
            clickhouse_url=SecretStr(a.env["CONSUMER_CLICKHOUSE_URL"]),
            group_id=a.env["CONSUMER_GROUP_ID"],
        )
        clickhouse = ClickHouse(settings)
        try:
            return [found for found in await audit(settings, clickhouse) if found.topic == TOPIC]
        finally:
            clickhouse.close()


@contextmanager
def callers(stack: Stack, seed: int, **env: str) -> Iterator[Callers]:
    with arena(stack, seed, **env) as entered:
        entered.make_topic_again()
        yield Callers(entered)


def test_repeats_in_one_batch_and_in_others(stores: Stack, seed: int) -> None:
    with callers(stores, seed) as c:
        events = c.events()
        shuffled = [*events, *c.again(events), *c.again(events[:50])]
        c.send(shuffled, events)
        consumer = c.arena.consumer()
        consumer.start()
        c.wait_landed()
        c.send(c.again(events))
        more = c.events()
        c.send([*more, *c.again(events), *c.again(more)], more)
        c.wait_landed()
        # Counted behind the answer to the INSERT, and at a look that is taken now and then.
        c.arena.wait_until(
            lambda: c.arena.metric(consumer, "consumer_repeats_dropped_total") == c.records - len(c.rows)
        )
        c.arena.wait_until(lambda: c.arena.metric(consumer, "consumer_dedupe_ids") == EVENTS)
        c.reckon()
        c.arena.execute(f"DELETE FROM app_interactions WHERE event_id = '{events[0].event_id}'")
        assert sum(found.gaps for found in asyncio.run(c.audit())) == 5  # with the row goes the reason for the others


def test_killed_at_each_step_between_a_first_copy_and_its_repeats(stores: Stack, seed: int) -> None:
    with callers(stores, seed, **STATIC) as c:
        known: list[Copy] = []
        for step in STEPS:
            events = c.events()
            c.send([*c.again(known), *events, *c.again(events[:100])], events)
            known += events
            c.arena.crash(step, hit=c.arena.random.randint(1, 3))
        c.send(c.again(known))
        c.arena.consumer().start()
        c.wait_landed()
        c.reckon()


def test_repeats_across_a_rebalance(stores: Stack, seed: int) -> None:
    """And ids are read back only where there are some."""
    with callers(stores, seed, CONSUMER_BATCH_ROWS_MAX="50") as c:
        a = c.arena
        plain = [c.copy(is_marked=False, partition=n % PARTITIONS) for n in range(EVENTS)]
        c.send(plain, plain)
        first = a.consumer()
        first.start()
        c.wait_landed()
        a.consumer().start()
        c.wait_landed()
        assert a.metric(first, "consumer_warm_up_seconds_count") == 0
        events = c.events()
        c.send([*events, *c.again(events)], events)
        third = a.consumer()
        third.start()
        c.send(c.again(events))
        first.stop()
        c.send(c.again(events))
        c.wait_landed()
        assert a.metric(third, "consumer_warm_up_seconds_count") > 0
        c.reckon()


def test_a_rewind_behind_first_copies_and_another_group(stores: Stack, seed: int) -> None:
    """What is read again, or compared with the table, is no other than the first time."""
    with callers(stores, seed) as c:
        a = c.arena
        events = c.events()
        places = c.send([*events, *c.again(events)], events)
        consumer = a.consumer()
        consumer.start()
        c.wait_landed()
        replays = [replace(copy, is_replay=True) for copy in events]
        places += c.send([*replays, *c.again(events)])
        c.wait_landed()
        consumer.stop()
        targets = [f"{TOPIC}:{p}:{a.random.choice([o for q, o in places if q == p])}" for p in range(PARTITIONS)]
        a.command("rewind", "--to-offset", *targets)
        consumer.start()
        c.send(c.again(events))
        c.wait_landed()
        consumer.stop()
        a.env["CONSUMER_GROUP_ID"] += "_renamed"
        c.send([*c.again(events), *replays])
        a.consumer().start()
        c.wait_landed()
        c.reckon()


@pytest.mark.parametrize("step", [None, "after_insert"])
def test_replays_of_a_spool(stores: Stack, seed: int, step: str | None) -> None:
    """Whether the first copy landed long ago, lately, in the same batch, behind the replay, or never."""
    proxy = FaultyClickHouse(stores.ports.clickhouse)
    try:
        with callers(stores, seed, **STATIC) as c:
            a = c.arena

            def ours(count: int = 40) -> list[Copy]:
                return [c.copy(is_marked=False, partition=index % PARTITIONS) for index in range(count)]

            def callers_ids(count: int = 40) -> list[Copy]:
                return [c.copy() for _ in range(count)]

            def replays(copies: Sequence[Copy]) -> list[Copy]:
                return [replace(copy, is_replay=True) for copy in copies]

            long_ago, lately, together, behind, never = (ours() + callers_ids() for _ in range(5))
            c.send(long_ago, long_ago)
            consumer = a.consumer(CONSUMER_CLICKHOUSE_URL=f"http://127.0.0.1:{proxy.port}/{a.name}")
            consumer.start()
            c.wait_landed()
            c.now_ms += 2 * REACH_MS
            c.send(lately, lately)
            c.wait_landed()
            if step is None:
                proxy.error = (241, "Memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED)")
            else:
                consumer.stop()
            c.send([*together, *replays(together)], together)
            c.send([*replays(behind), *behind], behind)
            c.send([*replays(long_ago), *replays(lately)])
            c.send(replays(never), never)
            if step is None:
                a.wait_until_unready(consumer, "MEMORY_LIMIT")
                proxy.error = None
            else:
                a.crash(step, hit=2)
                consumer.start()
            c.send(replays([*long_ago, *lately, *together, *behind, *never]))
            c.send(c.again([*lately, *together, *behind, *never]))
            c.wait_landed()
            assert "worker failed" not in a.logs(lines=1_000)
            c.reckon()
    finally:
        proxy.stop()


def test_what_is_no_repeat_and_what_no_longer_is(stores: Stack, seed: int) -> None:
    """Equal ids of two owners; an id again behind the window; one that too many others came behind."""
    with callers(stores, seed, CONSUMER_DEDUPE_IDS_MAX="1000") as c:
        a = c.arena
        consumer = a.consumer()
        consumer.start()
        events = [c.copy() for _ in range(50)]
        others = [c.copy(copy.event_id, owner="shop") for copy in events]
        c.send([*events, *others, *c.again(events), *c.again(others)], [*events, *others])
        c.wait_landed()
        c.now_ms += REACH_MS + SLOT_MS
        later = c.again(events)
        c.send([*later, *c.again(later)], later)
        c.wait_landed()
        c.now_ms += REACH_MS + SLOT_MS
        crowd = [copy for _ in range(5_000) if not (copy := c.copy()).partition_of(PARTITIONS)][:1_001]
        c.send([*crowd, *(forgotten := c.again(crowd[:1]))], [*crowd, *forgotten])
        c.wait_landed()
        assert a.metric(consumer, "consumer_dedupe_ids_forgotten_total") == 2
        c.reckon()


def test_kafka_has_deleted_what_was_to_be_read_back(stores: Stack, seed: int) -> None:
    """Said, and no reason to stop."""
    with callers(stores, seed) as c:
        a = c.arena
        consumer = a.consumer()
        consumer.start()
        events = [c.copy(partition=0) for _ in range(50)]
        c.send(events, events)
        c.wait_landed()
        consumer.stop()
        a.delete_records(0)
        consumer.start()
        c.wait_landed()
        assert "does not hold the whole window" in a.logs(lines=1_000)
        consumer.stop()
