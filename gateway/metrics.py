"""Every metric of the gateway, declared once. Right with several workers too (prometheus multiprocess mode)."""

import asyncio
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)

TALLY_S = 0.05
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Tally:
    """For what is counted every few microseconds: a Prometheus counter takes one of them each time. So it is told
    TALLY_S later, before any of it is told to be accepted or refused, before this worker's page is read, and when the
    worker stops: one that is killed leaves out what it was busy with, and no more. Needs a running event loop."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._count = 0
        self._is_due = False

    def inc(self, amount: int = 1) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(TALLY_S, self._fall_due)
        self._count += amount

    def _fall_due(self) -> None:
        self._is_due = False
        self.pass_on()

    def pass_on(self) -> None:
        count, self._count = self._count, 0
        if count:
            self._counter.inc(count)


class Metrics:
    """One set a process; tests make their own with a fresh registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()
        self._registry = registry
        self._tallies: list[Tally] = []
        registry.register(self)  # before the counters that tallies pass on to
        # Events whose request reached an endpoint: each is later delivered or refused.
        self._received = Counter("gateway_events_received", "Events that arrived", ["stream"], registry=registry)
        # Events by what became of the batch that they were in: delivered, failed, expired, in_doubt.
        self._published = Counter(
            "gateway_events_published",
            "Events by outcome of their batch",
            ["stream", "outcome"],
            registry=registry,
        )
        # Events answered with an error, by the status and type of the answer.
        self._refused = Counter(
            "gateway_events_refused", "Events refused", ["stream", "status", "type"], registry=registry
        )
        # Legal but odd: what the answers' warnings said.
        self.warnings = Counter("gateway_warnings", "Warnings given", ["stream", "code"], registry=registry)
        # Requests to …/validate, which are in none of the other counts.
        self.dry_runs = Counter("gateway_dry_runs", "Events and batches rehearsed", ["stream"], registry=registry)
        # Events answered with 200, by where they are durable.
        self._accepted = Counter(
            "gateway_events_accepted", "Events answered with 200", ["stream", "durability"], registry=registry
        )
        # Spooled events that Kafka has taken since, by replay or by its own late answer.
        self.replayed = Counter("gateway_events_replayed", "Spooled events replayed", ["stream"], registry=registry)
        self.late_answers = Counter(
            "gateway_events_late_answers", "Spooled events that Kafka had after all", ["stream"], registry=registry
        )
        self._spool_records = Gauge(
            "gateway_spool_records", "Events in the spool", registry=registry, multiprocess_mode="livesum"
        )
        self._spool_bytes = Gauge(
            "gateway_spool_bytes", "Bytes in the spool", registry=registry, multiprocess_mode="livesum"
        )
        # From a batch's first record to its outcome: the wait of its slowest caller.
        self._publish_s = Histogram(
            "gateway_publish_seconds",
            "Time from a batch's first record to its outcome",
            ["stream"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._batch_records = Histogram(
            "gateway_batch_records",
            "Records in a batch",
            ["stream"],
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
            registry=registry,
        )

        self._of_batches = cache(
            lambda stream, outcome: (
                self._published.labels(stream, outcome),
                self._publish_s.labels(stream),
                self._batch_records.labels(stream),
            )
        )

    def collect(self) -> Iterable[Metric]:
        """Called before the registry is read, as one of its collectors. There is none to add."""
        self.pass_on()
        return ()

    def pass_on(self) -> None:
        """What was counted and not told yet: with several workers, the counts of one outlive it."""
        for tally in self._tallies:
            tally.pass_on()

    def accepted(self, stream: str, durability: str, events: int) -> None:
        """Once for many events."""
        self.pass_on()
        self._accepted.labels(stream, durability).inc(events)

    def refused(self, stream: str, status: str, type_: str, events: int) -> None:
        self.pass_on()
        self._refused.labels(stream, status, type_).inc(events)

    def received(self, stream: str) -> "Tally":
        """Events that have arrived. One a caller: it is not to be asked for each of them."""
        tally = Tally(self._received.labels(stream))
        self._tallies.append(tally)
        return tally

    def batch(self, stream: str, outcome: str, records: int, seconds: float) -> None:
        """A batch has its outcome. Called once a batch, so that no event pays for it."""
        published, publish_s, batch_records = self._of_batches(stream, outcome)
        published.inc(records)
        publish_s.observe(seconds)
        batch_records.observe(records)

    def spool(self, records: int, bytes_: int) -> None:
        self._spool_records.set(records)
        self._spool_bytes.set(bytes_)

    def render(self) -> bytes:
        """The page at /metrics: of all workers where there are several."""
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self._registry)
        self.pass_on()
        _forget_dead_workers(Path(os.environ[MULTIPROCESS_DIR]))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)


def _forget_dead_workers(directory: Path) -> None:
    """A worker that was killed leaves its gauges behind, and its spool is counted by whoever took it over."""
    for pid in {int(path.stem.rpartition("_")[2]) for path in directory.glob("gauge_live*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid)
