"""Pieces of the OpenAPI document that several operations share: bodies, answers, headers, parameters."""

from typing import Any

from schemas.errors import ErrorResponse, HTTPValidationError

Json = dict[str, Any]

_ERRORS = {
    "400": "The body is not in the coding that Content-Encoding names",
    "401": "A credential is missing or not known",
    "403": "A credential belongs to another retriever",
    "404": "No such app or retriever",
    "408": "The body took too long to arrive; it was thrown away",
    "413": "Too many bytes or events",
    "415": "A Content-Type, charset or Content-Encoding that is not supported",
    "429": "A quota has no room for these events; none of them was taken",
    "500": "Something that we did not foresee",
    "503": "Not stored: send it again, with the same id",
}
_EVENT_ID_PATTERN = "^[A-Za-z0-9._:-]+$"
EVENT_ID_CHARS_MAX = 64
BATCH_KEY_CHARS_MAX = 44

HEADERS: Json = {
    "RateLimit-Limit": {
        "description": "Events that the tightest quota takes at once. Absent where no quota is set",
        "schema": {"type": "integer"},
    },
    "RateLimit-Remaining": {"description": "Events that it takes now", "schema": {"type": "integer"}},
    "RateLimit-Reset": {
        "description": "Seconds until it takes that many again, if nothing more is sent",
        "schema": {"type": "integer"},
    },
    "RateLimit-Policy": {
        "description": "The quota: so many events in a window of `w` seconds, `burst` at once",
        "schema": {"type": "string", "examples": ["100;w=1;burst=200"]},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"description": "Bearer", "required": True, "schema": {"type": "string"}},
    "Cache-Control": {
        "description": "No cache may answer in our place",
        "required": True,
        "schema": {"type": "string", "const": "no-store"},
    },
}
"""`components/headers` of the document."""


def schema_of(model: str) -> Json:
    return {"$ref": f"#/components/schemas/{model}"}


def any_schema_of(*models: str) -> Json:
    """`oneOf` would be wrong: what is an answer to a batch is an `HTTPValidationError` too, which requires nothing."""
    return {"anyOf": [schema_of(model) for model in models]}


def json_content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def rate_limit_headers() -> Json:
    return headers("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")


def success(description: str, schema: Json, example: Json | None = None) -> Json:
    content = json_content(schema)
    if example is not None:
        content["application/json"]["example"] = example
    return {"description": description, "headers": rate_limit_headers(), "content": content}


def error(description: str) -> Json:
    return {"description": description, "content": json_content(schema_of(ErrorResponse.__name__))}


def validation_error() -> Json:
    return {"description": "Validation Error", "content": json_content(schema_of(HTTPValidationError.__name__))}


def errors(*statuses: str) -> Json:
    """Answers by status, in the envelope, with the headers that each must have."""
    answers = {status: error(_ERRORS[status]) for status in statuses}
    for status, names in {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}.items():
        if status in answers:
            answers[status]["headers"] = headers(*names)
    if "429" in answers:
        answers["429"]["headers"] |= rate_limit_headers()
    return answers


def id_parameters() -> list[Json]:
    """What names the event, so that it may be sent again. All optional."""
    rule = "1 to 64 of A-Z a-z 0-9 . _ : -"
    return [
        _id_parameter("header", "Idempotency-Key", f"The event's id ({rule}). Sent again, it lands once"),
        _id_parameter("query", "event_id", "The same, for callers that cannot set headers. The header counts first"),
    ]


def batch_id_parameters() -> list[Json]:
    about = (
        "Events without an `event_id` of their own get ids made of this key and of their content, so that the batch, "
        f"or what is left of it, may be sent again. 1 to {BATCH_KEY_CHARS_MAX} of A-Z a-z 0-9 . _ : -"
    )
    return [
        _id_parameter("header", "Idempotency-Key", about, BATCH_KEY_CHARS_MAX),
        _id_parameter("query", "event_id", "The same, for callers that cannot set headers", BATCH_KEY_CHARS_MAX),
    ]


def _id_parameter(place: str, name: str, about: str, chars_max: int = EVENT_ID_CHARS_MAX) -> Json:
    schema = {"type": "string", "minLength": 1, "maxLength": chars_max, "pattern": _EVENT_ID_PATTERN}
    return {"name": name, "in": place, "required": False, "description": about, "schema": schema}
