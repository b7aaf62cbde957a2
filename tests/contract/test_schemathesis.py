"""What the served document promises holds for requests made from it: schemathesis, every check it has.

Bounded and without chance: the same examples in every run.
"""

import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from prometheus_client import CollectorRegistry
from schemathesis.specs.openapi.checks import positive_data_acceptance

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

INTEGERS = ("position", "result_count", "latency_ms", "dwell_ms", "result_set_size")


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


def exceeds_64_bits(body: Any) -> bool:
    numbers = [body.get(name) for name in INTEGERS] if isinstance(body, dict) else []
    return any(isinstance(n, int | float) and not INT64_MIN <= n <= INT64_MAX for n in numbers)


@schema.parametrize()
@bounded(100)
def test_requests_to_known_owners(case: schemathesis.Case) -> None:
    """Valid and invalid bodies, headers, methods and media types."""
    case.path_parameters |= {name: {"slug": APP, "public_name": RETRIEVER}[name] for name in case.path_parameters}
    before = len(OUTBOX.records)
    response = case.call(headers=CREDENTIALS)
    assert len(OUTBOX.records) - before == (response.status_code == 200)
    # The contract's schema has no bounds for integers, and must stay equal to its owner's; what does not fit
    # 64 bits is refused all the same.
    excluded = [positive_data_acceptance] if exceeds_64_bits(case.body) else []
    if excluded:
        assert response.status_code != 200
    case.validate_response(response, headers=CREDENTIALS, excluded_checks=excluded)


@schema.parametrize()
@bounded(15)
def test_requests_to_owners_that_do_not_exist(case: schemathesis.Case) -> None:
    response = case.call(headers=CREDENTIALS)
    assert response.status_code in (404, 405), response.text
    assert not [record for record in OUTBOX.records if record.row.get("app", APP) != APP]
    case.validate_response(response, headers=CREDENTIALS)
