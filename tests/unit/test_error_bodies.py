"""gateway.errors: every error is answered in the contract's shape, with the headers that belong to its status."""

import json
from typing import Any

import jsonschema
import pytest

from gateway.asgi import Message
from gateway.errors import (
    BadRequest,
    BatchTooLong,
    Forbidden,
    GatewayError,
    HeadTooLarge,
    InternalError,
    InvalidEvent,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from schemas.openapi import openapi_document

DETAIL = [{"loc": ["body", "interaction_type", 0], "msg": "Input should be 'view'", "type": "literal_error"}]

ERRORS: list[tuple[GatewayError, int, str, dict[bytes, bytes]]] = [
    (BadRequest("Invalid HTTP"), 400, "BadRequestError", {}),
    (Unauthorized("No token", code="c"), 401, "UnauthorizedError", {b"www-authenticate": b"Bearer"}),
    (Forbidden("Not yours", code="c"), 403, "ForbiddenError", {}),
    (NotFound("app", "sh\u00f6p"), 404, "NotFoundError", {}),
    (MethodNotAllowed("POST"), 405, "MethodNotAllowedError", {b"allow": b"POST"}),
    (RequestTimeout("Too slow"), 408, "RequestTimeoutError", {b"connection": b"close"}),
    (PayloadTooLarge(1024), 413, "PayloadTooLargeError", {b"connection": b"close"}),
    (BatchTooLong(1_000), 413, "PayloadTooLargeError", {}),
    (UnsupportedMediaType("Not JSON", code="c"), 415, "UnsupportedMediaTypeError", {}),
    (HeadTooLarge(1024), 431, "RequestHeaderFieldsTooLargeError", {}),
    (
        TooManyRequests("Slow", code="c", details={}, retry_after_s=7),
        429,
        "TooManyRequestsError",
        {b"retry-after": b"7"},
    ),
    (InternalError(), 500, "InternalServerError", {}),
    (Unavailable("Later", code="c", retry_after_s=7), 503, "ServiceUnavailableError", {b"retry-after": b"7"}),
]


def schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": openapi_document()["components"]}


async def sent(error: GatewayError) -> tuple[Message, bytes]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await error.respond({}, send)
    start, body = messages
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    assert not body.get("more_body")
    return start, body["body"]


@pytest.mark.parametrize(("error", "status", "type_", "headers"), ERRORS, ids=lambda v: type(v).__name__)
async def test_envelope(error: GatewayError, status: int, type_: str, headers: dict[bytes, bytes]) -> None:
    start, body = await sent(error)
    answer = json.loads(body)
    jsonschema.validate(answer, schema("ErrorResponse"))
    assert answer["success"] is False
    assert answer["status"] == start["status"] == status
    assert answer["error"]["type"] == type_
    assert answer["error"]["message"] == error.message
    assert set(answer) == {"success", "status", "error"}
    assert set(answer["error"]) <= {"message", "type", "code", "details"}
    expected = {b"content-type": b"application/json", b"content-length": b"%d" % len(body), **headers}
    assert dict(start["headers"]) == expected


def test_every_error_is_in_the_table() -> None:
    covered = {type(error) for error, *_ in ERRORS} | {InvalidEvent}
    assert covered == set(GatewayError.__subclasses__())


async def test_invalid_event_is_the_contracts_validation_error() -> None:
    start, body = await sent(InvalidEvent(DETAIL))
    assert start["status"] == 422
    assert json.loads(body) == {"detail": DETAIL}
    jsonschema.validate(json.loads(body), schema("HTTPValidationError"))


def test_not_found_names_resource_and_id() -> None:
    assert json.loads(NotFound("app", "shop").body())["error"] == {
        "message": "App not found",
        "type": "NotFoundError",
        "details": {"resource": "app", "id": "shop"},
    }


def test_absent_parts_are_left_out_not_null() -> None:
    assert json.loads(InternalError().body())["error"] == {
        "message": "Internal server error",
        "type": "InternalServerError",
    }
