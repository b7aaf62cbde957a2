"""What pages can do: read our answers if their origin is allowed (CORS), send without a preflight, show an image."""

import contextlib
import http.server
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from gateway.kafka_batch import PublisherRefusal
from tests.contract.browser import MISSING, browser, listening
from tests.contract.gateway_under_test import (
    APP_PATH,
    CREDENTIALS,
    ENDPOINTS,
    OTHER_PUBLIC_KEY,
    PUBLIC_KEY,
    RETRIEVER_PATH,
    SECOND_PUBLIC_KEY,
    SECRETS,
    TOKEN,
    Clock,
    Endpoint,
    Gateway,
    RecordingOutbox,
    envelope,
    registry,
    serve,
    validation_errors,
)
from tests.unit.json_corpus import KEPT_VALUES, REFUSED_VALUES

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)

SHOP = "https://shop.example"
ALLOWED = (SHOP, "http://localhost:3000", "https://[2001:db8::1]:8443")
OF_ANOTHER_PAGE = (
    "https://evil.example",
    "http://shop.example",
    "https://shop.example:443",
    "https://shop.example:8443",
    "https://SHOP.example",
    "HTTPS://shop.example",
    "https://shop.example/",
    "https://shop.example.evil.example",
    "https://evil-shop.example",
    "https://www.shop.example",
    "https://shop.exampl",
    "https://shop.example, https://evil.example",
    "http://localhost",
    "http://localhost:30000",
    "shop.example",
    "null",
    "*",
    "",
    "é",
)
ORIGINS = f"allowed_origins = {json.dumps(ALLOWED)}"


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Gateway:
    quota = "quota = { events_per_second = 1, burst = 5 }"
    return serve(tmp_path, monkeypatch, registry(ORIGINS, quota), clock=clock)


def of_page(endpoint: Endpoint, origin: str = SHOP) -> dict[str, Any]:
    return endpoint.headers | {"Origin": origin.encode()}


def routes(endpoint: Endpoint) -> list[tuple[str, str, bytes]]:
    """Method, target and body of a request that is accepted, for each."""
    query = urlencode(endpoint.event, doseq=True)
    return [
        ("POST", endpoint.path, endpoint.body),
        ("POST", endpoint.batch, b"[%b]" % endpoint.body),
        ("POST", endpoint.validate, endpoint.body),
        ("GET", f"{endpoint.pixel}?{query}", b""),
    ]


def assert_readable(response: httpx.Response, origin: str = SHOP) -> None:
    assert response.headers.get_list("access-control-allow-origin") == [origin]
    assert response.headers["access-control-allow-credentials"] == "true"
    assert "origin" in response.headers["vary"].lower()
    exposed = {name.strip() for name in response.headers["access-control-expose-headers"].lower().split(",")}
    ours = {name for name in response.headers if name.startswith("ratelimit") or name == "retry-after"}
    assert ours <= exposed


def assert_unreadable(response: httpx.Response) -> None:
    assert not [name for name in response.headers if name.startswith("access-control")]


# Who may read the answers


@EACH_ENDPOINT
@pytest.mark.parametrize("origin", ALLOWED)
async def test_page_of_an_allowed_origin_may_read_the_answer(
    origin: str, endpoint: Endpoint, client: httpx.AsyncClient
) -> None:
    for method, target, body in routes(endpoint):
        response = await client.request(method, target, content=body, headers=of_page(endpoint, origin))
        assert response.status_code == 200, response.text
        assert_readable(response, origin)


@EACH_ENDPOINT
@pytest.mark.parametrize("origin", OF_ANOTHER_PAGE)
async def test_page_of_another_origin_is_served_but_may_not_read_the_answer(
    origin: str, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    """CORS is the browser's business, and protects pages, not us."""
    for method, target, body in routes(endpoint):
        response = await client.request(method, target, content=body, headers=of_page(endpoint, origin))
        assert response.status_code == 200
        assert_unreadable(response)
        assert response.headers["vary"].lower() == "origin"
    assert len(outbox.records) == 3


@EACH_ENDPOINT
async def test_without_an_origin_nothing_is_said(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    for method, target, body in routes(endpoint):
        response = await client.request(method, target, content=body, headers=endpoint.headers)
        assert response.status_code == 200
        assert_unreadable(response)


@EACH_ENDPOINT
async def test_no_origin_is_allowed_unless_the_registry_says_so(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(tmp_path, monkeypatch).http()
    response = await client.post(endpoint.path, content=endpoint.body, headers=of_page(endpoint))
    assert response.status_code == 200
    assert_unreadable(response)


@EACH_ENDPOINT
@pytest.mark.parametrize(
    "origin", [SHOP, "http://10.0.0.1:8080", "null", "https://SHOP.example", "chrome-extension://a"]
)
async def test_every_origin_may_be_allowed(
    origin: str, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin itself is named: browsers take no `*` where credentials are allowed."""
    client = serve(tmp_path, monkeypatch, registry('allowed_origins = ["*"]')).http()
    for method, target, body in routes(endpoint):
        response = await client.request(method, target, content=body, headers=of_page(endpoint, origin))
        assert response.status_code == 200
        assert_readable(response, origin)
        preflight = await client.options(target, headers={"Origin": origin})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin


@EACH_ENDPOINT
async def test_errors_may_be_read_too(endpoint: Endpoint, gateway: Gateway, clock: Clock) -> None:
    client = gateway.http()

    async def refused(target: str, body: bytes, **headers: str) -> httpx.Response:
        clock.pass_(60)  # no quota is in the way
        return await client.post(target, content=body, headers=of_page(endpoint) | headers)

    for path in (endpoint.path, endpoint.batch, endpoint.validate):
        answers = {
            "body": (422, await refused(path, b"{")),
            "event": (422, await refused(path, b"{}")),
            "key": (422, await refused(path, endpoint.body, **{"Idempotency-Key": "no key"})),
            "id": (422, await refused(f"{path}?event_id=no%20id", endpoint.body)),
            "large": (413, await refused(path, b" " * 6_000_000)),
            "type": (415, await refused(path, endpoint.body, **{"Content-Type": "text/xml"})),
            "coding": (415, await refused(path, endpoint.body, **{"Content-Encoding": "compress"})),
            "encoded": (400, await refused(path, endpoint.body, **{"Content-Encoding": "gzip"})),
        }
        for name, (status, response) in answers.items():
            assert response.status_code == status, name
            assert_readable(response)

    batch = b"[%b]" % endpoint.body
    for fault, status in ((PublisherRefusal("overloaded", "Not now"), 503), (RuntimeError("broken"), 500)):
        gateway.outbox.fault = fault
        for path, body in ((endpoint.path, endpoint.body), (endpoint.batch, batch)):
            response = await refused(path, body)
            assert response.status_code == status
            assert_readable(response)


@EACH_ENDPOINT
async def test_refusal_of_the_query_may_be_read_too(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    for method, target, body in routes(endpoint):
        target += ("&" if "?" in target else "?") + "x=%FF"
        response = await client.request(method, target, content=body, headers=of_page(endpoint))
        assert validation_errors(response, "query")[0]["type"] == "query_invalid"
        assert_readable(response)


@EACH_ENDPOINT
async def test_refusal_for_a_quota_may_be_read_too(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    for _ in range(5):
        await client.post(endpoint.path, content=endpoint.body, headers=of_page(endpoint))
    for method, target, body in routes(endpoint):
        response = await client.request(method, target, content=body, headers=of_page(endpoint))
        envelope(response, 429, "TooManyRequestsError")
        assert "retry-after" in response.headers
        assert_readable(response)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (CREDENTIALS | {"Authorization": "Bearer nobody"}, 401),
        (CREDENTIALS | {"X-Public-API-Key": OTHER_PUBLIC_KEY}, 403),
    ],
    ids=["nothing", "unknown", "foreign"],
)
async def test_refusal_of_credentials_may_be_read_too(
    headers: dict[str, str], status: int, client: httpx.AsyncClient
) -> None:
    for method, target, body in routes(ENDPOINTS[1]):
        response = await client.request(method, target, content=body, headers=headers | {"Origin": SHOP})
        assert response.status_code == status
        assert_readable(response)


@EACH_ENDPOINT
async def test_of_an_unknown_owner_no_origin_is_known(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    for method, target, body in routes(endpoint):
        target = target.replace(endpoint.owner, "nobody")
        response = await client.request(method, target, content=body, headers=of_page(endpoint))
        envelope(response, 404, "NotFoundError")
        assert_unreadable(response)


# Preflights

DOCUMENTED_HEADERS = {
    *("authorization", "content-encoding", "content-type", "idempotency-key", "x-public-api-key", "x-session-id"),
}


@EACH_ENDPOINT
@pytest.mark.parametrize("origin", ALLOWED)
async def test_preflight(origin: str, endpoint: Endpoint, gateway: Gateway) -> None:
    """It comes without credentials, and costs no quota."""
    client = gateway.http()
    for method, target, _ in routes(endpoint) * 2:
        response = await client.options(
            target,
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,x-public-api-key",
            },
        )
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == origin
        assert response.headers["access-control-allow-credentials"] == "true"
        assert response.headers["access-control-allow-methods"] == method
        assert response.headers["access-control-max-age"] == "86400"
        allowed = {name.strip() for name in response.headers["access-control-allow-headers"].split(",")}
        assert allowed >= DOCUMENTED_HEADERS
        assert "*" not in allowed
        assert "origin" in response.headers["vary"]
        assert {name.strip() for name in response.headers["allow"].split(",")} == {method, "OPTIONS"}
        assert "content-length" not in response.headers  # RFC 9110, 8.6
        assert not [name for name in response.headers if name.startswith("ratelimit")]
    assert not gateway.outbox.records
    assert gateway.count("gateway_events_received") == gateway.count("gateway_events_refused") == 0
    assert gateway.count("gateway_dry_runs") == 0


@EACH_ENDPOINT
@pytest.mark.parametrize("origin", OF_ANOTHER_PAGE)
async def test_preflight_of_another_origin(origin: str, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    for _, target, _ in routes(endpoint):
        response = await client.options(target, headers={"Origin": origin.encode()})
        assert envelope(response, 403, "ForbiddenError")["code"] == "origin_not_allowed"
        assert_unreadable(response)
        assert origin not in response.text or len(origin) < 5


@EACH_ENDPOINT
async def test_preflight_to_an_unknown_owner(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    for _, target, _ in routes(endpoint):
        response = await client.options(target.replace(endpoint.owner, "nobody"), headers={"Origin": SHOP})
        envelope(response, 404, "NotFoundError")
        assert_unreadable(response)


@EACH_ENDPOINT
async def test_options_that_are_no_preflight(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    for method, target, _ in routes(endpoint):
        response = await client.options(target)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["allow"] == f"{method}, OPTIONS"
        assert_unreadable(response)


# Beacons, and other requests that need no preflight


@EACH_ENDPOINT
@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain;charset=UTF-8",
        "text/plain; charset=utf-8",
        "text/plain",
        'TEXT/PLAIN;CHARSET="UTF-8"',
        "application/json",
        "application/vnd.events+json",
        "",
        None,
    ],
)
async def test_beacon(
    content_type: str | None, endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    """A string, a Blob of any of these types or of none. A retriever's token has to be put in by a proxy."""
    headers = {name: value for name, value in of_page(endpoint).items() if name != "Content-Type"}
    headers |= {} if content_type is None else {"Content-Type": content_type}
    for path, body in (
        (endpoint.path, endpoint.body),
        (endpoint.batch, b"[%b,%b]" % (endpoint.body, endpoint.body)),
        (endpoint.batch, b'{"events":[%b],"sent_at":1790000000000}' % endpoint.body),
    ):
        response = await client.post(f"{path}?event_id=beacon-1", content=body, headers=headers)
        assert response.status_code == 200, response.text
        assert_readable(response)
    assert [row["event_id"].startswith("beacon-1") for row in outbox.rows] == [True] * 4


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_form_is_no_event(content_type: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    headers = {"Origin": SHOP, "Content-Type": content_type}
    response = await client.post(APP_PATH, content=b"event_type=click", headers=headers)
    envelope(response, 415, "UnsupportedMediaTypeError")
    assert_readable(response)
    assert not outbox.records


# The public key in the query


@pytest.mark.parametrize(
    ("header", "query", "status"),
    [
        (None, PUBLIC_KEY, 200),
        (None, SECOND_PUBLIC_KEY, 200),
        ("", PUBLIC_KEY, 200),
        (PUBLIC_KEY, "nobody", 200),
        (PUBLIC_KEY, OTHER_PUBLIC_KEY, 200),
        ("nobody", PUBLIC_KEY, 401),
        (OTHER_PUBLIC_KEY, PUBLIC_KEY, 403),
        (None, OTHER_PUBLIC_KEY, 403),
        (None, "nobody", 401),
        (None, "é\0", 401),
        (None, "", 401),
        (None, TOKEN, 401),
    ],
)
async def test_public_key_in_the_query(
    header: str | None, query: str, status: int, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    """The header comes first. Wherever it stands, nothing of it is stored or answered."""
    endpoint = ENDPOINTS[1]
    headers = {"Authorization": f"Bearer {TOKEN}"} | ({} if header is None else {"X-Public-API-Key": header})
    for method, target, body in routes(endpoint):
        target += f"{'&' if '?' in target else '?'}public_api_key={quote(query)}"
        response = await client.request(method, target, content=body, headers=headers)
        assert response.status_code == status, response.text
        assert not [secret for secret in SECRETS if secret.encode() in response.content]
    assert len(outbox.records) == (3 if status == 200 else 0)
    assert not [record for record in outbox.records if b"pk_" in record.value or b"public_api_key" in record.value]


async def test_token_does_not_go_into_the_query(client: httpx.AsyncClient) -> None:
    url = f"{RETRIEVER_PATH}?public_api_key={PUBLIC_KEY}&token={TOKEN}&authorization=Bearer%20{TOKEN}"
    response = await client.post(url, content=ENDPOINTS[1].body)
    assert envelope(response, 401, "UnauthorizedError")["code"] == "bearer_token_missing"


# The pixel


def pixel(endpoint: Endpoint, *fields: tuple[str, str], **replaced: Any) -> str:
    """Its URL with a valid event, some of it replaced (None: left out), and more fields."""
    event = {name: value for name, value in (endpoint.event | replaced).items() if value is not None}
    return f"{endpoint.pixel}?{urlencode([*urlencoded(event), *fields])}"


def urlencoded(event: dict[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in event.items():
        for each in value if isinstance(value, list) else [value]:
            pairs.append((name, each if isinstance(each, str) else json.dumps(each)))
    return pairs


@pytest.fixture
def unlimited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    return serve(tmp_path, monkeypatch, registry(ORIGINS))


def points(gif: bytes) -> list[tuple[int, ...] | None]:
    """The points of a GIF of one frame that has a palette of two and is not larger than its codes need no growing for;
    None are transparent. (GIF89a specification, appendix F.)"""
    signature, width, height, flags, _, _ = struct.unpack_from("<6sHHBBB", gif)
    assert signature == b"GIF89a"
    assert flags & 0x87 == 0x80  # a palette of two
    palette = [tuple(gif[13 + 3 * n : 16 + 3 * n]) for n in range(2)]
    introducer, label, size, control, _, transparent, end = struct.unpack_from("<BBBBHBB", gif, 19)
    assert (introducer, label, size, end) == (0x21, 0xF9, 4, 0)
    separator, left, top, *frame, frame_flags, code_size = struct.unpack_from("<BHHHHBB", gif, 27)
    assert (separator, left, top, frame, frame_flags) == (0x2C, 0, 0, [width, height], 0)
    length = gif[38]
    data, rest = gif[39 : 39 + length], gif[39 + length :]
    assert rest == b"\0;"  # no more data, end of file
    bits, bits_left = int.from_bytes(data, "little"), 8 * length
    codes = []
    while len(codes) <= width * height:
        assert bits_left >= code_size + 1
        codes.append(bits & (1 << code_size + 1) - 1)
        bits >>= code_size + 1
        bits_left -= code_size + 1
    first, *indices = codes
    assert first == 1 << code_size  # forget what came before
    assert all(index < 2 for index in indices)
    return [None if control & 1 and index == transparent else palette[index] for index in indices]


@EACH_ENDPOINT
async def test_pixel_is_one_transparent_point_that_no_cache_keeps(
    endpoint: Endpoint, client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await client.get(pixel(endpoint), headers=endpoint.headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/gif"
    assert response.headers["cache-control"] == "no-store"
    assert int(response.headers["content-length"]) == len(response.content)
    assert points(response.content) == [None]
    [record] = outbox.records
    assert record.topic == endpoint.stream
    assert record.row == {
        "event_id": record.key.decode(),
        endpoint.name: endpoint.owner,
        "received_at": record.row["received_at"],
        **endpoint.event,
    }


TEXTS = ("", "red sneakers", "ünï \U0001f600", "a+b&c=d%41", "null", "7", "[1]", "a\0b", " ")
APP_FIELDS: list[tuple[str, str, Any]] = [
    *(("event_type", text, text) for text in TEXTS),
    *(("query", text, text) for text in TEXTS),
    *(("session_id", text, text) for text in TEXTS),
    *((name, text, value) for name in ("position", "latency_ms") for text, value in (("2", 2), ("-1", -1), ("2.0", 2))),
    ("result_count", "9223372036854775807", 2**63 - 1),
    ("dwell_ms", "", None),
    ("metadata", '{"ab": {"test": "B"}, "n": 12345678901234567890}', {"ab": {"test": "B"}, "n": 12345678901234567890}),
    ("metadata", "{}", {}),
    ("metadata", "", None),
    ("metadata", "null", None),
]
RETRIEVER_FIELDS: list[tuple[str, str, Any]] = [
    *(("document_id", text, text) for text in TEXTS),
    *(("execution_id", text, text) for text in TEXTS),
    ("position", "3", 3),
    ("result_set_size", "10", 10),
    *(("document_score", text, value) for text, value in (("0.95", 0.95), ("1", 1), ("-1e-3", -0.001), ("", None))),
    ("query_snapshot", '{"text":"a b"}', {"text": "a b"}),
]


@pytest.mark.parametrize(
    ("endpoint", "name", "text", "value"),
    [
        *((ENDPOINTS[0], *field) for field in APP_FIELDS),
        *((ENDPOINTS[1], *field) for field in RETRIEVER_FIELDS),
    ],
    ids=repr,
)
async def test_field_of_the_pixel_is_that_of_a_body(
    endpoint: Endpoint, name: str, text: str, value: Any, unlimited: Gateway
) -> None:
    client = unlimited.http()
    response = await client.get(pixel(endpoint, (name, text), **{name: None}), headers=endpoint.headers)
    assert response.status_code == 200, response.text
    event = json.dumps(endpoint.event | {name: value})
    assert (await client.post(endpoint.path, content=event, headers=endpoint.headers)).status_code == 200
    of_query, of_body = ({**row, "event_id": 0, "received_at": 0} for row in unlimited.outbox.rows)
    assert json.dumps(of_query, sort_keys=True) == json.dumps(of_body, sort_keys=True)
    assert name in of_query


@pytest.mark.parametrize(("value", "written"), KEPT_VALUES.values(), ids=KEPT_VALUES.keys())
async def test_value_within_an_object_is_kept(value: bytes, written: bytes, unlimited: Gateway) -> None:
    url = pixel(ENDPOINTS[0], ("metadata", (b'{"x": %b}' % value).decode()))
    assert (await unlimited.http().get(url)).status_code == 200
    assert b'"metadata":{"x":%b}' % written in unlimited.outbox.records[0].value


@pytest.mark.parametrize(
    ("endpoint", "name", "text"),
    [
        *((ENDPOINTS[0], "position", text) for text in ("x", "2.5", "true", '"2"', "[2]", "1e400", "NaN", "0x1")),
        (ENDPOINTS[0], "position", "9" * 19),
        *((ENDPOINTS[0], "metadata", text) for text in ("x", "1", "[]", '"x"', "{", "{'a':1}", '{"a":NaN}')),
        *((ENDPOINTS[1], "position", text) for text in ("", "-1", "null")),
        *((ENDPOINTS[1], "interaction_type", text) for text in ("", "buy", "VIEW", '["view"]', "view,click")),
        *((ENDPOINTS[1], "document_score", text) for text in ("high", "1e400", '"1"', "true")),
        (ENDPOINTS[1], "result_set_size", "0"),
        (ENDPOINTS[1], "query_snapshot", "red sneakers"),
    ],
    ids=repr,
)
async def test_wrong_field_of_the_pixel_is_named(endpoint: Endpoint, name: str, text: str, unlimited: Gateway) -> None:
    headers = endpoint.headers | {"Origin": SHOP}
    response = await unlimited.http().get(pixel(endpoint, (name, text), **{name: None}), headers=headers)
    assert {tuple(entry["loc"][:2]) for entry in validation_errors(response, "query")} == {("query", name)}
    assert_readable(response)
    assert not unlimited.outbox.records


@EACH_ENDPOINT
async def test_field_of_the_pixel_that_is_missing_is_named(endpoint: Endpoint, unlimited: Gateway) -> None:
    for name in endpoint.event:
        response = await unlimited.http().get(pixel(endpoint, **{name: None}), headers=endpoint.headers)
        [entry] = validation_errors(response, "query")
        assert (entry["loc"], entry["type"]) == (["query", name], "missing")
    assert validation_errors(await unlimited.http().get(endpoint.pixel, headers=endpoint.headers), "query")
    assert not unlimited.outbox.records


@pytest.mark.parametrize("value", REFUSED_VALUES.values(), ids=REFUSED_VALUES.keys())
async def test_hostile_value_within_an_object_of_the_pixel(value: bytes, unlimited: Gateway) -> None:
    url = f"{APP_PATH}.gif?event_type=e&metadata=" + quote(b'{"x":%b}' % value)
    if len(url) < 60_000:  # more than any head may have
        validation_errors(await unlimited.http().get(url), "query")
        assert not unlimited.outbox.records


@EACH_ENDPOINT
async def test_what_the_contract_does_not_name_is_text_or_a_list_of_it(endpoint: Endpoint, unlimited: Gateway) -> None:
    fields = [("zone", "7"), ("zone", "null"), ("n", "7"), ("o", '{"a":1}'), ("", "nameless"), ("none", ""), ("é", "ü")]
    assert (await unlimited.http().get(pixel(endpoint, *fields), headers=endpoint.headers)).status_code == 200
    expected = {"zone": ["7", "null"], "n": "7", "o": '{"a":1}', "": "nameless", "none": "", "é": "ü"}
    assert unlimited.outbox.row["extra"] == expected


async def test_types_of_an_interaction_are_repeated(unlimited: Gateway) -> None:
    url = pixel(ENDPOINTS[1], interaction_type=["view", "click", "view"])
    assert (await unlimited.http().get(url, headers=CREDENTIALS)).status_code == 200
    assert unlimited.outbox.row["interaction_type"] == ["view", "click", "view"]


@pytest.mark.parametrize("name", ["event_type", "query", "position", "metadata"])
async def test_other_field_of_the_contract_that_comes_twice_is_refused(name: str, unlimited: Gateway) -> None:
    value = {"position": "1", "metadata": "{}"}.get(name, "e")
    url = pixel(ENDPOINTS[0], (name, value), (name, value), **{name: None})
    assert validation_errors(await unlimited.http().get(url), "query")[0]["loc"] == ["query", name]
    assert not unlimited.outbox.records


@EACH_ENDPOINT
async def test_parameters_about_the_request_are_not_of_the_event(endpoint: Endpoint, unlimited: Gateway) -> None:
    url = pixel(endpoint, ("event_id", "order-1"), ("public_api_key", PUBLIC_KEY))
    assert (await unlimited.http().get(url, headers=endpoint.headers)).status_code == 200
    [record] = unlimited.outbox.records
    assert (record.key, record.scope) == (b"order-1", endpoint.owner.encode())
    assert "extra" not in record.row
    response = await unlimited.http().get(pixel(endpoint, ("event_id", "no id")), headers=endpoint.headers)
    assert validation_errors(response, "query")[0]["loc"] == ["query", "event_id"]


@pytest.mark.parametrize(
    ("written", "client_timestamp"),
    [
        ("2026-09-21T14:13:20.123Z", "2026-09-21T14:13:20.123Z"),
        ("2026-09-21T16:13:20.123%2B02:00", "2026-09-21T14:13:20.123Z"),
        ("2026-09-21T16:13:20.123+02:00", "2026-09-21T14:13:20.123Z"),  # a bare + is a space
        ("2026-09-21%2016:13:20", "2026-09-21T16:13:20.000Z"),
        ("2026-09-21t16:13:20z", "2026-09-21T16:13:20.000Z"),
        ("1790000000123", "2026-09-21T14:13:20.123Z"),
        ("1790000000", "2026-09-21T14:13:20.000Z"),
    ],
)
async def test_time_of_the_pixel(written: str, client_timestamp: str, unlimited: Gateway) -> None:
    assert (await unlimited.http().get(f"{APP_PATH}.gif?event_type=e&timestamp={written}")).status_code == 200
    assert unlimited.outbox.row["client_timestamp"] == client_timestamp


async def test_most_parameters(unlimited: Gateway) -> None:
    url = f"{APP_PATH}.gif?event_type=e" + "".join(f"&n{number}={number}" for number in range(99))
    assert (await unlimited.http().get(url)).status_code == 200
    assert len(unlimited.outbox.take()[0].row["extra"]) == 99
    [entry] = validation_errors(await unlimited.http().get(f"{url}&x=1"), "query")
    assert (entry["loc"], entry["type"]) == (["query"], "query_invalid")
    assert not unlimited.outbox.records


@EACH_ENDPOINT
@pytest.mark.parametrize("bad", ["x=%FF", "x=%C3", "x=%ED%A0%80", "x=%C0%AF", "%FF=x", "event_id=%FF"])
async def test_query_that_is_not_utf8(bad: str, endpoint: Endpoint, unlimited: Gateway) -> None:
    for method, target, body in routes(endpoint):
        target += f"{'&' if '?' in target else '?'}{bad}"
        response = await unlimited.http().request(method, target, content=body, headers=endpoint.headers)
        [entry] = validation_errors(response, "query")
        assert (entry["loc"], entry["type"]) == (["query"], "query_invalid")
    assert not unlimited.outbox.records


@EACH_ENDPOINT
async def test_whoever_only_looks_has_not_sent_an_event(endpoint: Endpoint, unlimited: Gateway) -> None:
    for method in ("HEAD", "POST", "PUT"):
        response = await unlimited.http().request(method, pixel(endpoint), headers=endpoint.headers)
        assert response.status_code == 405
    assert not unlimited.outbox.records
    assert unlimited.count("gateway_events_received") == 0


@EACH_ENDPOINT
async def test_errors_of_the_pixel_are_those_of_a_body(endpoint: Endpoint, unlimited: Gateway) -> None:
    client, url = unlimited.http(), pixel(endpoint)
    envelope(await client.get(url.replace(endpoint.owner, "nobody"), headers=endpoint.headers), 404, "NotFoundError")
    unlimited.outbox.fault = PublisherRefusal("overloaded", "Not now")
    response = await client.get(url, headers=endpoint.headers)
    assert envelope(response, 503, "ServiceUnavailableError")["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1
    unlimited.outbox.fault = RuntimeError("the reason, for the log alone")
    envelope(await client.get(url, headers=endpoint.headers), 500, "InternalServerError")
    if endpoint.name == "retriever":
        envelope(await client.get(url), 401, "UnauthorizedError")
    received, refused = (unlimited.count(f"gateway_events_{name}") for name in ("received", "refused"))
    assert received == refused == (4 if endpoint.name == "retriever" else 3)


@EACH_ENDPOINT
async def test_body_of_a_pixels_request_is_ignored(endpoint: Endpoint, unlimited: Gateway) -> None:
    response = await unlimited.http().request("GET", pixel(endpoint), content=b"\xff" * 10, headers=endpoint.headers)
    assert response.status_code == 200
    assert {name: unlimited.outbox.row[name] for name in endpoint.event} == endpoint.event


# A real browser


class EmptyPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, format: str, *_: Any) -> None: ...


@contextlib.contextmanager
def pages() -> Iterator[str]:
    """An origin, each time another, which has a page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)


SCRIPT = """
const read = async (path, options) => {
  try {
    const answer = await fetch(url + path, {method: 'POST', ...options});
    return [answer.status, answer.headers.get('ratelimit-limit'), (await answer.text()).slice(0, 17)];
  } catch (error) { return [error.name]; }
};
const loaded = (path) => new Promise((resolve) => {
  const image = new Image();
  image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
  image.onerror = () => resolve('error');
  image.src = url + path;
});
const json = {'Content-Type': 'application/json'}, event = (name) => JSON.stringify({event_type: name});
return (async () => ({
  beacons: [
    navigator.sendBeacon(url, event('string')),
    navigator.sendBeacon(url, new Blob([event('blob')])),
    navigator.sendBeacon(url, new Blob([event('blob-json')], {type: 'application/json'})),
    navigator.sendBeacon(url + '/batch?event_id=b-1', JSON.stringify([{event_type: 'batch'}])),
  ],
  text: await read('', {body: event('text'), keepalive: true}),
  json: await read('', {body: event('json'), headers: {...json, 'Idempotency-Key': 'k-1'}, keepalive: true}),
  credentials: await read('', {body: event('credentials'), headers: json, credentials: 'include'}),
  opaque: await read('', {body: event('opaque'), mode: 'no-cors'}),
  wrong: await read('', {body: '{}', headers: json}),
  image: await loaded('.gif?event_type=image'),
  bad: await loaded('.gif?position=x'),
}))();
"""


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_browser_sends_and_reads_as_its_origin_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = "quota = { events_per_second = 77, burst = 770 }"
    with pages() as own, pages() as foreign:
        gateway = serve(tmp_path, monkeypatch, registry(f'allowed_origins = ["{own}"]', quota))
        with listening(gateway.app) as url, browser(tmp_path / "profile") as chromium:
            script = f"const url = {json.dumps(url + APP_PATH)};{SCRIPT}"

            def told_on(page: str, expected: set[str]) -> dict[str, Any]:
                """Once all that it sends has arrived; beacons are not waited for by a page."""
                chromium.open(page)
                told: dict[str, Any] = chromium.run(script)
                end = time.monotonic() + 10
                while (arrived := {row["event_type"] for row in gateway.outbox.rows}) != expected:
                    assert time.monotonic() < end, arrived ^ expected
                    time.sleep(0.01)
                assert len(gateway.outbox.take()) == len(expected)
                return told

            simple = {"string", "blob", "batch", "text", "opaque", "image"}
            on_own = told_on(own, simple | {"blob-json", "json", "credentials"})
            on_foreign = told_on(foreign, simple)
    success = [200, "770", '{"success":true,"']
    assert on_own["beacons"] == [True] * 4
    assert on_own["text"] == on_own["json"] == on_own["credentials"] == success
    assert on_own["wrong"] == [422, "770", '{"detail":[{"loc"']
    for unreadable in ("text", "json", "credentials", "wrong"):
        assert on_foreign[unreadable] == ["TypeError"]
    for told in (on_own, on_foreign):
        assert told["opaque"] == [0, None, ""]
        assert told["image"] == [1, 1]
        assert told["bad"] == "error"
