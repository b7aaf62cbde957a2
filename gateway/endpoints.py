"""The two public endpoints. A handler reads as the data flows: authenticate, read, validate, publish, answer.

Plain ASGI callables: at thousands of events a second a request object and its middleware would cost more
than everything that is done with the event.
"""

import time
from typing import Any, Protocol

import structlog
from uuid_utils import uuid7

from gateway.asgi import Receive, Scope, Send, respond
from gateway.body import ByteBudget, ClientDisconnected, read_body
from gateway.errors import (
    Forbidden,
    GatewayError,
    InternalError,
    InvalidEvent,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
)
from gateway.metrics import Metrics
from gateway.outbox import Durability
from gateway.publisher import PublisherRefusal
from gateway.record import Record
from gateway.registry import RegistryFile, Retriever, key_digest, matches_any
from gateway.spool import SpoolRefusal
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, Stream
from schemas.validation import Invalid

log = structlog.get_logger(__name__)

BODIES_BYTES_MAX = 33_554_432
ID_ECHO_CHARS_MAX = 200  # of an unknown slug or name, in the error's details


class Outbox(Protocol):
    """Makes a record durable and says where. Raises PublisherRefusal or SpoolRefusal: it is nowhere."""

    async def publish(self, record: Record) -> Durability: ...


class InteractionEndpoint:
    """What both endpoints share: from the request to the answer, every error turned into one."""

    stream: Stream

    def __init__(self, registry: RegistryFile, outbox: Outbox, metrics: Metrics, *, event_bytes_max: int) -> None:
        self._registry = registry
        self._outbox = outbox
        self._metrics = metrics
        self._received = metrics.received.labels(self.stream.name)
        self._event_bytes_max = event_bytes_max
        self._budget = ByteBudget(BODIES_BYTES_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._received.inc()
        try:
            answer = await self._track(scope, receive, time.time_ns() // 1_000_000)
        except GatewayError as error:
            await self._refuse(error, send)
        except Invalid as invalid:
            await self._refuse(InvalidEvent(invalid.detail), send)
        except ClientDisconnected:
            self._metrics.refused.labels(self.stream.name, "", "ClientDisconnected").inc()
        except Exception:
            log.exception("unforeseen error", stream=self.stream.name)
            await self._refuse(InternalError(), send)
        else:
            await respond(send, 200, answer)

    async def _track(self, scope: Scope, receive: Receive, received_ms: int) -> bytes:
        raise NotImplementedError

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        return await read_body(scope, receive, self._event_bytes_max, self._budget)

    async def _publish(self, event: dict[str, Any], owner: str, received_ms: int) -> bytes:
        """The answer, once the event is durable."""
        event_id = str(uuid7())
        value = self.stream.encode(event, event_id, owner, received_ms)
        key = event_id.encode()
        try:
            durability = await self._outbox.publish(Record(self.stream.name, None, key, value, received_ms))
        except PublisherRefusal as refusal:
            if refusal.reason == "record_too_large":
                raise PayloadTooLarge(self._event_bytes_max) from None
            raise Unavailable(str(refusal), code=refusal.reason) from None
        except SpoolRefusal as refusal:
            raise Unavailable(str(refusal), code=refusal.reason) from None
        # The ids are ours or of a safe alphabet, so the answer needs no encoder.
        return b'{"success":true,"event_id":"%b","durability":"%b"}' % (key, durability.encode())

    async def _refuse(self, error: GatewayError, send: Send) -> None:
        self._metrics.refused.labels(self.stream.name, str(error.status), error.type).inc()
        await error.respond(send)


class AppInteractions(InteractionEndpoint):
    """POST /v1/public/apps/{slug}/interactions, no authentication."""

    stream = APP_INTERACTIONS

    async def _track(self, scope: Scope, receive: Receive, received_ms: int) -> bytes:
        slug = scope["path_params"]["slug"]
        if slug not in self._registry.current.apps:
            raise NotFound("app", slug[:ID_ECHO_CHARS_MAX])
        event = self.stream.parse(await self._read(scope, receive))
        return await self._publish(event, slug, received_ms)


class RetrieverInteractions(InteractionEndpoint):
    """POST /v1/public/retrievers/{public_name}/interactions, Bearer token and public API key."""

    stream = RETRIEVER_INTERACTIONS

    async def _track(self, scope: Scope, receive: Receive, received_ms: int) -> bytes:
        name = scope["path_params"]["public_name"]
        session_id = self._authenticate(scope, name)
        event = self.stream.parse(await self._read(scope, receive))
        if session_id and event.get("session_id") is None:
            event["session_id"] = session_id
        return await self._publish(event, name, received_ms)

    def _authenticate(self, scope: Scope, name: str) -> str | None:
        """Check both credentials; the value of X-Session-ID. Raises Unauthorized, NotFound, Forbidden."""
        authorization = public_key = session_id = b""
        for header, value in scope["headers"]:
            if header == b"authorization":
                authorization = value
            elif header == b"x-public-api-key":
                public_key = value
            elif header == b"x-session-id":
                session_id = value
        scheme, _, token = authorization.partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token:
            raise Unauthorized("Authorization must be: Bearer <token>", code="bearer_token_missing")
        if not public_key:
            raise Unauthorized("X-Public-API-Key is required", code="public_api_key_missing")
        registry = self._registry.current
        token_digest, key_digest_ = key_digest(token), key_digest(public_key)
        if not registry.knows_token(token_digest):
            raise Unauthorized("The token is not known", code="bearer_token_unknown")
        if not registry.knows_public_key(key_digest_):
            raise Unauthorized("The public API key is not known", code="public_api_key_unknown")
        retriever = registry.retrievers.get(name)
        if retriever is None:
            raise NotFound("retriever", name[:ID_ECHO_CHARS_MAX])
        _require_access(retriever, token_digest, key_digest_)
        return _header_text(session_id) if session_id else None


def _require_access(retriever: Retriever, token_digest: str, public_key_digest: str) -> None:
    if not matches_any(public_key_digest, retriever.public_key_sha256):
        raise Forbidden("The public API key belongs to another retriever", code="public_api_key_of_another")
    if not matches_any(token_digest, retriever.token_sha256):
        raise Forbidden("The token belongs to another retriever", code="bearer_token_of_another")


def _header_text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
