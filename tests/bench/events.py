"""The events that everybody is sent, and the rows that they make: clicks in a shop, the same at every run.

A body is about 210 bytes, a row about 320: every contract field but two, an object of metadata, and one field that the
contract does not name. None of them earns a warning.
"""

import json
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from uuid_utils import uuid7

from schemas.streams import APP_INTERACTIONS, iso_ms

APP = "demo"
RETRIEVER = "demo"
TOPIC = APP_INTERACTIONS.name
BODIES = 64
SEED = 7

_WORDS = ("red", "blue", "linen", "running", "winter", "kids", "leather", "light", "sneakers", "jacket", "lamp", "desk")
_NO_ID = "0" * 36


class Row(NamedTuple):
    event_id: bytes
    value: bytes


def app_event(random: Random) -> dict[str, object]:
    return {
        "event_type": random.choice(["click", "view"]),
        "document_id": f"doc_{random.getrandbits(32):08x}",
        "position": random.randrange(20),
        "query": " ".join(random.sample(_WORDS, 2)),
        "result_count": random.randrange(20, 200),
        "session_id": f"sess_{random.getrandbits(40):010x}",
        "metadata": {"page": random.randrange(9), "device": "desktop", "price": round(random.uniform(5, 500), 2)},
        "experiment": random.choice("AB"),
    }


def retriever_event(random: Random) -> dict[str, object]:
    return {
        "document_id": f"doc_{random.getrandbits(32):08x}",
        "interaction_type": ["view", "click"],
        "position": random.randrange(20),
        "execution_id": f"exec_{random.getrandbits(40):010x}",
        "query_snapshot": {"text": " ".join(random.sample(_WORDS, 2))},
        "document_score": round(random.random(), 4),
        "result_set_size": random.randrange(20, 200),
        "session_id": f"sess_{random.getrandbits(40):010x}",
        "metadata": {"device": "desktop"},
    }


def app_events(count: int) -> list[dict[str, object]]:
    random = Random(SEED)
    return [app_event(random) for _ in range(count)]


def app_bodies() -> list[bytes]:
    return [_json(event) for event in app_events(BODIES)]


def app_batches(events: int) -> list[bytes]:
    """Fewer of them: they are large, and each has many events."""
    random = Random(SEED)
    return [_json([app_event(random) for _ in range(events)]) for _ in range(BODIES // 8)]


def retriever_bodies() -> list[bytes]:
    random = Random(SEED)
    return [_json(retriever_event(random)) for _ in range(BODIES)]


class Rows:
    """Rows as the gateway writes them, made without it: each with an id and a time of its own."""

    def __init__(self) -> None:
        self._tails = [_tail(event) for event in app_events(BODIES)]
        self._made = 0

    def make(self, received_ms: int) -> Row:
        event_id = str(uuid7()).encode()
        tail = self._tails[self._made % len(self._tails)]
        self._made += 1
        head = b'{"event_id":"%b","app":"%b","received_at":"%b"' % (
            event_id,
            APP.encode(),
            iso_ms(received_ms).encode(),
        )
        return Row(event_id, head + tail)


def located(value: bytes, partition: int, offset: int) -> bytes:
    """A row as the consumer inserts it: a line, with its coordinates in Kafka."""
    return b'%b,"kafka_partition":%d,"kafka_offset":%d}\n' % (value[:-1], partition, offset)


def blocks(count: int, rows_max: int, bytes_max: int, partition: int = 0) -> list[tuple[int, bytes]]:
    """Bodies of INSERTs, each as full as the consumer's own may be: number of rows, and their bytes."""
    rows, offset, made = Rows(), 0, []
    for _ in range(count):
        lines: list[bytes] = []
        size = 0
        while len(lines) < rows_max and size < bytes_max:
            lines.append(located(rows.make(1_760_000_000_000 + offset).value, partition, offset))
            size += len(lines[-1])
            offset += 1
        made.append((len(lines), b"".join(lines)))
    return made


def _tail(event: dict[str, object]) -> bytes:
    """What of a row comes behind its time."""
    row = APP_INTERACTIONS.encode(event, _NO_ID, APP, 0)
    return row.partition(f'"received_at":"{iso_ms(0)}"'.encode())[2]


def _json(value: dict[str, object] | Sequence[dict[str, object]]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
