"""Audits in the background of a running consumer, for its gauges: every `interval_s`, the last `recent_s`.

What landed later than that (after an outage, say) is looked at too: each audit begins where the one before ended,
if that is earlier. An audit that fails leaves the gauges as they are; `consumer_audit_time` tells their age.
"""

import asyncio
import time

import structlog
from aiokafka.errors import KafkaError

from consumer.audit import audit
from consumer.audit_table import PartitionAudit
from consumer.clickhouse import ClickHouse, ClickHouseUnavailable, RowRejected
from consumer.dead_letter_log import TooManyDeadLetters
from consumer.metrics import Metrics
from consumer.settings import ConsumerSettings
from consumer.source import KafkaUnavailable, TopicPartition

log = structlog.get_logger(__name__)

INTERVAL_S = 600.0
RECENT_S = 3_600.0


class AuditTimer:
    """Its `audit` is one attempt, its `run` the policy. Audits every partition, whoever owns it."""

    def __init__(
        self,
        settings: ConsumerSettings,
        clickhouse: ClickHouse,
        metrics: Metrics,
        interval_s: float = INTERVAL_S,
        recent_s: float = RECENT_S,
    ) -> None:
        self._settings = settings
        self._clickhouse = clickhouse
        self._metrics = metrics
        self._interval_s = interval_s
        self._recent_s = recent_s
        self._ends: dict[TopicPartition, int] = {}

    async def run(self) -> None:
        """Until cancelled. Begins with a pause: a consumer that has just started has better things to do."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.audit()
            except (KafkaError, KafkaUnavailable, OSError) as error:
                log.warning("audit failed for Kafka, the next one covers its time", error=str(error))
            except (ClickHouseUnavailable, RowRejected) as error:
                log.warning("audit failed for ClickHouse, the next one covers its time", error=str(error))
            except TooManyDeadLetters as error:
                log.error("no audit is possible", error=str(error))
            except Exception:  # nobody else would go on with it
                log.exception("audit failed, the next one covers its time")

    async def audit(self) -> list[PartitionAudit]:
        """Raises what `consumer.audit.audit` raises."""
        since_ms = int((time.time() - self._recent_s) * 1000)
        audits = await audit(self._settings, self._clickhouse, since_ms, at_least_from=self._ends)
        self._ends = {TopicPartition(found.topic, found.partition): found.end for found in audits}
        for found in audits:
            self._metrics.audited(found.topic, found.partition, found.duplicates, found.gaps, found.repeats_dropped)
            if found.is_wrong:
                log.error(
                    "the table differs from the log; `python -m consumer audit` tells more",
                    topic=found.topic,
                    partition=found.partition,
                    duplicates=found.duplicates,
                    duplicate_offsets=found.duplicate_offsets,
                    gaps=found.gaps,
                    gap_offsets=found.gap_offsets,
                )
        self._metrics.audit_time.set(time.time())
        return audits
