"""What the gateway hands on: one Kafka record."""

from typing import Literal, NamedTuple

OVERHEAD_BYTES = 100  # what a record costs beyond its key and value, in Kafka or in the spool, generously


Durability = Literal["kafka", "spool"]
"""Where a record is safe."""


class Record(NamedTuple):
    """`partition` is None if any will do; `timestamp_ms` is the event's received_at, epoch ms. `scope` is the owner
    (app or retriever) whose caller gave the event its id, and may send it again; None for an id of ours."""

    topic: str
    partition: int | None
    key: bytes
    value: bytes
    timestamp_ms: int
    scope: bytes | None = None

    @property
    def bytes(self) -> int:
        return len(self.key) + len(self.value) + OVERHEAD_BYTES
