"""A place to break things: real Kafka, the real engine, real consumer processes, and the reckoning at the end.

Every arena has a database and a consumer group of its own and begins at the end of what the topics hold, so
that scenarios share one pair of stores.
"""

import asyncio
import re
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import clickhouse_connect
import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.partitioner import murmur2
from clickhouse_connect.driver.exceptions import ClickHouseError

from consumer.migrations import DEAD_LETTER_SUFFIX
from deploy.local.process import HOST, Process, free_ports
from deploy.local.stack import Stack
from schemas.streams import APP_INTERACTIONS

TOPIC = APP_INTERACTIONS.name
PARTITIONS = 4
WAIT_S_MAX = 60
BATCH_ROWS = 300

ROLLUP = """
CREATE TABLE rollup (event_type LowCardinality(String), events UInt64) ENGINE = SummingMergeTree
ORDER BY event_type SETTINGS non_replicated_deduplication_window = 10000;
CREATE MATERIALIZED VIEW rollup_view TO rollup AS
SELECT event_type, count() AS events FROM app_interactions GROUP BY event_type;
"""


@dataclass(frozen=True)
class Copy:
    """One record of an event. Of a caller's id (`is_marked`) every copy lies where the id says."""

    event_id: str
    received_ms: int
    owner: str = "demo"
    is_marked: bool = True
    is_replay: bool = False
    partition: int | None = None

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        dedupe = [("dedupe", self.owner.encode())] if self.is_marked else []
        return [*dedupe, ("replay", b"1")] if self.is_replay else dedupe

    @property
    def value(self) -> bytes:
        return APP_INTERACTIONS.encode({"event_type": "view"}, self.event_id, self.owner, self.received_ms)

    @property
    def row(self) -> tuple[str, str, int]:
        return self.owner, self.event_id, self.received_ms

    def partition_of(self, partitions: int) -> int:
        if self.partition is not None:
            return self.partition
        return int(murmur2(self.event_id.encode()) & 0x7FFFFFFF) % partitions


@dataclass
class Arena:
    stack: Stack
    seed: int
    env: dict[str, str] = field(default_factory=dict)
    random: Random = field(init=False)
    name: str = field(init=False)
    began: str = field(init=False)
    begins: dict[int, int] = field(init=False)
    produced: list[str] = field(default_factory=list)
    produced_in: Counter[int] = field(default_factory=Counter)
    poisoned: set[str] = field(default_factory=set)
    consumers: list[Process] = field(default_factory=list)
    clickhouse: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.name = f"arena_{self.seed}_{uuid.uuid4().hex[:8]}"
        self.env = {
            "CONSUMER_GROUP_ID": self.name,
            "CONSUMER_CLICKHOUSE_URL": f"{self.stack.endpoints.clickhouse_url}/{self.name}",
            "CONSUMER_BATCH_ROWS_MAX": str(BATCH_ROWS),
            "CONSUMER_BATCH_AGE_MS_MAX": "100",
            "CONSUMER_INSERTS_PER_SECOND_MAX": "100",
            "CONSUMER_SESSION_TIMEOUT_MS": "6000",
            **self.env,
        }
        self.command("migrate")
        # One for all questions: to make it takes longer than most answers.
        self.clickhouse = clickhouse_connect.get_client(
            dsn=self.env["CONSUMER_CLICKHOUSE_URL"], autogenerate_session_id=False
        )
        for statement in ROLLUP.strip().rstrip(";").split(";"):
            self.execute(statement)
        self.began = datetime.now(UTC).isoformat()
        self.begins = asyncio.run(self._begin_at_end())

    # Processes

    def consumer(self, step: str | None = None, hit: int = 1, **env: str) -> Process:
        """A consumer, not started; with `step` one that kills itself there, the `hit`th time."""
        [port] = free_ports(1)
        crash = {"CHAOS_STEP": step, "CHAOS_HIT": str(hit)} if step else {}
        name = f"{self.name}-consumer-{len(self.consumers)}"
        process = self.stack.new_consumer(
            name, port, {**self.env, **crash, **env}, module="tests.chaos.crashing_consumer"
        )
        self.consumers.append(process)
        return process

    def crash(self, step: str, hit: int = 1, **env: str) -> None:
        """Run a consumer until it has killed itself."""
        doomed = self.consumer(step, hit, **env)
        doomed.spawn()
        self.wait_ended(doomed)

    def wait_ended(self, doomed: Process) -> None:
        self.wait_until(lambda: not doomed.is_running)
        assert doomed.exit_code == -signal.SIGKILL, self.logs()

    def wait_until_unready(self, consumer: Process, reason: str) -> None:
        """Until /readyz gives this reason."""
        self.wait_until(lambda: reason in self._unready_reason(consumer))

    def _unready_reason(self, consumer: Process) -> str:
        assert consumer.env is not None
        return str(http_get(int(consumer.env["CONSUMER_METRICS_PORT"]), "/readyz").json().get("reason", ""))

    def metric(self, consumer: Process, name: str) -> float:
        """Over all its labels."""
        assert consumer.env is not None
        page = http_get(int(consumer.env["CONSUMER_METRICS_PORT"]), "/metrics").text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))

    def command(self, *arguments: str) -> Process:
        """`python -m consumer …`, run to its end. Raises `Failure` unless it exits with 0."""
        process = self.stack.new_command(f"{self.name}-{arguments[0]}", "consumer", *arguments, env=self.env)
        process.run()
        return process

    def close(self) -> None:
        for consumer in self.consumers:
            consumer.kill()
        self.clickhouse.close()

    # Events

    def produce(self, count: int, received_ms: Sequence[int] | None = None, **fields: Any) -> None:
        values = []
        for index in range(count):
            event_id = f"{self.name}-{len(self.produced)}"
            event = {"event_type": self.random.choice(["view", "click", "purchase"]), "position": index, **fields}
            now_ms = received_ms[index] if received_ms else time.time_ns() // 1_000_000
            values.append((event_id, APP_INTERACTIONS.encode(event, event_id, "demo", now_ms)))
            self.produced.append(event_id)
        sent = asyncio.run(self._send(values))
        self.produced_in.update(partition for partition, _ in sent)

    def poison(self, count: int) -> None:
        """Records that no table can take."""
        bad = [
            b'{"event_id":"a","app":"demo","received_at":"nonsense","event_type":"e"}',
            b'{"event_id":"b","app":"demo","received_at":"2026-11-22T06:20:00.123Z","event_type":"e","position":"x"}',
            b'{"event_id":"c","event_id":"d"}',
            b'{"event_id":"e"}}',
            b"not json at all",
            b"",
        ]
        sent = asyncio.run(self._send([("poison", self.random.choice(bad)) for _ in range(count)]))
        self.poisoned |= {f"{TOPIC}:{partition}:{offset}" for partition, offset in sent}

    def put(self, copies: Sequence["Copy"]) -> list[tuple[int, int]]:
        """As a gateway would; partition and offset of each, in order."""
        return asyncio.run(
            self._send(
                [(copy.event_id, copy.value) for copy in copies],
                [
                    {
                        "partition": copy.partition_of(PARTITIONS),
                        "headers": copy.headers,
                        "timestamp_ms": copy.received_ms,
                    }
                    for copy in copies
                ],
            )
        )

    async def _send(
        self, records: Sequence[tuple[str, bytes]], places: Sequence[dict[str, Any]] = ()
    ) -> list[tuple[int, int]]:
        """Partition and offset of each. `places` are aiokafka's arguments for each; by default, anywhere."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.stack.endpoints.kafka_bootstrap_servers, acks="all", enable_idempotence=True
        )
        places = places or [{"partition": self.random.randrange(PARTITIONS)} for _ in records]
        await producer.start()
        try:
            sent = [
                await producer.send(TOPIC, key=key.encode(), value=value, **place)
                for (key, value), place in zip(records, places, strict=True)
            ]
            return [(metadata.partition, metadata.offset) for metadata in await asyncio.gather(*sent)]
        finally:
            await producer.stop()

    def delete_records(self, partition: int) -> None:
        """Let Kafka forget all that the partition holds, as retention would."""
        asyncio.run(
            self._with_admin(
                lambda admin: admin.delete_records(
                    {TopicPartition(TOPIC, partition): RecordsToDelete(before_offset=-1)}, timeout_ms=10_000
                )
            )
        )

    def make_topic_again(self) -> None:
        asyncio.run(self._with_admin(lambda admin: admin.delete_topics([TOPIC])))
        self.wait_until(self._is_topic_made)
        self.begins = dict.fromkeys(self.begins, 0)

    def _is_topic_made(self) -> bool:
        """Deletion goes on behind its answer; until it is through, the topic `already exists`."""
        new = NewTopic(TOPIC, PARTITIONS, 1)
        answer = asyncio.run(self._with_admin(lambda admin: admin.create_topics([new])))
        return bool(answer.topic_errors[0][1] == 0)

    async def _with_admin(self, act: Callable[[AIOKafkaAdminClient], Awaitable[Any]]) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.stack.endpoints.kafka_bootstrap_servers)
        await admin.start()
        try:
            return await act(admin)
        finally:
            await admin.close()

    def dead_letter_keys(self) -> set[str]:
        """Of this arena: those of records behind its beginning."""
        keys = asyncio.run(self._read_keys(TOPIC + DEAD_LETTER_SUFFIX))
        return {key for key in keys if int(key.split(":")[2]) >= self.begins[int(key.split(":")[1])]}

    async def _read_keys(self, topic: str) -> set[str]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.stack.endpoints.kafka_bootstrap_servers)
        await consumer.start()
        try:
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            [end] = (await consumer.end_offsets([partition])).values()
            keys = set()
            while await consumer.position(partition) < end:
                for records in (await consumer.getmany(partition, timeout_ms=1_000)).values():
                    keys |= {record.key.decode() for record in records}
            return keys
        finally:
            await consumer.stop()

    async def _begin_at_end(self) -> dict[int, int]:
        partitions = [TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)]
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.stack.endpoints.kafka_bootstrap_servers, group_id=self.name, enable_auto_commit=False
        )
        await consumer.start()
        try:
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            await consumer.commit(ends)
        finally:
            await consumer.stop()
        return {tp.partition: end for tp, end in ends.items()}

    # The reckoning

    def execute(self, sql: str) -> None:
        self.clickhouse.command(sql)

    def value(self, sql: str) -> Any:
        return self.clickhouse.query(sql).result_rows[0][0]

    def landed(self) -> int:
        return int(self.value("SELECT count() FROM app_interactions"))

    def landed_in(self, partition: int) -> int:
        return int(self.value(f"SELECT count() FROM app_interactions WHERE kafka_partition = {partition}"))

    def landed_of_produced(self) -> int:
        return len(set(self.value("SELECT groupArray(event_id) FROM app_interactions")) & set(self.produced))

    def wait_landed(self, count: int | None = None) -> None:
        """Until so many rows (by default, all that was produced) are there."""
        wanted = len(self.produced) if count is None else count
        self.wait_until(lambda: self.landed() >= wanted)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """An answer that fails because a store is being restarted is no answer."""
        deadline = time.monotonic() + WAIT_S_MAX
        while not _ask(condition):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"seed {self.seed}: waited {WAIT_S_MAX} s, for {len(self.produced)} rows\n{self.logs()}"
                )
            time.sleep(0.05)

    def overflow_window(self, blocks: int) -> None:
        """Other inserts, so many that the table forgets the tokens before them."""
        for index in range(blocks):
            self.execute(
                "INSERT INTO app_interactions (event_id, app, received_at, event_type, kafka_partition, kafka_offset) "
                f"SETTINGS async_insert = 0 VALUES ('filler{index}', 'filler', now64(3), 'filler', 99, {index})"
            )

    def lose_rows(self) -> None:
        """All but one of each block: its token stays remembered, and the views keep what they were given."""
        block = "kafka_partition, toYYYYMM(received_at)"
        self.execute(
            "ALTER TABLE app_interactions DELETE WHERE (kafka_partition, kafka_offset) NOT IN (SELECT "
            f"kafka_partition, min(kafka_offset) FROM app_interactions GROUP BY {block}) SETTINGS mutations_sync = 2"
        )

    def forget_older(self) -> None:
        """Rows of records from before this arena, and what the rollup counted of them."""
        older = " OR ".join(f"(kafka_partition = {p} AND kafka_offset < {o})" for p, o in self.begins.items())
        rows = int(self.value(f"SELECT count() FROM app_interactions WHERE {older}"))
        self.execute(f"ALTER TABLE app_interactions DELETE WHERE {older} SETTINGS mutations_sync = 2")
        assert int(self.value("SELECT sum(events) FROM rollup")) == len(self.produced) + rows
        self.execute("TRUNCATE TABLE rollup")
        self.execute("INSERT INTO rollup SELECT event_type, count() FROM app_interactions GROUP BY event_type")

    def reckon(self, *, rollup: bool = True, offsets: bool = True) -> None:
        """Every record is one row, and the rollup counted each row once; the audit agrees. Stops the consumers
        first, so that nothing is under way."""
        for consumer in self.consumers:
            consumer.stop()
        expected = len(self.produced)
        counts = self.value(
            "SELECT (count(), uniqExact(event_id), uniqExact((kafka_partition, kafka_offset))) FROM app_interactions"
        )
        counted = tuple(counts) if offsets else tuple(counts)[:2]
        assert set(counted) == {expected}, f"seed {self.seed}: {counts}, produced {expected}\n{self.logs()}"
        held = set(self.value("SELECT groupArray(event_id) FROM app_interactions"))
        assert held == set(self.produced), f"seed {self.seed}: other events than those produced"
        if rollup:
            assert int(self.value("SELECT sum(events) FROM rollup")) == expected, f"seed {self.seed}: rollup differs"
        self.command("audit", "--since", self.began)

    def logs(self, lines: int = 30) -> str:
        return "\n".join(
            line for consumer in self.consumers for line in [f"--- {consumer.name}", *consumer.last_lines(lines)]
        )


def http_get(port: int, path: str) -> httpx.Response:
    """Without what TLS would need: to make that takes longer than all else."""
    return httpx.get(f"http://{HOST}:{port}{path}", timeout=5, verify=False)


def _ask(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except (ClickHouseError, OSError, httpx.HTTPError):
        return False


@contextmanager
def arena(stack: Stack, seed: int, **env: str) -> Iterator[Arena]:
    print(f"seed {seed}", file=sys.stderr)  # pytest shows it when the test fails
    entered = Arena(stack, seed, env)
    try:
        yield entered
    finally:
        entered.close()
