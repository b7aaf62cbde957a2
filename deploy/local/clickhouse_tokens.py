"""Forgets the deduplication tokens of inserts whose part never came to be, before the engine opens its directory.

For an INSERT into a plain MergeTree the engine first notes the token in the table's `deduplication_logs`, then
renames the part to its final name. Killed between the two, it comes back remembering a token whose rows it does
not have, and the same block, sent again, is acknowledged and dropped: lost. The targets of materialized views
are tables like any other, with the same gap. What is appended here is the engine's own record of a drop, so it
takes the block again.

Limits: for the end of a process, not of the machine: parts are not fsynced. Only the tables in the directory
itself are looked at, which are all that an engine without configuration files has.
"""

import fcntl
import logging
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

logger = logging.getLogger(__name__)

# A line is "operation, part, token": deduplication_log_3.txt, and the ones before it that the window still needs.
LOG = re.compile(r"deduplication_log_(\d+)\.txt")
ADDED = "1"
DROPPED = "2"
# Partition id, first and last block, level, mutation. An outdated part counts: merged, its rows are in another.
PART = re.compile(r"([^_]+)_(\d+)_(\d+)_\d+(?:_\d+)?", re.ASCII)


def forget_lost_tokens(data_dir: Path) -> int:
    """How many were forgotten; none if an engine has the directory open. Raises OSError."""
    if not (data_dir / "store").exists():
        return 0
    # The engine's own lock, in a file that it makes anew: to a log that an engine writes nobody else appends.
    with (data_dir / "status").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        return sum(_mend(logs) for logs in data_dir.glob("store/*/*/deduplication_logs"))


def _mend(directory: Path) -> int:
    numbered = sorted((int(match[1]), path) for path in directory.iterdir() if (match := LOG.fullmatch(path.name)))
    if not numbered:
        return 0
    paths = [path for _, path in numbered]
    _cut_torn_line(paths[-1])
    # Latin-1 gives back whatever bytes there are.
    lines = (line for path in paths for line in path.read_bytes().decode("latin-1").split("\n"))
    lost = lost_tokens(lines, (path.name for path in directory.parent.iterdir()))
    if lost:
        with paths[-1].open("ab") as log:
            log.write("".join(f"{DROPPED}\t{part}\t{token}\n" for token, part in lost.items()).encode("latin-1"))
        logger.warning("%s: forgot %d tokens of parts that are not there", directory.parent, len(lost))
    return len(lost)


def _cut_torn_line(path: Path) -> None:
    """The engine would append to it, and then read nothing from there on: it would take repeats for new."""
    written = path.read_bytes()
    if (end := written.rfind(b"\n") + 1) < len(written):
        with path.open("r+b") as log:
            log.truncate(end)


def lost_tokens(lines: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Pure: the part by token of those that a log, read to its end, remembers without their blocks in any part.

    Rows that were dropped on purpose (DROP PARTITION, a TTL) are not there either. The engine forgets their tokens
    itself, and where it does not it is harmless: a token is only for an INSERT that is sent again because its answer
    was lost, and rows that somebody has seen and dropped were answered long ago.
    """
    remembered: dict[str, str] = {}
    for line in lines:
        operation, _, rest = line.partition("\t")
        part, _, token = rest.partition("\t")
        if operation == ADDED:
            remembered[token] = part
        elif operation == DROPPED:
            remembered.pop(token, None)
    held = Blocks(names)
    return {token: part for token, part in remembered.items() if not held.cover(part)}


class Blocks:
    """The blocks that parts hold. A part holds those of the parts that were merged into it."""

    def __init__(self, names: Iterable[str]) -> None:
        spans = defaultdict(list)
        for name in names:
            if match := PART.fullmatch(name):
                spans[match[1]].append((int(match[2]), int(match[3])))
        self._firsts = {partition: sorted(first for first, _ in found) for partition, found in spans.items()}
        # At each of `_firsts`, how far a part reaches that begins there or before.
        self._reaches = {
            partition: list(accumulate((last for _, last in sorted(found)), max)) for partition, found in spans.items()
        }

    def cover(self, part: str) -> bool:
        """Whether one part holds all of this one's. A name of no known form is let be."""
        match = PART.fullmatch(part)
        if match is None:
            return True
        before = bisect_right(self._firsts.get(match[1], []), int(match[2]))
        return before > 0 and self._reaches[match[1]][before - 1] >= int(match[3])
