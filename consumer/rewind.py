"""`python -m consumer rewind`: has offsets read again, without a row becoming two.

Rows of those offsets are in the table already, so going back blindly would double them. A rewind is therefore an
intent of old, committed at the offset to go back to: its ranges are compared with the table offset by offset, and
only what is missing is inserted. It ends where the group stands now (or where its open intent ends), because what
follows an intent is taken for new. So it can go back only as far as one commit's metadata can name ranges, about
8 million offsets a partition; further is refused.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from consumer import ledger
from consumer.batch import Range
from consumer.group import Group
from consumer.reader import LogReader
from consumer.settings import ConsumerSettings
from consumer.source import TopicPartition
from schemas import kafka
from schemas.streams import STREAMS

# A range is held in memory whole, so the smallest that lets all of them be named is taken.
RANGE_OFFSETS = (5_000, 10_000, 20_000, 50_000)


class RewindRefused(Exception):
    """Nothing was moved."""


@dataclass(frozen=True)
class Move:
    """From offset `committed` back to `target`. `intent` is None where nothing moves, and `note` says why."""

    partition: TopicPartition
    committed: int | None
    target: int
    intent: ledger.Intent | None
    note: str

    @property
    def offsets(self) -> int:
        """How many will be read again."""
        return self.intent.ranges[-1].end - self.target if self.intent else 0


async def plan(settings: ConsumerSettings, to_ms: int | None, to_offsets: Mapping[TopicPartition, int]) -> list[Move]:
    """A move for each partition: to the first record of `to_ms` (epoch ms), or only those of `to_offsets`.

    Raises RewindRefused or KafkaUnavailable.
    """
    now_ms = time.time_ns() // 1_000_000
    async with Group(settings) as group, LogReader(kafka.connection(settings)) as reader:
        partitions = await group.partitions(stream.name for stream in STREAMS)
        unknown = to_offsets.keys() - set(partitions)
        if unknown:
            raise RewindRefused(f"Kafka has no partition {', '.join(f'{t}:{p}' for t, p in sorted(unknown))}")
        if to_ms is not None and partitions:
            targets = await reader.offsets_at(partitions, to_ms)
        else:
            targets = dict(to_offsets)
        if not targets:
            return []
        commits = await group.commits(targets)
        bounds = await reader.bounds(list(targets))
        moves = []
        for tp, target in sorted(targets.items()):
            move = move_to(tp, commits.get(tp), target, *bounds[tp])
            entry = ledger.decode(*commits[tp]) if move.intent else None
            if entry and entry.intent:
                _refuse_young(tp, entry.intent, now_ms, settings.insert_timeout_ms)
            moves.append(move)
        return moves


def move_to(tp: TopicPartition, commit: tuple[int, str] | None, target: int, begin: int, end: int) -> Move:
    """Pure. Kafka holds [begin, end) of the partition. Raises RewindRefused."""
    name = f"{tp.topic}:{tp.partition}"
    if commit is None:
        return Move(tp, None, target, None, "the group has not begun here")
    committed = commit[0]
    if not begin <= committed <= end:
        return Move(tp, committed, target, None, f"committed outside of the log, which holds {begin} to {end - 1}")
    if target < begin:
        raise RewindRefused(f"{name}: Kafka holds nothing before offset {begin}")
    if target >= committed:
        return Move(tp, committed, target, None, "stands before that already")
    try:
        entry = ledger.decode(*commit)
    except ledger.UnreadableIntent as error:
        raise RewindRefused(f"{name}: {error}") from error
    stop = entry.intent.ranges[-1].end if entry.intent else committed
    note = "at the oldest record: Kafka may delete it before it is read" if target == begin and begin else ""
    return Move(tp, committed, target, intent_of_old(name, target, stop), note)


def intent_of_old(name: str, first: int, end: int) -> ledger.Intent:
    """Over [first, end). Raises RewindRefused if it does not fit a commit."""
    now_ms = time.time_ns() // 1_000_000
    for size in RANGE_OFFSETS:
        if (end - first) / size > ledger.METADATA_BYTES_MAX:
            continue
        ranges = tuple(Range(start, min(start + size, end)) for start in range(first, end, size))
        intent = ledger.Intent(ranges, -now_ms)
        if len(intent.encode()) <= ledger.METADATA_BYTES_MAX:
            return intent
    size = RANGE_OFFSETS[-1]
    overhead = len(ledger.Intent((), -now_ms).encode())
    fits = (ledger.METADATA_BYTES_MAX - overhead) // len(f"[{end},{end}],") * size
    raise RewindRefused(
        f"{name}: {end - first:,} offsets are more than a commit can name ({fits:,}), and what it does not name would "
        f"be inserted twice. The furthest is `--to-offset {name}:{end - fits}`"
    )


def _refuse_young(tp: TopicPartition, intent: ledger.Intent, now_ms: int, insert_timeout_ms: int) -> None:
    """An INSERT may still be on its way: what it brings cannot be seen yet, and would be inserted once more."""
    wait_ms = intent.opened_ms + 2 * insert_timeout_ms - now_ms
    if wait_ms > 0:
        raise RewindRefused(
            f"{tp.topic}:{tp.partition} has an open intent whose INSERT may still be on its way: let a consumer finish "
            f"it and stop, or try again in {wait_ms / 1000:.0f} s"
        )


async def refuse_while_active(settings: ConsumerSettings) -> None:
    """Raises RewindRefused or KafkaUnavailable."""
    async with Group(settings) as group:
        members = await group.members()
    if members:
        raise RewindRefused(
            f"group {settings.group_id!r} is active ({', '.join(members)}): stop its consumers first. "
            f"One that was killed counts for up to {settings.session_timeout_ms / 1000:.0f} s"
        )


async def carry_out(settings: ConsumerSettings, moves: list[Move]) -> None:
    """One commit for all of them. Raises GroupActive, IntentRefused or KafkaUnavailable."""
    entries = {move.partition: (move.target, move.intent.encode()) for move in moves if move.intent}
    async with Group(settings) as group:
        await group.commit(entries)


def table(moves: list[Move]) -> Table:
    shown = Table(title="Rewind")
    for column in ("topic", "partition", "committed", "back to", "read again (offsets)", "note"):
        shown.add_column(column, justify="left" if column in ("topic", "note") else "right")
    for move in moves:
        shown.add_row(
            move.partition.topic,
            str(move.partition.partition),
            "-" if move.committed is None else str(move.committed),
            str(move.target) if move.intent else "-",
            str(move.offsets),
            Text(move.note),
        )
    return shown


def partition_offset(text: str) -> tuple[TopicPartition, int]:
    """For argparse: `topic:partition:offset`."""
    topic, partition, offset = text.rsplit(":", 2)
    return TopicPartition(topic, int(partition)), int(offset)
