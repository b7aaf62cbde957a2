"""POST …/interactions/batch: every event is checked, stored and answered by itself, whatever its neighbours are."""

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.kafka_batch import PublisherRefusal
from gateway.record import Durability
from gateway.spool import SpoolRefusal
from schemas.batches import of_event
from tests.contract.gateway_under_test import (
    APP_PATH,
    BROWSER,
    CREDENTIALS,
    ENDPOINTS,
    FORMS,
    JSON,
    NDJSON,
    OTHER_PUBLIC_KEY,
    RETRIEVER_PATH,
    Clock,
    Endpoint,
    Form,
    Gateway,
    KeptRecord,
    RecordingOutbox,
    Refusal,
    envelope,
    registry,
    serve,
    validation_errors,
)
from tests.unit import compression_corpus
from tests.unit.json_corpus import KEPT_VALUES, REFUSED_TEXTS, REFUSED_VALUES

EVENTS_MAX = 1_000
REQUEST_BYTES_MAX = 5_242_880

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
EACH_FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


async def post(client: httpx.AsyncClient, endpoint: Endpoint, form: Form, texts: Iterable[bytes]) -> httpx.Response:
    return await client.post(endpoint.batch, content=form.of(texts), headers=endpoint.headers | form.headers)


def results(response: httpx.Response, status: int = 200) -> list[dict[str, Any]]:
    """Of an answer that is one in every respect, in order."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert {"success", "results"} <= set(answer) <= {"success", "results", "warnings"}
    found: list[dict[str, Any]] = answer["results"]
    assert [result["index"] for result in found] == list(range(len(found)))
    assert answer["success"] is any(result["status"] == "accepted" for result in found)
    for result in found:
        members = {"accepted": {"event_id", "durability"}, "rejected": {"detail"}, "unavailable": {"event_id", "error"}}
        assert set(result) - {"warnings"} == {"index", "status"} | members[result["status"]]
    return found


def statuses(response: httpx.Response, status: int = 200) -> list[str]:
    return [result["status"] for result in results(response, status)]


def content(record: KeptRecord) -> bytes:
    """The record's value from behind its id, owner and time, to the byte."""
    head, found, rest = record.value.partition(b'"received_at":"')
    assert found, head
    return rest[len("2026-11-22T06:20:00.123Z") :]


async def alone(client: httpx.AsyncClient, outbox: RecordingOutbox, endpoint: Endpoint, text: bytes) -> Any:
    """What the endpoint for single events makes of it: the content of a record, or what is wrong."""
    response = await client.post(endpoint.path, content=text, headers=endpoint.headers)
    if response.status_code != 200:
        return validation_errors(response)
    return content(outbox.records.pop())


def with_metadata(endpoint: Endpoint, value: bytes) -> bytes:
    return endpoint.body_with(b"metadata", b'{"x":%b}' % value)


def numbered(endpoint: Endpoint, count: int) -> list[bytes]:
    """So many good events that differ."""
    return [with_metadata(endpoint, b"%d" % number) for number in range(count)]


# Each event by itself


@EACH_FORM
@EACH_ENDPOINT
async def test_results_and_records_are_in_the_events_order(
    endpoint: Endpoint, form: Form, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    texts = numbered(endpoint, 250)
    accepted = results(await post(client, endpoint, form, texts))
    records = outbox.take()
    assert [result["status"] for result in accepted] == ["accepted"] * len(texts)
    assert [result["event_id"].encode() for result in accepted] == [record.key for record in records]
    assert len({record.key for record in records}) == len(texts)
    assert [record.row["metadata"] for record in records] == [{"x": number} for number in range(len(texts))]
    assert {(record.topic, record.partition, record.scope) for record in records} == {(endpoint.stream, None, None)}
    assert len({record.timestamp_ms for record in records}) == 1  # a request has one arrival
    for record in records:
        assert record.row["event_id"].encode() == record.key
        assert record.row[endpoint.name] == endpoint.owner


@EACH_ENDPOINT
async def test_rows_are_those_of_events_sent_alone(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    texts = [
        *(with_metadata(endpoint, value) for value, _ in KEPT_VALUES.values()),
        *(endpoint.body_with(b"zone", value) for value, _ in KEPT_VALUES.values()),
        endpoint.body_with(b"session_id", b"null"),
        endpoint.body_with(b"event_id", b'"own"'),
        endpoint.body_with(b"position", b"2.0"),
        json.dumps(endpoint.event, indent=None).encode(),
    ]
    expected = [await alone(client, outbox, endpoint, text) for text in texts]
    for form in FORMS:
        assert set(statuses(await post(client, endpoint, form, texts))) == {"accepted"}
        assert [content(record) for record in outbox.take()] == expected


BAD_VALUES: dict[str, bytes] = {
    **REFUSED_VALUES,
    "missing-comma": b'{"a": 1 "b": 2}',
    "missing-value": b'{"a": }',
    "two-values": b"1 2",
}
BAD_TEXTS: dict[str, bytes] = {
    "null": b"null",
    "number": b"42",
    "nan": b"NaN",
    "text": b'"click"',
    "array": b"[]",
    "nested-array": b'[[{"event_type":"e"}]]',
    "empty-object": b"{}",
    "bad-utf8": b"\xff",
    "word": b"nonsense",
    "event-type-is-a-number": b'{"event_type":42}',
    "position-is-text": b'{"event_type":"e","document_id":"d","interaction_type":["view"],"position":"2"}',
    "position-is-too-large": b'{"event_type":"e","document_id":"d","interaction_type":["view"],"position":1e19}',
    "metadata-is-a-list": (
        b'{"event_type":"e","document_id":"d","interaction_type":["view"],"position":0,"metadata":[1]}'
    ),
    "byte-order-mark": b'\xef\xbb\xbf{"event_type":"e"}',
    "two-events": b'{"event_type":"e"} {"event_type":"e"}',
    "nested-100000-deep": b"[" * 100_000 + b"]" * 100_000,
    "objects-nested-40000-deep": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
}


def bad_events(endpoint: Endpoint, name: str) -> bytes:
    return BAD_TEXTS[name] if name in BAD_TEXTS else with_metadata(endpoint, BAD_VALUES[name])


@EACH_ENDPOINT
@pytest.mark.parametrize("name", [*BAD_VALUES, *BAD_TEXTS])
async def test_bad_event_leaves_its_neighbours_intact(
    name: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    bad = bad_events(endpoint, name)
    good = [
        with_metadata(endpoint, b'{"n":[1.0,12345678901234567890,"a, [b] {c} \\"d\\""]}'),
        endpoint.body,
        endpoint.body_with(b"zone", b'"\\ud83d\\ude00"'),
    ]
    expected = [await alone(client, outbox, endpoint, text) for text in good]
    wrong = await alone(client, outbox, endpoint, bad)
    assert isinstance(wrong, list), "it is not bad"
    more = [bad] if len(bad) < 100_000 else []  # a batch may have 300,000 values
    texts = [*more, good[0], bad, *more, good[1], good[2], *more]
    for form in FORMS:
        found = results(await post(client, endpoint, form, texts))
        assert [content(record) for record in outbox.take()] == expected
        for index, (text, result) in enumerate(zip(texts, found, strict=True)):
            assert result["status"] == ("rejected" if text is bad else "accepted")
            assert result.get("detail") == (of_event(index, wrong) if text is bad else None)


@EACH_ENDPOINT
@pytest.mark.parametrize(
    "bad", [b'{"a":"b}', b'{"a":b"}', b'{"a" 1}', b'{"a":[1}]', b'{"a":[1]', b'{"a":1}]', b'"', b"}", b"]"], ids=repr
)
async def test_event_whose_end_cannot_be_told_costs_its_neighbours_and_nothing_false_is_stored(
    bad: bytes, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    for form in FORMS:
        response = await post(client, endpoint, form, [endpoint.body, bad, endpoint.body])
        if form.name == "ndjson":
            assert statuses(response) == ["accepted", "rejected", "accepted"]
        elif response.status_code == 422:
            assert validation_errors(response)[0]["type"] == "json_invalid"
        else:
            assert statuses(response) == ["accepted", "rejected", "accepted"]
        assert all({name: row[name] for name in endpoint.event} == endpoint.event for row in outbox.rows)
        assert len(outbox.take()) == (2 if response.status_code == 200 else 0)


@EACH_ENDPOINT
@pytest.mark.parametrize("name", [name for name, text in REFUSED_TEXTS.items() if text.strip() and b"\n" not in text])
async def test_line_that_is_no_event_leaves_its_neighbours_intact(
    name: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    """In lines an event may also be cut short: nothing else is needed to see where it ends."""
    text = REFUSED_TEXTS[name]
    [form] = [form for form in FORMS if form.name == "ndjson"]
    response = await post(client, endpoint, form, [text, endpoint.body, text])
    assert statuses(response) == ["rejected", "accepted", "rejected"]
    assert {name: outbox.row[name] for name in endpoint.event} == endpoint.event


@EACH_FORM
@EACH_ENDPOINT
async def test_nothing_but_bad_events_is_422_with_a_result_each(
    endpoint: Endpoint, form: Form, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await post(client, endpoint, form, [b"{}", b"NaN", b"[]"])
    found = results(response, 422)
    assert [result["status"] for result in found] == ["rejected"] * 3
    assert [{tuple(entry["loc"][:2]) for entry in result["detail"]} for result in found] == [
        {("body", index)} for index in range(3)
    ]
    assert not outbox.records


@EACH_FORM
async def test_lines_and_blanks_between_events_do_not_count(
    form: Form, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    endpoint = ENDPOINTS[0]
    texts = [b" \r\n\t " + text + b"\t\r\n\n" for text in numbered(endpoint, 3)]
    assert statuses(await post(client, endpoint, form, texts)) == ["accepted"] * 3
    assert len(outbox.records) == 3


@pytest.mark.parametrize(
    "content_type",
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", None],
)
async def test_lines_are_told_by_their_content_type_alone(
    content_type: str | None, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    headers = {} if content_type is None else {"Content-Type": f"{content_type.upper()}; charset=utf-8"}
    body = b'{"event_type":"a"}\n{"event_type":"b"}\n'
    response = await client.post(f"{APP_PATH}/batch", content=body, headers=headers)
    if content_type is None:
        assert validation_errors(response)[0]["type"] == "json_invalid"
    else:
        assert statuses(response) == ["accepted"] * 2
        assert [row["event_type"] for row in outbox.rows] == ["a", "b"]


@EACH_FORM
@EACH_ENDPOINT
async def test_encoded_batch(
    endpoint: Endpoint, form: Form, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    texts = numbered(endpoint, 20)
    for coding, encode in compression_corpus.ENCODERS.values():
        headers = endpoint.headers | form.headers | {"Content-Encoding": coding.decode()}
        response = await client.post(endpoint.batch, content=encode(form.of(texts)), headers=headers)
        assert statuses(response) == ["accepted"] * 20
        assert [record.row["metadata"]["x"] for record in outbox.take()] == list(range(20))


@EACH_ENDPOINT
async def test_event_that_is_too_large_is_refused_by_itself(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    huge = with_metadata(endpoint, b'"%b"' % (b"x" * 1_000_000))
    for form in FORMS:
        found = results(await post(client, endpoint, form, [endpoint.body, huge, endpoint.body]))
        assert [result["status"] for result in found] == ["accepted", "rejected", "accepted"]
        assert [(entry["loc"], entry["type"]) for entry in found[1]["detail"]] == [(["body", 1], "event_too_large")]
        assert len(outbox.take()) == 2


async def test_event_that_grows_too_large_as_a_row_is_refused_by_itself(
    client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    endpoint = ENDPOINTS[0]
    grows = with_metadata(endpoint, b"[%b]" % b",".join([b"9e15"] * 120_000))
    assert len(grows) < 700_000
    assert statuses(await post(client, endpoint, FORMS[0], [endpoint.body, grows])) == ["accepted", "rejected"]
    assert len(outbox.records) == 1


# What comes with the events


@EACH_ENDPOINT
async def test_warnings_are_in_the_result_of_the_event_that_they_are_about(
    endpoint: Endpoint, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    odd = endpoint.body_with(b"event_id", b'"not an id"')
    found = results(await post(client, endpoint, FORMS[0], [endpoint.body, odd, b"{}", odd]))
    assert [[warning["code"] for warning in result.get("warnings", [])] for result in found] == [
        *([], ["event_id_invalid"], [], ["event_id_invalid"])
    ]
    assert found[1]["warnings"][0]["loc"] == ["event_id"]
    assert gateway.count("gateway_warnings", stream=endpoint.stream, code="event_id_invalid") == 2


async def test_warnings_of_what_was_not_stored_do_not_count(client: httpx.AsyncClient, gateway: Gateway) -> None:
    gateway.outbox.place = lambda record: (
        PublisherRefusal("overloaded", "Not now") if record.row["event_type"] == "click" else "kafka"
    )
    texts = [b'{"event_type":"view"}', b'{"event_type":"click"}']
    assert statuses(await post(client, ENDPOINTS[0], FORMS[0], texts)) == ["accepted", "unavailable"]
    assert gateway.count("gateway_warnings") == 0


async def test_unknown_fields_of_a_batch_are_ignored_and_said(
    client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    body = b'{"batch":[1],"events":[{"event_type":"e"}],"sent_at":null,"user":{"events":[{"event_type":"x"}]}}'
    response = await client.post(f"{APP_PATH}/batch", content=body, headers=JSON)
    assert statuses(response) == ["accepted"]
    assert [(warning["code"], warning["loc"]) for warning in response.json()["warnings"]] == [
        *(("batch_field_ignored", ["batch"]), ("batch_field_ignored", ["user"]))
    ]
    assert "extra" not in outbox.row


# What is no batch, and what the caller may not send


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("form", "body", "loc", "type_"),
    [
        *(("array", body, ["body"], "json_invalid") for body in (b"", b" ", b"[", b'[{"event_type":"e"}', b"{}]")),
        *(
            ("array", body, ["body"], "json_invalid")
            for body in (b'[{"event_type":"e"}] x', b'["', b"[" * 100_000, b"{]")
        ),
        *(("array", body, ["body"], "json_invalid") for body in (b"\xff", b'{"events":[{}],"sent_at":NaN}', b"x")),
        *(("array", body, ["body"], "list_type") for body in (b"null", b"1", b'"events"', b"true")),
        ("array", b"[]", ["body"], "too_short"),
        ("array", b" [ ] ", ["body"], "too_short"),
        ("object", b"{}", ["body", "events"], "missing"),
        ("object", b'{"event_type":"e"}', ["body", "events"], "missing"),
        ("object", b'{"events":null}', ["body", "events"], "list_type"),
        ("object", b'{"events":{"event_type":"e"}}', ["body", "events"], "list_type"),
        ("object", b'{"events":[]}', ["body", "events"], "too_short"),
        ("ndjson", b"", ["body"], "too_short"),
        ("ndjson", b"\n \r\n\t\n", ["body"], "too_short"),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else "",
)
async def test_what_is_no_batch(
    form: str, body: bytes, loc: list[str], type_: str, endpoint: Endpoint, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    headers = endpoint.headers | (NDJSON if form == "ndjson" else {})
    [entry] = validation_errors(await client.post(endpoint.batch, content=body, headers=headers))
    assert (entry["loc"], entry["type"]) == (loc, type_)
    assert not gateway.outbox.records
    assert gateway.count("gateway_events_received", stream=endpoint.stream) == 1
    assert gateway.count("gateway_events_refused", stream=endpoint.stream, status="422") == 1


@EACH_FORM
@EACH_ENDPOINT
async def test_most_events(endpoint: Endpoint, form: Form, client: httpx.AsyncClient, gateway: Gateway) -> None:
    texts = numbered(endpoint, EVENTS_MAX + 1)
    response = await post(client, endpoint, form, texts)
    error = envelope(response, 413, "PayloadTooLargeError")
    assert (error["code"], error["details"]) == ("too_many_events", {"events_max": EVENTS_MAX})
    assert not gateway.outbox.records

    assert statuses(await post(client, endpoint, form, texts[:EVENTS_MAX])) == ["accepted"] * EVENTS_MAX
    assert len(gateway.outbox.take()) == EVENTS_MAX
    assert gateway.count("gateway_events_received") == 1 + EVENTS_MAX


@EACH_FORM
async def test_too_many_events_are_too_many_though_one_is_bad(form: Form, client: httpx.AsyncClient) -> None:
    texts = [b"NaN", *[b'{"event_type":"e"}'] * EVENTS_MAX]
    response = await post(client, ENDPOINTS[0], form, texts)
    assert envelope(response, 413, "PayloadTooLargeError")["code"] == "too_many_events"


def of_size(endpoint: Endpoint, form: Form, size: int) -> bytes:
    """A batch of exactly so many bytes, which do not compress to next to nothing."""
    number = itertools.count()
    texts = [with_metadata(endpoint, b'"%b"' % (b"%040x" % (next(number) ** 20) * 250)[:10_000]) for _ in range(500)]
    short = len(form.of([*texts, with_metadata(endpoint, b'""')]))
    return form.of([*texts, with_metadata(endpoint, b'"%b"' % (b"x" * (size - short)))])


@EACH_FORM
@EACH_ENDPOINT
async def test_largest_batch(
    endpoint: Endpoint, form: Form, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    body = of_size(endpoint, form, REQUEST_BYTES_MAX)
    for encode, encoding in ((bytes, {}), (gzip.compress, {"Content-Encoding": "gzip"})):
        headers = endpoint.headers | form.headers | encoding
        response = await client.post(endpoint.batch, content=encode(body), headers=headers)
        assert statuses(response) == ["accepted"] * 501
        assert len(outbox.take()) == 501
    assert len(body) == REQUEST_BYTES_MAX


@EACH_FORM
@pytest.mark.parametrize("how", ["announced", "in pieces", "gzip", "br", "zstd"])
async def test_larger_batch(how: str, form: Form, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    body = of_size(ENDPOINTS[0], form, REQUEST_BYTES_MAX + 1)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    headers, sent = form.headers, body
    if how in compression_corpus.ENCODERS:
        headers = headers | {"Content-Encoding": how}
        sent = compression_corpus.ENCODERS[how][1](body)
        assert len(sent) < REQUEST_BYTES_MAX / 2
    response = await client.post(f"{APP_PATH}/batch", content=pieces() if how == "in pieces" else sent, headers=headers)
    assert envelope(response, 413, "PayloadTooLargeError")["details"] == {"bytes_max": REQUEST_BYTES_MAX}
    assert response.headers["connection"] == "close"
    assert not outbox.records


@pytest.mark.parametrize("name", compression_corpus.BOMBS)
async def test_bomb(name: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    coding, make, size = compression_corpus.BOMBS[name]
    headers = JSON | {"Content-Encoding": coding.decode()}
    response = await client.post(f"{APP_PATH}/batch", content=make(size)[:100_000], headers=headers)
    envelope(response, 413, "PayloadTooLargeError")
    assert not outbox.records


BATCH = b'[{"event_type":"e","document_id":"d","interaction_type":["view"],"position":0}]'


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "type_"),
    [
        (RETRIEVER_PATH, {}, BATCH, 401, "UnauthorizedError"),
        (RETRIEVER_PATH, CREDENTIALS | {"Authorization": "Bearer nobody"}, BATCH, 401, "UnauthorizedError"),
        (RETRIEVER_PATH, CREDENTIALS | {"X-Public-API-Key": OTHER_PUBLIC_KEY}, BATCH, 403, "ForbiddenError"),
        ("/v1/public/retrievers/nobody/interactions", CREDENTIALS, BATCH, 404, "NotFoundError"),
        ("/v1/public/apps/nobody/interactions", {}, BATCH, 404, "NotFoundError"),
        ("/v1/public/apps/nobody/interactions", {}, b"{", 404, "NotFoundError"),
        (APP_PATH, {"Content-Type": "application/xml"}, BATCH, 415, "UnsupportedMediaTypeError"),
        (APP_PATH, {"Content-Type": "application/json; charset=utf-16"}, BATCH, 415, "UnsupportedMediaTypeError"),
        (APP_PATH, {"Content-Encoding": "gzip, gzip"}, BATCH, 415, "UnsupportedMediaTypeError"),
        (APP_PATH, {"Content-Encoding": "gzip"}, BATCH, 400, "BadRequestError"),
    ],
    ids=[
        *("no-credentials", "unknown-token", "foreign-key", "unknown-retriever", "unknown-app"),
        *("unknown-app-first", "xml", "utf-16", "two-codings", "not-gzip"),
    ],
)
async def test_error_of_the_whole_request(
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    type_: str,
    client: httpx.AsyncClient,
    gateway: Gateway,
) -> None:
    envelope(await client.post(f"{path}/batch", content=body, headers=JSON | headers), status, type_)
    assert not gateway.outbox.records
    assert gateway.count("gateway_events_received") == 1
    assert gateway.count("gateway_events_refused", status=str(status), type=type_) == 1


async def test_single_event_is_not_taken_for_a_batch_nor_a_batch_for_an_event(
    client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    validation_errors(await client.post(f"{APP_PATH}/batch", content=b'{"event_type":"e"}', headers=JSON))
    validation_errors(await client.post(APP_PATH, content=b'[{"event_type":"e"}]', headers=JSON))
    validation_errors(await client.post(APP_PATH, content=b'{"events":[{"event_type":"e"}]}', headers=JSON))
    assert not outbox.records


# What becomes of the records

NOT_NOW = PublisherRefusal("overloaded", "Too many events wait for Kafka")
FULL = SpoolRefusal("spool_full", "The spool is full")


def by_number(*places: Durability | Refusal) -> Callable[[KeptRecord], Durability | Refusal]:
    return lambda record: places[record.row["metadata"]["x"]]


@EACH_FORM
@EACH_ENDPOINT
async def test_each_result_says_where_its_event_is(
    endpoint: Endpoint, form: Form, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    gateway.outbox.place = by_number("kafka", NOT_NOW, "spool", FULL, "kafka")
    texts = numbered(endpoint, 5)
    found = results(await post(client, endpoint, form, [*texts[:2], b"{}", *texts[2:]]))
    told = [result.get("durability", result["status"]) for result in found]
    assert told == ["kafka", "unavailable", "rejected", "spool", "unavailable", "kafka"]
    for index, refusal in ((1, NOT_NOW), (4, FULL)):
        error = {"message": str(refusal), "type": "ServiceUnavailableError", "code": refusal.reason}
        assert found[index]["error"] == error
    kept = {result["index"]: result["event_id"] for result in found if result["status"] == "accepted"}
    assert [record.key.decode() for record in gateway.outbox.take()] == list(kept.values())
    assert gateway.count("gateway_events_received") == 6
    assert gateway.count("gateway_events_refused", status="503", type="ServiceUnavailableError") == 2
    assert gateway.count("gateway_events_refused", status="422", type="ValidationError") == 1


@EACH_ENDPOINT
@pytest.mark.parametrize("also_bad", [False, True], ids=["all-good", "some-bad"])
async def test_nothing_stored_for_want_of_room_is_503(
    also_bad: bool, endpoint: Endpoint, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    gateway.outbox.place = by_number(FULL, NOT_NOW, FULL)
    texts = [*([b"{}"] if also_bad else []), *numbered(endpoint, 3)]
    response = await post(client, endpoint, FORMS[0], texts)
    error = envelope(response, 503, "ServiceUnavailableError")
    assert error == {"message": str(FULL), "type": "ServiceUnavailableError", "code": "spool_full"}
    assert int(response.headers["retry-after"]) >= 1
    assert gateway.count("gateway_events_received") == gateway.count("gateway_events_refused") == len(texts)


@EACH_ENDPOINT
async def test_unforeseen_error(endpoint: Endpoint, client: httpx.AsyncClient, gateway: Gateway) -> None:
    gateway.outbox.fault = RuntimeError("the reason, for the log alone")
    response = await post(client, endpoint, FORMS[0], [b"{}", *numbered(endpoint, 3)])
    error = envelope(response, 500, "InternalServerError")
    assert error == {"message": "Internal server error", "type": "InternalServerError"}
    assert gateway.count("gateway_events_received") == gateway.count("gateway_events_refused", status="500") == 4


async def test_others_have_their_turn_while_a_batch_is_prepared(client: httpx.AsyncClient) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def turns_in(count: int) -> int:
        before = turns
        response = await post(client, ENDPOINTS[0], FORMS[0], numbered(ENDPOINTS[0], count))
        assert response.status_code == 200
        return turns - before

    task = asyncio.create_task(other())
    try:
        assert await turns_in(EVENTS_MAX) - await turns_in(1) >= (EVENTS_MAX - 1) // 250
    finally:
        task.cancel()


# Every event that arrives is accepted or refused

QUOTA = "quota = { events_per_second = 4, burst = 12 }"
Message = dict[str, Any]


async def exchange(
    gateway: Gateway, method: str, target: str, headers: dict[str, str], messages: Sequence[Message]
) -> int | None:
    """The status of the answer to a request whose body comes as these messages; None if there is none."""
    path, _, query = target.partition("?")
    sent: list[Any] = []
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    await gateway.app(scope, receive, send)
    return sent[0]["status"] if sent else None


@dataclass
class Sent:
    """A request that is accepted, unless something of it is replaced."""

    endpoint: Endpoint
    route: str
    body: bytes
    form: Form
    pieces: int = 1
    leaves: bool = False
    method: str | None = None
    owner: str | None = None
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    fault: Exception | None = None
    every_other: bool = False
    pause_s: float = 0.2

    async def to(self, gateway: Gateway, clock: Clock) -> int | None:
        """The status of the answer; None if there is none."""
        clock.pass_(self.pause_s)
        turns = itertools.count()
        gateway.outbox.fault = self.fault
        gateway.outbox.place = lambda _: NOT_NOW if self.every_other and next(turns) % 2 else "kafka"
        size = len(self.body) // self.pieces + 1
        cuts = [self.body[start : start + size] for start in range(0, len(self.body) or 1, size)]
        messages = [{"type": "http.request", "body": cut, "more_body": True} for cut in cuts]
        if self.leaves:
            messages.pop()
        else:
            messages[-1]["more_body"] = False
        path = self.endpoint.path + self.route
        if self.owner is not None:
            path = path.replace(self.endpoint.owner, self.owner)
        query = self.query
        if self.route == ".gif":
            query += f"&{urlencode(self.endpoint.event, doseq=True)}"
        headers = {"User-Agent": BROWSER} | self.endpoint.headers | self.form.headers | self.headers
        method = self.method or ("GET" if self.route == ".gif" else "POST")
        return await exchange(gateway, method, f"{path}?{query}", headers, messages)


TEXTS = [b"{}", b"NaN", b"7", b'{"event_type":"click","position":-1}']
NO_BATCH = [b"", b"{", b"[" * 2_000, b"\xff", b"[" + b"1," * 1_000 + b"1]", b"x" * 300_000, b"{}\n" * 1_001]
ODDITIES: list[dict[str, Any]] = [
    *({"body": body} for body in NO_BATCH),
    *({"leaves": True, "pieces": pieces} for pieces in (1, 2, 3)),
    *({"method": method} for method in ("GET", "HEAD", "OPTIONS", "PUT", "POST")),
    *({"headers": {"Authorization": authorization}} for authorization in ("", "Bearer nobody")),
    *({"headers": {"Idempotency-Key": key}} for key in ("key", "no key")),
    *({"headers": {"Content-Type": content_type}} for content_type in ("text/xml", "text/plain")),
    *({"query": query} for query in ("event_id=a", "event_id=a%20b", "x=%FF", "position=x")),
    *({"fault": fault} for fault in (FULL, NOT_NOW, RuntimeError("broken"))),
    *({"pause_s": pause_s} for pause_s in (0.0, 60.0)),
    {"owner": "nobody"},
    {"headers": {"Content-Encoding": "gzip"}},
    {"headers": {"Content-Encoding": "x"}},
    {"every_other": True},
]


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """One or two things may be odd about it."""
    endpoint, route, form = (
        draw(st.sampled_from(ENDPOINTS)),
        draw(st.sampled_from(ROUTES)),
        draw(st.sampled_from(FORMS)),
    )
    body = endpoint.body
    if route == "/batch" or (route == "/validate" and draw(st.booleans())):
        body = form.of(draw(st.lists(st.sampled_from([endpoint.body, *TEXTS]), max_size=8)))
    else:
        form = FORMS[0]
    sent = Sent(endpoint, route, body, form, pieces=draw(st.integers(1, 3)))
    for oddity in draw(st.lists(st.sampled_from(ODDITIES), max_size=2)):
        sent = replace(sent, **oddity)
    return sent


ROUTES = ("", "/batch", "/validate", ".gif")


def assert_conserved(gateway: Gateway, sent: object) -> None:
    for stream in ("app_interactions", "retriever_interactions"):
        accepted = sum(record.topic == stream for record in gateway.outbox.records)
        received, refused = (gateway.count(f"gateway_events_{name}", stream=stream) for name in ("received", "refused"))
        assert received == accepted + refused, sent


@EACH_ENDPOINT
@pytest.mark.parametrize("route", ROUTES)
async def test_each_oddity_is_conserved(route: str, endpoint: Endpoint, conserving: Gateway, clock: Clock) -> None:
    statuses = set()
    for oddity in [{}, *ODDITIES]:
        body = FORMS[0].of([endpoint.body, b"{}", endpoint.body]) if route == "/batch" else endpoint.body
        sent = replace(Sent(endpoint, route, body, FORMS[0], pause_s=9.0), **oddity)
        statuses.add(await sent.to(conserving, clock))
        assert_conserved(conserving, sent)
    expected = {200, 204, 404, 405, 422}
    expected |= set() if route == "/validate" else {500, 503}
    expected |= set() if route == ".gif" else {None, 400, 413, 415}
    expected |= {401} if endpoint.name == "retriever" else set()
    assert statuses == expected
    disconnected = conserving.count("gateway_events_refused", type="ClientDisconnected")
    assert disconnected == (3 if route in ("", "/batch") else 0)


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(sequence=st.lists(requests(), min_size=4, max_size=10))
async def test_received_is_accepted_and_refused(sequence: list[Sent], conserving: Gateway, clock: Clock) -> None:
    """Whatever comes, in whatever order: malformed, over quota, left by its caller, half stored."""
    for sent in sequence:
        status = await sent.to(conserving, clock)
        assert (status is None) <= sent.leaves
        assert_conserved(conserving, sent)


@pytest.fixture
def conserving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Gateway:
    return serve(tmp_path, monkeypatch, registry(QUOTA), clock=clock)
