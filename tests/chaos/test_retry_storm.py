"""A storm of retries on two gateways ends with one row for each event that was ever answered with 200, whatever breaks.

Meanwhile gateways and consumers are killed, a second consumer comes and goes, Kafka is killed and hangs. At the end
everything is mended and compared: what callers were told, the log, the tables, the gateways' accounts, the audit. Then
the log is read once more, in one go, by a consumer that nothing happens to: it must choose the very same records.
"""

import asyncio
import contextlib
import re
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import stack
from deploy.local.process import Process, free_ports, wait_ready
from deploy.local.stack import Stack
from schemas.streams import STREAMS
from tests.chaos.arena import PARTITIONS, TOPIC, Arena, http_get
from tests.chaos.storm import MARKER, Storm

ACT_S = 3.0
STORM_S_MAX = 900.0
SPOOLED_MIN = 40
STEPS = ["after_intent", "during_insert", "after_insert", "after_close"]
STATIC = {"CONSUMER_GROUP_INSTANCE_ID": "the-one"}  # its successor need not wait for the end of its session
ACCOUNT = {
    "gateway_events_received": "received",
    "gateway_events_accepted": "accepted",
    "gateway_events_refused": "refused",
    "gateway_events_replayed": "replayed",
    "gateway_events_late_answers": "late_answers",
    "gateway_spool_records": "spool_records",
}
OWNERS = {stream.name: stream.owner for stream in STREAMS}

pytestmark = pytest.mark.timeout(STORM_S_MAX + 120)


class Record(NamedTuple):
    """What the log holds. `is_marked` and `is_replay` are its headers `dedupe` and `replay`."""

    topic: str
    partition: int
    offset: int
    owner: str
    event_id: str
    marker: str
    is_marked: bool
    is_replay: bool

    @property
    def place(self) -> tuple[str, int, int]:
        return self[:3]

    @property
    def event(self) -> tuple[str, str, str]:
        return self.topic, self.owner, self.event_id


class Row(NamedTuple):
    topic: str
    owner: str
    event_id: str
    marker: str
    partition: int
    offset: int

    @property
    def place(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset

    @property
    def event(self) -> tuple[str, str, str]:
        return self[:3]


@dataclass
class TwoStreams(Arena):
    """An arena for both of them. It begins at the end of what the topics hold, or at `begin_at`."""

    begin_at: dict[TopicPartition, int] = field(default_factory=dict)

    async def _begin_at_end(self) -> dict[int, int]:
        partitions = [TopicPartition(stream.name, index) for stream in STREAMS for index in range(PARTITIONS)]
        async with self._kafka_consumer(group_id=self.name, enable_auto_commit=False) as consumer:
            consumer.assign(partitions)
            self.begin_at = self.begin_at or await consumer.end_offsets(partitions)
            await consumer.commit(self.begin_at)
        return {partition.partition: offset for partition, offset in self.begin_at.items() if partition.topic == TOPIC}

    @contextlib.asynccontextmanager
    async def _kafka_consumer(self, **settings: Any) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.stack.endpoints.kafka_bootstrap_servers, **settings)
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def records(self) -> list[Record]:
        """All that came since the beginning, in order within a partition."""
        log: list[Record] = []
        async with self._kafka_consumer() as consumer:
            consumer.assign(list(self.begin_at))
            for partition, offset in self.begin_at.items():
                consumer.seek(partition, offset)
            ends = await consumer.end_offsets(list(self.begin_at))
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=1_000)).values():
                    log += map(_record, records)
        return log

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        for topic, owner in OWNERS.items():
            columns = f"({owner}, event_id, JSONExtractString(extra, '{MARKER}'), kafka_partition, kafka_offset)"
            rows += [Row(topic, *row) for row in self.value(f"SELECT groupArray({columns}) FROM {topic}")]
        return rows

    def landed_in_both(self) -> int:
        return sum(int(self.value(f"SELECT count() FROM {topic}")) for topic in OWNERS)

    def dropped(self, consumer: Process) -> Counter[str]:
        """Repeats by reason, as the consumer counts them."""
        name = "consumer_repeats_dropped_total"
        return +Counter(
            {why: int(self.metric(consumer, rf'{name}{{[^}}]*reason="{why}"[^}}]*}}')) for why in ("window", "replay")}
        )


def _record(record: Any) -> Record:
    headers = dict(record.headers)
    value = orjson.loads(record.value)
    owner = value[OWNERS[record.topic]]
    assert record.key.decode() == value["event_id"], record
    assert headers.get("dedupe", owner.encode()) == owner.encode(), record
    place = (record.topic, record.partition, record.offset)
    marker = value.get("extra", {}).get(MARKER, "")
    return Record(*place, owner, value["event_id"], marker, "dedupe" in headers, "replay" in headers)


class Scene:
    """Two gateways, each with a spool of its own, in a storm; a consumer; and the reckoning."""

    def __init__(self, arena: TwoStreams, registry: Path, ids: int, acts: int) -> None:
        self.arena = arena
        self.random = arena.random
        self.kafka = arena.stack["kafka"]
        self.ports = free_ports(2)
        env = {
            "GATEWAY_WORKERS": "1",
            "GATEWAY_REGISTRY_FILE": str(registry),
            "GATEWAY_REPLAY_RECORDS_PER_S": "500",  # so that a kill finds it in the middle
        }
        self.gateways = [
            arena.stack.new_gateway(f"{arena.name}-gateway-{index}", port, env=env)
            for index, port in enumerate(self.ports)
        ]
        self.consumer = arena.consumer(**STATIC)
        self.storm = Storm(arena.name, self.ports, arena.seed, ids=ids, seconds=ACT_S * acts, seconds_max=STORM_S_MAX)
        self.adopted = [0] * len(self.ports)
        self.account = ""
        self._began_s = time.monotonic()
        self._act = (0.0, 0.0)

    @property
    def seed(self) -> str:
        return f"seed {self.arena.seed}"

    # What happens

    def play(self, acts: Sequence[Callable[["Scene"], None]]) -> None:
        """Each while its share of the storm goes on, of which it keeps something for what it does later."""
        for index, act in enumerate(acts):
            self._act = index / len(acts), (index + 1) / len(acts)
            self.release(0.6)
            self.tell(f"{act.__name__}: {dict(self.storm.answers)}")
            act(self)
            self.release(1.0)

    def tell(self, what: str) -> None:
        """Shown on failure."""
        print(f"{time.monotonic() - self._began_s:.1f} s: {what}", file=sys.stderr)

    def release(self, part: float) -> None:
        """So much of the act's share."""
        self.storm.release(self._position(part))

    def reach(self, part: float) -> None:
        """Until so much of the act's share has been sent."""
        self.wait_until(lambda: self.storm.has_reached(self._position(part)), f"{part} of the act")

    def _position(self, part: float) -> float:
        begin, end = self._act
        return begin + part * (end - begin)

    def kill_gateways(self, count: int = 1) -> list[int]:
        """Any; which."""
        killed = self.random.sample(range(len(self.gateways)), count)
        for index in killed:
            self.gateways[index].kill()
        return killed

    def start_gateways(self, killed: Sequence[int]) -> None:
        """Anew. They adopt what their predecessors have left behind."""
        for index in killed:
            self.adopted[index] = self.spooled(index)
            self.storm.lives[index] += 1
            self.gateways[index].spawn()
        wait_ready([self.gateways[index] for index in killed])

    def wait_spooled_answers(self) -> None:
        begun = self.storm.answers["spool"]
        self.wait_until(lambda: self.storm.answers["spool"] >= begun + SPOOLED_MIN, "answers by the spool")

    def wait_replaying(self) -> None:
        """Until records leave the spools."""
        seen = [0]

        def is_less() -> bool:
            seen.append(self.spooled(0) + self.spooled(1))
            return seen[-1] < seen[-2]

        self.wait_until(is_less, "the replay to begin")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        def checked() -> bool:
            self.storm.check()
            with contextlib.suppress(sqlite3.Error):  # a file that goes to another owner
                return condition()
            return False

        try:
            self.arena.wait_until(checked)
        except AssertionError as error:
            raise AssertionError(f"{self.seed}: {what}; {self.account}\n{self.logs()}") from error

    def logs(self) -> str:
        lines = [line for gateway in self.gateways for line in [f"--- {gateway.name}", *gateway.last_lines(15)]]
        return "\n".join([self.arena.logs(), *lines])

    # What is asked

    def spooled(self, index: int) -> int:
        """Events on the disk, by what the files say."""
        directory = Path((self.gateways[index].env or {})["GATEWAY_SPOOL_DIR"])
        return sum(map(_records_in, directory.glob("*.db")))

    def counted(self, index: int) -> Counter[str]:
        """The gateway's own account, of its latest life."""
        page = http_get(self.ports[index], "/metrics").text
        counts: Counter[str] = Counter()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                name = ACCOUNT.get(family.name)
                if name is not None:
                    counts[sample.labels["durability"] if name == "accepted" else name] += int(sample.value)
        return counts

    # The reckoning

    def rest(self) -> None:
        """Nobody sends any more, nothing is spooled, and the accounts of both gateways are balanced."""
        self.wait_until(self.storm.has_ended, "the storm's end")
        for index, gateway in enumerate(self.gateways):
            self.wait_until(lambda i=index: self.spooled(i) == 0, f"an empty spool of {gateway.name}")
            self.wait_until(lambda i=index: self.is_balanced(i), f"the balance of {gateway.name}")
            self.tell(f"{gateway.name}: {self.account}")
        for gateway in self.gateways:
            assert gateway.stop(), f"{self.seed}: {gateway.name} did not drain in time\n{self.logs()}"
            assert gateway.exit_code == 0, f"{self.seed}: {gateway.exit_code}\n{self.logs()}"

    def is_balanced(self, index: int) -> bool:
        """By itself, and with what the callers know. Of those who went away early it knows more than they. Copies of an
        event that came in the same millisecond are one record in the spool."""
        life = (index, self.storm.lives[index])
        counts, answered = self.counted(index), self.storm.answered_by.get(life, Counter())
        merged = counts["spool"] + self.adopted[index] - counts["replayed"] - counts["late_answers"]
        self.account = f"{counts}, adopted {self.adopted[index]}, merged {merged}, answered {answered}"
        return (
            counts["received"] == counts["kafka"] + counts["spool"] + counts["refused"]
            and 0 <= merged - counts["spool_records"] <= self.storm.sent_again_to[life]
            and answered <= counts
            and answered.total() <= counts["received"] <= self.storm.sent_to[life]
        )

    def reckon(self) -> tuple[list[Row], Counter[str]]:
        """After `rest`. The rows, and why the other records are none."""
        log = asyncio.run(self.arena.records())
        places, dropped = chosen(log)
        self._wait_landed(places, log)
        for consumer in self.arena.consumers:
            consumer.stop()
        rows = self.arena.rows()
        self._compare_log(log)
        self._compare_rows(rows, log)
        replays = {record.is_marked for record in log if record.is_replay and record.place not in places}
        assert replays == {True, False}, f"{self.seed}: not every kind of repeat came from a spool"
        assert {row.place for row in rows} == places, f"{self.seed}: other records than the first ones are rows"
        apps = sum(row.topic == TOPIC for row in rows)
        assert int(self.arena.value("SELECT sum(events) FROM rollup")) == apps, f"{self.seed}: rollup differs"
        self._audit(len(rows), len(log) - len(rows))
        self.tell(f"{len(log)} records, {len(rows)} rows, {dict(dropped)} of them repeats, {dict(self.storm.answers)}")
        return rows, dropped

    def _wait_landed(self, places: set[tuple[str, int, int]], log: Sequence[Record]) -> None:
        try:
            self.wait_until(lambda: self.arena.landed_in_both() >= len(places), f"{len(places)} rows")
        except AssertionError as error:
            missing = places - {row.place for row in self.arena.rows()}
            events = [record.event for record in log if record.place in missing]
            raise AssertionError(f"{self.seed}: {len(missing)} are no rows: {evidence(events, log)}") from error

    def _compare_log(self, log: Sequence[Record]) -> None:
        """All copies of an event are in one partition, and marked if its caller may repeat it."""
        events = {event.marker: event for event in self.storm.events}
        partitions: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
        for record in log:
            assert record.marker in events, f"{self.seed}: of no event: {record}"
            assert record.is_marked == events[record.marker].is_callers, f"{self.seed}: {record}"
            partitions[record.event].add(record.partition)
        apart = [event for event, found in partitions.items() if len(found) > 1]
        assert not apart, f"{self.seed}: in several partitions: {evidence(apart, log)}"

    def _compare_rows(self, rows: Sequence[Row], log: Sequence[Record]) -> None:
        """Exactly one for each event with a 200, at most one for the others, and nothing else."""
        copies = Counter(row.event for row in rows)
        twice = [event for event, count in copies.items() if count > 1]
        assert not twice, (
            f"{self.seed}: {len(twice)} events are several rows: {evidence(twice, log, rows)}\n{self.logs()}"
        )
        assert len({row.place for row in rows}) == len(rows), f"{self.seed}: coordinates twice"
        of = {row.marker: row for row in rows}
        assert len(of) == len(rows), f"{self.seed}: one event under two ids"
        events = {event.marker: event for event in self.storm.events}
        assert of.keys() <= events.keys(), f"{self.seed}: rows of no event: {of.keys() - events.keys()}"
        for marker, event in events.items():
            row = of.get(marker)
            if event.accepted_as:
                assert row is not None, f"{self.seed}: no row of {event}, in the log: {evidence_of(marker, log)}"
                assert event.accepted_as == {row.event_id}, f"{self.seed}: {event} is {row}"
            if row is not None:
                assert (row.topic, row.owner) == (event.owner.stream.name, event.owner.name), f"{event} is {row}"
                assert event.may_be(row.event_id), f"{self.seed}: {event} is {row}"

    def _audit(self, rows: int, repeats: int) -> None:
        """It says the same, and finds no gaps in what was dropped."""
        said = " ".join(self.arena.command("audit", "--since", self.arena.began).last_lines(3))
        found = re.search(r"OK: ([\d,]+) records are in the tables exactly once, ([\d,]+) are repeats of others", said)
        assert found is not None, f"{self.seed}: {said}"
        assert [int(number.replace(",", "")) for number in found.groups()] == [rows, repeats], f"{self.seed}: {said}"


def chosen(log: Sequence[Record]) -> tuple[set[tuple[str, int, int]], Counter[str]]:
    """The places of the records that are to be rows, and how many others there are by why they are none. An event's
    first copy is its row; copies behind a marked one are known by that, replays behind an unmarked one by the row."""
    marked: set[tuple[str, str, str]] = set()
    unmarked: set[tuple[str, str, str]] = set()
    places: set[tuple[str, int, int]] = set()
    dropped: Counter[str] = Counter()
    for record in log:
        if record.event in marked:
            dropped["window"] += 1
        elif record.is_replay and record.event in unmarked:
            dropped["replay"] += 1
        else:
            places.add(record.place)
        (marked if record.is_marked or record.is_replay else unmarked).add(record.event)
    return places, dropped


def evidence(events: Sequence[tuple[str, str, str]], log: Sequence[Record], rows: Sequence[Row] = ()) -> str:
    """The first few, with all that is known of them."""
    known: list[Record | Row] = [*log, *rows]
    return "\n".join(["", *(str(each) for event in events[:3] for each in known if each.event == event)])


def evidence_of(marker: str, log: Sequence[Record]) -> str:
    return str([record for record in log if record.marker == marker])


def _records_in(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as database:
        return int(database.execute("SELECT count(*) FROM records").fetchone()[0])


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Two apps, and two retrievers with the same keys."""
    text = Path(stack.__file__).with_name("registry.toml").read_text("utf-8")
    path = tmp_path / "registry.toml"
    path.write_text(text + text.replace(".demo]", ".shop]"), "utf-8")
    return path


@contextlib.contextmanager
def scene(stores: Stack, seed: int, registry: Path, ids: int, acts: int) -> Iterator[Scene]:
    print(f"seed {seed}", file=sys.stderr)  # pytest shows it when the test fails
    with contextlib.closing(TwoStreams(stores, seed)) as arena:
        entered = Scene(arena, registry, ids, acts)
        try:
            entered.consumer.spawn()
            entered.start_gateways(range(2))
            with entered.storm:
                yield entered
        finally:
            for gateway in entered.gateways:
                gateway.kill()
            entered.kafka.resume()
            if not entered.kafka.is_running:
                entered.kafka.start()


# The acts


def a_gateway_is_killed(s: Scene) -> None:
    s.reach(s.random.uniform(0.1, 0.5))
    s.start_gateways(s.kill_gateways())


def the_consumer_is_killed(s: Scene) -> None:
    s.reach(s.random.uniform(0.1, 0.5))
    s.consumer.kill()
    s.release(1.0)
    s.reach(s.random.uniform(0.6, 0.9))
    s.consumer.spawn()


def the_consumer_dies_at_a_step(s: Scene) -> None:
    s.reach(0.1)
    s.consumer.stop()
    doomed = s.arena.consumer(s.random.choice(STEPS), s.random.randint(1, 5), **STATIC)
    doomed.spawn()
    s.release(1.0)
    s.arena.wait_ended(doomed)
    s.consumer.spawn()


def another_consumer_comes_and_goes(s: Scene) -> None:
    other = s.arena.consumer()
    other.spawn()
    s.wait_until(lambda: s.arena.metric(other, "consumer_partitions") > 0, "its partitions")
    s.release(1.0)
    s.reach(s.random.uniform(0.6, 0.9))
    s.random.choice([other.stop, other.kill])()


def kafka_is_away(s: Scene) -> None:
    """A gateway is killed while it spools, another one, or the same, while it replays."""
    s.reach(s.random.uniform(0.1, 0.3))
    s.random.choice([s.kafka.stop, s.kafka.kill])()
    s.wait_spooled_answers()
    s.start_gateways(s.kill_gateways())
    s.release(1.0)
    s.wait_spooled_answers()
    s.kafka.start()
    s.wait_replaying()
    s.start_gateways(s.kill_gateways())


def kafka_hangs(s: Scene) -> None:
    """What a gateway has sent before it was killed is taken when Kafka goes on, and again from the spool. All that it
    sent were events without ids: of such only the table tells that they have come before."""
    s.reach(s.random.uniform(0.1, 0.3))
    s.storm.hold()
    s.wait_until(lambda: s.storm.is_idle() and s.spooled(0) + s.spooled(1) == 0, "peace")
    s.storm.put_first(s.random)
    s.kafka.suspend()
    s.release(0.6)
    s.wait_until(lambda: s.spooled(0) > 0 and s.spooled(1) > 0, "both to give up waiting")
    killed = s.kill_gateways(s.random.choice([1, 2]))
    s.release(1.0)
    if s.random.random() < 0.5:
        s.kafka.resume()
    s.start_gateways(killed)
    s.kafka.resume()


ACTS = [
    a_gateway_is_killed,
    the_consumer_is_killed,
    the_consumer_dies_at_a_step,
    another_consumer_comes_and_goes,
    kafka_is_away,
    kafka_hangs,
]


def test_a_retry_storm_while_everything_breaks(stores: Stack, seed: int, chaos_events: int, registry: Path) -> None:
    rounds = max(1, chaos_events // 40_000)
    ids = chaos_events * 3 // 20
    with scene(stores, seed, registry, ids, rounds * len(ACTS)) as s:
        s.play([act for _ in range(rounds) for act in s.random.sample(ACTS, len(ACTS))])
        s.rest()
        rows, dropped = s.reckon()
        assert s.storm.answers["spool"] >= 3 * SPOOLED_MIN
        assert dropped.keys() == {"window", "replay"}
        begin_at = s.arena.begin_at
    with contextlib.closing(TwoStreams(stores, seed, begin_at=begin_at)) as calm:
        consumer = calm.consumer()
        consumer.spawn()
        calm.wait_until(lambda: calm.dropped(consumer).total() + calm.landed_in_both() >= dropped.total() + len(rows))
        assert calm.dropped(consumer) == dropped, f"seed {seed}: {dropped}"
        assert sorted(calm.rows()) == sorted(rows), f"seed {seed}: the same log, other rows"
