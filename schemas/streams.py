"""One `Stream` a contract: its topic, its table, and how an event becomes a record.

A record's key is the event id, its value one JSON object: the row as ClickHouse's `JSONEachRow` takes it,
less the two Kafka coordinates, which the consumer appends to the text without parsing it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Any

from pydantic import BaseModel

from schemas.app_interaction import InteractionRequest
from schemas.layouts import Columns, Layout, Layouts
from schemas.retriever_interaction import TrackInteractionRequest
from schemas.search_sense import Warning, app_may_warn, app_warnings, retriever_may_warn, retriever_warnings
from schemas.validation import Invalid, dumps, dumps_all, loads

NO_CONTEXT: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Stream:
    """`name` is the topic and the table; `owner` the column that says whose event it is; `warnings` tells what is odd
    about a checked event; `may_warn`, of many, whether to ask at all."""

    name: str
    owner: str
    model: type[BaseModel]
    warnings: Callable[[dict[str, Any]], list[Warning]]
    may_warn: Callable[[Columns], bool]
    fields: frozenset[str] = field(init=False)
    layouts: Layouts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", frozenset(self.model.model_fields))
        object.__setattr__(self, "layouts", Layouts(self.model))

    def parse(self, body: bytes) -> dict[str, Any]:
        """The checked event in `body`. Raises `schemas.validation.Invalid`."""
        return self.check(loads(body))

    def check(self, value: Any) -> dict[str, Any]:
        """The checked event, which is the JSON value itself. Raises `schemas.validation.Invalid`."""
        self.layouts.check(value)
        event: dict[str, Any] = value
        return event

    def encode(
        self,
        event: dict[str, Any],
        event_id: str,
        owner: str,
        received_ms: int,
        context: Mapping[str, Any] = NO_CONTEXT,
    ) -> bytes:
        """The record value for a checked event, which is used up. `context` are columns that the gateway fills, not the
        event; `event_id` is of letters that JSON does not escape. Raises `Invalid` if it is nested too deep."""
        return self.row(event, event_id.encode(), self.head(owner, received_ms, context), self.layouts.of(event))

    def head(self, owner: str, received_ms: int, context: Mapping[str, Any] = NO_CONTEXT) -> bytes:
        """What the rows of a request have in common behind their ids, as members of a JSON object."""
        head = _head(self.owner, owner, received_ms)
        return b"%b,%b" % (head, dumps(dict(context))[1:-1]) if context else head

    def row(self, event: dict[str, Any], event_id: bytes, head: bytes, layout: Layout) -> bytes:
        """As `encode`, of what many events share. Nothing in `head` has the name of a field."""
        if layout.unknown:
            _set_apart((event,), layout.unknown)
        return b'{"event_id":"' + event_id + b'",' + head + b"," + dumps(event)[1:]

    def rows(self, events: Sequence[dict[str, Any]], ids: Sequence[bytes], head: bytes, layout: Layout) -> list[bytes]:
        """As `row`, of events with the same names. Raises `Invalid` if one of them is nested too deep: then none is
        used up."""
        unknown = layout.unknown
        if unknown:
            _set_apart(events, unknown)
        try:
            texts = dumps_all(events)
        except Invalid:
            if unknown:
                for event in events:
                    event.update(event.pop("extra"))
            raise
        pieces = zip(
            repeat(b'{"event_id":"'), ids, repeat(b'",' + head + b","), map(_behind_brace, texts), strict=False
        )
        return list(map(b"".join, pieces))


_behind_brace = itemgetter(slice(1, None))


def _set_apart(events: Iterable[dict[str, Any]], unknown: Sequence[str]) -> None:
    for event in events:
        extra = {}
        for name in unknown:
            extra[name] = event.pop(name)
        event["extra"] = extra


@lru_cache(maxsize=64)  # under load, many events share a millisecond
def _head(column: str, owner: str, received_ms: int) -> bytes:
    return dumps({column: owner, "received_at": iso_ms(received_ms)})[1:-1]


APP_INTERACTIONS = Stream("app_interactions", "app", InteractionRequest, app_warnings, app_may_warn)
RETRIEVER_INTERACTIONS = Stream(
    "retriever_interactions", "retriever", TrackInteractionRequest, retriever_warnings, retriever_may_warn
)
STREAMS = (APP_INTERACTIONS, RETRIEVER_INTERACTIONS)


def iso_ms(epoch_ms: int) -> str:
    """`2026-11-22T06:20:00.123Z`: ClickHouse would take a bare integer for seconds."""
    seconds, ms = divmod(epoch_ms, 1000)
    return f"{_iso_seconds(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=4)  # thousands of events share a second
def _iso_seconds(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
