"""POST …/interactions/validate: what would become of an event, or of a batch. Nothing of it is stored."""

import time

from gateway import answers, event_ids
from gateway.asgi import Receive
from gateway.body import is_ndjson
from gateway.errors import PayloadTooLarge
from gateway.event_batch import EventBatch, batch_warnings
from gateway.intake import prepare
from gateway.requests import Request
from schemas.validation import Invalid, loads


class DryRun(EventBatch):
    async def _answer(self, request: Request, receive: Receive) -> tuple[int, bytes]:
        self.services.metrics.dry_runs.labels(self.stream.name).inc()
        caller, limits = self._admit(request)
        if limits:
            request.answer_headers += self.services.quotas.spend(limits, 1, time.monotonic())
        key = event_ids.requested(request)
        body = await self._read(request, receive)
        sender = self._sender(request, caller)
        if self._is_batch(request, body):
            key = event_ids.requested(request, chars_max=event_ids.BATCH_KEY_CHARS_MAX)
            batch = self._parse(request, body)
            events = await self._prepare(request, sender, batch, key)
            results = events.results(
                answers.rehearsed_result(index, event_id, row, warnings)
                for (index, event_id, warnings), row in zip(events.good(), events.records.values, strict=True)
            )
            success = bool(events.records)
            return 200 if success else 422, answers.batch(success, results, batch_warnings(batch), dry_run=True)
        if len(body) > self.services.limits.event_bytes_max:
            raise PayloadTooLarge(self.services.limits.event_bytes_max)
        record, warnings = prepare(self.stream, sender, self.stream.parse(body), request.received_ms, key)
        return 200, answers.rehearsed(record.key, record.value, warnings)

    def received(self, request: Request, events: int) -> None:
        """Not an event that anybody waits for."""

    def refused(self, request: Request, status: str, type_: str) -> None:
        """No event was refused."""

    def _is_batch(self, request: Request, body: bytes) -> bool:
        """A single event may have a field `events` of its own."""
        if is_ndjson(request.headers.get(b"content-type", b"")) or body.lstrip()[:1] == b"[":
            return True
        if b'"events"' not in body:
            return False
        try:
            value = loads(body)
        except Invalid:
            return True  # there it is told which of its events is at fault
        required = {name for name, field in self.stream.model.model_fields.items() if field.is_required()}
        return isinstance(value, dict) and "events" in value and not required & value.keys()
