"""Many events in one request: each is checked, published and answered by itself.

What is wrong with one event is in its own result and touches no other. Only what is no batch at all, or what the
caller may not send, is an error of the whole request.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence

from gateway import answers, event_ids
from gateway.asgi import Message, Receive, Respond
from gateway.body import ClientDisconnected, is_ndjson, read_body
from gateway.endpoints import Endpoint
from gateway.errors import BatchTooLong, GatewayError, Unavailable
from gateway.intake import PreparedAlike, Sender, prepare, prepare_alike
from gateway.outbox import Refusal
from gateway.quotas import Limit
from gateway.record import OVERHEAD_BYTES, Durability, Record, Records
from gateway.requests import Request
from schemas.batches import Batch, TooManyEvents, of_event, parse_batch
from schemas.search_sense import Warning
from schemas.validation import Detail, Invalid

TURN_EVENTS = 250  # after so many, other callers have their turn: a millisecond or two

_TOO_LARGE: Detail = {"loc": ["body"], "msg": "The event is too large", "type": "event_too_large"}


class PreparedBatch:
    """What will be published of a batch of so many events, as `records` in their order. By the index of its event: what
    is wrong with one that is `refused`, and the `warnings` about one that is good, if there are any."""

    def __init__(self, events: int, records: Records, record_bytes_max: int) -> None:
        self._record_bytes_max = record_bytes_max
        self.records = records
        self.refused: dict[int, list[Detail]] = {}
        self.warnings: dict[int, Sequence[Warning]] = {}
        self._events = events

    def add(self, index: int, record: Record, warnings: Sequence[Warning]) -> None:
        if record.bytes > self._record_bytes_max:
            self.refused[index] = of_event(index, [_TOO_LARGE])
            return
        self.records.append(record)
        if warnings:
            self.warnings[index] = warnings

    def add_all(self, first: int, alike: PreparedAlike) -> None:
        """From the index `first` on."""
        keys, values, warnings = alike
        largest = max(map(len, keys)) + max(map(len, values)) + OVERHEAD_BYTES
        if largest > self._record_bytes_max:
            records = self.records
            for index, (key, value) in enumerate(zip(keys, values, strict=True), first):
                record = Record(records.topic, None, key, value, records.timestamp_ms)
                self.add(index, record, warnings[index - first] if warnings else ())
            return
        self.records.extend(keys, values)
        if warnings:
            self.warnings.update((index, its) for index, its in enumerate(warnings, first) if its)

    def good(self) -> Iterator[tuple[int, bytes, Sequence[Warning]]]:
        """Index, id and warnings of each that is."""
        indexes = (index for index in range(self._events) if index not in self.refused)
        return (
            (index, key, self.warnings.get(index, ())) for index, key in zip(indexes, self.records.keys, strict=True)
        )

    def results(self, of_good: Iterator[bytes]) -> bytes:
        """Of all events, in order."""
        refused = self.refused
        return b",".join(
            answers.rejected_result(index, refused[index]) if index in refused else next(of_good)
            for index in range(self._events)
        )


class EventBatch(Endpoint):
    """POST …/interactions/batch."""

    async def _answer(self, request: Request, receive: Receive) -> tuple[int, bytes]:
        caller, limits = self._admit(request)
        self.services.quotas.admit(limits, time.monotonic())
        key = event_ids.requested(request, chars_max=event_ids.BATCH_KEY_CHARS_MAX)
        sender = self._sender(request, caller)
        if (offer := self._offer(request)) is not None:
            offer(SameBatchCaller(self, request, limits, sender))
        return await self.take(request, receive, limits, sender, key)

    async def take(
        self, request: Request, receive: Receive, limits: Sequence[Limit], sender: Sender, key: str | None
    ) -> tuple[int, bytes]:
        """The batch of a caller who is let in. Raises what `read_body` raises, Invalid, BatchTooLong, Unavailable."""
        quotas = self.services.quotas
        try:
            batch = self._parse(request, await self._read(request, receive))
        except (GatewayError, Invalid, ClientDisconnected):
            if limits:  # it made us read megabytes: whoever sends nothing else must come to an end
                quotas.spend(limits, 1, time.monotonic())
            raise
        self.received(request, len(batch.events))
        if limits:
            request.answer_headers += quotas.spend(limits, len(batch.events), time.monotonic())
        events = await self._prepare(request, sender, batch, key)
        return await self._publish(events, batch_warnings(batch))

    async def _read(self, request: Request, receive: Receive) -> bytes:
        services = self.services
        return await read_body(request.scope, receive, services.limits.request_bytes_max, services.budget, ndjson=True)

    def _parse(self, request: Request, body: bytes) -> Batch:
        """Raises Invalid for what is no batch, BatchTooLong."""
        events_max = self.services.limits.request_events_max
        ndjson = is_ndjson(request.headers.get(b"content-type", b""))
        try:
            return parse_batch(body, ndjson=ndjson, events_max=events_max)
        except TooManyEvents:
            raise BatchTooLong(events_max) from None

    async def _prepare(self, request: Request, sender: Sender, batch: Batch, key: str | None) -> PreparedBatch:
        stream, received_ms = self.stream, request.received_ms
        head = stream.head(sender.caller.name, received_ms, sender.context)
        new_ids = event_ids.many()
        names = None if key is None else event_ids.Derived(key)
        is_plain = key is None and batch.timestamp is None and batch.sent_at is None
        records = Records(stream.name, received_ms)
        prepared = PreparedBatch(len(batch.events), records, self.services.limits.record_bytes_max)
        for first in range(0, len(batch.events), TURN_EVENTS):
            if first:
                await asyncio.sleep(0)
            events = batch.events[first : first + TURN_EVENTS]
            alike = prepare_alike(stream, sender, events, head, new_ids) if is_plain else None
            if alike is not None:
                prepared.add_all(first, alike)
                continue
            for index, event in enumerate(events, first):
                try:
                    if isinstance(event, Invalid):
                        raise event
                    layout = stream.layouts.check(event)
                    # An event's own id is nearer to it than the request's.
                    event_id = None if names is None or event_ids.is_id(event.get("event_id")) else names.of(event)
                    record, warnings = prepare(
                        stream,
                        sender,
                        event,
                        received_ms,
                        event_id,
                        batch.timestamp,
                        batch.sent_at,
                        layout,
                        head,
                        new_ids.__next__,
                    )
                except Invalid as invalid:
                    prepared.refused[index] = of_event(index, invalid.detail)
                else:
                    prepared.add(index, record, warnings)
        batch.events.clear()  # what is next is made where they were, which the processor's cache still has
        return prepared

    async def _publish(self, events: PreparedBatch, warnings: Sequence[Warning]) -> tuple[int, bytes]:
        """200 if at least one event was accepted, 422 if none. Raises Unavailable if that is not the events' fault."""
        records = events.records
        places: list[Durability | Refusal] = []
        if records:
            places_to_come = self.services.outbox.publish_all(records)
            records.values.clear()  # here, and not when the answer comes, they are still in the processor's cache
            places = await places_to_come
        refusals: list[Refusal] = []
        if not events.refused and not events.warnings and places.count("kafka") == len(places):  # as is usual
            results = answers.accepted_results(records.keys, b"kafka")
        else:
            refusals = [place for place in places if isinstance(place, Exception)]
            if refusals and len(refusals) == len(records):
                raise Unavailable(str(refusals[0]), code=refusals[0].reason)
            results = events.results(
                self._result(*good, place) for good, place in zip(events.good(), places, strict=True)
            )
        refused = self.services.metrics.refused
        refused(self.stream.name, "422", "ValidationError", len(events.refused))
        refused(self.stream.name, "503", "ServiceUnavailableError", len(refusals))
        return 200 if records else 422, answers.batch(bool(records), results, warnings)

    def _result(self, index: int, event_id: bytes, warnings: Sequence[Warning], place: Durability | Refusal) -> bytes:
        if isinstance(place, Exception):
            error = Unavailable(str(place), code=place.reason)
            return answers.unavailable_result(index, event_id, error.payload())
        self.warn(warnings)
        return answers.accepted_result(index, event_id, place.encode(), warnings)


class SameBatchCaller:
    """As `single_event.SameCaller`, of batches: what the head of the `request` has said holds for them too."""

    def __init__(self, endpoint: EventBatch, request: Request, limits: Sequence[Limit], sender: Sender) -> None:
        self._endpoint = endpoint
        self._registry = endpoint.door.registry
        self._scope = request.scope
        self._headers = tuple(request.answer_headers)
        self._limits = limits
        self._sender = sender
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, body: bytes, respond: Respond, value: bytes | None) -> bool:
        if self._endpoint.door.registry is not self._registry:
            return False
        task = asyncio.get_running_loop().create_task(self._answer(body, respond, value))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _answer(self, body: bytes, respond: Respond, value: bytes | None) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        endpoint, limits = self._endpoint, self._limits
        request = Request(self._scope, time.time_ns() // 1_000_000)
        request.answer_headers += self._headers
        try:
            endpoint.services.quotas.admit(limits, time.monotonic())
            key = None if value is None else event_ids.of_header(value, event_ids.BATCH_KEY_CHARS_MAX)
            status, answer = await endpoint.take(request, receive, limits, self._sender, key)
        except (Exception, asyncio.CancelledError) as error:
            refusal = endpoint.refusal(error)
            endpoint.refused(request, str(refusal.status), refusal.type)
            respond(refusal.status, refusal.body(), [*refusal.headers, *request.answer_headers])
        else:
            respond(status, answer, request.answer_headers)


def batch_warnings(batch: Batch) -> list[Warning]:
    return [
        Warning("batch_field_ignored", (name,), "A batch has events, timestamp and sent_at; this was ignored")
        for name in batch.unknown
    ]
