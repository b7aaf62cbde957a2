"""Where to begin reading a partition, so that its consumer knows again what it must know repeats of.

The ledger says it, as long as the commit is of a consumer that keeps it; and that nothing is to be read back for those
whose callers give no ids. After a rewind, in another group or with offsets moved by Kafka's own tools, it is found by
time: Kafka's index of timestamps knows the first record of a log time, which is how the window is kept.
"""

from typing import Any

import structlog

from consumer.ledger import Entry
from consumer.reader import LogReader
from consumer.repeats import SLOT_MS, Checkpoint, reach_slots
from consumer.source import TopicPartition

log = structlog.get_logger(__name__)

LOOK_BACK_OFFSETS = (100, 10_000)  # for a record that tells the log's time; nearly every offset holds one


class WarmUp:
    def __init__(self, connection: dict[str, Any], window_s: int) -> None:
        self._connection = connection
        self._window_s = window_s

    async def start(self, partition: TopicPartition, entry: Entry, begin: int) -> Checkpoint:
        """For a partition that goes on as `entry` says, of which Kafka holds what is behind `begin`: at the entry's
        offset or before it. Raises KafkaUnavailable."""
        if entry.remembered is not None:
            start = entry.remembered
            is_whole = start.offset >= begin
        elif entry.offset > begin:
            start = await self._by_time(partition, begin, entry.offset)
            is_whole = start.offset > begin or begin == 0
        else:
            return Checkpoint(entry.offset, 0)
        if not is_whole:
            log.warning(
                "kafka does not hold the whole window for repeats: ids that it has deleted will not be known again",
                topic=partition.topic,
                partition=partition.partition,
                begin=begin,
                window_s=self._window_s,
            )
        return start if start.offset >= begin else Checkpoint(begin, start.slot)

    async def _by_time(self, partition: TopicPartition, begin: int, offset: int) -> Checkpoint:
        """Any record's time will do: none is newer than the log's, and an older one only makes us read more."""
        async with LogReader(self._connection) as reader:
            for look_back in LOOK_BACK_OFFSETS:
                records = reader.records(partition, max(begin, offset - look_back), offset)
                newest_ms = max([record.timestamp async for record in records], default=-1)
                if newest_ms >= 0:
                    oldest_ms = max(0, newest_ms // SLOT_MS - reach_slots(self._window_s)) * SLOT_MS
                    found = (await reader.offsets_at([partition], oldest_ms))[partition]
                    return Checkpoint(max(begin, min(found, offset)), 0)
        return Checkpoint(begin, 0)
