"""The OpenAPI 3.1 document served at /openapi.json.

The app path is the contract's own: operationId, parameter, request, responses. What the gateway takes and answers
beyond it (an id in a header or the query; 408, 413, 415, 429, 503, always in `ErrorResponse`) is said in the
description, so that the path stays equal to its owner's. The retriever path, whose owner gives no document, has it all.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from schemas.answers import BatchAnswer, BatchRehearsed, InteractionAccepted, InteractionRehearsed
from schemas.app_interaction import InteractionRequest
from schemas.errors import ErrorResponse, HTTPValidationError
from schemas.openapi_parts import (
    HEADERS,
    error,
    errors,
    id_parameters,
    json_content,
    schema_of,
    success,
    validation_error,
)
from schemas.openapi_routes import ACCEPTED_EXAMPLE, BATCH_EVENTS_MAX, Endpoint, batch_schema, routes
from schemas.retriever_interaction import TrackInteractionRequest

_MODELS: tuple[type[BaseModel], ...] = (
    InteractionRequest,
    TrackInteractionRequest,
    InteractionAccepted,
    InteractionRehearsed,
    BatchAnswer,
    BatchRehearsed,
    ErrorResponse,
    HTTPValidationError,
)

_ABOUT = """Takes search-interaction events (views, clicks, purchases, feedback) and lands each of them exactly once
in ClickHouse.

**A 200 means durable**: the event is in Kafka on all in-sync replicas, or fsynced on a disk while Kafka is away;
`durability` says which. An answer about something odd that was taken nevertheless has `warnings`.

## Ids, and sending again

An event may have an id of the caller's: 1 to 64 of A-Z a-z 0-9 . _ : -. It is taken from the header
`Idempotency-Key`, else the query parameter `event_id`, else the event's own field `event_id`. An event that is sent
again with the same id is answered alike and lands once. So after a 408, 429, 500, 503, or no answer at all: send it
again, with the same id. In a batch an event's own `event_id` counts first; the header or query parameter (there of at
most 44 characters) makes ids for the events that have none.

## Time

`timestamp` of an event is when it happened, by the caller's clock: RFC 3339 text, or milliseconds since 1970. With
`sent_at`, by the same clock, what that clock is off is taken out. Without them the time of arrival is what there is.

## Bodies

JSON in UTF-8, at most 262,144 bytes for one event and 5 MiB for a batch, unless the operator says otherwise.
`text/plain` is read as JSON, which is what a page can send with `navigator.sendBeacon` without a preflight. Bodies may
be compressed: `Content-Encoding` gzip, deflate, br or zstd.

Fields that the contract does not name are stored as they are.

## Errors

422 says what is wrong with the event as `detail`: a list of `loc`, `msg`, `type`. Every other error comes in the
`ErrorResponse` envelope. Besides the statuses listed with each path there may be 405 (with `Allow`) and 431 (headers
too large), and for single App events 408 (too slow), 413 (too large), 415 (neither JSON nor a supported encoding),
429 (over quota) and 503 (not stored, send it again), the last two with `Retry-After`.

## Quotas and origins

Owners may set quotas: `RateLimit-Limit`, `-Remaining`, `-Reset` and `-Policy` tell of the tightest. Pages of the
origins that an owner allows may read the answers (CORS)."""

_APP_EXAMPLE = {
    "event_type": "click",
    "document_id": "doc_abc123",
    "position": 2,
    "query": "red sneakers",
    "session_id": "sess_xyz",
}
_RETRIEVER_EXAMPLE = {
    "document_id": "doc_abc123",
    "interaction_type": ["view", "click"],
    "position": 1,
    "execution_id": "exec_abc123xyz",
    "query_snapshot": {"text": "wireless headphones"},
    "document_score": 0.95,
    "result_set_size": 10,
    "session_id": "sess_abc123",
    "metadata": {},
}

_APP = Endpoint(
    path="/v1/public/apps/{slug}/interactions",
    name="track_public_app_interactions",
    tag="Public Apps API",
    model=InteractionRequest.__name__,
    parameters=[
        {
            "name": "slug",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "description": "Globally unique app slug", "title": "Slug"},
            "description": "Globally unique app slug",
        }
    ],
    security=None,
    examples=[_APP_EXAMPLE, {"event_type": "search", "query": "red sneakers", "result_count": 24}],
)
_RETRIEVER = Endpoint(
    path="/v1/public/retrievers/{public_name}/interactions",
    name="track_interactions",
    tag="Public Retrievers API",
    model=TrackInteractionRequest.__name__,
    parameters=[
        {
            "name": "public_name",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "title": "Public Name"},
            "description": "Public name of the published retriever",
        },
        {
            "name": "X-Session-ID",
            "in": "header",
            "required": False,
            "schema": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "X-Session-Id"},
            "description": "Fills `session_id` when the event has none",
        },
    ],
    security=[{"bearer": [], "publicApiKey": []}, {"bearer": [], "publicApiKeyInQuery": []}],
    examples=[_RETRIEVER_EXAMPLE, {"document_id": "doc_def456", "interaction_type": ["skip"], "position": 0}],
)


def openapi_document(*, batch_events_max: int = BATCH_EVENTS_MAX) -> dict[str, Any]:
    """The document of a gateway that takes batches of so many events. Parts are shared: it is not to be changed."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    schemas = definitions["$defs"]
    for endpoint in (_APP, _RETRIEVER):
        schemas[endpoint.batch_model] = batch_schema(endpoint, batch_events_max)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sluice", "version": "0.1.0", "description": _ABOUT},
        "tags": [
            {"name": _APP.tag, "description": "Events of public Apps. To know the slug is enough."},
            {"name": _RETRIEVER.tag, "description": "Events of published retrievers, with their token and key."},
        ],
        "paths": {
            _APP.path: {"post": _track_app_interaction()},
            **routes(_APP, schemas[_APP.model], batch_events_max),
            _RETRIEVER.path: {"post": _track_retriever_interaction()},
            **routes(_RETRIEVER, schemas[_RETRIEVER.model], batch_events_max),
        },
        "components": {
            "schemas": schemas,
            "headers": HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "publicApiKey": {"type": "apiKey", "in": "header", "name": "X-Public-API-Key"},
                "publicApiKeyInQuery": {"type": "apiKey", "in": "query", "name": "public_api_key"},
            },
        },
    }


def _track_app_interaction() -> dict[str, Any]:
    """The contract's own but for the description. It may not have an example, so the description shows one."""
    return {
        "tags": [_APP.tag],
        "summary": "Track an App interaction event",
        "description": "Record what a user did with a search result of a public App. No authentication. "
        "Unknown top-level fields are stored as they are.\n\n**Example:**\n```json\n"
        '{\n  "event_type": "click",\n  "document_id": "doc_abc123",\n  "position": 2,\n'
        '  "query": "red sneakers",\n  "session_id": "sess_xyz"\n}\n```',
        "operationId": "track_public_app_interaction_v1_public_apps__slug__interactions_post",
        "parameters": _APP.parameters,
        "requestBody": {"required": True, "content": json_content(schema_of(_APP.model))},
        "responses": {
            "200": {
                "description": "Acknowledgement that the event was recorded",
                "content": json_content(
                    {
                        "type": "object",
                        "additionalProperties": True,
                        "title": "Response Track Public App Interaction V1 Public Apps  Slug  Interactions Post",
                    }
                ),
            },
            "400": error("Bad Request"),
            "401": error("Unauthorized"),
            "403": error("Forbidden"),
            "404": error("Not Found"),
            "422": validation_error(),
            "500": error("Internal Server Error"),
        },
    }


def _track_retriever_interaction() -> dict[str, Any]:
    responses = {
        "200": success("The event is durable", schema_of(InteractionAccepted.__name__), ACCEPTED_EXAMPLE),
        "422": validation_error(),
        **errors("400", "401", "403", "404", "408", "413", "415", "429", "500", "503"),
    }
    return {
        "tags": [_RETRIEVER.tag],
        "summary": "Track Interaction",
        "description": "Record what a user did with a result of a published retriever. Unknown top-level fields "
        "are stored as they are.",
        "operationId": "track_interaction_v1_public_retrievers__public_name__interactions_post",
        "security": _RETRIEVER.security,
        "parameters": _RETRIEVER.parameters + id_parameters(),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema_of(_RETRIEVER.model), "example": _RETRIEVER_EXAMPLE}},
        },
        "responses": dict(sorted(responses.items())),
    }
