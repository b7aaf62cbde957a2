"""Every error but 422 comes in the contract's envelope, with the headers that belong to its status, and says
nothing that only the process should know."""

import io
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import get_args

import httpx
import pytest
import structlog

from gateway import endpoints
from gateway.asgi import ASGIApp
from gateway.kafka_batch import PublisherRefusal
from gateway.record import Durability
from gateway.settings import GatewaySettings
from gateway.spool import SpoolRefusal
from schemas import logs
from tests.contract.gateway_under_test import (
    APP_PATH,
    CREDENTIALS,
    ENDPOINTS,
    EVENT_BYTES_MAX,
    RETRIEVER_PATH,
    SECRETS,
    Endpoint,
    Gateway,
    RecordingOutbox,
    envelope,
    validation_errors,
)

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/nowhere",
        f"{APP_PATH}/",
        f"/{APP_PATH}",
        f"{APP_PATH}/x",
        "/v1/public/apps//interactions",
        "/v1/public/apps/interactions",
        "/v1/public/apps/a%2Fb/interactions",
        "/v1/public/other/demo-shop/interactions",
        f"{APP_PATH}/batch/",
        f"{APP_PATH}/batches",
        f"{APP_PATH}/validate/x",
        f"{APP_PATH}.png",
        f"{APP_PATH}.gif/",
        "/openapi.json/",
        "/docs/",
        "/%00%0A%FF",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
async def test_unknown_path(method: str, path: str, client: httpx.AsyncClient) -> None:
    response = await client.request(
        method, httpx.URL("http://gateway").join(path) if "//" not in path else f"http://gateway{path}"
    )
    error = envelope(response, 404, "NotFoundError")
    assert error["details"]["resource"] == "path"


async def test_echo_of_an_unknown_path_is_bounded(client: httpx.AsyncClient) -> None:
    response = await client.get("/" + "x" * 10_000)
    assert len(envelope(response, 404, "NotFoundError")["details"]["id"]) == 200


@pytest.mark.parametrize("path", [APP_PATH, RETRIEVER_PATH, "/v1/public/apps/nobody/interactions"])
@pytest.mark.parametrize(
    ("suffix", "allowed"),
    [("", "POST"), ("/batch", "POST"), ("/validate", "POST"), (".gif", "GET")],
    ids=["single", "batch", "validate", "pixel"],
)
async def test_method_not_allowed_of_an_endpoint(
    suffix: str, allowed: str, path: str, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    for method in {"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - {allowed}:
        response = await client.request(method, path + suffix)
        assert response.status_code == 405
        if method != "HEAD":
            assert envelope(response, 405, "MethodNotAllowedError")["details"] == {"allow": response.headers["allow"]}
        assert {name.strip() for name in response.headers["allow"].split(",")} - {"OPTIONS"} == {allowed}
    assert gateway.count("gateway_events_received") == 0


@pytest.mark.parametrize("path", ["/openapi.json", "/livez", "/readyz", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_method_not_allowed_elsewhere(method: str, path: str, client: httpx.AsyncClient) -> None:
    response = await client.request(method, path)
    envelope(response, 405, "MethodNotAllowedError")
    assert {name.strip() for name in response.headers["allow"].split(",")} == {"GET", "HEAD"}


# 413


def padded(endpoint: Endpoint, size: int) -> bytes:
    """A valid event of exactly so many bytes."""
    short = endpoint.body_with(b"metadata", b'{"x":""}')
    return endpoint.body_with(b"metadata", b'{"x":"%b"}' % (b"x" * (size - len(short))))


@EACH_ENDPOINT
async def test_largest_event(endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    assert GatewaySettings().event_bytes_max == EVENT_BYTES_MAX
    body = padded(endpoint, EVENT_BYTES_MAX)
    assert (await client.post(endpoint.path, content=body, headers=endpoint.headers)).status_code == 200
    assert len(outbox.records) == 1


@EACH_ENDPOINT
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_larger_event(
    announced: bool, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    body = padded(endpoint, EVENT_BYTES_MAX + 1)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    response = await client.post(endpoint.path, content=body if announced else chunks(), headers=endpoint.headers)
    error = envelope(response, 413, "PayloadTooLargeError")
    assert error["details"] == {"bytes_max": EVENT_BYTES_MAX}
    assert response.headers["connection"] == "close"
    assert not outbox.records


async def test_refused_before_the_end_of_the_stream(client: httpx.AsyncClient) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 100 * EVENT_BYTES_MAX:
            read += 65_536
            yield b"[" * 65_536

    response = await client.post(APP_PATH, content=endless(), headers={"Content-Type": "application/json"})
    envelope(response, 413, "PayloadTooLargeError")
    assert read <= EVENT_BYTES_MAX + 2 * 65_536


# 415


@EACH_ENDPOINT
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/x-ndjson"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Encoding": "compress"},
        {"Content-Encoding": "gzip, br"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
async def test_unsupported_media_type(
    headers: dict[str, str], endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await client.post(endpoint.path, content=endpoint.body, headers=endpoint.headers | headers)
    envelope(response, 415, "UnsupportedMediaTypeError")
    if "Content-Encoding" in headers:
        assert response.headers["accept-encoding"] == "gzip, deflate, br, zstd"
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=UTF-8", "text/plain", None])
async def test_supported_media_type(
    content_type: str | None, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    headers = {name: value for name, value in endpoint.headers.items() if name != "Content-Type"}
    if content_type is not None:
        headers["Content-Type"] = content_type
    assert (await client.post(endpoint.path, content=endpoint.body, headers=headers)).status_code == 200
    assert len(outbox.records) == 1


# What becomes of the record


@EACH_ENDPOINT
@pytest.mark.parametrize("durability", get_args(Durability))
async def test_answer_says_where_the_event_is_durable(
    durability: Durability, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    outbox.durability = durability
    response = await client.post(endpoint.path, content=endpoint.body, headers=endpoint.headers)
    [record] = outbox.records
    assert response.status_code == 200
    assert response.json() == {"success": True, "event_id": record.key.decode(), "durability": durability}


@EACH_ENDPOINT
async def test_outbox_is_free_to_choose_the_partition(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    await client.post(endpoint.path, content=endpoint.body, headers=endpoint.headers)
    assert [record.partition for record in outbox.records] == [None]


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (PublisherRefusal, "kafka_unavailable"),
        (PublisherRefusal, "overloaded"),
        (SpoolRefusal, "spool_full"),
        (SpoolRefusal, "spool_old"),
        (SpoolRefusal, "spool_failed"),
    ],
)
async def test_what_is_nowhere_durable_is_503(
    refusal: Callable[[str, str], Exception],
    reason: str,
    endpoint: Endpoint,
    client: httpx.AsyncClient,
    outbox: RecordingOutbox,
) -> None:
    outbox.fault = refusal(reason, "Not now")
    response = await client.post(endpoint.path, content=endpoint.body, headers=endpoint.headers)
    assert envelope(response, 503, "ServiceUnavailableError")["code"] == reason
    assert int(response.headers["retry-after"]) >= 1


@EACH_ENDPOINT
async def test_record_that_no_batch_can_hold_is_413(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    outbox.fault = PublisherRefusal("record_too_large", "Too large")
    response = await client.post(endpoint.path, content=endpoint.body, headers=endpoint.headers)
    envelope(response, 413, "PayloadTooLargeError")


# 500


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the process would write, logging as it does in production."""
    root, aiokafka = logging.getLogger(), logging.getLogger("aiokafka")
    before = root.handlers, root.level, aiokafka.level
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        logs.configure("debug")
    monkeypatch.setattr(endpoints, "log", structlog.get_logger("gateway.endpoints"))
    yield stream
    root.handlers, root.level, aiokafka.level = before
    structlog.reset_defaults()


@EACH_ENDPOINT
async def test_unforeseen_error(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox, log_lines: io.StringIO
) -> None:
    outbox.fault = RuntimeError("the reason, for the log alone")
    response = await client.post(endpoint.path, content=endpoint.body, headers=endpoint.headers)

    error = envelope(response, 500, "InternalServerError")
    assert error == {"message": "Internal server error", "type": "InternalServerError"}
    assert "reason" not in response.text
    assert "Traceback" not in response.text
    assert "the reason, for the log alone" in log_lines.getvalue()
    assert not any(secret in log_lines.getvalue() for secret in SECRETS)


async def test_unforeseen_error_elsewhere(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    outbox.unready_reason = object()  # type: ignore[assignment]  # no JSON
    response = await client.get("/readyz", headers=CREDENTIALS)
    assert envelope(response, 500, "InternalServerError")["message"] == "Internal server error"
    assert "object" not in response.text


# The rest


async def test_livez(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    outbox.unready_reason = "no broker"
    response = await client.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_readyz(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    response = await client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    outbox.unready_reason = "no broker"
    response = await client.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "unready", "reason": "no broker"})


async def test_metrics_count_what_arrives_and_what_is_refused(client: httpx.AsyncClient) -> None:
    await client.post(APP_PATH, json={"event_type": "e"})
    validation_errors(await client.post(APP_PATH, json={}))
    envelope(await client.post(RETRIEVER_PATH, json={}), 401, "UnauthorizedError")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    assert 'gateway_events_received_total{stream="app_interactions"} 2.0' in lines
    assert 'gateway_events_received_total{stream="retriever_interactions"} 1.0' in lines
    assert 'gateway_events_refused_total{status="422",stream="app_interactions",type="ValidationError"} 1.0' in lines
    assert (
        'gateway_events_refused_total{status="401",stream="retriever_interactions",type="UnauthorizedError"} 1.0'
        in lines
    )


async def test_no_answer_to_whoever_left(client: httpx.AsyncClient, app: ASGIApp, outbox: RecordingOutbox) -> None:
    sent: list[object] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": APP_PATH, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    assert not sent
    assert not outbox.records
    page = (await client.get("/metrics")).text
    assert 'type="ClientDisconnected"} 1.0' in page
