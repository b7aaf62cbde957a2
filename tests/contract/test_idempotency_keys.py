"""Ids that callers give their events: where they may stand, what is one, and what a repeat gets for an answer."""

import json
import uuid
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.kafka_batch import PublisherRefusal
from tests.contract.gateway_under_test import (
    ENDPOINTS,
    FORMS,
    NDJSON,
    Endpoint,
    Form,
    Gateway,
    KeptRecord,
    RecordingOutbox,
    validation_errors,
)

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)

KEY = "Idempotency-Key"
LONGEST = "k" * 64
ALPHABET = "ABCXYZabcxyz0189._:-"
WRONG = {
    "empty": "",
    "too-long": "k" * 65,
    "space": "a b",
    "slash": "a/b",
    "accent": "é",
    "line-feed": "a\nb",
    "nul": "a\0",
    "comma": "a,b",
    "quote": 'a"b',
    "digit-of-another-script": "٣",
}
KEY_CHARS_MAX = 44


async def post(
    client: httpx.AsyncClient, endpoint: Endpoint, event: dict[str, Any], *, query: str = "", key: str | None = None
) -> httpx.Response:
    headers = endpoint.headers | ({} if key is None else {KEY: key})
    return await client.post(endpoint.path + query, content=json.dumps(event), headers=headers)


def assert_made_by_us(record: KeptRecord) -> None:
    assert uuid.UUID(record.key.decode()).version == 7
    assert record.scope is None


# A single event


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("header", "query", "body", "expected"),
    [
        ("h", "q", "b", "h"),
        ("h", "q", None, "h"),
        ("h", None, "b", "h"),
        ("h", None, None, "h"),
        (None, "q", "b", "q"),
        (None, "q", None, "q"),
        (None, None, "b", "b"),
        ("h", None, "not an id", "h"),
        (None, "q", "not an id", "q"),
        (LONGEST, None, None, LONGEST),
        (None, LONGEST, None, LONGEST),
        (None, None, LONGEST, LONGEST),
        (ALPHABET, None, None, ALPHABET),
        (None, ALPHABET, None, ALPHABET),
        (None, None, ALPHABET, ALPHABET),
        ('"quoted"', None, None, "quoted"),
        (f'"{LONGEST}"', None, None, LONGEST),
        ("  spaces around  ".strip(" around"), None, None, "spaces"),
        ("0", None, None, "0"),
    ],
)
async def test_id_is_that_of_the_header_else_the_query_else_the_body(
    header: str | None,
    query: str | None,
    body: str | None,
    expected: str,
    endpoint: Endpoint,
    client: httpx.AsyncClient,
    outbox: RecordingOutbox,
) -> None:
    event = endpoint.event | ({} if body is None else {"event_id": body})
    url = "" if query is None else f"?event_id={query.replace(' ', '%20')}"
    response = await post(client, endpoint, event, query=url, key=header)
    assert response.status_code == 200
    assert response.json() == {"success": True, "event_id": expected, "durability": "kafka"}
    [record] = outbox.records
    assert record.key == expected.encode()
    assert record.scope == endpoint.owner.encode()
    assert record.row["event_id"] == expected
    assert record.row.get("extra") == (None if body is None else {"event_id": body})  # what is not named is kept


@EACH_ENDPOINT
async def test_without_an_id_it_gets_one_of_ours(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    assert (await post(client, endpoint, endpoint.event)).status_code == 200
    assert (await post(client, endpoint, endpoint.event, query="?public_api_key=")).status_code == 200
    for record in outbox.records:
        assert_made_by_us(record)
    assert len({record.key for record in outbox.records}) == 2


@EACH_ENDPOINT
@pytest.mark.parametrize("wrong", [*WRONG.values(), '"', '""', '"a', f'"{"k" * 65}"', "'a'"], ids=repr)
async def test_wrong_id_in_the_header_is_refused(
    wrong: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    headers: dict[str, Any] = endpoint.headers | {KEY: wrong.encode()}
    for path in (endpoint.path, endpoint.batch, endpoint.validate):
        response = await client.post(f"{path}?event_id=good", content=endpoint.body, headers=headers)
        [entry] = validation_errors(response, "header")
        assert (entry["loc"], entry["type"]) == (["header", KEY], "event_id_invalid")
        assert len(wrong) < 3 or wrong not in entry["msg"]
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
async def test_wrong_id_in_the_query_is_refused(
    wrong: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    body = endpoint.body_with(b"event_id", b'"good"')
    for path in (endpoint.path, endpoint.batch, endpoint.validate):
        for headers in (endpoint.headers, endpoint.headers | {KEY: "good"}):
            response = await client.post(path, params={"event_id": wrong}, content=body, headers=headers)
            [entry] = validation_errors(response, "query")
            assert (entry["loc"], entry["type"]) == (["query", "event_id"], "event_id_invalid")
    assert not outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("wrong", [*WRONG.values(), 7, 7.5, True, [], ["a"], {}, {"a": 1}], ids=repr)
async def test_wrong_id_in_the_body_is_an_extra_field_and_warned_of(
    wrong: Any, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await post(client, endpoint, endpoint.event | {"event_id": wrong})
    assert response.status_code == 200
    [warning] = response.json()["warnings"]
    assert (warning["code"], warning["loc"]) == ("event_id_invalid", ["event_id"])
    [record] = outbox.records
    assert_made_by_us(record)
    assert record.row["extra"] == {"event_id": wrong}


@EACH_ENDPOINT
async def test_null_is_as_good_as_no_id(endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    """As for every other field: a client that writes what it does not have as null has done nothing odd."""
    response = await post(client, endpoint, endpoint.event | {"event_id": None})
    assert response.status_code == 200
    assert "warnings" not in response.json()
    assert_made_by_us(outbox.records[0])


@EACH_ENDPOINT
@pytest.mark.parametrize(("first", "last"), [("a", "a"), ("a", "b"), ("not an id", "b")])
async def test_of_a_header_or_parameter_that_comes_twice_the_last_counts(
    first: str, last: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    headers = [*endpoint.headers.items(), (KEY, first), (KEY, last)]
    assert (await client.post(endpoint.path, content=endpoint.body, headers=headers)).json()["event_id"] == last
    url = f"{endpoint.path}?event_id={first.replace(' ', '%20')}&event_id={last}"
    response = await client.post(url, content=endpoint.body, headers=endpoint.headers)
    assert response.json()["event_id"] == last
    assert [record.key.decode() for record in outbox.records] == [last, last]


@EACH_ENDPOINT
async def test_repeat_gets_the_same_answer_whatever_way_it_comes(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    own = endpoint.body_with(b"event_id", b'"order-1"')
    answers = [
        (await post(client, endpoint, endpoint.event, key="order-1")).json(),
        (await post(client, endpoint, endpoint.event, key='"order-1"')).json(),
        (await post(client, endpoint, endpoint.event, query="?event_id=order-1")).json(),
        (await client.post(endpoint.path, content=own, headers=endpoint.headers)).json(),
    ]
    assert answers == [{"success": True, "event_id": "order-1", "durability": "kafka"}] * 4
    in_batch = await client.post(endpoint.batch, content=b"[%b]" % own, headers=endpoint.headers)
    assert in_batch.json()["results"] == [
        {"index": 0, "status": "accepted", "event_id": "order-1", "durability": "kafka"}
    ]
    query = "&".join(f"{k}={v[0] if isinstance(v, list) else v}" for k, v in endpoint.event.items())
    pixel = await client.get(f"{endpoint.pixel}?event_id=order-1&{query}", headers=endpoint.headers)
    assert pixel.status_code == 200
    copies = {(record.topic, record.scope, record.key, record.partition) for record in outbox.records}
    assert copies == {(endpoint.stream, endpoint.owner.encode(), b"order-1", None)}
    assert len(outbox.records) == 6


async def test_same_id_of_two_owners_is_two_ids(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    for endpoint in ENDPOINTS:
        await post(client, endpoint, endpoint.event, key="order-1")
    assert len({(record.scope, record.key) for record in outbox.records}) == 2


@EACH_ENDPOINT
async def test_id_of_what_was_refused_may_be_used_again(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    outbox.fault = PublisherRefusal("overloaded", "Not now")
    assert (await post(client, endpoint, endpoint.event, key="order-1")).status_code == 503
    outbox.fault = None
    assert (await post(client, endpoint, {}, key="order-1")).status_code == 422
    assert (await post(client, endpoint, endpoint.event, key="order-1")).json()["event_id"] == "order-1"
    assert outbox.row["event_id"] == "order-1"


# A batch


async def ids_of_batch(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    texts: list[bytes],
    key: str | None = "batch-1",
    form: Form = FORMS[0],
    fields: bytes = b"",
) -> list[str]:
    """In the events' order; all of them must have been accepted."""
    body = form.of(texts)
    if fields:
        assert form.name == "object"
        body = body[:-1] + b"," + fields + b"}"
    headers = endpoint.headers | form.headers | ({} if key is None else {KEY: key})
    response = await client.post(endpoint.batch, content=body, headers=headers)
    assert response.status_code == 200, response.text
    return [result["event_id"] for result in response.json()["results"]]


def numbered(endpoint: Endpoint, numbers: list[int]) -> list[bytes]:
    return [endpoint.body_with(b"n", b"%d" % number) for number in numbers]


@EACH_ENDPOINT
async def test_events_of_a_batch_with_a_key_have_ids_of_their_own(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    for form in FORMS:
        ids = await ids_of_batch(client, endpoint, numbered(endpoint, [1, 2, 2, 3, 2]), "k" * KEY_CHARS_MAX, form)
        records = outbox.take()
        assert [record.key.decode() for record in records] == ids
        assert len(set(ids)) == 5
        for record in records:
            assert record.scope == endpoint.owner.encode()
            assert record.row["event_id"].encode() == record.key
            assert record.row["event_id"].startswith("k" * KEY_CHARS_MAX)
        for own in ids:  # each is one that a caller could give
            assert (await post(client, endpoint, endpoint.event, key=own)).json()["event_id"] == own
        outbox.take()


@EACH_ENDPOINT
async def test_longest_id_of_a_batch_is_an_id(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    ids = await ids_of_batch(client, endpoint, [endpoint.body] * 1_000, "k" * KEY_CHARS_MAX)
    assert len(set(ids)) == 1_000
    assert max(map(len, ids)) <= 64


@EACH_ENDPOINT
async def test_same_content_has_the_same_id_however_it_is_written(
    endpoint: Endpoint, client: httpx.AsyncClient
) -> None:
    event = endpoint.event | {"position": 2, "zone": "é"}
    texts = [
        json.dumps(event).encode(),
        json.dumps(event, ensure_ascii=False, indent=2).replace("\n", " ").encode(),
        json.dumps(event | {"position": 2.0}).encode(),
    ]
    ids = {id_ for text in texts for form in FORMS for id_ in await ids_of_batch(client, endpoint, [text], form=form)}
    assert len(ids) == 1


@EACH_ENDPOINT
async def test_id_depends_on_the_key_and_on_every_value(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    values = [b"1", b"1.0", b'"1"', b"[1]", b"true", b"null", b"12345678901234567890", b"12345678901234567891"]
    texts = [endpoint.body_with(b"n", value) for value in values]
    ids = [id_ for key in ("batch-1", "batch-2") for id_ in await ids_of_batch(client, endpoint, texts, key)]
    assert len(set(ids)) == 2 * len(values)


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), numbers=st.lists(st.integers(0, 6), min_size=1, max_size=12), bad=st.integers(0, 3))
async def test_ids_hold_for_a_batch_that_is_sent_again_in_part_and_in_another_order(
    data: st.DataObject, numbers: list[int], bad: int, client: httpx.AsyncClient
) -> None:
    """Of events that are alike only how many there are matters: any of them is as good as another."""
    endpoint = ENDPOINTS[0]
    texts = numbered(endpoint, numbers) + [b"{}"] * bad
    ids: dict[bytes, list[str]] = {}

    async def send(order: list[bytes]) -> dict[bytes, list[str]]:
        headers = endpoint.headers | {KEY: "batch-1"}
        response = await client.post(endpoint.batch, content=FORMS[0].of(order), headers=headers)
        found: dict[bytes, list[str]] = {}
        for text, result in zip(order, response.json()["results"], strict=True):
            if text != b"{}":
                found.setdefault(text, []).append(result["event_id"])
        return found

    ids = await send(texts)
    assert len({id_ for alike in ids.values() for id_ in alike}) == len(numbers)
    again = data.draw(st.permutations(texts))[: data.draw(st.integers(1, len(texts)))]
    for text, alike in (await send(again)).items():
        assert alike == ids[text][: len(alike)]


@EACH_ENDPOINT
@pytest.mark.parametrize("where", ["header", "query"])
async def test_events_own_id_comes_before_the_batchs_key(
    where: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    """The other way round than for a single event, where the header is about the event itself."""
    texts = [
        endpoint.body_with(b"event_id", b'"own-1"'),
        endpoint.body,
        endpoint.body_with(b"event_id", b'"not an id"'),
        endpoint.body_with(b"event_id", b"null"),
        endpoint.body_with(b"event_id", b'"%b"' % LONGEST.encode()),
    ]
    path = endpoint.batch + ("?event_id=batch-1" if where == "query" else "")
    headers = endpoint.headers | ({KEY: "batch-1"} if where == "header" else {})
    response = await client.post(path, content=FORMS[0].of(texts), headers=headers)
    ids = [result["event_id"] for result in response.json()["results"]]
    assert (ids[0], ids[4]) == ("own-1", LONGEST)
    assert [id_.startswith("batch-1:") for id_ in ids] == [False, True, True, True, False]
    assert len(set(ids)) == 5
    assert {record.scope for record in outbox.records} == {endpoint.owner.encode()}
    assert [row.get("extra") for row in outbox.rows][2] == {"event_id": "not an id"}


@EACH_ENDPOINT
async def test_batch_without_a_key_keeps_the_ids_of_its_events(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    texts = [endpoint.body, endpoint.body_with(b"event_id", b'"own"'), endpoint.body]
    await ids_of_batch(client, endpoint, texts, key=None)
    first, own, last = outbox.records
    assert_made_by_us(first)
    assert_made_by_us(last)
    assert (own.key, own.scope) == (b"own", endpoint.owner.encode())


@EACH_ENDPOINT
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
async def test_key_of_a_batch_is_shorter_than_an_id(
    form: Form, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    """With what is added to it, it must still be one."""
    long = "k" * (KEY_CHARS_MAX + 1)
    body, headers = form.of([endpoint.body]), endpoint.headers | form.headers
    response = await client.post(endpoint.batch, content=body, headers=headers | {KEY: long})
    [entry] = validation_errors(response, "header")
    assert (entry["loc"], entry["type"]) == (["header", KEY], "event_id_invalid")
    assert str(KEY_CHARS_MAX) in entry["msg"]
    response = await client.post(f"{endpoint.batch}?event_id={long}", content=body, headers=headers)
    assert validation_errors(response, "query")[0]["loc"] == ["query", "event_id"]
    assert not outbox.records


@EACH_ENDPOINT
async def test_what_was_unavailable_has_the_same_id_when_it_is_sent_again(
    endpoint: Endpoint, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    texts = numbered(endpoint, [1, 2, 3, 4])
    expected = await ids_of_batch(client, endpoint, texts)
    gateway.outbox.take()
    gateway.outbox.place = lambda record: (
        PublisherRefusal("overloaded", "Not now") if record.row["extra"]["n"] % 2 else "kafka"
    )
    body, headers = FORMS[0].of(texts), endpoint.headers | {KEY: "batch-1"}
    first = (await client.post(endpoint.batch, content=body, headers=headers)).json()["results"]
    gateway.outbox.place = None
    unavailable = [texts[result["index"]] for result in first if result["status"] == "unavailable"]
    assert len(unavailable) == 2
    await ids_of_batch(client, endpoint, unavailable)
    assert sorted(record.key.decode() for record in gateway.outbox.records) == sorted(expected)


@EACH_ENDPOINT
async def test_second_of_two_alike_that_was_unavailable_is_not_taken_for_the_first(
    endpoint: Endpoint, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    """If it is sent with the id that its result gave: alone, nothing tells it from the other."""
    gateway.outbox.place = lambda _: PublisherRefusal("overloaded", "Not now") if gateway.outbox.records else "kafka"
    body, headers = FORMS[0].of([endpoint.body] * 2), endpoint.headers | {KEY: "batch-1"}
    first = (await client.post(endpoint.batch, content=body, headers=headers)).json()["results"]
    assert [result["status"] for result in first] == ["accepted", "unavailable"]
    gateway.outbox.place = None
    body = FORMS[0].of([endpoint.body_with(b"event_id", b'"%b"' % first[1]["event_id"].encode())])
    again = (await client.post(endpoint.batch, content=body, headers=headers)).json()["results"]
    assert [result["event_id"] for result in again] == [first[1]["event_id"]]
    assert len({record.key for record in gateway.outbox.records}) == 2


@EACH_ENDPOINT
async def test_ids_hold_though_the_batch_says_when_it_was_sent(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    """Whoever sends again stamps `sent_at` again (`gateway.clock`): that makes no other event of it."""
    texts, form = numbered(endpoint, [1, 2]), FORMS[1]
    before = await ids_of_batch(client, endpoint, texts, form=form, fields=b'"sent_at":1790000000000')
    assert await ids_of_batch(client, endpoint, texts, form=form, fields=b'"sent_at":1790000005000') == before


@EACH_ENDPOINT
async def test_ids_hold_though_each_event_says_when_it_was_sent(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    ids = [
        await ids_of_batch(client, endpoint, [endpoint.body_with(b"sent_at", sent_at)])
        for sent_at in (b"1790000000000", b"1790000005000", b'"2026-09-21T14:13:20Z"')
    ]
    assert ids[0] == ids[1] == ids[2]


async def test_ids_hold_though_the_session_header_differs(client: httpx.AsyncClient) -> None:
    endpoint = ENDPOINTS[1]
    headers = endpoint.headers | NDJSON | {KEY: "batch-1"}
    ids = []
    for session in ("one", "two"):
        response = await client.post(endpoint.batch, content=endpoint.body, headers=headers | {"X-Session-ID": session})
        ids.append(response.json()["results"][0]["event_id"])
    assert ids[0] == ids[1]
