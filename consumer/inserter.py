"""From a batch to a landed block: one attempt, and the policy that repeats it for as long as it takes.

ClickHouse being away is nobody's fault and nothing is dropped for it: the batch is sent again with jittered
backoff. While it is away one batch probes for all partitions.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from consumer.batch import Batch
from consumer.clickhouse import ClickHouse, ClickHouseUnavailable, RowRejected
from consumer.metrics import Metrics
from consumer.source import TopicPartition

log = structlog.get_logger(__name__)

INSERTS_IN_FLIGHT_MAX = 4
BACKOFF_MAX_S = 15.0

_FAILURES = (ClickHouseUnavailable, RowRejected)


class Inserter:
    def __init__(self, clickhouse: ClickHouse, metrics: Metrics) -> None:
        self._clickhouse = clickhouse
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(INSERTS_IN_FLIGHT_MAX, "insert")
        self._outage = asyncio.Lock()
        self.unready_reason: str | None = None

    async def insert(self, partition: TopicPartition, batch: Batch, token: str) -> None:
        """Until ClickHouse has acknowledged the batch. Ends early only by cancellation."""
        if not batch.rows:
            return
        if self.unready_reason is None:
            try:
                await self._attempt(partition, batch, token)
            except _FAILURES:
                pass  # told by _attempt
            else:
                return
        async with self._outage:  # one probes, the others wait for its success
            await AsyncRetrying(
                retry=retry_if_exception_type(_FAILURES),
                wait=wait_random_exponential(multiplier=0.2, max=BACKOFF_MAX_S),
            )(self._attempt, partition, batch, token)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _attempt(self, partition: TopicPartition, batch: Batch, token: str) -> None:
        """Raises RowRejected or ClickHouseUnavailable."""
        started = time.monotonic()
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._threads,
                self._clickhouse.insert,
                partition.topic,
                b"".join(batch.rows),
                token,
            )
        except _FAILURES as error:
            self._failed(partition, batch, error)
            raise
        if self.unready_reason is not None:
            log.info("clickhouse takes inserts again")
            self.unready_reason = None
        self._metrics.inserted(partition, batch, time.monotonic() - started)

    def _failed(self, partition: TopicPartition, batch: Batch, error: ClickHouseUnavailable | RowRejected) -> None:
        self._metrics.insert_failed(partition, error.code)
        self.unready_reason = f"ClickHouse takes no inserts: {error}"
        log.warning(
            "insert failed, will be repeated",
            topic=partition.topic,
            partition=partition.partition,
            first=batch.range.first,
            end=batch.range.end,
            code=error.code,
            error=str(error),
        )
