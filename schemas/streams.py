"""One `Stream` a contract: its topic, its table, and how an event becomes a record.

A record's key is the event id, its value one JSON object: the row as ClickHouse's `JSONEachRow` takes it,
less the two Kafka coordinates, which the consumer appends to the text without parsing it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from schemas.app_interaction import InteractionRequest
from schemas.retriever_interaction import TrackInteractionRequest
from schemas.search_sense import Warning, app_warnings, retriever_warnings
from schemas.validation import checker, dumps, loads

NO_CONTEXT: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Stream:
    """`name` is the topic and the table; `owner` the column that says whose event it is; `warnings` tells what is odd
    about a checked event."""

    name: str
    owner: str
    model: type[BaseModel]
    warnings: Callable[[dict[str, Any]], list[Warning]]
    fields: frozenset[str] = field(init=False)
    check: Callable[[Any], dict[str, Any]] = field(init=False)
    """The checked event, of a JSON value. Raises `schemas.validation.Invalid`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", frozenset(self.model.model_fields))
        object.__setattr__(self, "check", checker(self.model))

    def parse(self, body: bytes) -> dict[str, Any]:
        """The checked event in `body`. Raises `schemas.validation.Invalid`."""
        return self.check(loads(body))

    def encode(
        self,
        event: dict[str, Any],
        event_id: str,
        owner: str,
        received_ms: int,
        context: Mapping[str, Any] = NO_CONTEXT,
    ) -> bytes:
        """The record value for a checked event. `context` are columns that the gateway fills, not the event.
        Raises `Invalid` if it is nested too deep."""
        row: dict[str, Any] = {"event_id": event_id, self.owner: owner, "received_at": iso_ms(received_ms), **context}
        unknown = event.keys() - self.fields
        if not unknown:
            row.update(event)
        else:
            extra: dict[str, Any] = {}
            for name, value in event.items():
                (extra if name in unknown else row)[name] = value
            row["extra"] = extra
        return dumps(row)


APP_INTERACTIONS = Stream("app_interactions", "app", InteractionRequest, app_warnings)
RETRIEVER_INTERACTIONS = Stream("retriever_interactions", "retriever", TrackInteractionRequest, retriever_warnings)
STREAMS = (APP_INTERACTIONS, RETRIEVER_INTERACTIONS)


@lru_cache(maxsize=64)  # under load, many events share a millisecond
def iso_ms(epoch_ms: int) -> str:
    """`2026-11-22T06:20:00.123Z`: ClickHouse would take a bare integer for seconds."""
    seconds, ms = divmod(epoch_ms, 1000)
    return f"{_iso_seconds(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=4)  # thousands of events share a second
def _iso_seconds(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
