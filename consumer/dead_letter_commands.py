"""`python -m consumer dead-letters ls | show | replay | drop`.

Replay puts a record back through the table, where it would have landed: with its own partition and offset, if the
table's columns can take it by now and the table does not hold it yet. It may be repeated at any time: what the
table holds already is only marked. A letter whose offset the group has not committed is left alone, because its
consumer may be at it. Only `show` prints anything of a record.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from consumer import dead_letter_log, moments, poison
from consumer.clickhouse import ClickHouse, RowRejected
from consumer.dead_letter_log import DROPPED, OPEN, REPLAYED, Letter, Marks, is_mark
from consumer.group import Group
from consumer.landing import fold_unknown_columns
from consumer.reader import LogReader
from consumer.settings import ConsumerSettings
from consumer.source import ConsumerRecord, TopicPartition
from schemas import kafka
from schemas.streams import STREAMS

REPLAY_LETTERS = 200  # in one INSERT, and in memory


class UnknownLetter(Exception):
    """No letter has this key."""


@dataclass(frozen=True)
class Outcome:
    """Of one letter. `refusal` is None where it is done."""

    key: str
    done: str
    refusal: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A letter whose record is a JSON object with an event id. `row` is what would be inserted."""

    letter: Letter
    event_id: str
    row: bytes

    @property
    def coordinates(self) -> tuple[int, int, str]:
        return self.letter.record.partition, self.letter.offset, self.event_id


async def find(settings: ConsumerSettings) -> dict[str, Letter]:
    """Every letter by its key, in the order of burial. Raises KafkaUnavailable or TooManyDeadLetters."""
    async with Group(settings) as group, LogReader(kafka.connection(settings)) as reader:
        return await _find(group, reader)


async def _find(group: Group, reader: LogReader) -> dict[str, Letter]:
    found: dict[str, Letter] = {}
    for stream in STREAMS:
        found |= await dead_letter_log.letters(group, reader, stream.name)
    return found


def _chosen(letters: dict[str, Letter], keys: Sequence[str] | None) -> list[Letter]:
    """Those of `keys`, whatever their state; None: all that are open. Raises UnknownLetter."""
    if keys is None:
        return [letter for letter in letters.values() if letter.state == OPEN]
    unknown = [key for key in keys if key not in letters]
    if unknown:
        raise UnknownLetter(f"no dead letter has the key {', '.join(unknown)}: `dead-letters ls --all` lists them")
    return [letters[key] for key in dict.fromkeys(keys)]


async def drop(settings: ConsumerSettings, keys: Sequence[str] | None) -> list[Outcome]:
    """Raises UnknownLetter, KafkaUnavailable or TooManyDeadLetters."""
    connection = kafka.connection(settings)
    async with Group(settings) as group, LogReader(connection) as reader, Marks(connection) as marks:
        outcomes = []
        for letter in _chosen(await _find(group, reader), keys):
            if letter.state == OPEN:
                await marks.mark(letter, DROPPED)
            refusal = "was replayed, its row is in the table" if letter.state == REPLAYED else None
            outcomes.append(Outcome(letter.key, DROPPED, refusal))
        return outcomes


async def replay(settings: ConsumerSettings, clickhouse: ClickHouse, keys: Sequence[str] | None) -> list[Outcome]:
    """Raises UnknownLetter, KafkaUnavailable, ClickHouseUnavailable or TooManyDeadLetters; what was done stays done,
    and the same call goes on with the rest."""
    connection = kafka.connection(settings)
    async with Group(settings) as group, LogReader(connection) as reader, Marks(connection) as marks:
        chosen = _chosen(await _find(group, reader), keys)
        commits = await group.commits({letter.record for letter in chosen})
        outcomes: list[Outcome] = []
        for stream in STREAMS:
            letters = [letter for letter in chosen if letter.record.topic == stream.name]
            for first in range(0, len(letters), REPLAY_LETTERS):
                batch = letters[first : first + REPLAY_LETTERS]
                candidates, refused = await _candidates(reader, batch, commits)
                landed, not_landed = await asyncio.to_thread(_land, clickhouse, stream.name, candidates)
                for candidate in landed:
                    if candidate.letter.state != REPLAYED:
                        await marks.mark(candidate.letter, REPLAYED)
                outcomes += refused + not_landed
                outcomes += [Outcome(candidate.letter.key, REPLAYED) for candidate in landed]
        return outcomes


async def _candidates(
    reader: LogReader, letters: Iterable[Letter], commits: dict[TopicPartition, tuple[int, str]]
) -> tuple[list[Candidate], list[Outcome]]:
    candidates, refused = [], []
    for letter in letters:
        if letter.record not in commits or letter.offset >= commits[letter.record][0]:
            found: Candidate | str = "the group has not committed its offset yet, its consumer may be at it"
        else:
            found = as_candidate(letter, await reader.record(letter.log, letter.log_offset))
        if isinstance(found, str):
            refused.append(Outcome(letter.key, REPLAYED, found))
        else:
            candidates.append(found)
    return candidates, refused


def as_candidate(letter: Letter, record: "ConsumerRecord[bytes, bytes] | None") -> Candidate | str:
    """What would be inserted for a letter and its record in the log, or why nothing can be."""
    if record is None or record.offset != letter.log_offset or is_mark(record):
        return "Kafka does not hold the letter any more"
    value = record.value
    if value is None or value[:1] != b"{" or value[-1:] != b"}":
        return "is not a JSON object, no table can take it"
    try:
        event_id = json.loads(value, strict=False).get("event_id")  # as lenient as ClickHouse with control characters
    except (ValueError, RecursionError) as error:
        return f"is not a JSON object: {type(error).__name__}"
    if not isinstance(event_id, str):
        return "has no event id"
    row = b'%b,"kafka_partition":%d,"kafka_offset":%d}\n' % (value[:-1], letter.record.partition, letter.offset)
    return Candidate(letter, event_id, row)


def _land(clickhouse: ClickHouse, table: str, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Outcome]]:
    """Those that the table holds behind this, and the others with the reason. Raises ClickHouseUnavailable."""
    held = _held(clickhouse, table, candidates)
    landed = [candidate for candidate in candidates if candidate.coordinates in held]
    missing = [candidate for candidate in candidates if candidate.coordinates not in held]
    if not missing:
        return landed, []
    types = clickhouse.columns(table)
    structure = ", ".join(f"`{name}` {type_}" for name, type_ in types.items())
    try:
        rows, _ = fold_unknown_columns([candidate.row for candidate in missing], frozenset(types))
        bad = poison.find(rows, lambda text: clickhouse.parse(structure, text))
        refused = {index: dead_letter_log.reason(error.code, str(error)) for index, error in bad.items()}
        good = [index for index in range(len(missing)) if index not in refused]
        if good:
            text = b"".join(rows[index] for index in good)
            clickhouse.insert(table, [text], f"dead-letters/{table}/{hashlib.sha256(text).hexdigest()}")
    except (RowRejected, poison.InseparableRows, RecursionError) as error:
        refusal = f"the table refuses rows that its columns can take: {error!r}"
        return landed, [Outcome(candidate.letter.key, REPLAYED, refusal) for candidate in missing]
    held = _held(clickhouse, table, [missing[index] for index in good])
    for index in good:
        if missing[index].coordinates in held:
            landed.append(missing[index])
        else:
            refused[index] = "ClickHouse took it for a repeat of a row that was deleted since"
    return landed, [Outcome(missing[index].letter.key, REPLAYED, refusal) for index, refusal in refused.items()]


def _held(clickhouse: ClickHouse, table: str, candidates: Sequence[Candidate]) -> set[tuple[int, int, str]]:
    """Coordinates and event ids that the table holds of them, and maybe some others."""
    if not candidates:
        return set()
    partitions = ", ".join({str(candidate.letter.record.partition) for candidate in candidates})
    offsets = ", ".join(str(candidate.letter.offset) for candidate in candidates)
    found = clickhouse.query(
        f"SELECT kafka_partition, kafka_offset, event_id FROM `{clickhouse.database}`.`{table}` "
        f"WHERE kafka_partition IN ({partitions}) AND kafka_offset IN ({offsets})"
    )
    return {(int(partition), int(offset), str(event_id)) for partition, offset, event_id in found}


def groups_table(letters: Iterable[Letter]) -> Table:
    """By topic and error: how many, and the newest."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    for letter in letters:
        groups.setdefault((letter.record.topic, letter.code, letter.reason), []).append(letter.time_ms)
    shown = Table(title="Dead letters by error")
    for column in ("topic", "code", "error", "letters", "newest"):
        shown.add_column(column, justify="right" if column in ("code", "letters") else "left")
    for (topic, code, reason), times in sorted(groups.items()):
        shown.add_row(topic, str(code), Text(reason), str(len(times)), moments.iso(max(times)))
    return shown


def letters_table(letters: Sequence[Letter], limit: int) -> Table:
    """The newest first."""
    rest = len(letters) - limit
    shown = Table(title="Dead letters", caption=f"and {rest:,} older" if rest > 0 else None)
    for column in ("key", "state", "buried", "code", "error"):
        shown.add_column(column, justify="right" if column == "code" else "left", no_wrap=column == "key")
    for letter in list(reversed(letters))[:limit]:
        shown.add_row(letter.key, letter.state, moments.iso(letter.time_ms), str(letter.code), Text(letter.reason))
    return shown


async def show(settings: ConsumerSettings, key: str) -> list[tuple[str, str]]:
    """Name and text of everything that a letter holds. Raises as `drop` does."""
    async with Group(settings) as group, LogReader(kafka.connection(settings)) as reader:
        [letter] = _chosen(await _find(group, reader), [key])
        record = await reader.record(letter.log, letter.log_offset)
    lines = [
        ("record", letter.key),
        ("state", letter.state),
        ("letter", f"{letter.log.topic}:{letter.log.partition}:{letter.log_offset}"),
        ("buried", moments.iso(letter.time_ms)),
        ("produced", moments.iso(letter.record_time_ms) if letter.record_time_ms is not None else "unknown"),
        ("error", f"{letter.code} {letter.reason}"),
    ]
    if record is None or record.offset != letter.log_offset or is_mark(record):
        return [*lines, ("value", "(Kafka does not hold the letter any more)")]
    lines += [(f"header {name}", printable(value)) for name, value in record.headers]
    return [*lines, ("value", printable(record.value))]


def printable(data: bytes | None) -> str:
    """As text as far as it is text; what would command a terminal, and what is no UTF-8, as escapes."""
    if data is None:
        return "(none)"
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
