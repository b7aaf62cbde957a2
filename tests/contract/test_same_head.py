"""Both endpoints: whoever repeats the head of its request is answered, stored, limited and counted as if it had not.

Each conversation is held twice, with a gateway that is offered to take such requests and with one that is not: all that
a caller, Kafka and the metrics see must be the same. And each says which of its requests were taken, so that none of it
holds only because none was. Time is virtual, and the endpoints' own stands still but where a conversation lets it pass.
"""

import asyncio
import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
from aiokafka.errors import TopicAuthorizationFailedError
from prometheus_client import CollectorRegistry

from gateway import app as composition
from gateway import publisher as publisher_module
from gateway.asgi import SAME_HEAD, ASGIApp, Receive, Respond, SameHead, Scope, Send
from gateway.kafka_batch import PublisherRefusal
from gateway.metrics import Metrics
from gateway.outbox import KafkaOutbox
from gateway.publisher import KafkaPublisher
from gateway.record import Durability, Record
from gateway.registry import Registry
from gateway.settings import GatewaySettings
from gateway.spool import SpoolRefusal
from schemas.streams import STREAMS
from tests.contract.gateway_under_test import (
    APP,
    BROWSER,
    ENDPOINTS,
    OTHER_PUBLIC_KEY,
    OTHER_RETRIEVER,
    OTHER_TOKEN,
    PUBLIC_KEY,
    RETRIEVER,
    SECOND_PUBLIC_KEY,
    TOKEN,
    Clock,
    Endpoint,
    Gateway,
    Refusal,
    registry,
    serve,
    write_registry,
)
from tests.contract.test_sender_context import privacy
from tests.unit.fake_kafka import FakeKafka
from tests.unit.fake_spool import FakeSpool
from tests.unit.fake_transport import Wire
from tests.unit.json_corpus import KEPT_VALUES, REFUSED_TEXTS, REFUSED_VALUES
from tests.unit.test_http_protocol import Answer, Server, answers, settled
from tests.unit.test_publisher import led_by
from tests.unit.virtual_time import run

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)

EVENT_BYTES_MAX = 4_096  # so that one that is too large comes in one read
HMAC_KEY = "0123456789abcdef0123"
PEER, PROXY = "203.0.113.77", "10.0.0.9"
START_S = Clock().now_s

_OUR_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Sent:
    """A request, on the connection from `peer`."""

    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    peer: str = PEER

    @property
    def bytes(self) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers).encode("latin-1")
        return b"POST %b HTTP/1.1\r\nHost: gateway\r\n%bContent-Length: %d\r\n\r\n%b" % (
            self.path.encode(),
            lines,
            len(self.body),
            self.body,
        )


Step: TypeAlias = Sent | Callable[[Gateway], object]
"""A request, or what happens before the next one."""


def event(
    endpoint: Endpoint, body: bytes | None = None, peer: str = PEER, path: str = "", **headers: str | None
) -> Sent:
    """A request to the endpoint; a header that is None is left out."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {**endpoint.headers, "User-Agent": BROWSER, **named}
    of_request = [(name, value) for name, value in sent.items() if value is not None]
    return Sent(path or endpoint.path, of_request, endpoint.body if body is None else body, peer)


class Seen(NamedTuple):
    """Ids of ours are not compared; the values of records are."""

    answers: list[Answer]
    records: list[Record]
    counts: dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class Offers:
    """The application, with or without offers; `taken` says of each request whether its head was known and `declined`
    counts those whose handler has sent them back."""

    app: ASGIApp
    are_made: bool
    taken: list[bool] = field(default_factory=list)
    declined: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.taken.append(False)
        offer = scope["extensions"].get(SAME_HEAD)
        extensions = {name: value for name, value in scope["extensions"].items() if name != SAME_HEAD}
        if self.are_made and offer is not None:
            extensions[SAME_HEAD] = lambda handler, but=b"": offer(self._watched(handler), but)
        await self.app({**scope, "extensions": extensions}, receive, send)

    def _watched(self, handler: SameHead) -> SameHead:
        def watched(body: bytes, respond: Respond, value: bytes | None) -> bool:
            is_taken = handler(body, respond, value)
            if is_taken:
                self.taken.append(True)
            else:
                self.declined += 1
            return is_taken

        return watched


def counts_of(counters: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in counters.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.value
    }


async def hold(gateway: Gateway, offers: Offers, steps: Sequence[Step], pause_s: float) -> Seen:
    server = Server()
    wires: dict[str, Wire] = {}
    found: list[Answer] = []
    for step in steps:
        if not isinstance(step, Sent):
            step(gateway)
            continue
        wire = wires.get(step.peer)
        if wire is None or wire.closed:
            wire = wires[step.peer] = server.connect(offers, peer=(step.peer, 1234))
        wire.send(step.bytes)
        await (asyncio.sleep(pause_s) if pause_s else settled())
        [answer] = answers(wire.received)
        wire.writes.clear()
        found.append(answer._replace(body=_OUR_ID.sub(b"ID", answer.body)))
    await server.check()
    records = [
        Record(*record)._replace(key=_OUR_ID.sub(b"ID", record.key), value=_OUR_ID.sub(b"ID", record.value))
        for record in gateway.outbox.take()
    ]
    return Seen(found, records, counts_of(gateway.counters))


Hold: TypeAlias = Callable[..., tuple[Seen, list[bool]]]


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Hold:
    """Hold a conversation in both ways: what was seen, which is the same, and which of its requests were taken."""

    numbers = itertools.count()

    def held(
        steps: Sequence[Step], text: str | None = None, *, pause_s: float = 0, setup: Any = None, **settings: Any
    ) -> tuple[Seen, list[bool]]:
        settings = {
            "event_bytes_max": EVENT_BYTES_MAX,
            "trusted_proxies": "10.0.0.0/8",
            "privacy_hmac_key": HMAC_KEY,
            **settings,
        }
        seen = []
        for are_made in (True, False):
            directory = tmp_path / str(next(numbers))
            directory.mkdir()
            clock.now_s = START_S
            gateway = serve(directory, monkeypatch, registry() if text is None else text, clock=clock, **settings)
            if setup is not None:
                setup(gateway)
            offers = Offers(gateway.app, are_made)
            seen.append(run(hold(gateway, offers, steps, pause_s)))
            if are_made:
                taken = offers.taken
        usual = offers.taken
        assert usual == [False] * len(taken)
        assert seen[0].answers == seen[1].answers
        assert seen[0].records == seen[1].records
        assert seen[0].counts == seen[1].counts
        return seen[0], taken

    return held


def statuses(seen: Seen) -> list[int]:
    return [answer.status for answer in seen.answers]


def odd(endpoint: Endpoint) -> bytes:
    """An event that is warned of."""
    if endpoint.name == "app":
        return endpoint.body_with(b"position", b"-1")
    return endpoint.body_with(b"interaction_type", b'["positive_feedback","negative_feedback"]')


def some_bodies(endpoint: Endpoint) -> list[bytes]:
    """Of each kind one: in the order that they are sent in."""
    return [
        endpoint.body,
        endpoint.body_with(b"zone", b"12345678901234567890"),
        odd(endpoint),
        endpoint.body_with(b"timestamp", b'"2026-09-21T00:00:00Z"'),
        endpoint.body_with(b"sent_at", b"1790000000000")[:-1] + b',"timestamp":1789999990000}',
        endpoint.body_with(b"timestamp", b'"yesterday"'),
        endpoint.body_with(b"event_id", b'"id-of-the-caller"'),
        endpoint.body_with(b"event_id", b'"not an id"'),
        endpoint.body_with(b"session_id", b'"of the event"'),
        endpoint.body_with(b"position", b'"x"'),
        b"{}",
        b"{",
        b"",
        endpoint.body,
    ]


# What a head can say

HEADS: dict[str, dict[str, str | None]] = {
    "nothing": {},
    "an allowed origin": {"Origin": "https://shop.example"},
    "another origin": {"Origin": "https://evil.example"},
    "no origin": {"Origin": "null"},
    "a session": {"X_Session_ID": "sess_1"},
    "a session in latin-1": {"X_Session_ID": "s\xe9ss"},
    "an empty session": {"X_Session_ID": ""},
    "DNT": {"DNT": "1"},
    "GPC": {"Sec_GPC": "1"},
    "DNT, which is off": {"DNT": "0"},
    "GPC and a session": {"Sec_GPC": "1", "X_Session_ID": "sess_1"},
    "a crawler": {"User_Agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"},
    "a program": {"User_Agent": "curl/8.5.0"},
    "no user agent": {"User-Agent": None},
    "an odd user agent": {"User_Agent": "\xff\t\xe9" * 300},
    "a forwarded address": {"X_Forwarded_For": "198.51.100.7, 10.0.0.1"},
    "a forwarded IPv6 address": {"X_Forwarded_For": "2001:db8::1"},
    "a forwarded nothing": {"X_Forwarded_For": "unknown"},
    "no content type": {"Content-Type": None},
    "a beacon's content type": {"Content-Type": "text/plain;charset=UTF-8"},
    "another JSON": {"Content-Type": "application/vnd.x+json"},
    "the second key": {"X-Public-API-Key": SECOND_PUBLIC_KEY},
    "bearer in lower case": {"Authorization": f"bearer  {TOKEN} "},
    "to be continued": {"Expect": "100-continue"},
    "an offer to upgrade": {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"},
}
"""Of which all but the first request are taken."""

REGISTRIES: dict[str, list[str]] = {
    "default": [],
    "origins": ['allowed_origins = ["https://shop.example"]', privacy(client_address="keep", user_agent="keep")],
    "any origin": ['allowed_origins = ["*"]', "quota = { events_per_second = 2, burst = 10 }"],
    "truncated": [privacy(client_address="truncate", user_agent="truncate", honour_do_not_track=True)],
    "hmac": [
        privacy(client_address="hmac", user_agent="hmac"),
        "address_quota = { events_per_second = 1, burst = 12 }",
    ],
    "opted out": [privacy(client_address="keep", user_agent="keep", honour_do_not_track=True)],
}


def named(headers: dict[str, str | None]) -> dict[str, str | None]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@EACH_ENDPOINT
@pytest.mark.parametrize("lines", REGISTRIES.values(), ids=REGISTRIES.keys())
def test_what_a_head_says_holds_for_those_behind_it(endpoint: Endpoint, lines: list[str], held: Hold) -> None:
    steps: list[Step] = []
    for number, headers in enumerate(HEADS.values()):
        peer = PROXY if "X_Forwarded_For" in headers else f"198.51.100.{number}"
        for body in some_bodies(endpoint):
            steps += [event(endpoint, body, peer, **named(headers)), lambda gateway: gateway.clock.pass_(0.4)]
        steps.append(lambda gateway: gateway.clock.pass_(60))
        if peer == PROXY:  # a connection of its own for each head
            steps[-1:] = [event(endpoint, b"x" * (EVENT_BYTES_MAX + 1), peer, **named(headers)), steps[-1]]
    seen, taken = held(steps, registry(*lines))
    of_each = [False] + [True] * (len(some_bodies(endpoint)) - 1)
    expected = []
    for headers in HEADS.values():
        expected += of_each + [True] * ("X_Forwarded_For" in headers)
    assert taken == expected
    assert {200, 422, 413} <= set(statuses(seen)) <= {200, 422, 413, 429}
    assert "gateway_warnings_total" in {name for name, _ in seen.counts}
    if "quota" in str(lines):
        assert {b"ratelimit-remaining", b"ratelimit-limit"} <= {name for name, _ in seen.answers[-1].headers}


LEFT: dict[str, tuple[dict[str, str | None], str, set[int]]] = {
    "an id that is none": ({"Idempotency-Key": "no id!"}, "", {422}),
    "an empty id": ({"Idempotency-Key": ""}, "", {422}),
    "an id in the query": ({}, "?event_id=key-1", {200, 422}),
    "an id in the query and one in the head": ({"Idempotency-Key": "key-2"}, "?event_id=key-1", {200, 422}),
    "a query": ({}, "?x=y", {200, 422}),
    "a query that is none": ({}, "?x=%ff", {422}),
    "an encoding": ({"Content-Encoding": "gzip"}, "", {400, 422}),
    "no encoding": ({"Content-Encoding": "identity"}, "", {200, 422}),
    "a content type that is none": ({"Content-Type": "text/html"}, "", {415}),
    "a charset that is none": ({"Content-Type": "application/json; charset=utf-16"}, "", {415}),
    "lines of JSON": ({"Content-Type": "application/x-ndjson"}, "", {415}),
}
KEYS = ["key-1", "key-2", '"key-2"', "key-2", "k" * 64, "k" * 65, '"', '""', "~", "A.b_c:9-", "key-1"]
"""Ids in the head, some of which are none. They differ in nothing else."""

REFUSED: dict[str, dict[str, str | None]] = {
    "no token": {"Authorization": None},
    "no bearer": {"Authorization": f"Basic {TOKEN}"},
    "no key": {"X-Public-API-Key": None},
    "an unknown token": {"Authorization": "Bearer tok_nobody"},
    "an unknown key": {"X-Public-API-Key": "pk_nobody"},
    "another's token": {"Authorization": f"Bearer {OTHER_TOKEN}"},
    "another's key": {"X-Public-API-Key": OTHER_PUBLIC_KEY},
}


@EACH_ENDPOINT
@pytest.mark.parametrize("kind", LEFT)
def test_what_a_head_cannot_say_for_others_is_asked_each_time(endpoint: Endpoint, kind: str, held: Hold) -> None:
    headers, query, expected = LEFT[kind]
    bodies = some_bodies(endpoint)
    if kind == "an encoding":
        bodies = [gzip.compress(endpoint.body), b"no gzip", gzip.compress(b"{"), *bodies]
        expected = {200, *expected}
    seen, taken = held([event(endpoint, body, path=endpoint.path + query, **headers) for body in bodies])
    assert taken == [False] * len(bodies)
    assert set(statuses(seen)) == expected


@EACH_ENDPOINT
@pytest.mark.parametrize("lines", REGISTRIES.values(), ids=REGISTRIES.keys())
def test_what_a_head_says_but_its_id_holds_for_those_behind_it(
    endpoint: Endpoint, lines: list[str], held: Hold
) -> None:
    """Whatever the event says of its own id; and the first request with an id is not one without."""
    steps: list[Step] = []
    bodies = [*some_bodies(endpoint), b"x" * (EVENT_BYTES_MAX + 1)]
    heads = [HEADS["nothing"], HEADS["an allowed origin"], HEADS["GPC and a session"]]
    for number, headers in enumerate(heads):
        sent = [
            *((endpoint.body, key) for key in KEYS),
            *((body, f"key-{n}") for n, body in enumerate(bodies[:-1])),
            (bodies[-1], "key-0"),
        ]
        for body, key in sent:
            steps.append(event(endpoint, body, f"198.51.100.{number}", **named(headers), **{"Idempotency-Key": key}))
            steps.append(lambda gateway: gateway.clock.pass_(0.4))
        steps.append(lambda gateway: gateway.clock.pass_(60))
    seen, taken = held(steps, registry(*lines))
    assert taken == ([False] + [True] * (len(KEYS) + len(bodies) - 1)) * len(heads)
    assert {200, 422, 413} <= set(statuses(seen)) <= {200, 422, 413, 429}
    assert {record.key for record in seen.records} >= {b"key-1", b"key-2", b"k" * 64, b"A.b_c:9-", b"key-0"}
    assert {record.scope for record in seen.records} == {(APP if endpoint.name == "app" else RETRIEVER).encode()}


@EACH_ENDPOINT
def test_who_gives_some_of_its_events_an_id(endpoint: Endpoint, held: Hold) -> None:
    """Two heads, that are remembered one at a time."""
    plain, keyed = event(endpoint), [event(endpoint, **{"Idempotency-Key": key}) for key in KEYS[:4]]
    seen, taken = held([plain, plain, *keyed, plain, plain, keyed[0], plain])
    assert taken == [False, True, False, True, True, True, False, True, False, False]
    assert statuses(seen) == [200] * 10


@EACH_ENDPOINT
def test_a_new_registry_holds_for_those_with_an_id(endpoint: Endpoint, held: Hold) -> None:
    steps: list[Step] = [event(endpoint, **{"Idempotency-Key": key}) for key in KEYS[:5]]
    steps[3:3] = [reload(registry(privacy(client_address="keep")))]
    seen, taken = held(steps)
    assert taken == [False, True, True, False, True]
    assert [b"client_address" in record.value for record in seen.records] == [False] * 3 + [True] * 2


@EACH_ENDPOINT
@pytest.mark.parametrize("path", ["/v1/public/{0}s/nobody/interactions", "/v1/public/{0}s/%FF/interactions", "/{0}"])
def test_who_is_not_let_in_is_asked_each_time(endpoint: Endpoint, path: str, held: Hold) -> None:
    seen, taken = held([event(endpoint, path=path.format(endpoint.name))] * 3)
    assert taken == [False] * 3
    assert statuses(seen) == [404] * 3


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_keys_are_asked_each_time(kind: str, held: Hold) -> None:
    """Between requests with the right ones, too: on the connection of a proxy, these are another caller's."""
    endpoint = ENDPOINTS[1]
    right, wrong = event(endpoint), event(endpoint, **REFUSED[kind])
    seen, taken = held([right, right, wrong, right, wrong, wrong, right])
    assert [200 if status == 200 else 401 for status in (403, *statuses(seen))][1:] == [
        200,
        200,
        401,
        200,
        401,
        401,
        200,
    ]
    assert taken == [False, True, False, True, False, False, True]


def test_the_body_of_who_is_not_let_in_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before its body is there, which is, to the byte, a request that is known on this connection."""
    endpoint = ENDPOINTS[1]
    right = event(endpoint).bytes
    wrong = event(endpoint, right, Authorization="Bearer tok_nobody").bytes

    async def talk() -> None:
        server = Server()
        offers = Offers(gateway.app, True)
        wire = server.connect(offers)
        for piece in (right, right, wrong[: -len(right)], right, right):
            wire.send(piece)
            await settled()
        assert [answer.status for answer in answers(wire.received)] == [200, 200, 401, 200]
        assert offers.taken == [False, True, False, True]
        await server.check()

    gateway = serve(tmp_path, monkeypatch)
    run(talk())
    assert len(gateway.outbox.records) == 3
    assert gateway.count("gateway_events_received") == 4


@EACH_ENDPOINT
def test_paths_that_mean_the_same_are_heads_of_their_own(endpoint: Endpoint, held: Hold) -> None:
    paths = [endpoint.path, endpoint.path + "?", endpoint.path.replace("o", "%6F")]
    seen, taken = held([event(endpoint, path=path) for path in paths for _ in range(3)])
    assert statuses(seen) == [200] * 9
    assert taken == [False, True, True] * 3
    assert len({record.value for record in seen.records}) == 1


# Bodies


def corpus(endpoint: Endpoint) -> Iterator[bytes]:
    yield from REFUSED_TEXTS.values()
    for value in (*REFUSED_VALUES.values(), *(value for value, _ in KEPT_VALUES.values())):
        yield endpoint.body_with(b"metadata", b'{"x":%b}' % value)
        yield endpoint.body_with(b"zone", value)
        yield endpoint.body_with(b"position", value)
        yield endpoint.body_with(b"timestamp", value)
        yield endpoint.body_with(b"event_id", value)
        yield endpoint.body_with(b"session_id", value)
    for size in range(-2, 3):
        text = endpoint.body_with(b"zone", b'""')
        yield text[:-2] + b"x" * (EVENT_BYTES_MAX - len(text) + size) + b'"}'
        yield b" " * (EVENT_BYTES_MAX + size)
    yield b"{\r\nupgrade: x}"


@EACH_ENDPOINT
@pytest.mark.parametrize("event_bytes_max", [EVENT_BYTES_MAX, 262_144])
def test_bodies(endpoint: Endpoint, event_bytes_max: int, held: Hold) -> None:
    bodies = list(corpus(endpoint))
    headers = {"Origin": "https://shop.example", "X-Session-ID": "sess_1"}
    steps: list[Step] = []
    expected = []
    is_known = False
    for body in bodies:
        if not is_known:
            steps.append(event(endpoint, **headers))
            expected.append(False)
        steps.append(event(endpoint, body, **headers))
        fits = len(steps[-1].bytes) <= 65_536  # type: ignore[union-attr]
        expected.append(fits)
        is_known = len(body) <= event_bytes_max  # else the connection is closed
    lines = ['allowed_origins = ["https://shop.example"]', privacy(client_address="keep", user_agent="truncate")]
    seen, taken = held(steps, registry(*lines), event_bytes_max=event_bytes_max)
    assert taken == expected
    assert taken.count(True) > 300
    assert set(statuses(seen)) == ({200, 413, 422} if event_bytes_max == EVENT_BYTES_MAX else {200, 422})


# Quotas

QUOTAS = {
    "owner": "quota = { events_per_second = 1, burst = 3 }",
    "address": "address_quota = { events_per_second = 0.5, burst = 2 }",
    "both": "quota = { events_per_second = 2, burst = 7 }\naddress_quota = { events_per_second = 1, burst = 3 }",
}


def over_time(*requests: Sent) -> list[Step]:
    """All of them, again and again: at once, with pauses, and after long ones."""
    steps: list[Step] = []
    for pass_s in [0.0] * 5 + [1.0] * 4 + [0.0] * 3 + [0.3] * 9 + [100.0] + [0.0] * 6:
        steps.append(lambda gateway, pass_s=pass_s: gateway.clock.pass_(pass_s))  # type: ignore[misc]
        steps += requests
    return steps


@EACH_ENDPOINT
@pytest.mark.parametrize("kind", QUOTAS)
def test_quotas(endpoint: Endpoint, kind: str, held: Hold) -> None:
    """Whoever is refused learns of it, is counted, and is let in again when there is room."""
    requests = [event(endpoint, body, peer) for peer in (PEER, "203.0.113.78") for body in (endpoint.body, b"{")]
    seen, taken = held(over_time(*requests), registry(QUOTAS[kind]))
    assert {200, 422, 429} == set(statuses(seen))
    assert taken.count(False) < 12  # who is refused from the first on offers nothing
    assert any(status == 429 and is_taken for status, is_taken in zip(statuses(seen), taken, strict=True))
    for answer in seen.answers:
        assert answer.header(b"ratelimit-remaining") is not None
        assert (answer.header(b"retry-after") is not None) == (answer.status == 429)


def test_quota_of_a_key(held: Hold) -> None:
    """Each key has its own, on whichever connections."""
    endpoint = ENDPOINTS[1]
    steps: list[Step] = [
        event(endpoint, peer=peer, **{"X-Public-API-Key": key})
        for _ in range(4)
        for key, peer in ((PUBLIC_KEY, "192.0.2.1"), (PUBLIC_KEY, "192.0.2.2"), (SECOND_PUBLIC_KEY, "192.0.2.3"))
    ]
    seen, taken = held(steps, registry(retriever=["key_quota = { events_per_second = 1, burst = 3 }"]))
    assert statuses(seen) == [200] * 4 + [429, 200, 429, 429, 200, 429, 429, 429][:8]
    assert taken == [False] * 3 + [True] * 9


def test_quota_of_addresses_behind_a_proxy(held: Hold) -> None:
    endpoint = ENDPOINTS[0]
    steps: list[Step] = [
        event(endpoint, peer=PROXY, **{"X-Forwarded-For": address})
        for address in ("198.51.100.1", "198.51.100.2", "198.51.100.1", "198.51.100.1, 198.51.100.3")
        for _ in range(4)
    ]
    seen, taken = held(steps, registry(app=["address_quota = { events_per_second = 1, burst = 3 }"]))
    assert statuses(seen) == ([200, 200, 200, 429] * 2 + [429] * 4 + [200, 200, 200, 429])
    assert taken == ([False, True, True, True] * 2 + [False] * 4 + [False, True, True, True])


# The registry


def reload(text: str) -> Step:
    def put(gateway: Gateway) -> None:
        gateway.registry.current = Registry.parse(text)

    return put


RELOADS: dict[str, tuple[str, str, int]] = {
    "the same again": (registry(), registry(), 200),
    "a quota": (registry(), registry("quota = { events_per_second = 1, burst = 1 }"), 200),
    "another quota": (
        registry("quota = { events_per_second = 1, burst = 50 }"),
        registry("quota = { events_per_second = 1, burst = 2 }"),
        429,
    ),
    "an address quota": (registry(), registry("address_quota = { events_per_second = 1, burst = 1 }"), 200),
    "another policy": (registry(privacy(client_address="keep", user_agent="keep")), registry(), 200),
    "who opts out": (
        registry(privacy(client_address="keep")),
        registry(privacy(client_address="keep", honour_do_not_track=True)),
        200,
    ),
    "no more origins": (registry('allowed_origins = ["*"]'), registry(), 200),
    "a revoked key": (registry(), registry().replace(registry().split('"')[1], "0" * 64), 401),
    "an owner that is gone": (
        registry(),
        registry().replace(APP, "other-shop").replace(f".{RETRIEVER}]", ".others]"),
        404,
    ),
}


def reload_of(endpoint: Endpoint, kind: str) -> tuple[str, str, int]:
    """The registries before and after, and what the endpoint answers then: apps have no keys that could be revoked."""
    before, after, status = RELOADS[kind]
    return before, after, 200 if endpoint.name == "app" and status == 401 else status


@EACH_ENDPOINT
@pytest.mark.parametrize("kind", RELOADS)
def test_a_new_registry_holds_from_the_very_next_request_on(endpoint: Endpoint, kind: str, held: Hold) -> None:
    before, after, status = reload_of(endpoint, kind)
    sent = event(endpoint, **{"Origin": "https://shop.example", "DNT": "1", "X-Session-ID": "sess_1"})
    seen, taken = held([sent, sent, sent, reload(after), sent, sent, sent, reload(before), sent, sent], before)
    assert statuses(seen)[:4] == [200, 200, 200, status]
    let_in = status == 200  # who is not let in offers nothing
    assert taken == [False, True, True, False, let_in, let_in, False, statuses(seen)[6] == 200]
    if kind not in ("the same again", "a revoked key") or status == 401:
        changed = (seen.answers[2], seen.records[2:3]), (seen.answers[3], seen.records[3:4])
        assert changed[0] != changed[1]


@EACH_ENDPOINT
def test_a_new_registry_is_seen_by_every_connection(endpoint: Endpoint, held: Hold) -> None:
    everyone = [event(endpoint, peer=f"192.0.2.{number}") for number in range(5)]
    gone = registry().replace(APP, "other-shop").replace(f".{RETRIEVER}]", ".others]")
    seen, taken = held([*everyone, *everyone, reload(gone), *everyone, reload(registry()), *everyone, *everyone])
    assert statuses(seen) == [200] * 10 + [404] * 5 + [200] * 10
    assert taken == [False] * 5 + [True] * 5 + [False] * 10 + [True] * 5


# Where events go

FAULTS: dict[str, tuple[Exception, int]] = {
    "overloaded": (PublisherRefusal("overloaded", "Too many events wait for Kafka"), 503),
    "record_too_large": (PublisherRefusal("record_too_large", "The record is larger than a batch may be"), 413),
    "kafka_unavailable": (PublisherRefusal("kafka_unavailable", "Kafka cannot be reached"), 503),
    "spool_full": (SpoolRefusal("spool_full", "The spool is full"), 503),
    "spool_old": (SpoolRefusal("spool_old", "The spool holds records that should have left it long ago"), 503),
    "spool_failed": (SpoolRefusal("spool_failed", "The spool failed"), 503),
    "an exception": (ValueError("secret"), 500),
}


def fault(error: Exception | None) -> Step:
    def put(gateway: Gateway) -> None:
        gateway.outbox.fault = error

    return put


def publish_late(gateway: Gateway) -> None:
    """The outbox knows a second later."""
    publish = gateway.outbox.publish

    def late(record: Record) -> asyncio.Future[Durability | Refusal]:
        known, loop = publish(record), asyncio.get_running_loop()
        future: asyncio.Future[Durability | Refusal] = loop.create_future()
        loop.call_later(1, lambda: future.set_result(known.result()))
        return future

    gateway.outbox.publish = late  # type: ignore[method-assign]


@EACH_ENDPOINT
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_the_outbox(endpoint: Endpoint, kind: str, is_late: bool, held: Hold) -> None:
    """Also with warnings, which are none if the event is nowhere."""
    error, status = FAULTS[kind]
    warned = event(endpoint, odd(endpoint))
    steps = [event(endpoint), warned, fault(error), warned, fault(None), event(endpoint), warned, warned]
    lines = registry("quota = { events_per_second = 10, burst = 10 }")
    seen, taken = held(steps, lines, pause_s=2 if is_late else 0, setup=publish_late if is_late else None)
    assert statuses(seen) == [200, 200, status, 200, 200, 200]
    assert taken == [False, True, True, status != 413, True, True]  # behind a 413 the connection is another
    assert len(seen.records) == 5
    assert b"secret" not in seen.answers[2].body
    refused, warnings = (
        sum(value for (found, _), value in seen.counts.items() if found == f"gateway_{name}_total")
        for name in ("events_refused", "warnings")
    )
    assert (refused, warnings) == (1, 3)


@EACH_ENDPOINT
def test_where_an_event_is(endpoint: Endpoint, held: Hold) -> None:
    def at(place: Durability) -> Step:
        return lambda gateway: setattr(gateway.outbox, "durability", place)

    sent = event(endpoint)
    seen, taken = held([sent, sent, at("spool"), sent, sent, at("kafka"), sent])
    places = [json.loads(answer.body)["durability"] for answer in seen.answers]
    assert places == ["kafka", "kafka", "spool", "spool", "kafka"]
    assert taken == [False, True, True, True, True]


@EACH_ENDPOINT
def test_a_place_that_nobody_will_tell_is_a_500(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the outbox is cut short. It is counted, too."""

    async def talk() -> None:
        server = Server()
        offers = Offers(gateway.app, True)
        wire = server.connect(offers)
        wire.send(event(endpoint).bytes)
        await settled()
        place: asyncio.Future[Durability | Refusal] = asyncio.get_running_loop().create_future()
        place.cancel()
        monkeypatch.setattr(gateway.outbox, "publish", lambda _: place)
        wire.send(event(endpoint).bytes)
        await settled()
        assert [answer.status for answer in answers(wire.received)] == [200, 500]
        assert offers.taken == [False, True]
        await server.check()

    gateway = serve(tmp_path, monkeypatch)
    run(talk())
    assert gateway.count("gateway_events_refused", status="500") == 1


# Kafka and the spool, as far as they can be without either

COUNTED = {f"gateway_{name}_total" for name in ("events_received", "events_accepted", "events_refused", "warnings")}


@EACH_ENDPOINT
@pytest.mark.parametrize("is_batch", [False, True], ids=["single", "batch"])
def test_every_event_is_accepted_or_refused(
    endpoint: Endpoint, is_batch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the real outbox: Kafka takes a batch, refuses one, does not answer; the spool takes them, then is full."""
    if is_batch:
        endpoint = replace(endpoint, path=f"{endpoint.path}/batch")

    async def talk(are_made: bool) -> tuple[list[list[tuple[int, bytes]]], dict[Any, float], int]:
        kafka = FakeKafka({})
        for stream in STREAMS:
            kafka.leaders |= led_by(1, topic=stream.name)
        monkeypatch.setattr(publisher_module, "DirectProducer", kafka.producer)
        counters, spool = CollectorRegistry(), FakeSpool()
        metrics = Metrics(counters)
        settings = GatewaySettings(registry_file=write_registry(tmp_path))
        publisher = KafkaPublisher(
            [stream.name for stream in STREAMS],
            {},
            batch_bytes_max=settings.batch_bytes_max,
            pending_bytes_max=settings.pending_bytes_max,
            deadline_ms=1_000,
            metrics=metrics,
        )
        outbox = KafkaOutbox(publisher, spool, metrics, replay_records_per_s=2_000)  # type: ignore[arg-type]
        publisher.settled = outbox.settled
        offers = Offers(composition.compose(settings, outbox, metrics), are_made)
        await outbox.start()
        server = Server()
        wires = [server.connect(offers) for _ in range(4)]
        bodies = [endpoint.body, odd(endpoint), b"{", endpoint.body_with(b"event_id", b'"k"')]
        found = []

        async def say(kafka_answers: str) -> None:
            for wire, body in zip(wires, bodies, strict=True):
                sent = body if found else endpoint.body
                wire.send(event(endpoint, b"[%b]" % sent if is_batch else sent).bytes)
            await asyncio.sleep(0.1)
            for flight in kafka.flights:
                if not flight.reply.done():
                    if kafka_answers == "yes":
                        flight.answer()
                    elif kafka_answers == "no":
                        flight.refuse(TopicAuthorizationFailedError())
            await asyncio.sleep(5)  # longer than any deadline of the outbox, and than its breaker's first cool-down
            for flight in kafka.flights:
                if not flight.reply.done():
                    flight.answer()
            await settled()
            told = [[(a.status, _OUR_ID.sub(b"ID", a.body)) for a in answers(wire.received)] for wire in wires]
            assert [len(each) for each in told] == [1] * len(wires), kafka_answers
            found.append([each[0] for each in told])
            for number, wire in enumerate(wires):
                wire.writes.clear()
                if wire.closed:
                    wires[number] = server.connect(offers)

        for kafka_answers in ("yes", "yes", "no", "nothing", "yes"):
            await say(kafka_answers)
        spool.fault = SpoolRefusal("spool_full", "The spool is full")
        for kafka_answers in ("no", "nothing", "yes"):
            await say(kafka_answers)
        await outbox.stop(1)
        for wire in wires:
            wire.reset()
        await settled()
        counts = counts_of(counters)
        of_events = {
            kind: sum(value for (name, _), value in counts.items() if name == f"gateway_events_{kind}_total")
            for kind in ("received", "accepted", "refused")
        }
        assert of_events["received"] == of_events["accepted"] + of_events["refused"] == sum(map(len, found))
        of_callers = {key: value for key, value in counts.items() if key[0] in COUNTED}  # and not of replays
        return found, of_callers, offers.taken.count(True)

    found, counts, taken = run(talk(True))
    assert run(talk(False)) == (found, counts, 0)
    assert {name for name, _ in counts} == COUNTED
    assert taken > 12
    assert {status for answers in found for status, _ in answers} == {200, 422, 503}


@pytest.mark.parametrize("owner", [OTHER_RETRIEVER, RETRIEVER])
def test_two_owners_on_one_connection(owner: str, held: Hold) -> None:
    """A proxy's. Each event lands with its own."""
    of_app, of_retriever = map(event, ENDPOINTS)
    other = event(
        ENDPOINTS[1],
        path=f"/v1/public/retrievers/{owner}/interactions",
        **{"Authorization": f"Bearer {OTHER_TOKEN}", "X-Public-API-Key": OTHER_PUBLIC_KEY},
    )
    steps = [each for each in (of_app, of_retriever, other, of_app) for _ in range(2)]
    seen, taken = held(steps)
    status = 200 if owner == OTHER_RETRIEVER else 403
    assert statuses(seen) == [200] * 4 + [status] * 2 + [200] * 2
    assert taken == [False, True] * 2 + [False, status == 200] + [False, True]
