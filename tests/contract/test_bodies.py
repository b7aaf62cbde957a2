"""Both endpoints: hostile bodies are 422 and never reach Kafka; valid ones are stored with their values intact."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from schemas.fields import INT64_MAX, INT64_MIN
from tests.contract.gateway_under_test import (
    APP_PATH,
    ENDPOINTS,
    JSON,
    Endpoint,
    RecordingOutbox,
    envelope,
    validation_errors,
)
from tests.unit import compression_corpus
from tests.unit.json_corpus import KEPT_VALUES, REFUSED_TEXTS, REFUSED_VALUES

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)


async def post(client: httpx.AsyncClient, endpoint: Endpoint, body: bytes) -> httpx.Response:
    return await client.post(endpoint.path, content=body, headers=endpoint.headers)


@EACH_ENDPOINT
@pytest.mark.parametrize("text", REFUSED_TEXTS.values(), ids=REFUSED_TEXTS.keys())
async def test_text_that_is_no_event(
    text: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    validation_errors(await post(client, endpoint, text))
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("value", REFUSED_VALUES.values(), ids=REFUSED_VALUES.keys())
async def test_hostile_value(
    value: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    errors = validation_errors(await post(client, endpoint, endpoint.body_with(b"metadata", b'{"x":%b}' % value)))
    assert [entry["loc"] for entry in errors] == [["body"]]
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("value", REFUSED_VALUES.values(), ids=REFUSED_VALUES.keys())
async def test_hostile_value_in_an_extra_field(
    value: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    validation_errors(await post(client, endpoint, endpoint.body_with(b"zone", value)))
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("value", [v for v in REFUSED_VALUES.values() if not v.startswith((b"[", b"{"))], ids=repr)
async def test_hostile_value_in_a_typed_field(
    value: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    event = {name: v for name, v in endpoint.event.items() if name != "position"}
    body = json.dumps(event).encode()[:-1] + b',"position":%b}' % value
    validation_errors(await post(client, endpoint, body))
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize(("value", "written"), KEPT_VALUES.values(), ids=KEPT_VALUES.keys())
async def test_value_is_kept(
    value: bytes, written: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await post(client, endpoint, endpoint.body_with(b"metadata", b'{"x": %b}' % value))
    assert response.status_code == 200
    assert b'"metadata":{"x":%b}' % written in outbox.records[0].value


@EACH_ENDPOINT
@pytest.mark.parametrize(("value", "written"), KEPT_VALUES.values(), ids=KEPT_VALUES.keys())
async def test_value_of_an_extra_field_is_kept(
    value: bytes, written: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    assert (await post(client, endpoint, endpoint.body_with(b"zone", value))).status_code == 200
    assert b'"extra":{"zone":%b}' % written in outbox.records[0].value


@EACH_ENDPOINT
@pytest.mark.parametrize("field", ["document_id", "session_id"])
async def test_nul_survives_in_a_typed_field(
    field: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    body = json.dumps(endpoint.event | {field: "a\0b\U0001f600"}).encode()
    assert (await post(client, endpoint, body)).status_code == 200
    assert outbox.row[field] == "a\0b\U0001f600"


@pytest.mark.parametrize("field", ["position", "result_count", "latency_ms", "dwell_ms"])
@pytest.mark.parametrize(
    "value",
    [b'"2"', b"true", b"false", b"2.5", b"[2]", b"{}", b"9223372036854775808", b"-9223372036854775809", b"1e19"],
)
async def test_no_integer(value: bytes, field: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    errors = validation_errors(await post(client, ENDPOINTS[0], ENDPOINTS[0].body_with(field.encode(), value)))
    assert [entry["loc"] for entry in errors] == [["body", field]]
    assert not outbox.records


@pytest.mark.parametrize("field", ["position", "result_count", "latency_ms", "dwell_ms"])
@pytest.mark.parametrize(
    ("value", "number"),
    [(b"2.0", 2), (b"1e2", 100), (b"-0.0", 0), (b"%d" % INT64_MAX, INT64_MAX), (b"%d" % INT64_MIN, INT64_MIN)],
    ids=str,
)
async def test_integer(
    value: bytes, number: int, field: str, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    assert (await post(client, ENDPOINTS[0], ENDPOINTS[0].body_with(field.encode(), value))).status_code == 200
    assert b'"%b":%d}' % (field.encode(), number) in outbox.records[0].value


async def test_of_a_key_that_comes_twice_the_last_counts(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    body = b'{"event_type": "a", "zone": 1, "event_type": "b", "zone": 12345678901234567890}'
    assert (await post(client, ENDPOINTS[0], body)).status_code == 200
    assert outbox.records[0].value.endswith(b'"event_type":"b","extra":{"zone":12345678901234567890}}')


async def test_null_and_absent_differ_where_the_contract_can_tell(
    client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    body = b'{"event_type": "e", "query": null, "metadata": {"a": null}, "zone": null}'
    assert (await post(client, ENDPOINTS[0], body)).status_code == 200
    assert outbox.records[0].value.endswith(
        b'"event_type":"e","query":null,"metadata":{"a":null},"extra":{"zone":null}}'
    )


@EACH_ENDPOINT
async def test_body_in_many_pieces(endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    async def byte_by_byte() -> AsyncIterator[bytes]:
        for byte in endpoint.body:
            yield bytes([byte])
            await asyncio.sleep(0)

    response = await client.post(endpoint.path, content=byte_by_byte(), headers=endpoint.headers)
    assert response.status_code == 200
    assert outbox.row["event_id"] == response.json()["event_id"]


async def test_one_bad_event_says_nothing_of_the_next(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    bodies = [b"{", b'{"event_type":"e"}', b"[" * 1000, b'{"event_type":"f"}']
    statuses = [(await client.post(APP_PATH, content=body, headers=JSON)).status_code for body in bodies]
    assert statuses == [422, 200, 422, 200]
    assert [record.row["event_type"] for record in outbox.records] == ["e", "f"]


# Encoded bodies


async def post_encoded(client: httpx.AsyncClient, endpoint: Endpoint, coding: bytes, body: bytes) -> httpx.Response:
    headers = endpoint.headers | {"Content-Encoding": coding.decode()}
    return await client.post(endpoint.path, content=body, headers=headers)


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("coding", "encode"), compression_corpus.ENCODERS.values(), ids=compression_corpus.ENCODERS.keys()
)
async def test_encoded_body(
    coding: bytes,
    encode: Callable[[bytes], bytes],
    endpoint: Endpoint,
    client: httpx.AsyncClient,
    outbox: RecordingOutbox,
) -> None:
    body = endpoint.body_with(b"metadata", b'{"x":"%b"}' % (b"long" * 10_000))
    assert (await post_encoded(client, endpoint, coding, encode(body))).status_code == 200
    assert outbox.row["metadata"] == {"x": "long" * 10_000}


@EACH_ENDPOINT
@pytest.mark.parametrize(("coding", "body"), compression_corpus.INVALID.values(), ids=compression_corpus.INVALID.keys())
async def test_body_that_is_not_in_its_encoding(
    coding: bytes, body: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    error = envelope(await post_encoded(client, endpoint, coding, body), 400, "BadRequestError")
    assert error["code"] == "content_encoding_invalid"
    assert error["details"]["content_encoding"] == coding.decode()
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("name", compression_corpus.BOMBS)
async def test_bomb(name: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    coding, make, size = compression_corpus.BOMBS[name]
    response = await post_encoded(client, endpoint, coding, make(size)[:100_000])
    envelope(response, 413, "PayloadTooLargeError")
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("name", compression_corpus.IDLERS)
async def test_body_that_is_encoded_nothing(
    name: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    coding, make = compression_corpus.IDLERS[name]
    response = await post_encoded(client, endpoint, coding, make(200_000))
    if response.status_code == 413:
        assert envelope(response, 413, "PayloadTooLargeError")["code"] == "content_encoding_members"
    else:
        validation_errors(response)
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("coding", ["compress", "gzip, gzip", "br, zstd", "x", "aws-chunked"])
async def test_encoding_that_is_not_supported(
    coding: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await post_encoded(client, endpoint, coding.encode(), endpoint.body)
    error = envelope(response, 415, "UnsupportedMediaTypeError")
    assert error["code"] == "content_encoding_unsupported"
    assert response.headers["accept-encoding"] == "gzip, deflate, br, zstd"
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("text", [b"", b"[", b"\x00", b"\xff", gzip.compress(b"{}")], ids=repr)
async def test_encoded_text_that_is_no_event(
    text: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    for coding, encode in compression_corpus.ENCODERS.values():
        validation_errors(await post_encoded(client, endpoint, coding, encode(text)))
    assert not outbox.records


@EACH_ENDPOINT
async def test_encoded_body_in_many_pieces(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    async def byte_by_byte() -> AsyncIterator[bytes]:
        for byte in gzip.compress(endpoint.body):
            yield bytes([byte])
            await asyncio.sleep(0)

    headers = endpoint.headers | {"Content-Encoding": "gzip"}
    response = await client.post(endpoint.path, content=byte_by_byte(), headers=headers)
    assert response.status_code == 200
    assert outbox.row["event_id"] == response.json()["event_id"]
