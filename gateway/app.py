"""Composition root: settings in, ASGI application out."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from typing import Protocol

import orjson
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import docs, privacy
from gateway.asgi import ASGIApp, Receive, Scope, Send
from gateway.body import ByteBudget
from gateway.callers import AppDoor, RetrieverDoor
from gateway.client_address import ClientAddress
from gateway.dry_run import DryRun
from gateway.endpoints import Limits, Outbox, Preflight, Services
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.event_batch import EventBatch
from gateway.metrics import Metrics
from gateway.outbox import KafkaOutbox
from gateway.pixel import Pixel
from gateway.publisher import KafkaPublisher
from gateway.quotas import Quotas
from gateway.registry import RegistryFile
from gateway.settings import GatewaySettings
from gateway.single_event import SingleEvent
from gateway.spool import Spool
from schemas import kafka, probes
from schemas.openapi import openapi_document
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, STREAMS

APP_PATH = "/v1/public/apps/{slug}/interactions"
RETRIEVER_PATH = "/v1/public/retrievers/{public_name}/interactions"
BODIES_BYTES_MAX = 33_554_432  # that arrive at once, per worker


class RunningOutbox(Outbox, Protocol):
    """An outbox that starts and stops with the application; `unready_reason` is None while it takes records."""

    @property
    def unready_reason(self) -> str | None: ...
    async def start(self) -> None: ...
    async def stop(self, deadline_s: float) -> None: ...


def create_app(settings: GatewaySettings) -> ASGIApp:
    """The application over Kafka and the spool. Raises RegistryError if the registry file is none."""
    metrics = Metrics(CollectorRegistry())
    publisher = KafkaPublisher(
        [stream.name for stream in STREAMS],
        kafka.connection(settings),
        batch_bytes_max=settings.batch_bytes_max,
        pending_bytes_max=settings.pending_bytes_max,
        deadline_ms=settings.publish_deadline_ms,
        metrics=metrics,
    )
    spool = Spool(settings.spool_dir, bytes_max=settings.spool_bytes_max, age_max_s=settings.spool_age_s_max)
    outbox = KafkaOutbox(publisher, spool, metrics, replay_records_per_s=settings.replay_records_per_s)
    publisher.settled = outbox.settled
    return compose(settings, outbox, metrics)


def compose(settings: GatewaySettings, outbox: RunningOutbox, metrics: Metrics) -> ASGIApp:
    """The application over any outbox. Raises RegistryError if the registry file is none."""
    hmac_key = settings.privacy_hmac_key
    registry = registry_file(settings)
    services = Services(
        outbox=outbox,
        metrics=metrics,
        quotas=Quotas(settings.request_events_max),
        addresses=ClientAddress(settings.trusted_proxies),
        budget=ByteBudget(BODIES_BYTES_MAX),
        limits=Limits(
            event_bytes_max=settings.event_bytes_max,
            record_bytes_max=settings.batch_bytes_max,
            request_bytes_max=settings.request_bytes_max,
            request_events_max=settings.request_events_max,
        ),
        privacy_hmac_key=os.fsencode(hmac_key.get_secret_value()) if hmac_key is not None else None,
    )
    families = (
        (APP_PATH, APP_INTERACTIONS, AppDoor(registry)),
        (RETRIEVER_PATH, RETRIEVER_INTERACTIONS, RetrieverDoor(registry)),
    )
    endpoints = {
        f"{path}{suffix}": kind(stream, door, services)
        for path, stream, door in families
        for suffix, kind in (("", SingleEvent), ("/batch", EventBatch), ("/validate", DryRun), (".gif", Pixel))
    }
    document = orjson.dumps(openapi_document(batch_events_max=settings.request_events_max))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await outbox.start()
        watch = asyncio.create_task(registry.watch(), name="registry-watch")
        yield
        watch.cancel()
        await outbox.stop(settings.shutdown_deadline_ms / 1000)
        metrics.pass_on()

    async def openapi(_: Request) -> Response:
        return Response(document, media_type="application/json")

    rest = Starlette(
        routes=[
            *(_only(Route(path, endpoint, methods=[endpoint.method.decode()])) for path, endpoint in endpoints.items()),
            *(
                Route(path, Preflight(endpoint.door, endpoint.method), methods=["OPTIONS"])
                for path, endpoint in endpoints.items()
            ),
            *docs.routes(),
            Route("/openapi.json", openapi),
            *probes.routes(lambda: outbox.unready_reason, metrics.render),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen_error},
        lifespan=lifespan,
    )
    rest.router.redirect_slashes = False
    return _shortcut(endpoints, rest)


def _only(route: Route) -> Route:
    """Starlette answers HEAD as GET, but whoever only looks has not sent an event."""
    assert route.methods is not None
    route.methods.discard("HEAD")
    return route


def registry_file(settings: GatewaySettings) -> RegistryFile:
    """Raises RegistryError if the file is none, or asks for what the settings do not allow."""
    has_key = settings.privacy_hmac_key is not None
    return RegistryFile(settings.registry_file, check=lambda registry: privacy.check(registry, key_present=has_key))


_HOT = re.compile(r"/v1/public/(apps|retrievers)/([^/]+)/interactions(|/batch)")


def _shortcut(endpoints: Mapping[str, ASGIApp], rest: ASGIApp) -> ASGIApp:
    """The hot routes without Starlette's middleware and router, which cost a quarter of a single event."""
    hot = {
        (kind, suffix): (parameter, endpoints[path + suffix])
        for kind, parameter, path in (("apps", "slug", APP_PATH), ("retrievers", "public_name", RETRIEVER_PATH))
        for suffix in ("", "/batch")
    }

    @lru_cache(maxsize=4096)  # of paths; in use are as many as there are apps and retrievers
    def find(path: str) -> tuple[str, str, ASGIApp] | None:
        match = _HOT.fullmatch(path)
        if match is None:
            return None
        kind, name, suffix = match.groups()
        parameter, endpoint = hot[kind, suffix]
        return parameter, name, endpoint

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            found = find(scope["path"])
            if found is not None:
                parameter, name, endpoint = found
                scope["path_params"] = {parameter: name}
                return await endpoint(scope, receive, send)
        return await rest(scope, receive, send)

    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, in the envelope."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _response(MethodNotAllowed((error.headers or {}).get("Allow", "")))
    if error.status_code == 404:
        return _response(NotFound("path", request.url.path[:200]))
    return _response(InternalError())


async def _unforeseen_error(_: Request, __: Exception) -> Response:
    """Starlette raises it again behind the answer, so that the server logs it."""
    return _response(InternalError())


def _response(error: GatewayError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error.body(), error.status, headers, media_type="application/json")
