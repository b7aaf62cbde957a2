"""Pure: which records of a partition are repeats. A function of the partition's log before them, and of nothing else.

Marks are headers of a record. `dedupe` names the owner whose caller gave the event its id: every copy of such an event
carries it and lies in the same partition. `replay` says that a gateway's disk spool had the record, whose first copy
may be in the log already, without a mark. Records without marks are only looked at while a replay is remembered.

Remembered are the ids of marked records, for the window and MARGIN_SLOTS of *log time*, `ids_max` of them at most. Log
time is the newest timestamp so far: unlike timestamps it never runs backwards, unlike the clock it is the same whenever
the log is read. It is kept in whole slots, so that where a slot begins depends on nothing that came before.

So what is remembered at an offset is restored by reading the log from where the oldest of it stands: `checkpoint`.
"""

import enum
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SLOT_MS = 60_000
MARGIN_SLOTS = 5  # that the clocks of gateways may differ without a repeat being missed
ID_BYTES_MAX = 256  # with its owner; the contract's ids have 64

DEDUPE_HEADER = "dedupe"
REPLAY_HEADER = "replay"


class MarkedRecord(Protocol):
    """What there is to be known of a record."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Verdict(enum.Enum):
    FRESH = enum.auto()
    REPEAT = enum.auto()
    # Replays that the window does not know: the table may. By whose id it is.
    SUSPECT_OF_OURS = enum.auto()
    SUSPECT_OF_CALLERS = enum.auto()


@dataclass(frozen=True)
class Checkpoint:
    """No id before `offset` is remembered any more; `slot` is the log's time there."""

    offset: int
    slot: int


@dataclass
class _First:
    """The first marked record of a slot. From offset `spilled` on, more ids than may be remembered came later."""

    slot: int
    offset: int
    spilled: int | None = None


def reach_slots(window_s: int) -> int:
    """How far back an id is remembered."""
    return -(-window_s * 1000 // SLOT_MS) + MARGIN_SLOTS


class Window:
    """The ids that are remembered. Feed it every record of the log from `start` on, in order: `advance` those that
    are due, then `judge` those with headers or with a key that is among `replayed`.

    `replayed` are ids of ours, of replays: a broker that hung may append what a gateway sent first behind the replay of
    it, without a mark.
    """

    def __init__(self, window_s: int, ids_max: int, start: Checkpoint) -> None:
        self._reach = reach_slots(window_s)
        self._ids_max = ids_max
        # The slot of its latest record by id, in order of these. A repeat counts as the latest: who begins to read
        # behind the first record of an event must come to remember it as long as who has read that one, too.
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._slot = start.slot
        # What `checkpoint` answers from, of offsets that it has not been asked for yet.
        self._advances: deque[tuple[int, int]] = deque([(start.offset, start.slot)])
        self._firsts: deque[_First] = deque()
        self._spilled_slot = start.slot
        self.start = start
        self.replayed: set[bytes] = set()
        self.forgotten = 0

    @property
    def ids(self) -> int:
        return len(self._seen)

    @property
    def due_ms(self) -> int:
        """The timestamp from which on a record advances log time."""
        return (self._slot + 1) * SLOT_MS

    def advance(self, offset: int, timestamp: int) -> int:
        """A record at or behind `due_ms`; the next `due_ms`."""
        self._slot = timestamp // SLOT_MS
        self._advances.append((offset, self._slot))
        oldest, seen = self._slot - self._reach, self._seen
        if seen and seen[next(reversed(seen))] < oldest:  # all of them: at once, since there may be millions
            seen.clear()
            self.replayed.clear()
        while seen and seen[next(iter(seen))] < oldest:
            self._forget()
        return self.due_ms

    def judge(self, record: MarkedRecord) -> Verdict:
        """A record that a row can be made of."""
        key = record.key
        owner, is_replay = b"", False
        for name, value in record.headers:
            if name == DEDUPE_HEADER:
                owner = value or b""
            elif name == REPLAY_HEADER:
                is_replay = True
        if not key or len(key) + len(owner) > ID_BYTES_MAX or 0 in owner:
            return Verdict.FRESH  # none of a gateway's
        id_ = b"%b\0%b" % (owner, key)  # an owner is never empty, so ids of ours cannot be taken for a caller's
        is_repeat = id_ in self._seen
        if owner or is_replay:
            self._remember(id_, record.offset, is_repeat)
        if is_repeat:
            return Verdict.REPEAT
        if not is_replay:
            return Verdict.FRESH
        return Verdict.SUSPECT_OF_CALLERS if owner else Verdict.SUSPECT_OF_OURS

    def _remember(self, id_: bytes, offset: int, is_repeat: bool) -> None:
        if not self._firsts or self._firsts[-1].slot != self._slot:
            self._firsts.append(_First(self._slot, offset))
        self._seen[id_] = self._slot
        if is_repeat:
            self._seen.move_to_end(id_)
            return
        if id_[0] == 0:
            self.replayed.add(id_[1:])
        if len(self._seen) > self._ids_max:
            slot = self._forget()
            self.forgotten += 1
            if slot != self._spilled_slot:
                self._spilled_slot = slot
                for first in self._firsts:
                    if first.slot < slot and first.spilled is None:
                        first.spilled = offset

    def _forget(self) -> int:
        """The oldest id; its slot."""
        id_, slot = self._seen.popitem(last=False)
        if id_[0] == 0:
            self.replayed.discard(id_[1:])
        return slot

    def checkpoint(self, offset: int) -> Checkpoint:
        """From where to read for what is to be remembered at `offset`: one that has been reached, and is not before
        the one that was asked for last."""
        advances, firsts = self._advances, self._firsts
        while len(advances) > 1 and advances[1][0] < offset:
            advances.popleft()
        slot = advances[0][1]
        while firsts and (
            firsts[0].slot < slot - self._reach or (firsts[0].spilled is not None and firsts[0].spilled < offset)
        ):
            firsts.popleft()
        if firsts and firsts[0].offset < offset:
            return Checkpoint(firsts[0].offset, firsts[0].slot)
        return Checkpoint(offset, slot)
