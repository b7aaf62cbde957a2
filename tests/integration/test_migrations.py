"""`migrate`: repeatable, in order, and nothing that was applied may change behind its back."""

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from consumer.clickhouse import ClickHouse, ClickHouseUnavailable
from consumer.migrations import Migration, MigrationError, create_tables, migrations
from consumer.settings import ConsumerSettings
from deploy.local.stack import Ports, Stack
from schemas.streams import STREAMS


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Stack(tmp_path_factory.mktemp("migrations"), Ports.free(), parts=("clickhouse",)) as stack:
        yield stack.endpoints.clickhouse_url


@pytest.fixture
def clickhouse(url: str, request: pytest.FixtureRequest) -> Iterator[ClickHouse]:
    """In a database of the test's own, which does not exist yet."""
    made = ClickHouse(ConsumerSettings(clickhouse_url=SecretStr(f"{url}/db_{abs(hash(request.node.name))}")))
    yield made
    made.close()


def applied(clickhouse: ClickHouse) -> list[tuple[int, str]]:
    return clickhouse.query("SELECT number, name FROM sluice_migrations ORDER BY number")


def test_tables_take_what_the_streams_write(clickhouse: ClickHouse) -> None:
    create_tables(clickhouse, migrations(), 0)
    for stream in STREAMS:
        columns = clickhouse.columns(stream.name)
        assert {"event_id", stream.owner, "received_at", "extra", "kafka_partition", "kafka_offset", "inserted_at"} <= (
            columns.keys()
        )
        assert stream.fields <= columns.keys()
        assert "deduplication_window = 10000" in clickhouse.engine(stream.name)


def test_again_is_nothing_new(clickhouse: ClickHouse) -> None:
    create_tables(clickhouse, migrations(), 0)
    first = applied(clickhouse)
    create_tables(clickhouse, migrations(), 0)
    assert applied(clickhouse) == first == [(m.number, m.name) for m in migrations()]


def test_a_new_file_is_applied_and_comments_with_semicolons_are_none_of_its_statements(clickhouse: ClickHouse) -> None:
    new = Migration(
        9_000, "more", "-- one; two\nCREATE TABLE IF NOT EXISTS more (x String DEFAULT ';') ENGINE = Memory;\n"
    )
    create_tables(clickhouse, [*migrations(), new], 0)
    assert clickhouse.columns("more") == {"x": "String"}
    assert applied(clickhouse)[-1] == (9_000, "more")


def test_a_file_that_was_changed_behind_its_application_is_refused(clickhouse: ClickHouse) -> None:
    create_tables(clickhouse, migrations(), 0)
    changed = [Migration(m.number, m.name, m.sql + "\n-- changed") for m in migrations()]
    with pytest.raises(MigrationError, match="was changed after it was applied"):
        create_tables(clickhouse, changed, 0)


def test_a_file_that_failed_halfway_is_applied_from_its_beginning(clickhouse: ClickHouse) -> None:
    create_tables(clickhouse, migrations(), 0)
    half = Migration(9_000, "half", "CREATE TABLE IF NOT EXISTS half (x String) ENGINE = Memory; SELECT nonsense;")
    with pytest.raises(ClickHouseUnavailable):
        create_tables(clickhouse, [*migrations(), half], 0)
    assert (9_000, "half") not in applied(clickhouse)
    whole = Migration(9_000, "half", half.sql.replace("SELECT nonsense", "SELECT 1"))
    create_tables(clickhouse, [*migrations(), whole], 0)
    assert (9_000, "half") in applied(clickhouse)


def test_retention_is_set_changed_and_taken_away(clickhouse: ClickHouse) -> None:
    for days, expected in ((30, "toIntervalDay(30)"), (30, "toIntervalDay(30)"), (7, "toIntervalDay(7)"), (0, None)):
        create_tables(clickhouse, migrations(), days)
        for stream in STREAMS:
            engine = clickhouse.engine(stream.name)
            assert (expected in engine) if expected else (" TTL " not in engine)


def test_numbers_are_unique_and_in_order() -> None:
    numbers = [migration.number for migration in migrations()]
    assert numbers == sorted(set(numbers))
