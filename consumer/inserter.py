"""One attempt at one block, and the policy that repeats it while ClickHouse is away.

An outage is nobody's fault and nothing is dropped for it: jittered backoff, for as long as it takes. While it
lasts one batch probes for all partitions, so that a server that comes back is not met by a crowd.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from consumer.clickhouse import ClickHouse, ClickHouseUnavailable
from consumer.metrics import Metrics

log = structlog.get_logger(__name__)

INSERTS_IN_FLIGHT_MAX = 4
BACKOFF_MAX_S = 15.0

T = TypeVar("T")


class Inserter:
    """Calls ClickHouse from a bounded pool of threads, INSERTS_IN_FLIGHT_MAX at a time."""

    def __init__(self, clickhouse: ClickHouse, metrics: Metrics) -> None:
        self._clickhouse = clickhouse
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(INSERTS_IN_FLIGHT_MAX, "clickhouse")
        self._probe = asyncio.Lock()
        self.unready_reason: str | None = None

    async def insert(self, table: str, texts: Sequence[bytes], rows: int, token: str) -> None:
        """One attempt at one block, whose rows are those of all texts. Raises RowRejected (a row is at fault) or
        ClickHouseUnavailable."""
        started = time.monotonic()
        await self.call(self._clickhouse.insert, table, texts, token)
        self._metrics.inserted(table, rows, time.monotonic() - started)

    async def insist(self, table: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat what raises ClickHouseUnavailable; anything else it raises comes through."""
        if self.unready_reason is None:
            try:
                return await attempt()
            except ClickHouseUnavailable as error:
                self._failed(table, error)
        async with self._probe:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(ClickHouseUnavailable),
                wait=wait_random_exponential(multiplier=0.2, max=BACKOFF_MAX_S),
                before_sleep=lambda state: self._failed(table, _failure(state)),
            )
            result: T = await retrying(attempt)
            if self.unready_reason is not None:
                self.unready_reason = None
                log.info("clickhouse answers again")
            return result

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """A blocking call, from a thread. It is not interrupted by cancellation, only no longer waited for."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _failed(self, table: str, error: BaseException) -> None:
        code = getattr(error, "code", 0)
        self._metrics.insert_failures.labels(table, str(code)).inc()
        self.unready_reason = f"ClickHouse takes no inserts: {error}"
        log.warning("clickhouse is unavailable, will be tried again", table=table, code=code, error=str(error))


def _failure(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None, "tenacity sleeps only behind a failure"
    return error
