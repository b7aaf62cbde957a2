"""Every metric of the consumer, declared once."""

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)


class Metrics:
    """One set a process; tests make their own with a fresh registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()
        self._registry = registry
        # Rows that ClickHouse has acknowledged.
        self._rows = Counter("consumer_rows_inserted", "Rows acknowledged by ClickHouse", ["topic"], registry=registry)
        self._batches = Counter(
            "consumer_batches_inserted", "Batches acknowledged by ClickHouse", ["topic"], registry=registry
        )
        self._insert_s = Histogram(
            "consumer_insert_seconds",
            "Time of one acknowledged INSERT",
            ["topic"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        # Attempts that failed, by ClickHouse's error code; 0 where there was no answer.
        self.insert_failures = Counter(
            "consumer_insert_failures", "Failed attempts to insert", ["topic", "code"], registry=registry
        )
        # Rows of ranges that were open when their partition came to us: sent again under the old token.
        self.replayed_rows = Counter(
            "consumer_rows_replayed", "Rows of open intents sent again", ["topic"], registry=registry
        )
        # Records behind the partition's end, at the last poll.
        self.lag = Gauge("consumer_lag_records", "Records not yet inserted", ["topic", "partition"], registry=registry)
        # From the gateway's received_at of a batch's last row to its acknowledgement.
        self._delay_s = Gauge(
            "consumer_delay_seconds", "Age of the newest row when it was inserted", ["topic"], registry=registry
        )
        self.buffered_bytes = Gauge("consumer_buffered_bytes", "Rows held in memory", registry=registry)
        self.partitions = Gauge("consumer_partitions", "Partitions owned", registry=registry)
        # Ranges that were compared with the table because its memory of their token may have ended.
        self.reconciled = Counter(
            "consumer_ranges_reconciled", "Ranges compared with the table by offset", ["topic"], registry=registry
        )
        # Rows that ClickHouse acknowledged and did not have, when their INSERT was repeated.
        self.rows_put_back = Counter(
            "consumer_rows_put_back", "Rows acknowledged, lost and put back", ["topic"], registry=registry
        )
        # Records that are no row, because an earlier record of the same event is one. `window`: the partition's log had
        # it lately. `replay`: a gateway's spool sent it again, and the table had it.
        self.repeats_dropped = Counter(
            "consumer_repeats_dropped", "Repeats that were not inserted", ["topic", "reason"], registry=registry
        )
        # Event ids remembered to know repeats of them, as of the last poll.
        self.ids = Gauge("consumer_dedupe_ids", "Event ids remembered", ["topic", "partition"], registry=registry)
        # Ids that had to go before the window's end, for want of room: repeats of them are no longer known.
        self.ids_forgotten = Counter(
            "consumer_dedupe_ids_forgotten", "Event ids forgotten too early", ["topic"], registry=registry
        )
        # Reading ids back before a partition's first row; partitions without any do not.
        self.warm_up_s = Histogram(
            "consumer_warm_up_seconds",
            "Time of reading ids back for one partition",
            ["topic"],
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900),
            registry=registry,
        )
        # Records that no table can take, by the topic they came from.
        self.dead_letters = Counter("consumer_dead_letters", "Dead letters written", ["topic"], registry=registry)
        # Rows with a column that the table lacks; its value was kept in `extra`.
        self.unknown_columns = Counter(
            "consumer_unknown_columns", "Rows with a column the table lacks", ["topic", "column"], registry=registry
        )
        # Partitions that wait for a person, tried again now and then: their log says why.
        self.alarms = Gauge("consumer_alarms", "Partitions that wait for help", registry=registry)
        # Partitions that stopped for good, until the next rebalance or restart.
        self.stopped_partitions = Gauge("consumer_stopped_partitions", "Partitions that need help", registry=registry)
        # What the last background audit found in the recent past: rows too many, and records without a row; records
        # that need none, because they are repeats.
        self._audit_duplicates = Gauge(
            "consumer_audit_duplicates", "Rows too many", ["topic", "partition"], registry=registry
        )
        self._audit_gaps = Gauge(
            "consumer_audit_gaps",
            "Records below the committed offset without a row",
            ["topic", "partition"],
            registry=registry,
        )
        self._audit_repeats = Gauge(
            "consumer_audit_repeats", "Repeats that were not inserted", ["topic", "partition"], registry=registry
        )
        # Unix time at which that audit ended; 0 before the first.
        self.audit_time = Gauge("consumer_audit_time", "When the last audit ended, Unix seconds", registry=registry)

    def inserted(self, topic: str, rows: int, seconds: float) -> None:
        self._rows.labels(topic).inc(rows)
        self._batches.labels(topic).inc()
        self._insert_s.labels(topic).observe(seconds)

    def audited(self, topic: str, partition: int, duplicates: int, gaps: int, repeats: int) -> None:
        self._audit_duplicates.labels(topic, partition).set(duplicates)
        self._audit_gaps.labels(topic, partition).set(gaps)
        self._audit_repeats.labels(topic, partition).set(repeats)

    def landed(self, topic: str, newest_ms: int) -> None:
        self._delay_s.labels(topic).set(time.time() - newest_ms / 1000)

    def render(self) -> bytes:
        """The page at /metrics."""
        return generate_latest(self._registry)
