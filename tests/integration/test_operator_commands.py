"""The consumer's commands over real stores: what they say of a pipeline, of a broken one, and how they mend it.

The tests share one Kafka and one ClickHouse, in which everything has landed when a test begins, and again when it
ends: a test that breaks something mends it.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from consumer import commands, ledger
from consumer.audit import audit
from consumer.audit_table import PartitionAudit
from consumer.audit_timer import AuditTimer
from consumer.batch import Range
from consumer.clickhouse import ClickHouse
from consumer.dead_letter_log import Marks
from consumer.group import Group, GroupActive
from consumer.metrics import Metrics
from consumer.reader import LogReader
from consumer.rewind import RewindRefused
from consumer.settings import ConsumerSettings
from consumer.source import KafkaUnavailable
from deploy.local.process import Process
from deploy.local.stack import DATABASE, STORES, Ports, Stack
from schemas import kafka
from schemas.streams import APP_INTERACTIONS

TOPIC = APP_INTERACTIONS.name
QUICK = {
    "CONSUMER_BATCH_AGE_MS_MAX": "50",
    "CONSUMER_INSERTS_PER_SECOND_MAX": "1000",
    "CONSUMER_SESSION_TIMEOUT_MS": "6000",
    "CONSUMER_SHUTDOWN_DEADLINE_MS": "3000",
}
WAIT_S_MAX = 60


@dataclass
class Shop:
    """The stores, and one consumer that tests start and stop."""

    settings: ConsumerSettings
    clickhouse: ClickHouse
    consumer: Process

    def rows(self, where: str = "1") -> int:
        [(rows,)] = self.clickhouse.query(f"SELECT count() FROM {DATABASE}.{TOPIC} WHERE {where}")
        return int(rows)

    async def produce(self, *values: bytes, partition: int = 0, transactional_id: str | None = None) -> list[int]:
        """The offsets of the records."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.kafka_bootstrap_servers, acks="all", transactional_id=transactional_id
        )
        async with producer:
            if transactional_id:
                await producer.begin_transaction()
            sent = [await producer.send_and_wait(TOPIC, value, partition=partition) for value in values]
            if transactional_id:
                await producer.commit_transaction()
        return [one.offset for one in sent]

    async def landed(self) -> None:
        """Wait until the group has committed everything."""
        async with Group(self.settings) as group, LogReader(kafka.connection(self.settings)) as reader:
            partitions = await group.partitions([TOPIC])

            async def is_so() -> bool:
                bounds, commits = await reader.bounds(partitions), await group.commits(partitions)
                places = {tp: ledger.decode(*commit) for tp, commit in commits.items()}
                return all(
                    end == 0 or (tp in places and (places[tp].offset, places[tp].intent) == (end, None))
                    for tp, (_, end) in bounds.items()
                )

            await until(is_so)

    async def committed(self, partition: int = 0) -> int:
        tp = TopicPartition(TOPIC, partition)
        async with Group(self.settings) as group:
            return (await group.commits([tp]))[tp][0]

    async def commit(self, entries: dict[TopicPartition, tuple[int, str]]) -> None:
        """As a consumer would: straight through aiokafka."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.kafka_bootstrap_servers,
            group_id=self.settings.group_id,
            enable_auto_commit=False,
        )
        async with consumer:
            consumer.assign(list(entries))
            await consumer.commit(dict(entries))

    async def audited(self, partition: int = 0) -> PartitionAudit:
        audits = await audit(self.settings, self.clickhouse, count_repeated=True)
        [found] = [found for found in audits if (found.topic, found.partition) == (TOPIC, partition)]
        return found

    @asynccontextmanager
    async def consuming(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.consumer.start)
        try:
            yield
        finally:
            await asyncio.to_thread(self.consumer.stop)

    async def consume(self) -> None:
        """Until everything has landed."""
        async with self.consuming():
            await self.landed()

    def delete(self, where: str) -> None:
        self.clickhouse.command(f"ALTER TABLE {DATABASE}.{TOPIC} DELETE WHERE {where} SETTINGS mutations_sync = 2")

    def copy(self, where: str, replacing: str = "kafka_offset AS kafka_offset") -> None:
        """Insert rows once more, which only a fault of the pipeline would do."""
        self.clickhouse.command(
            f"INSERT INTO {DATABASE}.{TOPIC} SELECT * REPLACE ({replacing}) "
            f"FROM (SELECT * FROM {DATABASE}.{TOPIC} WHERE {where}) SETTINGS insert_deduplicate = 0"
        )


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not await is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def event(event_id: str, **fields: Any) -> bytes:
    row = APP_INTERACTIONS.encode({"event_type": "click"}, event_id, "demo", time.time_ns() // 1_000_000)
    return row[:-1] + b"".join(f',"{name}":{value}'.encode() for name, value in fields.items()) + b"}"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("operator"), Ports.free(), parts=STORES, env=QUICK) as running:
        running.migrate()
        yield running


@pytest.fixture(scope="module")
def shop(stack: Stack) -> Iterator[Shop]:
    settings = ConsumerSettings(
        kafka_bootstrap_servers=stack.endpoints.kafka_bootstrap_servers,
        clickhouse_url=SecretStr(f"{stack.endpoints.clickhouse_url}/{DATABASE}"),
        insert_timeout_ms=10_000,
    )
    clickhouse = ClickHouse(settings)
    consumer = stack.new_consumer()
    shop = Shop(settings, clickhouse, consumer)
    asyncio.run(begin(shop))
    yield shop
    consumer.kill()
    clickhouse.close()


async def begin(shop: Shop) -> None:
    for partition in range(4):
        await shop.produce(*(event(f"first-{partition}-{n}") for n in range(10)), partition=partition)
    await shop.consume()


Command = Callable[..., Any]


@pytest.fixture
def command(shop: Shop, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line; its exit status, and what it printed."""

    async def run(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        commands.add(parser.add_subparsers(required=True))
        arguments = parser.parse_args(words)
        capsys.readouterr()
        code: int = await arguments.command(shop.settings, arguments)
        return code, capsys.readouterr().out

    return run


async def test_a_sound_pipeline_passes_the_audit(shop: Shop, command: Command) -> None:
    assert shop.rows() == 40
    code, text = await command("audit")
    assert "OK: 40 records are in the tables exactly once." in text
    assert code == 0
    code, text = await command("audit", "--since", "0s")
    assert "OK: 0 records" in text
    assert code == 0


async def test_a_gap_is_found_and_a_rewind_fills_it(shop: Shop, command: Command) -> None:
    shop.delete("kafka_partition = 0 AND kafka_offset IN (3, 5)")
    code, text = await command("audit")
    assert code == 1
    assert "WRONG: 0 duplicate rows, 2 records without a row." in text
    assert "app_interactions:0 gaps at 3, 5\n" in text
    assert "rewind --dry-run --to-offset app_interactions:0:3`" in text

    code, text = await command("rewind", "--to", "1h", "--dry-run")
    assert code == 0
    assert "Would read 40 offsets again" in text
    assert await shop.committed() == 10

    async with shop.consuming():
        with pytest.raises(RewindRefused, match=r"is active .* stop its consumers first"):
            await command("rewind", "--to", "1h")
        async with Group(shop.settings) as group:
            with pytest.raises(GroupActive):  # and Kafka itself, whoever joined since we asked
                await group.commit({TopicPartition(TOPIC, 0): (0, "")})
    code, text = await command("rewind", "--to", "1h")
    assert code == 0
    assert "Rewound: the next consumer reads 40 offsets again" in text
    assert await shop.committed() == 0
    code, text = await command("intents")
    assert text.count("of old") == 4
    assert "0 to 9" in text

    await shop.consume()
    assert shop.rows() == shop.rows("kafka_offset < 10") == 40
    assert (await command("audit"))[0] == 0
    assert "No intent is open" in (await command("intents"))[1]


async def test_a_rewind_of_one_partition(shop: Shop, command: Command) -> None:
    shop.delete("kafka_partition = 1 AND kafka_offset IN (7, 8)")
    code, text = await command("rewind", "--to-offset", "app_interactions:1:7")
    assert code == 0
    assert "reads 3 offsets again" in text
    assert (await shop.committed(0), await shop.committed(1)) == (10, 7)
    await shop.consume()
    found = await shop.audited(1)
    assert (found.rows, found.is_wrong) == (10, False)
    for to in ("app_interactions:1:10", "app_interactions:1:11"):
        code, text = await command("rewind", "--to-offset", to)
        assert code == 0
        assert "Nothing to rewind." in text
    with pytest.raises(RewindRefused, match="Kafka has no partition app_interactions:9"):
        await command("rewind", "--to-offset", "app_interactions:9:1")


async def test_status_shows_the_lag(shop: Shop, command: Command) -> None:
    def lag(text: str) -> str:
        [line] = [line for line in text.splitlines() if TOPIC in line and line.split("│")[2].strip() == "2"]
        return line.split("│")[5].strip()

    code, text = await command("status")
    assert (code, lag(text)) == (0, "0")
    await shop.produce(event("late-1"), event("late-2"), partition=2)
    code, text = await command("status")
    assert (code, lag(text)) == (0, "2")
    await shop.consume()
    assert lag((await command("status"))[1]) == "0"


async def test_what_was_put_back_can_be_lost_and_put_back_again(shop: Shop, command: Command) -> None:
    """Whole ranges and parts of them: no token of an earlier time stands in the way."""
    for lost in ("kafka_partition = 1", "kafka_partition = 1", "kafka_partition = 1 AND kafka_offset IN (2, 3)") * 2:
        shop.delete(lost)
        assert shop.rows("kafka_partition = 1") < 10
        assert (await command("rewind", "--to-offset", "app_interactions:1:0"))[0] == 0
        await shop.consume()
        assert shop.rows("kafka_partition = 1") == 10
    assert (await command("audit"))[0] == 0


async def test_a_duplicate_is_found(shop: Shop, command: Command) -> None:
    shop.copy("kafka_partition = 2 AND kafka_offset = 4")
    code, text = await command("audit")
    assert code == 1
    assert "WRONG: 1 duplicate rows, 0 records without a row." in text
    assert "app_interactions:2 duplicates at 4\n" in text
    metrics = Metrics(CollectorRegistry())
    await AuditTimer(shop.settings, shop.clickhouse, metrics).audit()
    page = metrics.render().decode()
    assert 'consumer_audit_duplicates{partition="2",topic="app_interactions"} 1.0' in page
    assert 'consumer_audit_gaps{partition="2",topic="app_interactions"} 0.0' in page
    assert "consumer_audit_time 0.0" not in page

    shop.delete("kafka_partition = 2 AND kafka_offset = 4")
    await command("rewind", "--to-offset", "app_interactions:2:4")
    await shop.consume()
    assert (await command("audit"))[0] == 0


async def test_a_gap_and_a_duplicate_do_not_cancel_out(shop: Shop) -> None:
    shop.copy("kafka_partition = 3 AND kafka_offset = 4")
    shop.delete("kafka_partition = 3 AND kafka_offset = 5")
    assert shop.rows("kafka_partition = 3") == 10
    found = await shop.audited(3)
    assert (found.duplicate_offsets, found.gap_offsets) == ([4], [5])
    shop.copy("kafka_partition = 3 AND kafka_offset = 6", replacing="5 AS kafka_offset, 'first-3-5' AS event_id")
    shop.delete("kafka_partition = 3 AND kafka_offset = 4")
    shop.copy("kafka_partition = 3 AND kafka_offset = 6", replacing="4 AS kafka_offset, 'first-3-4' AS event_id")
    assert not (await shop.audited(3)).is_wrong


async def test_rows_of_an_earlier_log_are_no_duplicates_and_hide_no_gap(shop: Shop) -> None:
    earlier = "concat('earlier-', event_id) AS event_id"
    shop.copy("kafka_partition = 1 AND kafka_offset IN (2, 6)", replacing=earlier)
    found = await shop.audited(1)
    assert (found.rows, found.duplicates, found.gaps, found.earlier) == (10, 0, 0, 2)
    shop.delete("event_id = 'first-1-6'")
    found = await shop.audited(1)
    assert (found.rows, found.duplicates, found.gap_offsets, found.earlier) == (9, 0, [6], 2)
    shop.copy("event_id = 'earlier-first-1-6'", replacing="'first-1-6' AS event_id")
    # Long before this log: told by the time, without looking at single rows.
    shop.delete("startsWith(event_id, 'earlier-')")
    shop.copy("kafka_partition = 1", replacing=f"{earlier}, inserted_at - INTERVAL 1 DAY AS inserted_at")
    found = await shop.audited(1)
    assert (found.rows, found.duplicates, found.gaps, found.earlier) == (10, 0, 0, 10)
    shop.delete("event_id = 'first-1-6'")
    assert (await shop.audited(1)).gap_offsets == [6]
    shop.copy("event_id = 'earlier-first-1-6'", replacing="'first-1-6' AS event_id, now64(3) AS inserted_at")
    shop.delete("startsWith(event_id, 'earlier-')")
    assert not (await shop.audited(1)).is_wrong


async def test_offsets_without_a_record_are_no_gaps_and_a_repeated_id_is_no_fault(shop: Shop) -> None:
    first, last = await shop.produce(event("twice"), event("twice"), transactional_id="shop")
    await shop.consume()
    assert await shop.committed() == last + 2  # behind the control record of the transaction
    found = await shop.audited()
    assert (found.empty, found.repeated, found.is_wrong) == (1, 1, False)
    shop.delete(f"kafka_partition = 0 AND kafka_offset = {first}")
    found = await shop.audited()
    assert (found.empty, found.gap_offsets) == (1, [first])
    shop.copy(f"kafka_partition = 0 AND kafka_offset = {last}", replacing=f"{first} AS kafka_offset")
    assert not (await shop.audited()).is_wrong


async def test_records_that_the_table_has_expired_are_no_gaps(shop: Shop) -> None:
    shop.clickhouse.command(f"ALTER TABLE {DATABASE}.{TOPIC} MODIFY TTL toDateTime(received_at) + toIntervalDay(30)")
    value = APP_INTERACTIONS.encode({"event_type": "click"}, "old", "demo", 1_700_000_000_000)
    [offset] = await shop.produce(value, partition=3)
    await shop.consume()
    shop.delete("event_id = 'old'")
    found = await shop.audited(3)
    assert (found.end, found.expired, found.is_wrong) == (offset + 1, 1, False)
    shop.clickhouse.command(f"ALTER TABLE {DATABASE}.{TOPIC} REMOVE TTL")
    assert (await shop.audited(3)).gap_offsets == [offset]
    shop.copy("event_id = 'first-3-0'", replacing=f"{offset} AS kafka_offset, 'old' AS event_id")


async def test_an_open_intent_is_shown_and_replayed(shop: Shop, command: Command) -> None:
    partition, first = TopicPartition(TOPIC, 2), await shop.committed(2)
    await shop.produce(*(event(f"open-{n}") for n in range(4)), partition=2)
    now_ms = time.time_ns() // 1_000_000
    ranges = (Range(first, first + 1), Range(first + 1, first + 4))
    await shop.commit({partition: (first, ledger.Intent(ranges, now_ms - 300_000).encode())})
    code, text = await command("intents")
    assert code == 0
    [line] = [line for line in text.splitlines() if "app_interactions" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    shown = f"{first} to {first}, {first + 1} to {first + 3}"
    assert cells == ["app_interactions", "2", shown, "4", "0", "5 min", "remembered"]
    assert (await command("audit"))[0] == 0  # what is open is no gap

    await shop.commit({partition: (first, ledger.Intent(ranges, now_ms).encode())})
    with pytest.raises(RewindRefused, match="may still be on its way"):
        await command("rewind", "--to-offset", "app_interactions:2:0")
    await shop.commit({partition: (first, ledger.Intent(ranges, now_ms - 300_000).encode())})
    code, text = await command("rewind", "--to-offset", f"app_interactions:2:{first - 2}", "--dry-run")
    assert "Would read 6 offsets again" in text
    await shop.consume()
    assert shop.rows("startsWith(event_id, 'open-')") == 4
    assert (await command("audit"))[0] == 0


async def test_the_doctor_finds_a_fresh_stack_sound(command: Command) -> None:
    code, text = await command("doctor")
    assert code == 0
    assert "OK: " in text
    assert " bad " not in text
    for check in ("migrations", "clock", "offset.metadata.max.bytes", "window of app_interactions", "commits"):
        [line] = [line for line in text.splitlines() if f"│ {check} " in line]
        assert "│ ok " in line


async def test_the_doctor_finds_what_is_wrong(shop: Shop, command: Command) -> None:
    run, table = shop.clickhouse.command, f"{DATABASE}.{TOPIC}"
    run(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0")
    run(f"ALTER TABLE {table} DROP COLUMN dwell_ms")
    run(f"CREATE TABLE {DATABASE}.clicks (app String, n UInt64) ENGINE = SummingMergeTree ORDER BY app")
    run(f"CREATE MATERIALIZED VIEW {DATABASE}.to_clicks TO {DATABASE}.clicks AS SELECT app, 1 AS n FROM {table}")
    run(f"RENAME TABLE {DATABASE}.retriever_interactions TO {DATABASE}.elsewhere")
    run(f"ALTER TABLE {DATABASE}.sluice_migrations UPDATE checksum = 'x' WHERE 1 SETTINGS mutations_sync = 2")
    try:
        code, text = await command("doctor")
    finally:
        run(f"DROP TABLE {DATABASE}.to_clicks")
        run(f"DROP TABLE {DATABASE}.clicks")
        run(f"RENAME TABLE {DATABASE}.elsewhere TO {DATABASE}.retriever_interactions")
        run(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 10000")
        run(f"ALTER TABLE {table} ADD COLUMN dwell_ms Nullable(Int64) AFTER latency_ms")
    assert code == 1
    states = {
        cells[1].strip(): (cells[2].strip(), cells[3].strip())
        for cells in (line.split("│") for line in text.splitlines() if line.startswith("│"))
    }
    state, advice = states["window of app_interactions"]
    assert state == "bad"
    assert "MODIFY SETTING non_replicated_deduplication_window = 10000" in advice
    assert states["window of view target clicks"][0] == "bad"
    assert states["columns of app_interactions"][0] == "warn"
    assert "lacks dwell_ms" in states["columns of app_interactions"][1]
    assert states["table retriever_interactions"][0] == "bad"
    assert states["migrations"][0] == "bad"


async def test_dead_letters_from_burial_to_their_end(
    shop: Shop, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = b'{"event_id":"x","app":"demo","received_at":"nonsense \x1b[31m","event_type":"e"}'
    [lost, mended] = await shop.produce(hopeless, event("y", dwell_ms='"long"'))
    await shop.produce(event("z"))
    await shop.consume()
    found = await shop.audited()
    assert (found.dead_letters, found.is_wrong) == (2, False)

    lost_key, mended_key = f"{TOPIC}:0:{lost}", f"{TOPIC}:0:{mended}"
    code, text = await command("dead-letters", "ls")
    assert code == 0
    assert lost_key in text
    assert mended_key in text
    assert "CANNOT_PARSE_DATETIME in received_at" in text
    assert "nonsense" not in text
    code, text = await command("dead-letters", "show", lost_key)
    assert "nonsense \\x1b[31m" in text
    assert "header dead.code: 41" in text
    code, text = await command("dead-letters", "replay", "--all")
    assert code == 1
    assert "0 done, 2 refused." in text
    assert f"{lost_key} refused: CANNOT_PARSE_DATETIME in received_at" in text

    shop.clickhouse.command(f"ALTER TABLE {DATABASE}.{TOPIC} MODIFY COLUMN dwell_ms Nullable(String) CODEC(ZSTD(1))")
    with monkeypatch.context() as broken:

        async def fail(*_: object) -> None:
            raise KafkaUnavailable("now")

        broken.setattr(Marks, "mark", fail)
        with pytest.raises(KafkaUnavailable):
            await command("dead-letters", "replay", mended_key)
    assert shop.rows(f"event_id = 'y' AND kafka_offset = {mended} AND dwell_ms = 'long'") == 1
    assert mended_key in (await command("dead-letters", "ls"))[1]
    for words in (["--all"], [mended_key], [mended_key]):
        code, text = await command("dead-letters", "replay", *words)
        assert f"{mended_key} replayed" in text
        assert shop.rows("event_id = 'y'") == 1
    assert mended_key not in (await command("dead-letters", "ls"))[1]

    code, text = await command("dead-letters", "drop", "--all")
    assert code == 0
    assert f"{lost_key} dropped" in text
    assert "No dead letters." in (await command("dead-letters", "ls"))[1]
    code, text = await command("dead-letters", "ls", "--all")
    assert [line.split("│")[2].strip() for line in text.splitlines() if f"{TOPIC}:0" in line] == ["replayed", "dropped"]
    found = await shop.audited()
    assert (found.dead_letters, found.is_wrong) == (1, False)
    # A letter that was replayed excuses no gap.
    shop.delete("event_id = 'y'")
    assert (await shop.audited()).gap_offsets == [mended]
    # A rewind puts it back, and buries the other one again: no unreadable record stands in its way.
    await command("rewind", "--to-offset", f"{TOPIC}:0:{lost}")
    await shop.consume()
    assert shop.rows("event_id = 'y'") == 1
    assert lost_key in (await command("dead-letters", "ls"))[1]
    assert not (await shop.audited()).is_wrong


def test_a_store_that_is_away_is_one_line(stack: Stack) -> None:
    away = {"CONSUMER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "CONSUMER_CLICKHOUSE_URL": "http://127.0.0.1:1/x"}
    here = {"CONSUMER_KAFKA_BOOTSTRAP_SERVERS": stack.endpoints.kafka_bootstrap_servers}
    for words, env, complaint in (
        (["audit"], away, "Kafka at 127.0.0.1:1: "),
        (["dead-letters", "ls"], away, "Kafka at 127.0.0.1:1: "),
        (["audit"], {**away, **here}, "ClickHouse: "),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "consumer", *words], env={**os.environ, **env}, capture_output=True, text=True
        )
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith(complaint)
