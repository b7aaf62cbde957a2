"""`migrate`: repeatable, in order, and nothing that was applied may change behind its back."""

import json
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from consumer.clickhouse import ClickHouse, ClickHouseUnavailable
from consumer.migrations import Migration, MigrationError, create_tables, migrations
from consumer.settings import ConsumerSettings
from deploy.local.stack import Ports, Stack
from gateway import bots, clock, privacy
from gateway.registry import Privacy
from schemas.streams import STREAMS, iso_ms

RECEIVED_MS = 1_763_800_000_123


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


EXTREMES: list[tuple[object, object]] = [
    ("0001-01-01T00:00:00+14:00", None),
    ("1900-01-01T00:00:00.000Z", None),
    ("1969-12-31T23:59:59.999Z", None),
    (0, 1),
    (RECEIVED_MS - 1, RECEIVED_MS),
    (RECEIVED_MS + clock.FUTURE_MS_MAX, None),
    (RECEIVED_MS - clock.PAST_MS_MAX, None),
    ("2299-12-31T23:59:59.999Z", None),
    ("9999-12-31T23:59:59.999-14:00", None),
    (10**300, -(10**300)),
    (None, None),
]


def test_context_of_events_lands_as_it_is(clickhouse: ClickHouse) -> None:
    """Times to the millisecond from 1900 to 2299, texts of all letters, and nothing where nothing is."""
    create_tables(clickhouse, migrations(), 0)
    policy = Privacy(client_address="keep", user_agent="keep")
    senders = [b"Googlebot/2.1", b"curl/8", '"\\ \u2028 é😀'.encode(), None]
    expected, rows = [], []
    for number, (timestamp, sent_at) in enumerate(EXTREMES):
        times, _ = clock.times({"timestamp": timestamp, "sent_at": sent_at}, RECEIVED_MS)
        user_agent, address = senders[number % 4], ("2001:db8::1", None)[number % 2]
        kept, _ = privacy.columns(policy, address, user_agent, opted_out=False, key=None)
        context = {**times, **kept, **bots.columns(user_agent)}
        row = {"event_id": str(number), "app": "a", "retriever": "r", "document_id": "d", "position": 1, **context}
        row |= {"received_at": iso_ms(RECEIVED_MS), "event_type": "click", "interaction_type": ["click"]}
        rows.append(json.dumps({**row, "kafka_partition": 0, "kafka_offset": number}))
        expected.append(
            (
                *(clock.milliseconds(times.get(name)) for name in ("client_timestamp", "occurred_at")),
                *(context.get(name) for name in ("time_flag", "client_address", "user_agent")),
                bots.is_bot(bots.reason(user_agent)),
                context.get("bot_reason"),
            )
        )
    for stream in STREAMS:
        columns = clickhouse.columns(stream.name)
        clickhouse.insert(
            stream.name,
            [json.dumps({k: v for k, v in json.loads(row).items() if k in columns}).encode() + b"\n" for row in rows],
            token="context",
        )
        assert expected == clickhouse.query(
            "SELECT toUnixTimestamp64Milli(client_timestamp), toUnixTimestamp64Milli(occurred_at), time_flag, "
            f"client_address, user_agent, is_bot, bot_reason FROM {stream.name} ORDER BY kafka_offset"
        )


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
