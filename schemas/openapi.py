"""The OpenAPI 3.1 document served at /openapi.json.

The app path is the contract's own: operationId, parameter, request, responses. What the gateway answers
beyond the statuses that the contract lists (405, 413, 415, 503, always in `ErrorResponse`) is said in the
description, so that the path stays equal to its owner's. The retriever path, whose owner gives no document,
lists them all.
"""

from typing import Any

from pydantic.json_schema import models_json_schema

from schemas.app_interaction import InteractionRequest
from schemas.errors import ErrorDetail, ErrorResponse, HTTPValidationError, ValidationError
from schemas.retriever_interaction import TrackInteractionRequest

_MODELS = (
    InteractionRequest,
    TrackInteractionRequest,
    ErrorResponse,
    HTTPValidationError,
    ErrorDetail,
    ValidationError,
)

_ABOUT = """Takes search-interaction events (views, clicks, purchases, feedback) and lands each of them exactly
once in ClickHouse. A 200 means durable: the event is in Kafka on all in-sync replicas, or fsynced on a disk.

Every error but 422 comes in the `ErrorResponse` envelope. Besides the statuses listed with each path there
are 405 (with Allow), 413 (body too large), 415 (not JSON, or an encoding that is not supported) and 503 (with
Retry-After: the event was not stored, send it again)."""


def openapi_document() -> dict[str, Any]:
    """A fresh copy of the document."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sluice", "version": "0.1.0", "description": _ABOUT},
        "paths": {
            "/v1/public/apps/{slug}/interactions": {"post": _track_app_interaction()},
            "/v1/public/retrievers/{public_name}/interactions": {"post": _track_retriever_interaction()},
        },
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "publicApiKey": {"type": "apiKey", "in": "header", "name": "X-Public-API-Key"},
            },
        },
    }


def _track_app_interaction() -> dict[str, Any]:
    return {
        "tags": ["Public Apps API"],
        "summary": "Track an App interaction event",
        "description": "Record what a user did with a search result of a public App. No authentication. "
        "Unknown top-level fields are stored as they are.",
        "operationId": "track_public_app_interaction_v1_public_apps__slug__interactions_post",
        "parameters": [
            {
                "name": "slug",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "description": "Globally unique app slug", "title": "Slug"},
                "description": "Globally unique app slug",
            }
        ],
        "requestBody": _json_body("InteractionRequest"),
        "responses": {
            "200": _acknowledgement("Response Track Public App Interaction V1 Public Apps  Slug  Interactions Post"),
            "400": _error("Bad Request"),
            "401": _error("Unauthorized"),
            "403": _error("Forbidden"),
            "404": _error("Not Found"),
            "422": _validation_error(),
            "500": _error("Internal Server Error"),
        },
    }


def _track_retriever_interaction() -> dict[str, Any]:
    return {
        "tags": ["Public Retrievers API"],
        "summary": "Track Interaction",
        "description": "Record what a user did with a result of a published retriever. Unknown top-level fields "
        "are stored as they are.",
        "operationId": "track_interaction_v1_public_retrievers__public_name__interactions_post",
        "security": [{"bearer": [], "publicApiKey": []}],
        "parameters": [
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
                "description": "Fills `session_id` when the body has none",
            },
        ],
        "requestBody": _json_body("TrackInteractionRequest"),
        "responses": {
            "200": _acknowledgement("Response Track Interaction"),
            "401": _error("Unauthorized"),
            "403": _error("Forbidden"),
            "404": _error("Not Found"),
            "413": _error("Payload Too Large"),
            "415": _error("Unsupported Media Type"),
            "422": _validation_error(),
            "500": _error("Internal Server Error"),
            "503": _error("Service Unavailable"),
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(model: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model}"}


def _json_body(model: str) -> dict[str, Any]:
    return {"required": True, "content": _json(_ref(model))}


def _acknowledgement(title: str) -> dict[str, Any]:
    return {
        "description": "Acknowledgement that the event was recorded",
        "content": _json({"type": "object", "additionalProperties": True, "title": title}),
    }


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": _json(_ref("ErrorResponse"))}


def _validation_error() -> dict[str, Any]:
    return {"description": "Validation Error", "content": _json(_ref("HTTPValidationError"))}
