"""Rows that the table acknowledged and lost come back once, whoever puts them back, and however late; no view counts
them again. The loss is made with a DELETE: as behind a kill, the token stays and the view has had the block."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from consumer.clickhouse import ClickHouse, ClickHouseUnavailable
from consumer.inserter import Inserter
from consumer.lost_rows import LostRows, NotPutBack
from consumer.metrics import Metrics
from consumer.migrations import create_tables, migrations
from consumer.recovery import Recovery
from consumer.settings import ConsumerSettings
from consumer.source import Fenced, TopicPartition
from tests.integration.test_local_clickhouse import Server, eventually, running

TABLE = "app_interactions"
PARTITION = TopicPartition(TABLE, 3)
FIRST = 1_000
OFFSETS = list(range(FIRST, FIRST + 100))
ROWS = [
    b'{"event_id":"id-%d","app":"demo","received_at":"2025-%d-01T00:00:00.000Z","event_type":"view",'
    b'"kafka_partition":3,"kafka_offset":%d}\n' % (offset, 11 + offset % 2, offset)
    for offset in OFFSETS
]
STAGING = f"{TABLE}_lost_3_{FIRST}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


class Owner:
    """Of the partition: a consumer's part that talks to ClickHouse. `prove` is its proof."""

    def __init__(self, server: Server, database: str, prove: Callable[[], Awaitable[None]] | None = None) -> None:
        self.clickhouse = ClickHouse(ConsumerSettings(clickhouse_url=SecretStr(f"{server.url}/{database}")))
        self.clickhouse.use_database()
        self.metrics = Metrics(CollectorRegistry())
        inserter = Inserter(self.clickhouse, self.metrics)
        recovery = Recovery(self.clickhouse, inserter, {}, self.metrics)
        self._lost_rows = LostRows(self.clickhouse, inserter, recovery, self.metrics)
        self._prove = prove or self._proven

    async def _proven(self) -> None:
        pass

    async def put_back(self) -> None:
        await self._lost_rows.put_back(PARTITION, OFFSETS, ROWS, self._prove)

    def counts(self) -> tuple[int, int, int]:
        """Rows, different rows, and what the view has counted."""
        [counts] = self.clickhouse.query(
            f"SELECT count(), uniqExact(kafka_offset), (SELECT sum(events) FROM rollup) FROM {TABLE}"
        )
        return int(counts[0]), int(counts[1]), int(counts[2])

    def staging(self) -> list[str]:
        return [name for (name,) in self.clickhouse.query("SHOW TABLES LIKE '%lost%'")]


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> str:
    """With the range landed, counted by a view, and most of it lost."""
    database = f"lost_{abs(hash(request.node.nodeid))}"
    server.ask(f"CREATE DATABASE {database}")
    owner = Owner(server, database)
    create_tables(owner.clickhouse, migrations(), retention_days=0)
    owner.clickhouse.command(
        "CREATE TABLE rollup (event_type String, events UInt64) ENGINE = SummingMergeTree ORDER BY event_type "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    owner.clickhouse.command(
        "CREATE MATERIALIZED VIEW rollup_view TO rollup AS "
        f"SELECT event_type, count() AS events FROM {TABLE} GROUP BY event_type"
    )
    owner.clickhouse.insert(TABLE, ROWS, "the token")
    owner.clickhouse.command(
        f"ALTER TABLE {TABLE} DELETE WHERE kafka_offset >= {FIRST + 2} SETTINGS mutations_sync = 2"
    )
    owner.clickhouse.insert(TABLE, ROWS, "the token")
    assert owner.counts() == (2, 2, 100)
    return database


async def test_lost_rows_come_back_once(server: Server, database: str) -> None:
    owner = Owner(server, database)
    for _ in range(2):
        await owner.put_back()
        assert owner.counts() == (100, 100, 100)
        assert owner.staging() == []
    assert b'consumer_rows_put_back_total{topic="app_interactions"} 98.0' in owner.metrics.render()


async def test_a_whole_range_is_only_looked_at(server: Server, database: str) -> None:
    async def never() -> None:
        raise AssertionError("nothing to prove")

    await Owner(server, database).put_back()
    await Owner(server, database, never).put_back()


async def test_what_one_that_died_has_staged_is_dropped(server: Server, database: str) -> None:
    owner = Owner(server, database)
    owner.clickhouse.command(f"CREATE TABLE {STAGING} AS {TABLE}")
    owner.clickhouse.insert(STAGING, ROWS, "another token")
    await owner.put_back()
    assert owner.counts() == (100, 100, 100)
    owner.clickhouse.command(f"CREATE TABLE {STAGING} AS {TABLE}")
    await owner.put_back()
    assert owner.staging() == []


async def test_a_table_that_refuses_them_is_trouble(server: Server, database: str) -> None:
    owner = Owner(server, database)
    owner.clickhouse.command(f"ALTER TABLE {TABLE} ADD CONSTRAINT full CHECK position > 0")
    with pytest.raises(NotPutBack, match="VIOLATED_CONSTRAINT"):
        await owner.put_back()
    owner.clickhouse.command(f"ALTER TABLE {TABLE} DROP CONSTRAINT full")
    await owner.put_back()
    assert owner.counts() == (100, 100, 100)


async def test_other_engines_are_left_alone(server: Server, database: str) -> None:
    owner = Owner(server, database)
    owner.clickhouse.command(f"RENAME TABLE {TABLE} TO kept")
    owner.clickhouse.command(f"CREATE TABLE {TABLE} AS kept ENGINE = ReplacingMergeTree ORDER BY kafka_offset")
    await owner.put_back()
    assert owner.counts() == (0, 0, 100)


@pytest.mark.parametrize("sleeps_at", [1, 2])
@pytest.mark.parametrize("is_fenced", [True, False])
class Sleeper:
    """Sleeps at its `at`th proof; told to, it is fenced by the first one that it begins after that."""

    def __init__(self, at: int) -> None:
        self.asleep, self.awake = asyncio.Event(), asyncio.Event()
        self._left = at

    async def prove(self) -> None:
        if self.asleep.is_set():
            raise Fenced
        self._left -= 1
        if not self._left:
            self.asleep.set()
            await self.awake.wait()


async def test_one_that_slept_before_it_staged_is_fenced_before_it_moves(server: Server, database: str) -> None:
    """Or finds, as here, that there is nothing left to do."""
    sleeper = Sleeper(1)
    sleeping = asyncio.create_task(Owner(server, database, sleeper.prove).put_back())
    await sleeper.asleep.wait()
    next_owner = Owner(server, database)
    await next_owner.put_back()
    sleeper.awake.set()
    await sleeping
    assert next_owner.counts() == (100, 100, 100)


async def test_one_that_slept_before_it_moved_has_nothing_left_to_move(server: Server, database: str) -> None:
    sleeper = Sleeper(2)
    sleeping = asyncio.create_task(Owner(server, database, sleeper.prove).put_back())
    await sleeper.asleep.wait()
    next_owner = Owner(server, database)
    await next_owner.put_back()
    sleeper.awake.set()
    with pytest.raises(NotPutBack, match="UNKNOWN_TABLE"):
        await sleeping
    assert next_owner.counts() == (100, 100, 100)


async def test_one_that_slept_before_it_moved_moves_what_the_next_owner_staged(server: Server, database: str) -> None:
    sleeper, next_one = Sleeper(2), Sleeper(2)
    sleeping = asyncio.create_task(Owner(server, database, sleeper.prove).put_back())
    await sleeper.asleep.wait()
    next_owner = Owner(server, database, next_one.prove)
    owning = asyncio.create_task(next_owner.put_back())
    await next_one.asleep.wait()
    sleeper.awake.set()
    await sleeping
    assert next_owner.counts() == (100, 100, 100)
    next_one.awake.set()
    with pytest.raises(NotPutBack, match="UNKNOWN_TABLE"):  # tried again, all is there
        await owning
    await next_owner.put_back()
    assert next_owner.counts() == (100, 100, 100)


async def test_a_staging_table_in_use_is_waited_for(server: Server, database: str) -> None:
    """What moves rows out of it has not ended when it is dropped, and we have stopped waiting for both."""
    owner = Owner(server, database)
    owner.clickhouse.command(f"CREATE TABLE {STAGING} AS {TABLE}")
    owner.clickhouse.insert(STAGING, ROWS, "another token")
    query_id = f"user of {database}"
    slow = f"SELECT sum(sleepEachRow(0.05)) FROM {database}.{STAGING} SETTINGS max_block_size = 10"
    user = asyncio.create_task(asyncio.to_thread(server.ask, slow, query_id=query_id))
    runs = f"SELECT count() FROM system.processes WHERE Settings['log_comment'] = '{query_id}'"
    await asyncio.to_thread(eventually, lambda: server.ask(runs) == "1")
    dropper = asyncio.create_task(asyncio.to_thread(server.ask, f"DROP TABLE {database}.{STAGING} SYNC"))
    await asyncio.to_thread(eventually, lambda: not owner.staging())
    with pytest.raises(ClickHouseUnavailable, match="still in use"):
        await owner.put_back()
    await user
    await dropper
    await owner.put_back()
    assert owner.counts() == (100, 100, 100)
