"""What ClickHouse says of one demo run: every number that the demo shows of the rows is one of these queries.

Limits: only the rows that carry the run's mark; a row that lands after the question is not in the answer.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError

from deploy.local.process import Failure
from deploy.local.stack import DATABASE
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS

CONNECT_S_MAX = 5
ANSWER_S_MAX = 30

# The app contract keeps fields that it does not name in `extra`, the retriever contract has `metadata` for them.
APP = """app_interactions
    WHERE app = 'demo' AND JSONExtractString(extra, 'demo_run') = {run:String}"""
RETRIEVER = """retriever_interactions
    WHERE retriever = 'demo' AND JSONExtractString(metadata, 'demo_run') = {run:String}"""

COUNT = f"""
SELECT
    (SELECT count() FROM {APP}) +
    (SELECT count() FROM {RETRIEVER})
"""

EVENT_IDS = {
    APP_INTERACTIONS.name: f"SELECT event_id FROM {APP}",
    RETRIEVER_INTERACTIONS.name: f"SELECT event_id FROM {RETRIEVER}",
}

TYPES = f"""
SELECT type, countIf(stream = 'app'), countIf(stream = 'retriever')
FROM
(
    SELECT 'app' AS stream, event_type AS type FROM {APP}
    UNION ALL
    SELECT 'retriever' AS stream, arrayJoin(interaction_type) AS type FROM {RETRIEVER}
)
GROUP BY type
ORDER BY count() DESC, type
"""

POSITIONS = f"""
SELECT
    position,
    countIf(type = 'view') AS views,
    countIf(type = 'click') AS clicks,
    clicks / views AS ctr,
    arrayElement({{examined:Array(Float64)}}, position + 1) AS examined,
    ctr / examined AS corrected_ctr
FROM
(
    SELECT position, event_type AS type FROM {APP}
    UNION ALL
    SELECT position, arrayJoin(interaction_type) AS type FROM {RETRIEVER}
)
WHERE type IN ('view', 'click')
GROUP BY position
HAVING views > 0
ORDER BY position
"""

QUERIES = f"""
SELECT
    query,
    countIf(event_type = 'search') AS searches,
    countIf(event_type = 'click') AS clicks,
    countIf(event_type = 'purchase') AS purchases
FROM {APP}
GROUP BY query
HAVING searches > 0
ORDER BY searches DESC, query
LIMIT {{queries_max:UInt32}}
"""

ZERO_RESULTS = f"""
SELECT query, count() AS searches
FROM {APP}
    AND event_type = 'search' AND result_count = 0
GROUP BY query
ORDER BY searches DESC, query
LIMIT {{queries_max:UInt32}}
"""

DELAYS = f"""
SELECT arrayJoin(quantilesExact(0.5, 0.95, 0.99, 1)(ms))
FROM
(
    SELECT dateDiff('millisecond', received_at, inserted_at) AS ms FROM {APP}
    UNION ALL
    SELECT dateDiff('millisecond', received_at, inserted_at) AS ms FROM {RETRIEVER}
)
"""


class Answers:
    """Asks over HTTP, as dashboards do. Every call blocks for a bounded time and may raise `Failure`."""

    def __init__(self, clickhouse_url: str, run: str) -> None:
        self.url = clickhouse_url
        self._run = run
        address = urlsplit(clickhouse_url)
        try:
            self._client = clickhouse_connect.get_client(
                host=address.hostname,
                port=address.port or 8123,
                database=DATABASE,
                connect_timeout=CONNECT_S_MAX,
                send_receive_timeout=ANSWER_S_MAX,
                autogenerate_session_id=False,
            )
        except ClickHouseError as error:
            raise self._failure(error) from error

    def count(self) -> int:
        """Rows of this run in both tables."""
        return int(self._rows(COUNT)[0][0])

    def event_ids(self) -> dict[str, list[str]]:
        """Of each row of this run, by stream: an id that is there twice comes twice."""
        return {stream: [event_id for (event_id,) in self._rows(sql)] for stream, sql in EVENT_IDS.items()}

    def types(self) -> Sequence[Sequence[Any]]:
        """(type, in app_interactions, in retriever_interactions), the most frequent first."""
        return self._rows(TYPES)

    def positions(self, examined: Sequence[float]) -> Sequence[Sequence[Any]]:
        """(position, views, clicks, CTR, examined, CTR with examination divided out)."""
        return self._rows(POSITIONS, examined=list(examined))

    def queries(self, queries_max: int) -> Sequence[Sequence[Any]]:
        """(query, searches, clicks, purchases) of the app, the most searched first."""
        return self._rows(QUERIES, queries_max=queries_max)

    def zero_results(self, queries_max: int) -> Sequence[Sequence[Any]]:
        """(query, searches) of the app that found nothing, the most searched first."""
        return self._rows(ZERO_RESULTS, queries_max=queries_max)

    def delays_ms(self) -> list[float]:
        """p50, p95, p99 and the longest time from the gateway's receipt of an event to its insertion."""
        return [float(ms) for (ms,) in self._rows(DELAYS)]

    def _rows(self, sql: str, **parameters: Any) -> Sequence[Sequence[Any]]:
        try:
            rows: Sequence[Sequence[Any]] = self._client.query(
                sql, parameters={"run": self._run, **parameters}
            ).result_rows
        except ClickHouseError as error:
            raise self._failure(error) from error
        return rows

    def _failure(self, error: ClickHouseError) -> Failure:
        return Failure(f"ClickHouse at {self.url} did not answer:", str(error).splitlines()[:4])
