"""Batches behind the head of a batch before: as in test_same_head.py, each conversation is held in both ways."""

import gzip
import json

import pytest

from tests.contract.gateway_under_test import BROWSER, ENDPOINTS, OTHER_TOKEN, Endpoint, registry
from tests.contract.test_same_head import (
    EACH_ENDPOINT,
    FAULTS,
    HEADS,
    KEYS,
    PEER,
    QUOTAS,
    REFUSED,
    REGISTRIES,
    RELOADS,
    Hold,
    Sent,
    Step,
    event,
    fault,
    held,
    named,
    odd,
    over_time,
    reload,
    reload_of,
    some_bodies,
    statuses,
)

__all__ = ["held"]  # a fixture

EVENTS_MAX = 6
REQUEST_BYTES_MAX = 20_000


def batch(
    endpoint: Endpoint, body: bytes | None = None, peer: str = PEER, query: str = "", **headers: str | None
) -> Sent:
    return event(
        endpoint, several(endpoint) if body is None else body, peer, f"{endpoint.path}/batch{query}", **headers
    )


def array(*events: bytes) -> bytes:
    return b"[%b]" % b",".join(events)


def several(endpoint: Endpoint) -> bytes:
    return array(endpoint.body, endpoint.body_with(b"zone", b"1"), endpoint.body)


def bodies(endpoint: Endpoint) -> list[bytes]:
    """Of each kind one: in the order that they are sent in."""
    good = several(endpoint)
    return [
        good,
        array(endpoint.body),
        array(endpoint.body, b"{}", endpoint.body, b"NaN", odd(endpoint)),
        array(b"{}"),
        *(array(endpoint.body, body) for body in some_bodies(endpoint) if body),
        b'{"events":%b,"sent_at":1790000000000,"timestamp":1789999990000,"x":1}' % good,
        b'{"events":1}',
        b"[]",
        b"[",
        b"",
        array(*[endpoint.body] * (EVENTS_MAX + 1)),
        good,
    ]


@EACH_ENDPOINT
@pytest.mark.parametrize("lines", REGISTRIES.values(), ids=REGISTRIES.keys())
def test_what_a_head_says_holds_for_those_behind_it(endpoint: Endpoint, lines: list[str], held: Hold) -> None:
    steps: list[Step] = []
    heads = {kind: headers for kind, headers in HEADS.items() if "X_Forwarded_For" not in headers}
    for number, headers in enumerate(heads.values()):
        for body in bodies(endpoint):
            steps += [batch(endpoint, body, f"198.51.100.{number}", **named(headers))]
            steps.append(lambda gateway: gateway.clock.pass_(3))
    seen, taken = held(steps, registry(*lines), request_events_max=EVENTS_MAX)
    assert taken == ([False] + [True] * (len(bodies(endpoint)) - 1)) * len(heads)
    assert {200, 422, 413} <= set(statuses(seen)) <= {200, 422, 413, 429}
    assert len(seen.records) > 200
    assert "gateway_warnings_total" in {name for name, _ in seen.counts}
    if "quota" in str(lines):
        assert b"ratelimit-remaining" in dict(seen.answers[-1].headers)


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("query", "headers"),
    [("", {"Idempotency-Key": "no key!"}), ("?event_id=key-1", {"Idempotency-Key": "key-2"}), ("?x=y", {})],
    ids=["a key that is none", "a key in the query", "a query"],
)
def test_what_a_head_cannot_say_for_others_is_asked_each_time(
    endpoint: Endpoint, query: str, headers: dict[str, str | None], held: Hold
) -> None:
    seen, taken = held([batch(endpoint, body, query=query, **headers) for body in bodies(endpoint)])
    assert not any(taken)
    assert {422} <= set(statuses(seen)) <= {200, 422, 413}


@EACH_ENDPOINT
@pytest.mark.parametrize("lines", REGISTRIES.values(), ids=REGISTRIES.keys())
def test_what_a_head_says_but_its_key_holds_for_those_behind_it(
    endpoint: Endpoint, lines: list[str], held: Hold
) -> None:
    """An event's own id comes first. A batch's key is shorter than an event's."""
    steps: list[Step] = []
    sent = [
        *((several(endpoint), key) for key in [*KEYS, "k" * 44, "k" * 45]),
        *((b, "key-9") for b in bodies(endpoint)),
    ]
    for body, key in sent:
        steps += [batch(endpoint, body, **{"Idempotency-Key": key}), lambda gateway: gateway.clock.pass_(3)]
    seen, taken = held(steps, registry(*lines), request_events_max=EVENTS_MAX)
    assert taken == [False] + [True] * (len(sent) - 1)
    assert {200, 422, 413} <= set(statuses(seen)) <= {200, 422, 413, 429}
    keys = {record.key for record in seen.records}
    assert {key.split(b":")[0] for key in keys} >= {b"key-1", b"key-2", b"k" * 44, b"key-9", b"id-of-the-caller"}
    assert all(record.scope for record in seen.records)
    if lines == []:
        assert statuses(seen)[: len(KEYS) + 2] == [200] * 4 + [422] * 5 + [200] * 3 + [422]


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_keys_are_asked_each_time(kind: str, held: Hold) -> None:
    seen, taken = held([batch(ENDPOINTS[1], **REFUSED[kind]) for _ in range(3)])
    assert set(statuses(seen)) <= {401, 403}
    assert not any(taken)
    assert not seen.records


@EACH_ENDPOINT
def test_forms_and_encodings(endpoint: Endpoint, held: Hold) -> None:
    lines = b"\n".join([endpoint.body, b"{}", b"", endpoint.body])
    steps: list[Step] = []
    for number, (body, headers) in enumerate(
        [
            (lines, {"Content-Type": "application/x-ndjson"}),
            (gzip.compress(several(endpoint)), {"Content-Encoding": "gzip"}),
            (gzip.compress(lines), {"Content-Encoding": "gzip", "Content-Type": "application/x-ndjson"}),
            (several(endpoint), {"Content-Encoding": "identity"}),
            (several(endpoint), {"Content-Encoding": "nope"}),
            (several(endpoint), {"Content-Type": "text/html"}),
        ]
    ):
        others = (body, b"\x1f\x8b", several(endpoint), b"x" * (REQUEST_BYTES_MAX - 1), body)
        steps += [batch(endpoint, each, f"192.0.2.{number}", **headers) for each in others]
    seen, taken = held(steps, request_bytes_max=REQUEST_BYTES_MAX)
    assert taken.count(True) > 15
    assert {200, 400, 415, 422} <= set(statuses(seen))


@EACH_ENDPOINT
def test_a_batch_that_is_too_large(endpoint: Endpoint, held: Hold) -> None:
    sent = batch(endpoint)
    large = batch(endpoint, array(endpoint.body_with(b"zone", b'"%b"' % (b"x" * REQUEST_BYTES_MAX))))
    seen, taken = held([sent, sent, large, sent, sent], request_bytes_max=REQUEST_BYTES_MAX)
    assert statuses(seen) == [200, 200, 413, 200, 200]
    assert taken == [False, True, True, False, True]  # behind a 413 the connection is another
    large = batch(endpoint, array(endpoint.body, endpoint.body_with(b"zone", b'"%b"' % (b"x" * 17_000))))
    seen, taken = held([sent, sent, large], event_bytes_max=2_000, batch_bytes_max=16_384)
    assert statuses(seen) == [200] * 3
    assert [result["status"] for result in json.loads(seen.answers[2].body)["results"]] == ["accepted", "rejected"]
    assert taken == [False, True, True]


@EACH_ENDPOINT
@pytest.mark.parametrize("kind", QUOTAS)
def test_quotas(endpoint: Endpoint, kind: str, held: Hold) -> None:
    requests = [batch(endpoint, body, peer) for peer in (PEER, "203.0.113.78") for body in (None, b"{")]
    seen, taken = held(over_time(*requests), registry(QUOTAS[kind]))
    assert {200, 422, 429} == set(statuses(seen))
    assert any(status == 429 and is_taken for status, is_taken in zip(statuses(seen), taken, strict=True))


@EACH_ENDPOINT
@pytest.mark.parametrize("kind", RELOADS)
def test_a_new_registry_holds_from_the_very_next_request_on(endpoint: Endpoint, kind: str, held: Hold) -> None:
    before, after, status = reload_of(endpoint, kind)
    sent = batch(endpoint, Origin="https://shop.example", DNT="1", **{"X-Session-ID": "sess_1"})
    seen, taken = held([sent, sent, sent, reload(after), sent, sent], before)
    assert statuses(seen)[:3] == [200] * 3
    if status != 429:  # what is left of a quota is another matter for three events
        assert statuses(seen)[3] == status
    assert taken[:4] == [False, True, True, False]


@EACH_ENDPOINT
@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_the_outbox(endpoint: Endpoint, kind: str, held: Hold) -> None:
    warned = batch(endpoint, array(endpoint.body, odd(endpoint)))
    steps = [batch(endpoint), warned, fault(FAULTS[kind][0]), warned, fault(None), batch(endpoint), warned]
    seen, taken = held(steps)
    assert taken == [False, True, True, True, True]
    assert [status == 200 for status in statuses(seen)] == [True, True, False, True, True]
    assert b"secret" not in seen.answers[2].body


def test_two_owners_on_one_connection(held: Hold) -> None:
    app, retriever = ENDPOINTS
    other = batch(retriever, Authorization=f"Bearer {OTHER_TOKEN}")
    programs = batch(app, User_Agent="curl/8.5.0")
    seen, taken = held([batch(app), batch(app), batch(retriever), other, batch(retriever), programs, batch(app)])
    assert statuses(seen) == [200, 200, 200, 403, 200, 200, 200]
    assert taken == [False, True, False, False, True, False, False]
    assert BROWSER.encode() not in seen.records[-4].value
