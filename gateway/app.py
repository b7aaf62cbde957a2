"""Composition root: settings in, ASGI application out."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Protocol

import orjson
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.asgi import ASGIApp, Receive, Scope, Send
from gateway.endpoints import AppInteractions, Outbox, RetrieverInteractions
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.metrics import Metrics
from gateway.outbox import KafkaOutbox
from gateway.publisher import KafkaPublisher
from gateway.registry import RegistryFile
from gateway.settings import GatewaySettings
from gateway.spool import Spool
from schemas import kafka, probes
from schemas.openapi import openapi_document
from schemas.streams import STREAMS

APP_PATH = "/v1/public/apps/{slug}/interactions"
RETRIEVER_PATH = "/v1/public/retrievers/{public_name}/interactions"


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
    registry = RegistryFile(settings.registry_file)
    app_interactions = AppInteractions(registry, outbox, metrics, event_bytes_max=settings.event_bytes_max)
    retriever_interactions = RetrieverInteractions(registry, outbox, metrics, event_bytes_max=settings.event_bytes_max)
    document = orjson.dumps(openapi_document())

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await outbox.start()
        watch = asyncio.create_task(registry.watch(), name="registry-watch")
        yield
        watch.cancel()
        await outbox.stop(settings.shutdown_deadline_ms / 1000)

    async def openapi(_: Request) -> Response:
        return Response(document, media_type="application/json")

    rest = Starlette(
        routes=[
            Route(APP_PATH, app_interactions, methods=["POST"]),
            Route(RETRIEVER_PATH, retriever_interactions, methods=["POST"]),
            Route("/openapi.json", openapi),
            *probes.routes(lambda: outbox.unready_reason, metrics.render),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen_error},
        lifespan=lifespan,
    )
    rest.router.redirect_slashes = False
    return _shortcut(app_interactions, retriever_interactions, rest)


_INTERACTIONS = re.compile(r"/v1/public/(apps|retrievers)/([^/]+)/interactions")


def _shortcut(apps: ASGIApp, retrievers: ASGIApp, rest: ASGIApp) -> ASGIApp:
    """The two hot routes without Starlette's middleware and router, which cost a quarter of such a request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            match = _INTERACTIONS.fullmatch(scope["path"])
            if match is not None:
                kind, name = match.groups()
                if kind == "apps":
                    scope["path_params"] = {"slug": name}
                    return await apps(scope, receive, send)
                scope["path_params"] = {"public_name": name}
                return await retrievers(scope, receive, send)
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
