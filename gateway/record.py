"""What the gateway hands on: Kafka records, one or those of a request."""

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


def bytes_of(keys: list[bytes], values: list[bytes]) -> int:
    """As `Record.bytes`, of all."""
    return sum(map(len, keys)) + sum(map(len, values)) + OVERHEAD_BYTES * len(keys)


class Records:
    """Those of one request, for any partition, column by column: an object for each would cost as much as to publish
    it. `bytes` as of a `Record`, of all; `scopes` is empty if all ids are ours."""

    def __init__(self, topic: str, timestamp_ms: int) -> None:
        self.topic = topic
        self.timestamp_ms = timestamp_ms
        self.keys: list[bytes] = []
        self.values: list[bytes] = []
        self.scopes: list[bytes | None] = []
        self.bytes = 0

    def append(self, record: Record) -> None:
        if self.scopes or record.scope is not None:
            self.scopes += [None] * (len(self.keys) - len(self.scopes))
            self.scopes.append(record.scope)
        self.keys.append(record.key)
        self.values.append(record.value)
        self.bytes += record.bytes

    def extend(self, keys: list[bytes], values: list[bytes]) -> None:
        """With ids of ours."""
        if self.scopes:
            self.scopes += [None] * len(keys)
        self.keys += keys
        self.values += values
        self.bytes += bytes_of(keys, values)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        scope = self.scopes[index] if self.scopes else None
        return Record(self.topic, None, self.keys[index], self.values[index], self.timestamp_ms, scope)

    def since(self, first: int) -> list[Record]:
        return [self[index] for index in range(first, len(self))]
