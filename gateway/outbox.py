"""Where an event goes: Kafka first, else the disk spool. What `publish` has returned for is durable.

    publish ──► breaker closed ──► KafkaPublisher ──► delivered: kafka
                     │ open              │ failed, expired, in doubt, not connected
                     └───────────────────┴──► Spool ──► on disk: spool ──► replay, once Kafka is back

A batch that Kafka has not answered for in time is spooled although it may still arrive: it is held back from replay
until Kafka's late answer, which takes it out of the spool again. What is replayed is marked `replay`, because a
process may die between Kafka's answer and the spool's.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Protocol

import structlog

from gateway.breaker import Breaker
from gateway.kafka_batch import Batch, Outcome, PublisherRefusal
from gateway.metrics import Metrics
from gateway.record import Durability, Record, Records
from gateway.spool import Spool, SpoolRefusal

log = structlog.get_logger(__name__)

SPOOL_TIMEOUT_S = 3.0
REPLAY_BYTES = 262_144
REPLAY_IDLE_S = 0.25

Refusal = PublisherRefusal | SpoolRefusal
"""Why a record is nowhere: too large, too much in flight; or no room in the spool, or its disk."""


class Publisher(Protocol):
    """Takes records. `publish` raises PublisherRefusal when it cannot, `publish_all` says so of so many one behind the
    other, up to one for which there is no Kafka; the batch tells what became of it."""

    unready_reason: str | None

    async def start(self) -> None: ...
    async def stop(self, deadline_s: float) -> None: ...
    def publish(self, record: Record, *, replay: bool = False) -> Batch: ...
    def publish_all(self, records: Records) -> list[tuple[Batch | PublisherRefusal, int]]: ...


class KafkaOutbox:
    """Start it with a running event loop. `publish` takes as long as Kafka's deadline and SPOOL_TIMEOUT_S at most."""

    def __init__(
        self,
        publisher: Publisher,
        spool: Spool,
        metrics: Metrics,
        *,
        replay_records_per_s: int,
    ) -> None:
        self._publisher = publisher
        self._spool = spool
        self._metrics = metrics
        self._replay_records_per_s = replay_records_per_s
        self._breaker = Breaker()
        self._spooling: set[asyncio.Task[Durability | SpoolRefusal]] = set()
        self._held: set[tuple[str, bytes | None, bytes, int]] = set()
        self._leaving: set[int] = set()  # Kafka has them, the disk has not let go of them yet
        self._waiting_for_kafka: set[asyncio.Task[None]] = set()
        self._replay: asyncio.Task[None] | None = None
        self._round: asyncio.Task[int] | None = None
        self._spool_refusal: SpoolRefusal | None = None

    @property
    def unready_reason(self) -> str | None:
        """None while an event would find a place."""
        # An open breaker that waits for a probe is ready: no event, no probe.
        if self._publisher.unready_reason is None and self._breaker.would_admit(self._loop.time()):
            return None
        if self._spool_refusal is not None:
            return f"Kafka: {self._publisher.unready_reason or 'does not answer'}; spool: {self._spool_refusal}"
        return None

    async def start(self) -> None:
        """Raises SpoolRefusal if the spool cannot be opened."""
        self._loop = asyncio.get_running_loop()
        await self._spool.open()
        await self._publisher.start()
        self._replay = asyncio.create_task(self._replay_forever(), name="spool-replay")

    async def stop(self, deadline_s: float) -> None:
        """Within `deadline_s`, and a spool's commit. What Kafka has not taken by then is in the spool."""
        if self._replay is not None:
            self._replay.cancel()
        await self._publisher.stop(deadline_s)
        under_way = {*self._spooling, *([self._round] if self._round is not None else [])}
        if under_way:
            await asyncio.wait(under_way, timeout=SPOOL_TIMEOUT_S)
        for task in self._waiting_for_kafka:
            task.cancel()
        await self._spool.close()

    def publish(self, record: Record) -> asyncio.Future[Durability | Refusal]:
        if self._breaker.admits(self._loop.time()):
            try:
                return self._publisher.publish(record).durable
            except PublisherRefusal as refusal:
                if refusal.reason != "kafka_unavailable":
                    return self._known(refusal)
                self._breaker.record(False, self._loop.time())
        return asyncio.shield(self._spool_soon([record]))

    def publish_all(self, records: Records) -> Awaitable[list[Durability | Refusal]]:
        """What `publish` would have said of each: one wait a batch, not one a record."""
        places: list[tuple[Batch | PublisherRefusal, int]] = []
        if self._breaker.admits(self._loop.time()):
            places = self._publisher.publish_all(records)
            last, _ = places[-1]
            if isinstance(last, PublisherRefusal) and last.reason == "kafka_unavailable":
                self._breaker.record(False, self._loop.time())
                places.pop()
        spooled = records.since(sum(count for _, count in places))
        return _results(places, self._spool_soon(spooled) if spooled else None, len(spooled))

    def _known(self, refusal: Refusal) -> asyncio.Future[Durability | Refusal]:
        future: asyncio.Future[Durability | Refusal] = self._loop.create_future()
        future.set_result(refusal)
        return future

    def settled(self, batch: Batch, outcome: Outcome) -> None:
        """The publisher tells of every batch, once. What Kafka has not taken is spooled at once, whoever still waits
        for it; but replays: those are in the spool."""
        self._breaker.record(outcome is Outcome.DELIVERED, self._loop.time())
        if batch.replay:
            return
        if outcome is Outcome.DELIVERED:
            self._metrics.accepted(batch.topic, "kafka", batch.size)
            batch.durable.set_result("kafka")
        else:
            records = batch.records()
            if not batch.final.done():  # it may still come
                self._hold(batch, records)
            self._spool_soon(records).add_done_callback(lambda task: batch.durable.set_result(task.result()))

    def _spool_soon(self, records: Sequence[Record]) -> asyncio.Task[Durability | SpoolRefusal]:
        """In a task of its own, which `stop` waits for."""
        task = self._loop.create_task(self._spool_all(records))
        self._spooling.add(task)
        task.add_done_callback(self._spooling.discard)
        return task

    async def _spool_all(self, records: Sequence[Record]) -> Durability | SpoolRefusal:
        """All of them or none."""
        try:
            await self._append(records)
        except SpoolRefusal as refusal:
            return refusal
        except Exception:  # somebody waits to hear of it
            log.exception("could not spool", records=len(records))
            return SpoolRefusal("spool_failed", "The spool failed")
        return "spool"

    async def _append(self, records: Sequence[Record]) -> None:
        try:
            async with asyncio.timeout(SPOOL_TIMEOUT_S):
                await self._spool.append(records)
        except TimeoutError:
            self._spool_refusal = SpoolRefusal("spool_failed", "The spool's disk does not answer in time")
            raise self._spool_refusal from None
        except SpoolRefusal as refusal:
            self._spool_refusal = refusal
            raise
        self._spool_refusal = None
        self._metrics.accepted(records[0].topic, "spool", len(records))

    def _hold(self, batch: Batch, records: Sequence[Record]) -> None:
        """Keep the records of an unanswered batch from replay until Kafka has answered after all."""
        self._held.update(map(_identity, records))
        task = self._loop.create_task(self._await_late_answer(batch, records))
        self._waiting_for_kafka.add(task)
        task.add_done_callback(self._waiting_for_kafka.discard)

    async def _await_late_answer(self, batch: Batch, records: Sequence[Record]) -> None:
        outcome = await batch.final
        if not batch.replay:
            await batch.durable
        try:
            if outcome is Outcome.DELIVERED:
                self._breaker.record(True, self._loop.time())  # Kafka is back: no need for a probe
                found = await self._spool.find(records)
                self._metrics.late_answers.labels(batch.topic).inc(len(found))
                self._leaving.update(found)
                await self._remove_leaving()
        except SpoolRefusal:
            pass  # logged by the spool; what was found leaves before the next replay
        finally:
            self._held.difference_update(map(_identity, records))

    async def _replay_forever(self) -> None:
        """Oldest first, as soon as Kafka takes records again, at a rate that leaves room for live traffic."""
        replaying = False
        while True:
            sent = 0
            if (
                self._spool.records
                and self._publisher.unready_reason is None
                and self._breaker.would_admit(self._loop.time())
            ):
                self._round = self._loop.create_task(self._replay_some())
                try:
                    sent = await asyncio.shield(self._round)  # `stop` lets it end: what Kafka has leaves the spool
                except (SpoolRefusal, PublisherRefusal) as refusal:
                    log.warning("replay paused", reason=str(refusal))
                except Exception:  # nobody else would go on with it
                    log.exception("replay failed, will be tried again")
            if sent and not replaying:
                log.info("replaying the spool", records=self._spool.records)
            if replaying and not self._spool.records:
                log.info("the spool is empty again")
            replaying = bool(self._spool.records) and (replaying or sent > 0)
            self._metrics.spool(self._spool.records, self._spool.bytes)
            await asyncio.sleep(sent / self._replay_records_per_s if sent else REPLAY_IDLE_S)

    async def _replay_some(self) -> int:
        """How many records Kafka has taken; a single one is the probe if there is no live traffic to send one.

        What Kafka has and a full disk does not let go of leaves before anything else is sent: it would be sent again
        and again. Raises SpoolRefusal, PublisherRefusal.
        """
        await self._remove_leaving()
        bytes_max = 1 if self._breaker.is_open else REPLAY_BYTES
        found = [
            (id_, record)
            for id_, record in await self._spool.oldest(bytes_max, skip=len(self._held))
            if _identity(record) not in self._held
        ]
        if not found or not self._breaker.admits(self._loop.time()):
            return 0
        batches: list[tuple[int, Record, Batch]] = []
        for id_, record in found:
            try:
                batches.append((id_, record, self._publisher.publish(record, replay=True)))
            except PublisherRefusal:
                if not batches:
                    raise
                break  # those before it are under way
        delivered: list[int] = []
        topics: Counter[str] = Counter()
        unanswered: dict[Batch, list[Record]] = {}
        for id_, record, batch in batches:
            outcome = await batch.outcome
            if batch.final.done():
                outcome = batch.final.result()
            if outcome is Outcome.DELIVERED:
                delivered.append(id_)
                topics[record.topic] += 1
            elif not batch.final.done():
                unanswered.setdefault(batch, []).append(record)
        for batch, records in unanswered.items():
            self._hold(batch, records)
        for topic, count in topics.items():
            self._metrics.replayed.labels(topic).inc(count)
        self._leaving.update(delivered)
        await self._remove_leaving()
        return len(delivered)

    async def _remove_leaving(self) -> None:
        if leaving := list(self._leaving):
            await self._spool.remove(leaving)
            self._leaving.difference_update(leaving)


async def _results(
    places: Sequence[tuple[Batch | PublisherRefusal, int]],
    spooling: asyncio.Task[Durability | SpoolRefusal] | None,
    spooled: int,
) -> list[Durability | Refusal]:
    results: list[Durability | Refusal] = []
    for place, count in places:
        results += [await place.durable if isinstance(place, Batch) else place] * count
    if spooling is not None:
        results += [await asyncio.shield(spooling)] * spooled
    return results


def _identity(record: Record) -> tuple[str, bytes | None, bytes, int]:
    return record.topic, record.scope, record.key, record.timestamp_ms
