"""The tables that consumers fill: a database of its own for each run, what has landed in it and when, how it is filled.

When a block landed is read from its rows afterwards: to ask the engine meanwhile would take time from it.
"""

import time
from collections.abc import Callable
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from deploy.local.stack import Stack
from tests.bench.events import TOPIC
from tests.bench.figures import Point, cumulated

FILLED_PARTITION = 1_000_000
"""kafka_partition of rows that no consumer has inserted."""
FILL_ROWS = 2_000_000  # an INSERT, and a part
FILL_MONTHS = 10
FILLED_BEFORE = "2025-01-01"
MERGE_POLL_S = 0.5
MERGES_S_MAX = 600.0

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
SETTINGS max_block_size = 65536, min_insert_block_size_rows = {rows}, min_insert_block_size_bytes = 0,
         max_insert_threads = 1, insert_deduplicate = 0
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

    def settle(self) -> None:
        """Until the engine has no more parts to merge, for which it would take time from what is measured next."""
        ends_s = time.monotonic() + MERGES_S_MAX
        while self._query("SELECT count() FROM system.merges")[0][0] and time.monotonic() < ends_s:
            time.sleep(MERGE_POLL_S)

    def forget_consumed(self) -> None:
        """Drop what consumers have inserted: they are the only rows since FILLED_BEFORE."""
        found = self._query(
            f"SELECT DISTINCT partition FROM system.parts WHERE active AND database = '{self._database}' "
            f"AND table = '{TOPIC}' AND partition >= toString(toYYYYMM(toDate('{FILLED_BEFORE}')))"
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


# The time says it, too, and of which months nothing need be read to count.
_CONSUMED = f"kafka_partition < {FILLED_PARTITION} AND received_at >= '{FILLED_BEFORE}'"
