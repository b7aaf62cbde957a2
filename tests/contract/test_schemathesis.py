"""What the served document promises holds for requests made from it: schemathesis, every check it has.

Bounded and without chance: the same examples in every run.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import schemathesis
from hypothesis import HealthCheck, settings
from prometheus_client import CollectorRegistry
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from gateway.app import compose
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from schemas.fields import INT64_MAX, INT64_MIN
from tests.contract.gateway_under_test import (
    APP,
    CREDENTIALS,
    RETRIEVER,
    RecordingOutbox,
    write_registry,
)

# schemathesis parametrizes when this module is imported, so the application is made here and not in a fixture.
DIRECTORY = tempfile.TemporaryDirectory(prefix="sluice-schemathesis-")
OUTBOX = RecordingOutbox()
APPLICATION = compose(
    GatewaySettings(registry_file=write_registry(Path(DIRECTORY.name))), OUTBOX, Metrics(CollectorRegistry())
)

schema = schemathesis.openapi.from_asgi("/openapi.json", APPLICATION)
# Credentials are sent with each call: generated ones would only ever be refused.
schema.config.generation.update(deterministic=True, with_security_parameters=False)
# A batch of too many events is as wrong as any other, and is told so by 413.
schema.config.checks.negative_data_rejection.expected_statuses = ["400", "404", "405", "413", "415", "422"]

INTEGERS = ("position", "result_count", "latency_ms", "dwell_ms", "result_set_size")


@schemathesis.serializer("application/x-ndjson")
def _lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


def exceeds_64_bits(event: Any) -> bool:
    """The contract's schema has no bounds for integers, and must stay equal to its owner's. What does not fit 64 bits
    is refused all the same."""
    numbers = [event.get(name) for name in INTEGERS] if isinstance(event, dict) else []
    return any(isinstance(n, int | float) and not INT64_MIN <= n <= INT64_MAX for n in numbers)


def is_event(case: schemathesis.Case, value: Any) -> bool:
    """Whether the document says that it is one."""
    model = "InteractionRequest" if "/apps/" in case.path else "TrackInteractionRequest"
    document = schema.raw_schema
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{model}", "components": document["components"]}
    )
    return validator.is_valid(value) and not exceeds_64_bits(value)


def events(case: schemathesis.Case) -> list[Any]:
    """Of the batch that is the body, in JSON; empty if it is none."""
    body = case.body
    if isinstance(body, dict):
        body = body.get("events")
    return body if isinstance(body, list) else []


def accepted(answer: dict[str, Any]) -> Iterator[bool]:
    for index, result in enumerate(answer["results"]):
        assert result["index"] == index
        yield result["status"] == "accepted"


def cannot_be_written(case: schemathesis.Case) -> bool:
    """In a query a list of one number looks like the number, and an object like parameters of other names."""
    return case.method == "GET" and any(isinstance(value, dict | list) for value in (case.query or {}).values())


@schema.parametrize()
@bounded(60)
def test_requests_to_known_owners(case: schemathesis.Case) -> None:
    """Valid and invalid bodies, headers, methods and media types."""
    case.path_parameters |= {name: {"slug": APP, "public_name": RETRIEVER}[name] for name in case.path_parameters}
    OUTBOX.records.clear()
    response = case.call(headers=CREDENTIALS)
    excluded: list[Any] = []
    is_json = response.headers.get("content-type") == ["application/json"]
    answer = response.json() if is_json and response.content else {}
    stored = response.status_code == 200
    if "results" in answer:
        verdicts = list(accepted(answer))
        if case.media_type == "application/json":
            assert verdicts == [is_event(case, event) for event in events(case)]
        stored = sum(verdicts)
        assert (response.status_code == 200) is any(verdicts)
        excluded.append(positive_data_acceptance)  # to have no event that is accepted is no fault of a batch
    elif exceeds_64_bits(case.body) or exceeds_64_bits(case.query):
        assert response.status_code != 200
        excluded.append(positive_data_acceptance)
    elif case.media_type == "application/x-ndjson":
        excluded.append(positive_data_acceptance)  # which may have no line at all
    if cannot_be_written(case):
        excluded.append(negative_data_rejection)
    if answer.get("dry_run") or case.path.endswith("/validate"):
        stored = 0
    assert len(OUTBOX.records) == stored
    case.validate_response(response, headers=CREDENTIALS, excluded_checks=excluded)


@schema.parametrize()
@bounded(10)
def test_requests_to_owners_that_do_not_exist(case: schemathesis.Case) -> None:
    OUTBOX.records.clear()
    response = case.call(headers=CREDENTIALS)
    known = {"slug": APP, "public_name": RETRIEVER}
    assert all(case.path_parameters[name] != known[name] for name in case.path_parameters)
    assert response.status_code in (404, 405), response.text
    assert not OUTBOX.records
    case.validate_response(response, headers=CREDENTIALS)
