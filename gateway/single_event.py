"""One event a request: by itself, and behind others of the same caller on the same connection."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from gateway import answers, event_ids
from gateway.asgi import Header, Receive, Respond
from gateway.body import read_body
from gateway.endpoints import Endpoint
from gateway.errors import PayloadTooLarge, Unavailable
from gateway.intake import Prepared, Sender, prepare
from gateway.outbox import Refusal
from gateway.quotas import Limit
from gateway.record import Durability
from gateway.registry import Registry
from gateway.requests import Request
from schemas.layouts import Layout
from schemas.search_sense import Warning
from schemas.validation import loads


class SingleEvent(Endpoint):
    """POST …/interactions."""

    async def _answer(self, request: Request, receive: Receive) -> tuple[int, bytes]:
        self.received(request, 1)
        registry = self.door.registry
        caller, limits = self._admit(request)
        headers = request.answer_headers
        if limits:
            request.answer_headers = [*headers, *self.services.quotas.spend(limits, 1, time.monotonic())]
        event_id = event_ids.requested(request)
        sender = self._sender(request, caller)
        event = await self._event(request, receive)
        offer = self._offer(request)
        if offer is not None and b"content-encoding" not in request.headers:
            offer(SameCaller(self, registry, limits, sender, headers))
        record, warnings = self.prepare(sender, event, request.received_ms, event_id)
        del event  # not kept while we wait
        return 200, self.accepted(record.key, warnings, await self.services.outbox.publish(record))

    async def _event(self, request: Request, receive: Receive) -> dict[str, Any]:
        """The checked event. Raises what `read_body` raises, and Invalid."""
        services = self.services
        body = await read_body(request.scope, receive, services.limits.event_bytes_max, services.budget)
        return self.stream.parse(body)

    def read(self, sender: Sender, body: bytes, received_ms: int, event_id: str | None) -> Prepared:
        """What a whole body is, as JSON. Raises PayloadTooLarge, Invalid."""
        if len(body) > self.services.limits.event_bytes_max:
            raise PayloadTooLarge(self.services.limits.event_bytes_max)
        event = loads(body)
        return self.prepare(sender, event, received_ms, event_id, self.stream.layouts.check(event))

    def prepare(
        self,
        sender: Sender,
        event: dict[str, Any],
        received_ms: int,
        event_id: str | None = None,
        layout: Layout | None = None,
    ) -> Prepared:
        """As `intake.prepare`. Raises PayloadTooLarge, Invalid."""
        prepared = prepare(self.stream, sender, event, received_ms, event_id, layout=layout)
        if prepared[0].bytes > self.services.limits.record_bytes_max:
            raise PayloadTooLarge(self.services.limits.event_bytes_max)
        return prepared

    def accepted(self, event_id: bytes, warnings: Sequence[Warning], place: Durability | Refusal) -> bytes:
        """The answer. Raises PayloadTooLarge or Unavailable if the event has found no place."""
        if isinstance(place, Exception):
            if place.reason == "record_too_large":
                raise PayloadTooLarge(self.services.limits.event_bytes_max)
            raise Unavailable(str(place), code=place.reason)
        if warnings:
            self.warn(warnings)
        return answers.accepted(event_id, place.encode(), warnings)


class SameCaller:
    """Events whose head is that of one before, on the same connection, but for an id that it names: what the head has
    said holds for them too, for as long as the registry is the same. `headers` go with every answer."""

    __slots__ = ("_endpoint", "_headers", "_limits", "_registry", "_sender")

    def __init__(
        self,
        endpoint: SingleEvent,
        registry: Registry,
        limits: Sequence[Limit],
        sender: Sender,
        headers: Sequence[Header],
    ) -> None:
        self._endpoint = endpoint
        self._registry = registry
        self._limits = limits
        self._sender = sender
        self._headers = headers

    def __call__(self, body: bytes, respond: Respond, value: bytes | None) -> bool:
        endpoint = self._endpoint
        if endpoint.door.registry is not self._registry:
            return False
        services = endpoint.services
        received_ms = time.time_ns() // 1_000_000
        endpoint.events_received.inc()
        headers = self._headers
        try:
            if self._limits:
                headers = [*headers, *services.quotas.spend(self._limits, 1, time.monotonic())]
            event_id = None if value is None else event_ids.of_header(value)
            record, warnings = endpoint.read(self._sender, body, received_ms, event_id)
            place = services.outbox.publish(record)
        except Exception as error:
            self._refuse(error, headers, respond)
        else:
            place.add_done_callback(partial(self._answer, record.key, warnings, headers, respond))
        return True

    def _answer(
        self,
        event_id: bytes,
        warnings: Sequence[Warning],
        headers: Sequence[Header],
        respond: Respond,
        place: asyncio.Future[Durability | Refusal],
    ) -> None:
        try:
            answer = self._endpoint.accepted(event_id, warnings, place.result())
        except (Exception, asyncio.CancelledError) as error:
            self._refuse(error, headers, respond)
        else:
            respond(200, answer, headers)

    def _refuse(self, error: BaseException, headers: Sequence[Header], respond: Respond) -> None:
        refusal = self._endpoint.refusal(error)
        self._endpoint.count_refused(1, str(refusal.status), refusal.type)
        respond(refusal.status, refusal.body(), [*refusal.headers, *headers])
