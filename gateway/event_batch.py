"""Many events in one request: each is checked, published and answered by itself.

What is wrong with one event is in its own result and touches no other. Only what is no batch at all, or what the
caller may not send, is an error of the whole request.
"""

import asyncio
import time
from collections.abc import Sequence

from gateway import answers, event_ids
from gateway.asgi import Receive
from gateway.body import ClientDisconnected, is_ndjson, read_body
from gateway.endpoints import Endpoint
from gateway.errors import BatchTooLong, GatewayError, Unavailable
from gateway.intake import Prepared, Sender, prepare
from gateway.outbox import Refusal
from gateway.requests import Request
from schemas.batches import Batch, TooManyEvents, of_event, parse_batch
from schemas.search_sense import Warning
from schemas.validation import Invalid

TURN_EVENTS = 100  # after so many, other callers have their turn


class EventBatch(Endpoint):
    """POST …/interactions/batch."""

    async def _answer(self, request: Request, receive: Receive) -> tuple[int, bytes]:
        caller, limits = self._admit(request)
        quotas = self.services.quotas
        quotas.admit(limits, time.monotonic())
        key = event_ids.requested(request, chars_max=event_ids.BATCH_KEY_CHARS_MAX)
        try:
            batch = self._parse(request, await self._read(request, receive))
        except (GatewayError, Invalid, ClientDisconnected):
            if limits:  # it made us read megabytes: whoever sends nothing else must come to an end
                quotas.spend(limits, 1, time.monotonic())
            raise
        self.received(request, len(batch.events))
        if limits:
            request.answer_headers += quotas.spend(limits, len(batch.events), time.monotonic())
        events = await self._prepare(request, self._sender(request, caller), batch, key)
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

    async def _prepare(
        self, request: Request, sender: Sender, batch: Batch, key: str | None
    ) -> list[Prepared | Invalid]:
        """In order; each is what will be published, or what is wrong with it."""
        prepared: list[Prepared | Invalid] = []
        names = None if key is None else event_ids.Derived(key)
        for index, event in enumerate(batch.events):
            if index % TURN_EVENTS == TURN_EVENTS - 1:
                await asyncio.sleep(0)
            try:
                prepared.append(self._prepare_one(request, sender, batch, event, names))
            except Invalid as invalid:
                prepared.append(Invalid(of_event(index, invalid.detail)))
        return prepared

    def _prepare_one(
        self, request: Request, sender: Sender, batch: Batch, event: object, names: event_ids.Derived | None
    ) -> Prepared:
        """An event's own id is nearer to it than the request's. Raises Invalid."""
        if isinstance(event, Invalid):
            raise event
        checked = self.stream.check(event)
        prepared = prepare(
            self.stream,
            sender,
            checked,
            request.received_ms,
            None if names is None or event_ids.is_id(checked.get("event_id")) else names.of(checked),
            timestamp=batch.timestamp,
            sent_at=batch.sent_at,
        )
        if prepared.record.bytes > self.services.limits.record_bytes_max:
            raise Invalid([{"loc": ["body"], "msg": "The event is too large", "type": "event_too_large"}])
        return prepared

    async def _publish(self, events: Sequence[Prepared | Invalid], warnings: Sequence[Warning]) -> tuple[int, bytes]:
        """200 if at least one event was accepted, 422 if none. Raises Unavailable if that is not the events' fault."""
        good = [event.record for event in events if isinstance(event, Prepared)]
        places = iter(await self.services.outbox.publish_all(good) if good else ())
        results: list[bytes] = []
        refusals: list[Refusal] = []
        for index, event in enumerate(events):
            if isinstance(event, Invalid):
                results.append(answers.rejected_result(index, event.detail))
                continue
            place = next(places)
            if isinstance(place, Exception):
                refusals.append(place)
                error = Unavailable(str(place), code=place.reason)
                results.append(answers.unavailable_result(index, event.record.key, error.payload()))
            else:
                self.warn(event.warnings)
                results.append(answers.accepted_result(index, event.record.key, place.encode(), event.warnings))
        if refusals and len(refusals) == len(good):
            raise Unavailable(str(refusals[0]), code=refusals[0].reason)
        refused = self.services.metrics.refused
        refused.labels(self.stream.name, "422", "ValidationError").inc(len(events) - len(good))
        refused.labels(self.stream.name, "503", "ServiceUnavailableError").inc(len(refusals))
        return 200 if good else 422, answers.batch(bool(good), results, warnings)


def batch_warnings(batch: Batch) -> list[Warning]:
    return [
        Warning("batch_field_ignored", (name,), "A batch has events, timestamp and sent_at; this was ignored")
        for name in batch.unknown
    ]
