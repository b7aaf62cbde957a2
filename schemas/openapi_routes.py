"""What the OpenAPI document says of our own routes beside the contract's: batch, validate, pixel."""

import json
from typing import NamedTuple

from schemas.answers import BatchAnswer, BatchRehearsed, InteractionRehearsed
from schemas.errors import HTTPValidationError
from schemas.openapi_parts import (
    Json,
    any_schema_of,
    batch_id_parameters,
    errors,
    headers,
    id_parameters,
    json_content,
    rate_limit_headers,
    schema_of,
    success,
    validation_error,
)

BATCH_EVENTS_MAX = 1_000
"""Unless the operator says otherwise."""

ACCEPTED_EXAMPLE: Json = {
    "success": True,
    "event_id": "01a20220-ff79-710f-a8c3-ad047456ac5e",
    "durability": "kafka",
}
_BATCH_EXAMPLE: Json = {
    "success": True,
    "results": [
        {"index": 0, "status": "accepted", "event_id": ACCEPTED_EXAMPLE["event_id"], "durability": "kafka"},
        {
            "index": 1,
            "status": "rejected",
            "detail": [{"loc": ["body", 1, "position"], "msg": "Input should be a valid integer", "type": "int_type"}],
        },
    ],
}

_BODY_ERRORS = ("400", "404", "408", "413", "415", "429", "500", "503")
_PIXEL_ERRORS = ("404", "429", "500", "503")


class Endpoint(NamedTuple):
    """One of the contract's, which the routes are about. `name` starts operationIds; `model` is the event's schema,
    `parameters` come with each request, `security` is None for a public one."""

    path: str
    name: str
    tag: str
    model: str
    parameters: list[Json]
    security: list[Json] | None
    examples: list[Json]

    @property
    def batch_model(self) -> str:
        return f"{self.model}Batch"


def routes(endpoint: Endpoint, event: Json, events_max: int) -> Json:
    """Paths. `event` is the JSON schema of the endpoint's events, of which a batch has at most `events_max`."""
    return {
        f"{endpoint.path}/batch": {"post": _batch(endpoint, events_max)},
        f"{endpoint.path}/validate": {"post": _validate(endpoint)},
        f"{endpoint.path}.gif": {"get": _pixel(endpoint, event)},
    }


def batch_schema(endpoint: Endpoint, events_max: int) -> Json:
    """Of a body with many events. Nothing is required of an event here: a wrong one is refused by itself."""
    events = {
        "type": "array",
        "minItems": 1,
        "maxItems": events_max,
        "items": {
            "anyOf": [
                schema_of(endpoint.model),
                {"description": "Anything else is rejected, by itself: the other events do not suffer for it"},
            ]
        },
    }
    time = "for events that have none of their own. RFC 3339 text, or milliseconds since 1970"
    return {
        "title": endpoint.batch_model,
        "description": "Many events: an array, or an object that has it as `events`.",
        "anyOf": [
            {"title": "Array of events", **events},
            {
                "title": "Object with events",
                "type": "object",
                "properties": {
                    "events": events,
                    "timestamp": {"description": f"When it happened, {time}", "examples": ["2026-11-22T06:20:00.123Z"]},
                    "sent_at": {
                        "description": f"When the batch was sent, by the same clock, {time}. What this clock is off "
                        "is taken from `timestamp`",
                        "examples": ["2026-11-22T06:20:05.000Z"],
                    },
                },
                "required": ["events"],
                "additionalProperties": True,
            },
        ],
    }


def _operation(endpoint: Endpoint, suffix: str, summary: str, description: str, parameters: list[Json]) -> Json:
    operation: Json = {
        "tags": [endpoint.tag],
        "summary": summary,
        "description": description,
        "operationId": f"{endpoint.name}_{suffix}",
        "parameters": endpoint.parameters + parameters,
    }
    if endpoint.security is not None:
        operation["security"] = endpoint.security
    return operation


def _errors(endpoint: Endpoint, statuses: tuple[str, ...]) -> Json:
    return errors(*statuses) if endpoint.security is None else errors(*statuses, "401", "403")


def _ndjson(endpoint: Endpoint) -> Json:
    lines = "".join(json.dumps(example, separators=(",", ":")) + "\n" for example in endpoint.examples)
    return {
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "One event a line, in JSON. Empty lines do not count"},
            "example": lines,
        }
    }


def _batch(endpoint: Endpoint, events_max: int) -> Json:
    return {
        **_operation(
            endpoint,
            "batch",
            "Track many events",
            f"Up to {events_max:,} events in one request. Each is checked, stored and answered by itself: one that "
            "is wrong is `rejected` and does not harm the others. 200 means that at least one was accepted; look at "
            "`results`, and send again what is `unavailable`. If nothing could be stored, the answer is 503.",
            batch_id_parameters(),
        ),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema_of(endpoint.batch_model), "example": endpoint.examples},
                **_ndjson(endpoint),
            },
        },
        "responses": _sorted(
            {
                "200": success("At least one event was accepted", schema_of(BatchAnswer.__name__), _BATCH_EXAMPLE),
                "422": {
                    "description": "No event was accepted, or the body is no batch",
                    "content": json_content(any_schema_of(BatchAnswer.__name__, HTTPValidationError.__name__)),
                },
                **_errors(endpoint, _BODY_ERRORS),
            }
        ),
    }


def _validate(endpoint: Endpoint) -> Json:
    return {
        **_operation(
            endpoint,
            "validate",
            "Try without storing",
            "Says what would become of an event or a batch, and stores nothing. Answers and errors are those of the "
            'real request, with `"dry_run": true` and the `row` that would be stored.',
            id_parameters(),
        ),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": any_schema_of(endpoint.model, endpoint.batch_model),
                    "example": endpoint.examples[0],
                },
                **_ndjson(endpoint),
            },
        },
        "responses": _sorted(
            {
                "200": success(
                    "The event, or at least one of the batch, would be accepted",
                    any_schema_of(InteractionRehearsed.__name__, BatchRehearsed.__name__),
                ),
                "422": {
                    "description": "Nothing would be accepted",
                    "content": json_content(any_schema_of(BatchRehearsed.__name__, HTTPValidationError.__name__)),
                },
                **_errors(endpoint, _BODY_ERRORS),
            }
        ),
    }


def _pixel(endpoint: Endpoint, event: Json) -> Json:
    required, example = event["required"], endpoint.examples[0]
    fields = [
        _query_parameter(name, schema, {"required": True, "example": example[name]} if name in required else {})
        for name, schema in event["properties"].items()
    ]
    return {
        **_operation(
            endpoint,
            "pixel",
            "Track an event with an image",
            "For pages and mails that can do no more than show an image. The fields of the event are query "
            "parameters, checked and stored like those of a body; so is any further parameter (`timestamp`, say). An "
            "empty one is null, except for text.",
            id_parameters() + fields,
        ),
        "responses": _sorted(
            {
                "200": {
                    "description": "The event is durable. A transparent image of one point",
                    "headers": {**headers("Cache-Control"), **rate_limit_headers()},
                    "content": {"image/gif": {"schema": {"type": "string", "contentMediaType": "image/gif"}}},
                },
                "422": validation_error(),
                **_errors(endpoint, _PIXEL_ERRORS),
            }
        ),
    }


def _query_parameter(name: str, schema: Json, more: Json) -> Json:
    """Of a field of the event. Objects are JSON text, arrays repeat the parameter; there is no null among text."""
    kinds = [kind["type"] for kind in schema.get("anyOf", [schema])]
    schema = _without_null(schema) if "string" in kinds else dict(schema)
    parameter: Json = {"name": name, "in": "query", "required": False, **more}
    if "description" in schema:
        parameter["description"] = schema.pop("description")
    if "object" in kinds:
        return {**parameter, "content": json_content(schema)}
    return {**parameter, "schema": schema}


def _without_null(schema: Json) -> Json:
    if "anyOf" not in schema:
        return dict(schema)
    [kind] = [each for each in schema["anyOf"] if each != {"type": "null"}]
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **kind}


def _sorted(responses: Json) -> Json:
    return dict(sorted(responses.items()))
