"""Exactly once, checked: the acknowledged events of a demo run against its rows, id by id.

Limit: it judges the rows it is given; what lands after they were read is not among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.local.demo_traffic import Traffic


@dataclass(frozen=True)
class Audit:
    """An acknowledged event is `missing` if no row has its id; an `unknown` id is in a row and in no answer.

    Rows of unknown ids are allowed only as far as tries were left unanswered: until callers can name an event
    themselves, the retry of an event that did arrive is a new event, and the id of the first one is nowhere
    but in its row.
    """

    sent: int
    acknowledged: int
    acknowledged_ids: int
    rows: int
    ids: int
    missing: int
    unknown: int
    unanswered: int

    @classmethod
    def of(cls, traffic: Traffic, stored: Mapping[str, Sequence[str]]) -> "Audit":
        """`stored` has the event id of each row, by stream."""
        acknowledged = {(stream, id_) for stream, ids in traffic.acknowledged.items() for id_ in ids}
        found = {(stream, id_) for stream, ids in stored.items() for id_ in ids}
        return cls(
            sent=traffic.sent.total(),
            acknowledged=traffic.acknowledged_count,
            acknowledged_ids=len(acknowledged),
            rows=sum(map(len, stored.values())),
            ids=len(found),
            missing=len(acknowledged - found),
            unknown=len(found - acknowledged),
            unanswered=traffic.unanswered,
        )

    @property
    def faults(self) -> list[str]:
        """What keeps this run from being exactly once; empty if nothing does."""
        found = {
            "not accepted": self.sent - self.acknowledged,
            "answered with another event's id": self.acknowledged - self.acknowledged_ids,
            "acknowledged but not queryable in time": self.missing,
            "stored again": self.rows - self.ids,
            "stored but never sent": max(0, self.unknown - self.unanswered),
        }
        return [f"{count:,} {what}" for what, count in found.items() if count]
