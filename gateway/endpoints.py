"""What every public endpoint does with a request.

A handler reads as the data flows: let the caller in, spend quota, read, check, publish, answer. Plain ASGI callables:
at thousands of events a second a framework's request and middleware would cost more than all else that is done.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import structlog

from gateway import bots, cors, event_ids, privacy
from gateway.asgi import SAME_HEAD, OfferSameHead, Receive, SameHead, Scope, Send, respond
from gateway.body import ByteBudget, ClientDisconnected
from gateway.callers import Caller, Door
from gateway.client_address import ClientAddress
from gateway.errors import GatewayError, InternalError, InvalidEvent, NotFound
from gateway.intake import Sender
from gateway.metrics import Metrics
from gateway.outbox import Refusal
from gateway.quotas import Limit, Quotas
from gateway.record import Durability, Record, Records
from gateway.requests import Request
from schemas.search_sense import Warning
from schemas.streams import Stream
from schemas.validation import Invalid

log = structlog.get_logger(__name__)


class Outbox(Protocol):
    """Makes records durable and says where, or why a record is nowhere; `publish_all` gives one result a record, and
    has taken them when it returns."""

    def publish(self, record: Record) -> asyncio.Future[Durability | Refusal]: ...
    def publish_all(self, records: Records) -> Awaitable[list[Durability | Refusal]]: ...


@dataclass(frozen=True)
class Limits:
    """Of bodies and records, bytes, and of the events of a batch. A record must fit one Kafka batch."""

    event_bytes_max: int
    record_bytes_max: int
    request_bytes_max: int
    request_events_max: int


@dataclass(frozen=True)
class Services:
    """What the endpoints of a worker share."""

    outbox: Outbox
    metrics: Metrics
    quotas: Quotas
    addresses: ClientAddress
    budget: ByteBudget
    limits: Limits
    privacy_hmac_key: bytes | None


class Endpoint:
    """From the request to the answer; every error becomes one."""

    method: ClassVar[bytes] = b"POST"
    place: ClassVar[str] = "body"  # where the event is, as errors name it

    def __init__(self, stream: Stream, door: Door, services: Services) -> None:
        self.stream = stream
        self.services = services
        self.door = door
        self.events_received = services.metrics.received(stream.name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, time.time_ns() // 1_000_000)
        try:
            status, answer = await self._answer(request, receive)
        except ClientDisconnected:
            self.refused(request, "", "ClientDisconnected")
        except Exception as error:
            await self._refuse(request, self.refusal(error), send)
        else:
            await self.respond(request, status, answer, send)

    async def _answer(self, request: Request, receive: Receive) -> tuple[int, bytes]:
        """Status and body."""
        raise NotImplementedError

    def refusal(self, error: BaseException) -> GatewayError:
        """What the caller is told."""
        if isinstance(error, GatewayError):
            return error
        if isinstance(error, Invalid):
            return InvalidEvent([{**entry, "loc": [self.place, *entry["loc"][1:]]} for entry in error.detail])
        log.error("unforeseen error", stream=self.stream.name, exc_info=error)
        return InternalError()

    def received(self, request: Request, events: int) -> None:
        """So many events have arrived: each of them is accepted or refused in the end."""
        request.events = events
        self.events_received.inc(events)

    def refused(self, request: Request, status: str, type_: str) -> None:
        """The request as a whole."""
        if not request.events:
            self.received(request, 1)
        self.count_refused(request.events, status, type_)

    def count_refused(self, events: int, status: str, type_: str) -> None:
        self.services.metrics.refused(self.stream.name, status, type_, events)

    async def respond(self, request: Request, status: int, answer: bytes, send: Send) -> None:
        await respond(request.scope, send, status, answer, request.answer_headers)

    async def _refuse(self, request: Request, refusal: GatewayError, send: Send) -> None:
        self.refused(request, str(refusal.status), refusal.type)
        headers = [*refusal.headers, *request.answer_headers]
        await respond(request.scope, send, refusal.status, refusal.body(), headers)

    def _admit(self, request: Request) -> tuple[Caller, Sequence[Limit]]:
        """Who calls, and what quotas that is subject to. Raises NotFound, Unauthorized, Forbidden, InvalidEvent."""
        origin = request.headers.get(b"origin")
        if origin is not None:
            with contextlib.suppress(NotFound):
                request.answer_headers += cors.allow(self.door.owner(request).allowed_origins, origin)
        if request.scope["query_string"]:
            request.read_query()
        caller = self.door.admit(request)
        owner = caller.owner
        address = None if owner.address_quota is None else self.services.addresses.of(request.scope)
        return caller, self.door.limits(self.services.quotas, caller, address)

    def _offer(self, request: Request) -> Callable[[SameHead], None] | None:
        """Where a SameHead is taken, if all of the head, but an id in it, holds for another request: its query says
        nothing."""
        offer: OfferSameHead | None = request.scope.get("extensions", {}).get(SAME_HEAD)
        if offer is None or request.query:
            return None
        return partial(offer, but=event_ids.HEADER) if event_ids.HEADER in request.headers else offer

    def _sender(self, request: Request, caller: Caller) -> Sender:
        """What of the caller goes into its events."""
        headers, policy = request.headers, caller.owner.privacy
        user_agent = headers.get(b"user-agent")
        kept, is_anonymous = privacy.columns(
            policy,
            None if policy.client_address == "drop" else self.services.addresses.of(request.scope),
            user_agent,
            opted_out=policy.honour_do_not_track and (headers.get(b"dnt") == b"1" or headers.get(b"sec-gpc") == b"1"),
            key=self.services.privacy_hmac_key,
        )
        of_bots = bots.columns(user_agent)
        return Sender(caller, {**of_bots, **kept} if kept else of_bots, is_anonymous)

    def warn(self, warnings: Sequence[Warning]) -> None:
        for warning in warnings:
            self.services.metrics.warnings.labels(self.stream.name, warning.code).inc()


class Preflight:
    """OPTIONS: what a browser asks before it sends anything that a form could not."""

    def __init__(self, door: Door, method: bytes) -> None:
        self._door = door
        self._method = method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, 0)
        headers = [(b"allow", self._method + b", OPTIONS")]
        try:
            owner = self._door.owner(request)
            origin = request.headers.get(b"origin")
            if origin is not None:
                headers += cors.preflight(owner.allowed_origins, origin, self._method)
        except GatewayError as error:
            await error.respond(request.scope, send)
        else:
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body"})
