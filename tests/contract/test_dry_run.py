"""POST …/interactions/validate: the verdict of the real endpoints, the row that they would store, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.gateway_under_test import (
    CREDENTIALS,
    ENDPOINTS,
    FORMS,
    JSON,
    NDJSON,
    OTHER_PUBLIC_KEY,
    Clock,
    Endpoint,
    Form,
    Gateway,
    envelope,
    registry,
    serve,
    validation_errors,
)
from tests.unit import compression_corpus
from tests.unit.json_corpus import KEPT_VALUES, REFUSED_TEXTS, REFUSED_VALUES
from tests.unit.test_row_properties import values

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
EACH_FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)

CONTEXT = """
quota = { events_per_second = 1000000 }
privacy = { client_address = "truncate", user_agent = "truncate", honour_do_not_track = true }
"""


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Gateway:
    """Its time stands still, so that a row of a dry run may be the same to the byte."""
    return serve(tmp_path, monkeypatch, registry(CONTEXT), clock=clock)


def counts(gateway: Gateway) -> tuple[int, ...]:
    names = ("events_received", "events_refused", "events_accepted", "events_published", "warnings")
    return tuple(gateway.count(f"gateway_{name}") for name in names)


async def dry_run(gateway: Gateway, endpoint: Endpoint, body: bytes, query: str = "", **headers: str) -> httpx.Response:
    """Its answer, for what leaves no trace whatever it is."""
    before, dry_runs = counts(gateway), gateway.count("gateway_dry_runs", stream=endpoint.stream)
    kept = len(gateway.outbox.records)
    response = await gateway.http().post(endpoint.validate + query, content=body, headers=endpoint.headers | headers)
    assert counts(gateway) == before
    assert len(gateway.outbox.records) == kept
    assert gateway.count("gateway_dry_runs", stream=endpoint.stream) == dry_runs + 1
    return response


def same_row(rehearsed: dict[str, Any], stored: bytes, has_own_id: bool) -> bool:
    row = json.loads(stored)
    if not has_own_id:
        row["event_id"] = rehearsed["event_id"]
    return json.dumps(rehearsed) == json.dumps(row)


async def assert_same_verdict(
    gateway: Gateway, endpoint: Endpoint, body: bytes, query: str = "", **headers: str
) -> None:
    """Of a single event."""
    rehearsal = await dry_run(gateway, endpoint, body, query, **headers)
    real = await gateway.http().post(endpoint.path + query, content=body, headers=endpoint.headers | headers)
    records = gateway.outbox.take()
    assert rehearsal.status_code == real.status_code, (body[:200], rehearsal.text, real.text)
    told, answer = rehearsal.json(), real.json()
    if real.status_code != 200:
        assert told == answer
        return
    [record] = records
    row = told.pop("row")
    assert told.pop("dry_run") is True
    assert told.pop("durability") == "none"
    assert told.pop("event_id") == row["event_id"]
    assert same_row(row, record.value, record.scope is not None)
    del answer["event_id"], answer["durability"]
    assert told == answer  # success and warnings


async def assert_same_verdicts(
    gateway: Gateway, endpoint: Endpoint, body: bytes, query: str = "", **headers: str
) -> None:
    """Of a batch."""
    rehearsal = await dry_run(gateway, endpoint, body, query, **headers)
    real = await gateway.http().post(endpoint.batch + query, content=body, headers=endpoint.headers | headers)
    records = iter(gateway.outbox.take())
    assert rehearsal.status_code == real.status_code, (body[:200], rehearsal.text, real.text)
    told, answer = rehearsal.json(), real.json()
    if "results" not in answer:
        assert told == answer
        return
    assert told.pop("dry_run") is True
    for result, stored in zip(told["results"], answer["results"], strict=True):
        if stored["status"] != "accepted":
            continue
        record, row = next(records), result.pop("row")
        assert result.pop("durability") == "none"
        assert result.pop("event_id") == row["event_id"]
        assert same_row(row, record.value, record.scope is not None)
        del stored["event_id"], stored["durability"]
    assert not list(records)
    assert told == answer


def corpus(endpoint: Endpoint) -> Iterator[bytes]:
    yield endpoint.body
    for value in (*REFUSED_VALUES.values(), *(value for value, _ in KEPT_VALUES.values())):
        yield endpoint.body_with(b"metadata", b'{"x":%b}' % value)
        yield endpoint.body_with(b"zone", value)
        yield endpoint.body_with(b"position", value)
    for field in (b"event_id", b"timestamp", b"sent_at", b"session_id", b"events"):
        for value in (b'"a"', b'"no id"', b"null", b"7", b"[]", b'"2026-09-21T14:13:20Z"', b"1790000000000", b"1e300"):
            yield endpoint.body_with(field, value)
    yield b'{"event_type":"click","position":7,"result_count":3,"latency_ms":-1}'
    yield b'{"event_type":"view","document_id":"","interaction_type":["click","skip"],"position":9,"result_set_size":1}'
    yield endpoint.body_with(b"metadata", b'{"x":"%b"}' % (b"x" * 262_144))


@EACH_ENDPOINT
async def test_verdict_of_a_corpus(endpoint: Endpoint, gateway: Gateway) -> None:
    for body in corpus(endpoint):
        await assert_same_verdict(gateway, endpoint, body)


@EACH_ENDPOINT
@pytest.mark.parametrize("name", [name for name in REFUSED_TEXTS if name != "array"])
async def test_verdict_of_what_is_no_event(name: str, endpoint: Endpoint, gateway: Gateway) -> None:
    await assert_same_verdict(gateway, endpoint, REFUSED_TEXTS[name])


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {"Idempotency-Key": "order-1"}),
        ("?event_id=order-1", {}),
        ("?event_id=order-1", {"Idempotency-Key": "order-2"}),
        ("", {"Idempotency-Key": "k" * 64}),
        ("", {"Idempotency-Key": "k" * 65}),
        ("?event_id=no%20id", {}),
        ("?x=%FF", {}),
        ("", {"DNT": "1", "X-Session-ID": "s"}),
        ("", {"X-Session-ID": "s", "User-Agent": "Googlebot/2.1"}),
        ("", {"Content-Type": "text/plain;charset=UTF-8"}),
        ("", {"Content-Type": "text/xml"}),
        ("", {"Content-Encoding": "gzip"}),
        ("", {"Content-Encoding": "x"}),
    ],
    ids=repr,
)
async def test_verdict_depends_on_query_and_headers_alike(
    query: str, headers: dict[str, str], endpoint: Endpoint, gateway: Gateway
) -> None:
    await assert_same_verdict(gateway, endpoint, endpoint.body_with(b"session_id", b"null"), query, **headers)


@EACH_ENDPOINT
async def test_encoded(endpoint: Endpoint, gateway: Gateway) -> None:
    for coding, encode in compression_corpus.ENCODERS.values():
        body = encode(endpoint.body)
        await assert_same_verdict(gateway, endpoint, body, **{"Content-Encoding": coding.decode()})


fields = st.dictionaries(
    st.sampled_from(
        [
            *("event_type", "document_id", "position", "query", "result_count", "latency_ms", "session_id", "metadata"),
            *("interaction_type", "execution_id", "query_snapshot", "document_score", "result_set_size"),
            *("event_id", "timestamp", "sent_at", "zone", "extra", "app", "received_at"),
        ]
    ),
    values | st.sampled_from(["click", ["view"], ["view", "skip"], 0, 1, 2.0, -1, {}, "id-1", 1_790_000_000_000]),
    max_size=6,
)


def bodies(endpoint: Endpoint) -> st.SearchStrategy[bytes]:
    """Nearly events: most are, some are not."""
    return st.builds(
        lambda more, whole: json.dumps((endpoint.event if whole else {}) | more).encode(),
        fields,
        st.sampled_from([True, True, True, False]),
    ) | st.sampled_from([b"NaN", b"7", b"{}", b"[]", b"\xff", b'{"event_type":"e","n":1e400}'])


bounded = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@EACH_ENDPOINT
@bounded
@given(data=st.data())
async def test_verdict_of_any_event(data: st.DataObject, endpoint: Endpoint, gateway: Gateway) -> None:
    body = data.draw(bodies(endpoint).filter(lambda body: body != b"[]"))
    key = data.draw(st.sampled_from([{}, {"Idempotency-Key": "order-1"}]))
    await assert_same_verdict(gateway, endpoint, body, **key)


@EACH_ENDPOINT
@bounded
@given(data=st.data())
async def test_verdict_of_any_batch(data: st.DataObject, endpoint: Endpoint, gateway: Gateway) -> None:
    form = data.draw(st.sampled_from(FORMS))
    body = form.of(data.draw(st.lists(bodies(endpoint), max_size=5)))
    if form.name == "object":
        more = data.draw(st.dictionaries(st.sampled_from(["timestamp", "sent_at", "batch", "x"]), values, max_size=3))
        body = body[:-1] + "".join(f",{json.dumps(k)}:{json.dumps(v)}" for k, v in more.items()).encode() + b"}"
    key = data.draw(st.sampled_from([{}, {"Idempotency-Key": "batch-1"}]))
    await assert_same_verdicts(gateway, endpoint, body, **form.headers, **key)


@EACH_FORM
@EACH_ENDPOINT
async def test_batch_is_told_by_its_form(endpoint: Endpoint, form: Form, gateway: Gateway) -> None:
    body = form.of([endpoint.body, b"NaN", endpoint.body])
    response = await dry_run(gateway, endpoint, body, **form.headers)
    assert [result["status"] for result in response.json()["results"]] == ["accepted", "rejected", "accepted"]
    await assert_same_verdicts(gateway, endpoint, body, **form.headers)
    await assert_same_verdicts(gateway, endpoint, form.of([b"{}"]), **form.headers)


@EACH_ENDPOINT
@pytest.mark.parametrize(
    "value", [b"[]", b'[{"event_type":"e"}]', b"{}", b"7", b"null", b'"x"', b"12345678901234567890"]
)
async def test_event_may_have_a_field_named_events(value: bytes, endpoint: Endpoint, gateway: Gateway) -> None:
    await assert_same_verdict(gateway, endpoint, endpoint.body_with(b"events", value))
    await assert_same_verdict(gateway, endpoint, endpoint.body_with(b"zone", b'"\\"events\\""'))


@EACH_ENDPOINT
@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b'{"events":[]}', b'{"events":7}', b'{"events":null,"x":1}', b'{"events":[{}],"sent_at":NaN}'),
        *(b"[", b'[{"event_type":"e"}', b'{"events":[{"event_type":"e"}', b"[" * 100_000, b"[1] 2"),
    ],
    ids=lambda body: repr(body[:30]),
)
async def test_verdict_of_what_is_no_batch(body: bytes, endpoint: Endpoint, gateway: Gateway) -> None:
    await assert_same_verdicts(gateway, endpoint, body)


@EACH_ENDPOINT
@pytest.mark.parametrize("body", [b"", b"\n\n", b"{", b'{"events":[{"event_type":"e"}]}'], ids=repr)
async def test_verdict_of_lines(body: bytes, endpoint: Endpoint, gateway: Gateway) -> None:
    await assert_same_verdicts(gateway, endpoint, body, **NDJSON)


@EACH_ENDPOINT
async def test_limits_of_a_batch(endpoint: Endpoint, gateway: Gateway) -> None:
    await assert_same_verdicts(gateway, endpoint, FORMS[0].of([b"{}"] * 1_000))
    await assert_same_verdicts(gateway, endpoint, FORMS[0].of([endpoint.body] * 1_001))
    huge = endpoint.body_with(b"metadata", b'{"x":"%b"}' % (b"x" * 1_000_000))
    await assert_same_verdicts(gateway, endpoint, FORMS[0].of([endpoint.body, huge]))
    await assert_same_verdicts(gateway, endpoint, b"[" + b" " * 5_242_880)


@EACH_ENDPOINT
@pytest.mark.parametrize("key", ["k" * 44, "k" * 45, "k" * 64], ids=len)
async def test_verdict_on_the_key_of_a_batch(key: str, endpoint: Endpoint, gateway: Gateway) -> None:
    for form in FORMS:
        body = form.of([endpoint.body, endpoint.body, endpoint.body_with(b"event_id", b'"own"')])
        await assert_same_verdicts(gateway, endpoint, body, **form.headers, **{"Idempotency-Key": key})
        await assert_same_verdicts(gateway, endpoint, body, f"?event_id={key}", **form.headers)


@pytest.mark.parametrize(
    ("credentials", "status", "type_"),
    [
        ({}, 401, "UnauthorizedError"),
        (CREDENTIALS | {"Authorization": "Bearer nobody"}, 401, "UnauthorizedError"),
        (CREDENTIALS | {"X-Public-API-Key": OTHER_PUBLIC_KEY}, 403, "ForbiddenError"),
    ],
    ids=["nothing", "unknown", "foreign"],
)
async def test_who_may_not_send_may_not_try(
    credentials: dict[str, str], status: int, type_: str, gateway: Gateway
) -> None:
    endpoint = ENDPOINTS[1]
    response = await gateway.http().post(endpoint.validate, content=endpoint.body, headers=JSON | credentials)
    envelope(response, status, type_)


@EACH_ENDPOINT
async def test_unknown_owner(endpoint: Endpoint, gateway: Gateway) -> None:
    path = endpoint.validate.replace(endpoint.owner, "nobody")
    response = await gateway.http().post(path, content=endpoint.body, headers=endpoint.headers)
    envelope(response, 404, "NotFoundError")


@EACH_ENDPOINT
async def test_answer(endpoint: Endpoint, gateway: Gateway, clock: Clock) -> None:
    response = await dry_run(gateway, endpoint, endpoint.body, **{"Idempotency-Key": "order-1"})
    assert response.json() == {
        "success": True,
        "dry_run": True,
        "event_id": "order-1",
        "durability": "none",
        "row": {
            "event_id": "order-1",
            endpoint.name: endpoint.owner,
            "received_at": "2026-09-21T14:13:20.000Z",
            "client_address": "127.0.0.0",
            "user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
            "Chrome/131.0.0.0 Safari/537.36",
            **endpoint.event,
        },
    }


@EACH_ENDPOINT
async def test_outbox_that_takes_nothing_is_not_asked(endpoint: Endpoint, gateway: Gateway) -> None:
    gateway.outbox.fault = RuntimeError("nobody should ask")
    assert (await dry_run(gateway, endpoint, endpoint.body)).status_code == 200
    assert (await dry_run(gateway, endpoint, b"[%b]" % endpoint.body)).status_code == 200
    validation_errors(await dry_run(gateway, endpoint, b"{"))
