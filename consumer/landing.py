"""Lands a batch: its good rows in the one real INSERT, its bad ones in the dead letters first.

What is a row's fault is found out, never assumed: the INSERT is refused, then dry runs tell which rows the
table's columns cannot take. Three kinds of trouble are not a row's fault and stop the partition, loudly, until
somebody has mended them (it is tried again every ALARM_RETRY_S): most rows being bad, rows that the table refuses
although each can be parsed, and rows that it has lost and does not take back. Columns that the table lacks stop
nothing: they go to `extra`.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from consumer import copies, poison
from consumer.batch import Batch
from consumer.block import Block
from consumer.clickhouse import ClickHouse, RowRejected
from consumer.dead_letters import DeadLetters
from consumer.inserter import Inserter
from consumer.ledger import Intent
from consumer.lost_rows import LostRows, NotPutBack
from consumer.metrics import Metrics
from consumer.recovery import Recovery, rest_token
from consumer.source import KafkaUnavailable, TopicPartition

log = structlog.get_logger(__name__)

ALARM_RETRY_S = 30.0
KAFKA_BACKOFF_MAX_S = 10.0
BREAKER_ROWS = 200
BREAKER_BAD_MIN = 20

EXTRA = "extra"


class TableTrouble(Exception):
    """The rows cannot land, and it is not the fault of single rows. Nothing of the batch has landed."""


@dataclass
class Claim:
    """The right to land one range: the open intent that names it.

    `prove` makes sure, just before something is sent, that the partition is still ours; it raises source.Fenced.
    `sent_before` tells that the rows may be in the table already: those of a replay, or of an attempt of ours.
    """

    partition: TopicPartition
    token: str
    intent: Intent
    sent_before: bool
    prove: Callable[[], Awaitable[None]]


class Breaker:
    """Pure: opens when most of what came lately was bad, over the last BREAKER_ROWS rows or a whole batch.

    A single bad row in a quiet topic is no reason to stop, a topic full of them is: at most BREAKER_BAD_MIN
    dead letters are written before it opens.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque()

    def record(self, rows: int, bad: int) -> None:
        self._recent.append((rows, bad))
        while len(self._recent) > 1 and sum(r for r, _ in self._recent) - self._recent[0][0] >= BREAKER_ROWS:
            self._recent.popleft()

    def would_open(self, rows: int, bad: int) -> bool:
        """Whether a batch with so many bad rows is one too many."""
        rows += sum(r for r, _ in self._recent)
        bad += sum(b for _, b in self._recent)
        return bad >= BREAKER_BAD_MIN and bad * 2 > rows


class Landing:
    def __init__(
        self,
        clickhouse: ClickHouse,
        inserter: Inserter,
        dead_letters: DeadLetters,
        recovery: Recovery,
        lost_rows: LostRows,
        dedupe_window_ms: int,
        metrics: Metrics,
    ) -> None:
        self._clickhouse = clickhouse
        self._inserter = inserter
        self._dead_letters = dead_letters
        self._recovery = recovery
        self._lost_rows = lost_rows
        self._dedupe_window_ms = dedupe_window_ms
        self._metrics = metrics
        self._breakers: dict[str, Breaker] = {}
        self.alarms: dict[TopicPartition, str] = {}

    async def land(self, claim: Claim, batch: Batch) -> None:
        """Until every record of the batch is in the table (itself or a copy) or in the dead letters. Raises
        source.Fenced."""
        try:
            found = await self._copies(claim.partition, batch)
            batch = batch.without(found) if found else batch
            while True:
                try:
                    await self._land(claim, batch)
                    break
                except (TableTrouble, NotPutBack) as trouble:
                    self._alarm(claim.partition, batch, str(trouble))
                    await asyncio.sleep(ALARM_RETRY_S)
        finally:
            self.alarms.pop(claim.partition, None)
            self._metrics.alarms.set(len(self.alarms))
        for reason, dropped in (("window", batch.repeats), ("replay", found)):
            if dropped:
                self._metrics.repeats_dropped.labels(claim.partition.topic, reason).inc(len(dropped))

    async def _copies(self, partition: TopicPartition, batch: Batch) -> set[int]:
        """Offsets of suspects that the table, or the batch itself, holds a copy of.

        What lies before the batch has landed, since one batch of a partition is under way at a time. With two, the
        rows of the other one would have to be looked through like those of this one.
        """
        topic = partition.topic
        events = copies.suspected(topic, partition.partition, batch, self._dedupe_window_ms)
        if not events:
            return set()
        found = copies.held_by_batch(topic, batch, events)

        async def attempt() -> set[copies.Sought]:
            rest = [event for event in events if event not in found]
            return await self._inserter.call(copies.held, self._clickhouse, topic, rest)

        return {event.offset for event in found | await self._inserter.insist(topic, attempt)}

    async def _land(self, claim: Claim, batch: Batch) -> None:
        """Raises TableTrouble or NotPutBack."""
        table = claim.partition.topic
        bad = dict.fromkeys(batch.malformed, (0, "not a JSON object"))
        if not bad:
            try:
                return await self._insert(claim, batch.block, batch.newest_ms)
            except RowRejected as error:
                log.warning("rows refused, looking for the bad ones", table=table, error=str(error))
        offsets = batch.block.offsets
        rows, rejected = await self._examine(table, batch.block.rows)
        bad |= {offsets[index]: (error.code, str(error)) for index, error in rejected.items()}
        good = [(offset, row) for i, (offset, row) in enumerate(zip(offsets, rows, strict=True)) if i not in rejected]
        await self._bury(claim, len(good) + len(bad), bad)
        try:
            await self._insert(claim, batch.block.of(good), batch.newest_ms)
        except RowRejected as error:
            raise TableTrouble(f"the table refuses rows that its columns can take: {error}") from error

    async def _insert(self, claim: Claim, block: Block, newest_ms: int) -> None:
        """Until ClickHouse has acknowledged the rows. Raises RowRejected (nothing has landed) or NotPutBack."""
        table = claim.partition.topic

        async def attempt() -> None:
            await claim.prove()
            if claim.sent_before:
                return await self._insert_again(claim, block)
            claim.sent_before = True
            try:
                await self._inserter.insert(table, block.texts, block.count, claim.token)
            except RowRejected:
                claim.sent_before = False
                raise

        if block.count:
            await self._inserter.insist(table, attempt)
            self._metrics.landed(table, newest_ms)

    async def _insert_again(self, claim: Claim, block: Block) -> None:
        """Rows of which some may be there. Raises RowRejected, NotPutBack or ClickHouseUnavailable."""
        table, offsets, rows = claim.partition.topic, block.offsets, block.rows
        outstanding = await self._inserter.call(
            self._recovery.outstanding, claim.partition, offsets, rows, claim.intent
        )
        token = claim.token if len(outstanding) == len(rows) else rest_token(claim.token, outstanding)
        if outstanding:
            await self._inserter.insert(table, outstanding, len(outstanding), token)
        await self._lost_rows.put_back(claim.partition, offsets, rows, claim.prove)

    async def _examine(self, table: str, rows: list[bytes]) -> tuple[list[bytes], dict[int, RowRejected]]:
        """The rows as the table's columns can take them, and which of them it cannot."""

        async def columns() -> dict[str, str]:
            return await self._inserter.call(self._clickhouse.columns, table)

        types = await self._inserter.insist(table, columns)
        structure = ", ".join(f"`{name}` {type_}" for name, type_ in types.items())

        def find_bad() -> tuple[list[bytes], dict[int, RowRejected]]:
            folded, unknown = fold_unknown_columns(rows, frozenset(types))
            for name, count in unknown.items():
                self._metrics.unknown_columns.labels(table, name).inc(count)
                log.warning("rows carry a column that the table lacks, kept in extra", table=table, column=name)
            return folded, poison.find(folded, lambda text: self._clickhouse.parse(structure, text))

        async def attempt() -> tuple[list[bytes], dict[int, RowRejected]]:
            return await self._inserter.call(find_bad)

        try:
            return await self._inserter.insist(table, attempt)
        except poison.InseparableRows as error:
            raise TableTrouble(str(error)) from error

    async def _bury(self, claim: Claim, rows: int, bad: dict[int, tuple[int, str]]) -> None:
        """Write the dead letters, unless there are too many for that. Raises TableTrouble."""
        partition = claim.partition
        breaker = self._breakers.setdefault(partition.topic, Breaker())
        if breaker.would_open(rows, len(bad)):
            code, text = next(iter(bad.values()))
            raise TableTrouble(f"{len(bad)} of {rows} rows are bad, the first by error {code}: {text}")
        breaker.record(rows, len(bad))
        if not bad:
            return
        await claim.prove()
        await AsyncRetrying(
            retry=retry_if_exception_type(KafkaUnavailable),
            wait=wait_random_exponential(multiplier=0.2, max=KAFKA_BACKOFF_MAX_S),
        )(self._dead_letters.write, partition, bad)
        self._metrics.dead_letters.labels(partition.topic).inc(len(bad))
        log.error("records became dead letters", topic=partition.topic, partition=partition.partition, offsets=len(bad))

    def _alarm(self, partition: TopicPartition, batch: Batch, reason: str) -> None:
        self.alarms[partition] = reason
        self._metrics.alarms.set(len(self.alarms))
        log.error(
            "partition waits, it needs help",
            topic=partition.topic,
            partition=partition.partition,
            first=batch.range.first,
            end=batch.range.end,
            reason=reason,
            retry_s=ALARM_RETRY_S,
        )


def fold_unknown_columns(rows: list[bytes], columns: frozenset[str]) -> tuple[list[bytes], dict[str, int]]:
    """Rows with what the table has no column for moved into `extra`, and how many rows had each of those.

    A row that is no JSON object, or has nothing to move, or nowhere to move it to, stays as it is. A value in
    `extra` that the caller sent keeps its name; ours gives way.
    """
    folded: list[bytes] = []
    counts: dict[str, int] = {}
    for row in rows:
        try:
            document = json.loads(row)
        except (ValueError, RecursionError):
            folded.append(row)
            continue
        unknown = [name for name in document if name not in columns]
        if not unknown or EXTRA not in columns:
            folded.append(row)
            continue
        extra = document.get(EXTRA)
        moved = {name: document.pop(name) for name in unknown}
        document[EXTRA] = {**moved, **extra} if isinstance(extra, dict) else moved
        folded.append(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        for name in unknown:
            counts[name] = counts.get(name, 0) + 1
    return folded, counts
