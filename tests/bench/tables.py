"""The tables that consumers fill: a database of its own for each run, what has landed in it and when, how it is filled.

When a block landed is read from its rows afterwards: to ask the engine meanwhile would take time from it.
"""

from collections.abc import Callable
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from deploy.local.stack import Stack
from tests.bench.events import TOPIC
from tests.bench.figures import Point, cumulated

FILLED_PARTITION = 1_000_000
"""kafka_partition of rows that no consumer has inserted."""
FILL_ROWS = 2_000_000  # an INSERT
FILL_MONTHS = 10

FILL = """
INSERT INTO {table} (event_id, app, received_at, event_type, document_id, position, query, result_count, session_id,
                     metadata, extra, kafka_partition, kafka_offset)
SELECT toString(generateUUIDv7()), 'demo', toDateTime64('2024-01-01 00:00:00', 3, 'UTC') + INTERVAL {month} MONTH
           + INTERVAL (number % 2400000) SECOND,
       ['click', 'view'][number % 2 + 1], concat('doc_', hex(rand32(1))), number % 20,
       concat('query ', toString(number % 5000)), 20 + number % 180, concat('sess_', hex(rand32(2))),
       concat('{{"page":', toString(number % 9), ',"device":"desktop"}}'), '{{"experiment":"A"}}',
       {partition}, number
FROM numbers({first}, {rows})
"""


class Table:
    """`app_interactions` in one database, made by our own migrations."""

    def __init__(self, stack: Stack, database: str, brokers: str) -> None:
        self.url = f"{stack.endpoints.clickhouse_url}/{database}"
        self._database = database
        self._client: Client = clickhouse_connect.get_client(
            dsn=stack.endpoints.clickhouse_url, autogenerate_session_id=False
        )
        environment = {"CONSUMER_CLICKHOUSE_URL": self.url, "CONSUMER_KAFKA_BOOTSTRAP_SERVERS": brokers}
        stack.new_command(f"migrate-{database}", "consumer", "migrate", env=environment).run()

    def rows(self) -> int:
        """That a consumer has inserted."""
        return int(self._query(f"SELECT count() FROM {self._name} WHERE {_CONSUMED}")[0][0])

    def distinct(self) -> int:
        """The same, each place in Kafka once."""
        counted = f"SELECT uniqExact(kafka_partition, kafka_offset) FROM {self._name} WHERE {_CONSUMED}"
        return int(self._query(counted)[0][0])

    def landings(self) -> list[Point]:
        """How many rows there were, by time (Unix s)."""
        found = self._query(
            f"SELECT toUnixTimestamp64Milli(inserted_at) AS ms, count() FROM {self._name} WHERE {_CONSUMED} GROUP BY ms"
        )
        return cumulated([Point(int(ms) / 1000, int(rows)) for ms, rows in found])

    def fill(self, rows: int, advance: Callable[[int], None]) -> None:
        """Rows of months long past, as if they had been there before."""
        first = 0
        while first < rows:
            size = min(FILL_ROWS, rows - first)
            month = first * FILL_MONTHS // rows
            statement = FILL.format(table=self._name, month=month, partition=FILLED_PARTITION, first=first, rows=size)
            self._client.command(statement)
            first += size
            advance(size)

    def forget_consumed(self) -> None:
        """Drop what consumers have inserted: they are the only rows of this year and later."""
        found = self._query(
            f"SELECT DISTINCT partition FROM system.parts WHERE active AND database = '{self._database}' "
            f"AND table = '{TOPIC}' AND partition >= '202501'"
        )
        for (partition,) in found:
            self._client.command(f"ALTER TABLE {self._name} DROP PARTITION {partition}")

    def drop(self) -> None:
        self._client.command(f"DROP DATABASE IF EXISTS {self._database}")

    def close(self) -> None:
        self._client.close()

    @property
    def _name(self) -> str:
        return f"{self._database}.{TOPIC}"

    def _query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._client.query(sql).result_rows]


_CONSUMED = f"kafka_partition < {FILLED_PARTITION}"
