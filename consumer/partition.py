"""One partition while this process owns it: records in, batches to ClickHouse, the ledger kept.

The order that makes it exactly once: the intent is committed, then the range is inserted, and the commit that
opens the next range closes this one. A worker lives for one assignment. When the assignment ends it is
cancelled wherever it stands: an INSERT that is already on its way carries the very token that the next owner
will send.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from consumer.batch import Batch, Filling, Limits
from consumer.landing import Claim, Landing
from consumer.ledger import Intent, Ledger
from consumer.metrics import Metrics
from consumer.pace import Pace
from consumer.repeats import Window
from consumer.source import Slab, TopicPartition

log = structlog.get_logger(__name__)

PROOF_AGE_MAX_S = 2.0  # well under any session timeout
FILL_AGES_MAX = 10  # how many times its age a batch may get that a backlog is filling
WARM_UP_LOG_S = 10.0  # between two lines about a warm-up that takes its time


class PartitionWorker:
    """Feed it from the poll loop; it runs by itself until cancelled, or until `drain` and its batch has landed.

    `open_intent` is what the ledger held at assignment. Rows start at `first`, feeding where `window` starts: first
    come the ids that are to be known again. `landed` is the offset before which everything is in ClickHouse. At most
    the rows of two batches are held: the one that is being inserted and the one that fills.
    """

    def __init__(
        self,
        partition: TopicPartition,
        first: int,
        open_intent: Intent | None,
        limits: Limits,
        pace: Pace,
        window: Window | None,
        ledger: Ledger,
        landing: Landing,
        metrics: Metrics,
    ) -> None:
        self.partition = partition
        self._pace = pace
        self._window = window
        self._filling = Filling(partition.partition, first, limits, window)
        self._replays = list(open_intent.ranges) if open_intent else []
        self._intent = open_intent
        self._proven_at = 0.0
        self._ledger = ledger
        self._landing = landing
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._draining = False
        self._hurried = False
        self._end = first
        self._inserting_bytes = 0
        self.landed = first
        self._closed = first

    @property
    def position(self) -> int:
        """The next offset to be fed."""
        return self._filling.position

    @property
    def bytes(self) -> int:
        """Rows held in memory."""
        return self._filling.bytes + self._inserting_bytes

    @property
    def ids(self) -> int:
        """Remembered, to know repeats of them."""
        return self._window.ids if self._window else 0

    @property
    def warming_up(self) -> bool:
        """Whether what is fed has landed long ago, and only its ids are taken up."""
        return self._filling.behind > 0

    @property
    def replaying(self) -> bool:
        return bool(self._replays)

    @property
    def full(self) -> bool:
        """Whether feeding should pause. A replay is read to its end, however large its batch was then."""
        return self._filling.full and self._replay_is_read()

    def feed(self, slabs: Sequence[Slab]) -> None:
        forgotten = self._window.forgotten if self._window else 0
        now = time.monotonic()
        for slab in slabs:
            self._filling.add(slab.records, now, slab.newest_ms)
        if self._window and self._window.forgotten > forgotten:
            self._metrics.ids_forgotten.labels(self.partition.topic).inc(self._window.forgotten - forgotten)
        self._changed.set()

    def skip_to(self, offset: int) -> None:
        """Kafka holds nothing between what was fed and `offset`."""
        if offset > self.position:
            self._filling.skip_to(offset)
            self._changed.set()

    @property
    def closing(self) -> bool:
        """Whether a batch is being inserted, or will be without waiting for anything."""
        return self._inserting_bytes > 0 or self._hurried or self._filling.full

    def know_end(self, end: int) -> None:
        """The partition's end in Kafka, as of the last fetch."""
        self._end = end
        self._changed.set()

    def hurry(self) -> None:
        """Close the batch that fills as it is: others need the memory."""
        self._hurried = True
        self._changed.set()

    def drain(self) -> None:
        """Finish the batch in hand, then end; what fills is left for the next owner."""
        self._draining = True
        self._changed.set()

    async def run(self) -> None:
        """Raises source.Fenced when the group has moved on."""
        await self._warm_up()
        while self._replays and not self._draining:
            await self._until(self._replay_is_read)
            if self._replay_is_read():
                await self._replay(self._filling.take(self._replays.pop(0).end))
                self._narrow_intent()
        while not self._draining:
            if self.landed != self._closed and self._filling.empty:
                await self._close()
            await self._until(lambda: not self._filling.empty)
            await self._until(self._closes, self._filling.ready_at())
            if self._fills_anyway():
                patience = (FILL_AGES_MAX - 1) * self._filling.age_s
                await self._until(
                    lambda: self._closes() or not self._fills_anyway(), self._filling.ready_at() + patience
                )
            if not self._closes():
                await self._turn()
            if self._filling.empty or self._draining:
                continue
            await self._insert_filled()
        # With a replay left undone the intent stays open as it is, for the next owner.
        if self.landed != self._closed and not self._replays:
            await self._close()

    async def _turn(self) -> None:
        """To insert a batch that is not full; or until it is."""
        turn_at = self._pace.next_at(time.monotonic())
        await self._until(self._closes, turn_at)
        if time.monotonic() < turn_at:
            self._pace.give_back()

    async def _insert_filled(self) -> None:
        """By itself, so that nothing holds on to the batch while the next one fills."""
        batch, self._hurried = self._filling.take(), False
        self._inserting_bytes = batch.block.bytes  # while Kafka takes its time for the commit, too
        self._intent = Intent((batch.range,), time.time_ns() // 1_000_000)
        self._proven_at = 0.0
        await self._prove()
        await self._insert(batch, sent_before=False)

    async def _warm_up(self) -> None:
        """Until the ids are known that count from the first row on."""
        began, begun_at = self.position, time.monotonic()
        while self.warming_up and not self._draining:
            log.info(
                "reading ids back, to know repeats of them",
                topic=self.partition.topic,
                partition=self.partition.partition,
                position=self.position,
                behind=self._filling.behind,
                ids=self.ids,
            )
            await self._until(lambda: not self.warming_up, time.monotonic() + WARM_UP_LOG_S)
        if began < self.landed and not self.warming_up:
            seconds = time.monotonic() - begun_at
            self._metrics.warm_up_s.labels(self.partition.topic).observe(seconds)
            log.info(
                "ids were read back",
                topic=self.partition.topic,
                partition=self.partition.partition,
                offsets=self.landed - began,
                ids=self.ids,
                seconds=round(seconds, 3),
            )

    def _closes(self) -> bool:
        """Whether the batch that fills is complete, however young."""
        return self._filling.full or self._hurried

    def _fills_anyway(self) -> bool:
        """Whether what lies in Kafka will make the batch much larger. To close it by age would bring nobody their rows
        any sooner, and ClickHouse more INSERTs."""
        return not self._closes() and self._end - self.position > self._filling.rows / 4

    async def _close(self) -> None:
        await self._ledger.close(self.partition, self.landed, self._filling.checkpoint(self.landed))
        self._closed = self.landed

    def _replay_is_read(self) -> bool:
        """Whether the next range to be replayed, if there is one, has been fed to its end."""
        return not self._replays or self.position >= self._replays[0].end

    def _narrow_intent(self) -> None:
        """To the ranges that are left, so that a crash need not start with the first one again."""
        if self._replays and self._intent is not None:
            self._intent = Intent(tuple(self._replays), self._intent.opened_ms)
            self._proven_at = 0.0  # to be committed before the next range is sent

    async def _replay(self, batch: Batch) -> None:
        log.info(
            "replaying an open intent",
            topic=self.partition.topic,
            partition=self.partition.partition,
            first=batch.range.first,
            end=batch.range.end,
        )
        self._metrics.replayed_rows.labels(self.partition.topic).inc(batch.block.count)
        await self._insert(batch, sent_before=True)

    async def _insert(self, batch: Batch, *, sent_before: bool) -> None:
        assert self._intent is not None
        token = self._ledger.token(self.partition, batch, self._intent)
        claim = Claim(self.partition, token, self._intent, sent_before, self._prove)
        self._inserting_bytes = batch.block.bytes
        try:
            await self._landing.land(claim, batch)
        finally:
            self._inserting_bytes = 0
        self.landed = batch.range.end

    async def _prove(self) -> None:
        """Commit the open intent, again if that was a while ago: a process that slept through the end of its
        session must not send what another one has long dealt with. Raises source.Fenced."""
        assert self._intent is not None
        if time.monotonic() - self._proven_at > PROOF_AGE_MAX_S:
            remembered = self._filling.checkpoint(self._intent.ranges[0].first)
            await self._ledger.open(self.partition, self._intent, remembered)
            self._proven_at = time.monotonic()

    async def _until(self, condition: Callable[[], bool], deadline: float | None = None) -> None:
        """Wait for what feeding or draining brings about, or for `deadline` (monotonic)."""
        loop = asyncio.get_running_loop()
        if deadline is not None:
            deadline += loop.time() - time.monotonic()
        # Not wait_for: in Python 3.11 it may swallow a cancellation, and a worker must not outlive its assignment.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not condition() and not self._draining:
                    self._changed.clear()
                    await self._changed.wait()
