"""Rows that ClickHouse acknowledged and does not have: found behind a repeated INSERT, and put back once.

A plain MergeTree notes an INSERT's token first and renames its part into place then. Killed between the two, it
comes back with the token of rows that it lacks: the same block, sent again, is dropped by the table, handed on to
its views and acknowledged. So whoever repeats an INSERT has its rows looked for. What is missing goes in past the
views, which have had it: through a staging table whose parts are moved.

Any step may be the last one, and all may be repeated: each beginning drops the staging table, waits for whoever
still works with it, and asks the table anew. Rows are staged once and leave by being moved, so they arrive once. A
consumer that sleeps through its session before it moves finds nothing to move, or moves what the next owner staged.

Limits: plain MergeTree alone. Replicated and shared tables note token and part in one transaction; others cannot
be asked by offset, or hold nothing. A view's target that was killed in that moment itself stays without the block.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

import structlog

from consumer.clickhouse import ClickHouse, ClickHouseUnavailable, RowRejected
from consumer.inserter import Inserter
from consumer.metrics import Metrics
from consumer.recovery import Recovery, rest_token
from consumer.source import TopicPartition

log = structlog.get_logger(__name__)

_PLAIN = re.compile(r"MergeTree\b")


class NotPutBack(Exception):
    """The table lacks rows that it has acknowledged, and refuses them another way in."""


class LostRows:
    def __init__(self, clickhouse: ClickHouse, inserter: Inserter, recovery: Recovery, metrics: Metrics) -> None:
        self._clickhouse = clickhouse
        self._inserter = inserter
        self._recovery = recovery
        self._metrics = metrics

    async def put_back(
        self,
        partition: TopicPartition,
        offsets: Sequence[int],
        rows: Sequence[bytes],
        prove: Callable[[], Awaitable[None]],
    ) -> None:
        """Make sure of rows whose INSERT was acknowledged when it was not the first.

        Raises NotPutBack, ClickHouseUnavailable (to be repeated from the INSERT on) or source.Fenced.
        """
        staging = f"{partition.topic}_lost_{partition.partition}_{offsets[0]}"
        is_whole = not await self._inserter.call(self._lost, partition, offsets, rows)
        if is_whole and not await self._inserter.call(self._exists, staging):
            return
        try:
            await prove()
            await self._inserter.call(self._drop, staging)
            # Not before: somebody's rows may have been on their way from there.
            if lost := await self._inserter.call(self._lost, partition, offsets, rows):
                log.warning(
                    "clickhouse acknowledged rows that it does not have, putting them back",
                    topic=partition.topic,
                    partition=partition.partition,
                    first=offsets[0],
                    last=offsets[-1],
                    rows=len(rows),
                    lost=len(lost),
                )
                await self._inserter.call(self._stage, partition.topic, staging, lost)
                await prove()
                await self._inserter.call(self._move, staging, partition.topic)
                await self._inserter.call(self._drop, staging)
                self._metrics.rows_put_back.labels(partition.topic).inc(len(lost))
        except RowRejected as error:
            raise NotPutBack(f"rows that {partition.topic} lost are refused by its copy: {error}") from error
        except ClickHouseUnavailable as error:
            if error.code:
                raise NotPutBack(f"rows that {partition.topic} lost cannot be put back: {error}") from error
            raise
        if left := await self._inserter.call(self._lost, partition, offsets, rows):
            raise NotPutBack(f"{partition.topic} does not keep {len(left)} rows that were put into it")

    def _lost(self, partition: TopicPartition, offsets: Sequence[int], rows: Sequence[bytes]) -> list[bytes]:
        if not _PLAIN.match(self._clickhouse.engine(partition.topic)):
            return []
        return self._recovery.missing(partition, offsets, rows)

    def _exists(self, staging: str) -> bool:
        """Left behind by one who died at it."""
        return self._clickhouse.query(f"EXISTS TABLE {self._name(staging)}") == [(1,)]

    def _drop(self, staging: str) -> None:
        """Behind this nobody moves rows out of it any more: SYNC waits for those who are about it."""
        self._clickhouse.command(f"DROP TABLE IF EXISTS {self._name(staging)} SYNC")
        # That of an earlier attempt, which we have stopped waiting for, may still be waiting itself.
        if self._clickhouse.query(
            "SELECT 1 FROM system.dropped_tables WHERE database = {database:String} AND table = {table:String}",
            {"database": self._clickhouse.database, "table": staging},
        ):
            raise ClickHouseUnavailable(0, f"an earlier {staging} is still in use")

    def _stage(self, table: str, staging: str, rows: Sequence[bytes]) -> None:
        self._clickhouse.command(f"CREATE TABLE {self._name(staging)} AS {self._name(table)}")
        # The token keeps out the same rows of one who sent them long ago, and was not heard until now.
        self._clickhouse.insert(staging, rows, rest_token(staging, rows))

    def _move(self, staging: str, table: str) -> None:
        """No view hears of it."""
        for (partition_id,) in self._clickhouse.query(f"SELECT DISTINCT _partition_id FROM {self._name(staging)}"):
            self._clickhouse.command(
                f"ALTER TABLE {self._name(staging)} MOVE PARTITION ID '{partition_id}' TO TABLE {self._name(table)}"
            )

    def _name(self, table: str) -> str:
        return f"`{self._clickhouse.database}`.`{table}`"
