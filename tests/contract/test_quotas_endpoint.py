"""Quotas over HTTP: who is refused and who is not, what the headers say, what a batch costs. Time stands still."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from tests.contract.gateway_under_test import (
    APP_PATH,
    CREDENTIALS,
    ENDPOINTS,
    FORMS,
    JSON,
    OTHER_PUBLIC_KEY,
    OTHER_TOKEN,
    RETRIEVER_PATH,
    SECOND_PUBLIC_KEY,
    Clock,
    Endpoint,
    Form,
    Gateway,
    envelope,
    registry,
    serve,
    validation_errors,
)

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
EACH_FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)

RATE, BURST = 2, 10
LIMITS = {"ratelimit-limit": "10", "ratelimit-policy": "2;w=1;burst=10"}

Serve: TypeAlias = Callable[..., Gateway]


def quota(name: str = "quota", rate: float = RATE, burst: int = BURST) -> str:
    return f"{name} = {{ events_per_second = {rate}, burst = {burst} }}"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Serve:
    """With these lines in the registry."""

    def served(*lines: str, **settings: Any) -> Gateway:
        of_retriever = [line for line in lines if line.startswith("key_quota")]
        both = [line for line in lines if line not in of_retriever]
        return serve(tmp_path, monkeypatch, registry(*both, retriever=of_retriever), clock=clock, **settings)

    return served


async def send(
    gateway: Gateway, endpoint: Endpoint, events: int = 1, *, peer: str = "127.0.0.1", **headers: str
) -> httpx.Response:
    """One event, or a batch of several."""
    body = endpoint.body if events == 1 else FORMS[0].of([endpoint.body] * events)
    path = endpoint.path if events == 1 else endpoint.batch
    return await gateway.http(peer).post(path, content=body, headers=endpoint.headers | headers)


def over_quota(response: httpx.Response, code: str) -> int:
    """What Retry-After says, s, of an answer that is a refusal in every respect."""
    error = envelope(response, 429, "TooManyRequestsError")
    assert error["code"] == code
    assert set(error["details"]) == {"events_per_second", "burst"}
    headers = response.headers
    assert set(LIMITS) | {"ratelimit-remaining", "ratelimit-reset"} <= set(headers)
    assert len(headers.get_list("ratelimit-limit")) == len(headers.get_list("retry-after")) == 1
    assert int(headers["ratelimit-limit"]) == error["details"]["burst"]
    retry_after_s = int(headers["retry-after"])
    assert 1 <= retry_after_s <= int(headers["ratelimit-reset"])
    return retry_after_s


# One quota


@EACH_ENDPOINT
async def test_a_burst_and_then_the_rate(endpoint: Endpoint, served: Serve, clock: Clock) -> None:
    gateway = served(quota())
    for number in range(BURST):
        response = await send(gateway, endpoint)
        assert response.status_code == 200
        assert {name: response.headers[name] for name in LIMITS} == LIMITS
        assert response.headers["ratelimit-remaining"] == str(BURST - number - 1)
        assert "retry-after" not in response.headers
    code = f"quota_{endpoint.name}"
    for _ in range(3):
        response = await send(gateway, endpoint)
        assert over_quota(response, code) == 1
        assert {name: response.headers[name] for name in LIMITS} == LIMITS
        assert (response.headers["ratelimit-remaining"], response.headers["ratelimit-reset"]) == ("0", "5")
    assert len(gateway.outbox.records) == BURST
    clock.pass_(1 / RATE)
    assert (await send(gateway, endpoint)).status_code == 200
    over_quota(await send(gateway, endpoint), code)
    clock.pass_(3_600)
    assert (await send(gateway, endpoint)).headers["ratelimit-remaining"] == str(BURST - 1)
    refused = gateway.count("gateway_events_refused", stream=endpoint.stream, status="429", type="TooManyRequestsError")
    assert refused == 4
    assert gateway.count("gateway_events_received") == len(gateway.outbox.records) + refused


@EACH_ENDPOINT
async def test_retry_after_is_true(endpoint: Endpoint, served: Serve, clock: Clock) -> None:
    gateway = served(quota(rate=0.1, burst=3))
    assert (await send(gateway, endpoint, 3)).status_code == 200
    for _ in range(3):
        assert over_quota(await send(gateway, endpoint), f"quota_{endpoint.name}") == 10
        clock.pass_(9.5)
        assert over_quota(await send(gateway, endpoint), f"quota_{endpoint.name}") == 1
        clock.pass_(0.5)
        assert (await send(gateway, endpoint)).status_code == 200


@EACH_ENDPOINT
async def test_retry_after_of_a_batch_is_true_once_there_is_room_for_any_event(
    endpoint: Endpoint, served: Serve, clock: Clock
) -> None:
    """Before that its body is not read, so nobody knows how many events it has."""
    gateway = served(quota(rate=0.1, burst=3))
    assert (await send(gateway, endpoint, 3)).status_code == 200
    for expected_s in (10, 20):
        retry_after_s = over_quota(await send(gateway, endpoint, 3), f"quota_{endpoint.name}")
        assert retry_after_s == expected_s
        clock.pass_(retry_after_s)
    assert (await send(gateway, endpoint, 3)).status_code == 200


async def test_without_a_quota_nothing_is_said_of_one(served: Serve) -> None:
    gateway = served()
    for endpoint in ENDPOINTS:
        response = await send(gateway, endpoint, 1_000)
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("ratelimit")]


@EACH_ENDPOINT
async def test_every_way_to_send_spends_of_the_same_quota(endpoint: Endpoint, served: Serve) -> None:
    gateway = served(quota())
    client = gateway.http()
    event = {"document_id": "d", "interaction_type": "view", "position": "0", "event_type": "e"}
    batch = FORMS[0].of([endpoint.body] * 3)
    spent = [
        (1, await client.post(endpoint.path, content=endpoint.body, headers=endpoint.headers)),
        (1, await client.get(endpoint.pixel, params=event, headers=endpoint.headers)),
        (1, await client.post(endpoint.validate, content=endpoint.body, headers=endpoint.headers)),
        (1, await client.post(endpoint.validate, content=batch, headers=endpoint.headers)),
        (3, await client.post(endpoint.batch, content=batch, headers=endpoint.headers)),
    ]
    left = BURST
    for events, response in spent:
        assert response.status_code == 200
        left -= events
        assert response.headers["ratelimit-remaining"] == str(left)
        assert {name: response.headers[name] for name in LIMITS} == LIMITS
    assert (await send(gateway, endpoint, left)).status_code == 200
    for method, path in (("GET", endpoint.pixel), ("POST", endpoint.validate), ("POST", endpoint.batch)):
        response = await client.request(method, path, params=event, content=batch, headers=endpoint.headers)
        over_quota(response, f"quota_{endpoint.name}")


# What is not read, or not right, costs as well; what nobody may send does not


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("route", "body", "headers", "status"),
    [
        *(("path", body, {}, 422) for body in (b"", b"{", b"{}", b"[" * 100_000, b"\xff")),
        ("path", b"x" * 300_000, {}, 413),
        ("path", b"{}", {"Content-Type": "text/xml"}, 415),
        ("path", b"{}", {"Content-Encoding": "gzip"}, 400),
        ("path", b"{}", {"Idempotency-Key": "no key"}, 422),
        ("validate", b"{", {}, 422),
        ("validate", b"{", {"Content-Encoding": "gzip"}, 400),
        ("pixel", b"", {}, 422),
        ("batch", b"[{}]", {}, 422),
        ("batch", b"[{},NaN,7]", {}, 422),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else None,
)
async def test_what_is_wrong_costs_too(
    route: str, body: bytes, headers: dict[str, str], status: int, endpoint: Endpoint, served: Serve
) -> None:
    gateway = served(quota())
    method = "GET" if route == "pixel" else "POST"
    path = getattr(endpoint, route)
    response = await gateway.http().request(method, path, content=body, headers=endpoint.headers | headers)
    assert response.status_code == status
    events = 1 + body.count(b",") if route == "batch" else 1
    assert response.headers["ratelimit-remaining"] == str(BURST - events)
    assert (await send(gateway, endpoint)).headers["ratelimit-remaining"] == str(BURST - events - 1)


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        *((body, {}, 422) for body in (b"", b"{", b"[]", b'{"events":7}', b"[" * 100_000)),
        (b"x" * 6_000_000, {}, 413),
        (b"[%b]" % b",".join([b"{}"] * 1_001), {}, 413),
        (b"{}", {"Content-Encoding": "gzip"}, 400),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else None,
)
async def test_batch_that_cannot_be_read_costs_an_event(
    body: bytes, headers: dict[str, str], status: int, endpoint: Endpoint, served: Serve
) -> None:
    """It made us read megabytes: whoever sends nothing else must run into the quota some day."""
    gateway = served(quota())
    for _ in range(BURST):
        response = await gateway.http().post(endpoint.batch, content=body, headers=endpoint.headers | headers)
        assert response.status_code == status
    response = await gateway.http().post(endpoint.batch, content=body, headers=endpoint.headers | headers)
    over_quota(response, f"quota_{endpoint.name}")


@EACH_ENDPOINT
async def test_batch_whose_caller_leaves_costs_an_event(endpoint: Endpoint, served: Serve) -> None:
    """Else megabytes can be sent for ever, if only the last byte is kept back."""
    gateway = served(quota())
    headers = [(name.lower().encode(), value.encode()) for name, value in endpoint.headers.items()]
    scope = {"type": "http", "method": "POST", "path": endpoint.batch, "query_string": b"", "headers": headers}

    async def send(_: object) -> None:
        raise AssertionError("there is nobody to answer")

    for _ in range(BURST):
        left = [{"type": "http.request", "body": b"[" * 1_000_000, "more_body": True}, {"type": "http.disconnect"}]

        async def receive(left: list[dict[str, Any]] = left) -> dict[str, Any]:
            return left.pop(0)

        await gateway.app(scope | {"client": ("127.0.0.1", 1)}, receive, send)
    over_quota(
        await gateway.http().post(endpoint.path, content=endpoint.body, headers=endpoint.headers),
        f"quota_{endpoint.name}",
    )


async def test_who_may_not_send_spends_nothing_of_others(served: Serve) -> None:
    """Else anybody could use up the quota of a retriever."""
    gateway = served(quota(), quota("key_quota"), quota("address_quota"))
    endpoint = ENDPOINTS[1]
    for credentials in (
        {},
        CREDENTIALS | {"Authorization": "Bearer nobody"},
        CREDENTIALS | {"X-Public-API-Key": OTHER_PUBLIC_KEY},
        CREDENTIALS | {"Authorization": f"Bearer {OTHER_TOKEN}"},
    ):
        for path in (endpoint.path, endpoint.batch, endpoint.validate):
            response = await gateway.http().post(path, content=endpoint.body, headers=JSON | credentials)
            assert response.status_code in (401, 403)
            assert not [name for name in response.headers if name.startswith("ratelimit")]
    assert (await send(gateway, endpoint)).headers["ratelimit-remaining"] == str(BURST - 1)


@EACH_ENDPOINT
async def test_who_only_asks_spends_nothing(endpoint: Endpoint, served: Serve) -> None:
    gateway = served(quota(), 'allowed_origins = ["*"]')
    for method in ("OPTIONS", "HEAD", "PUT"):
        for path in (endpoint.path, endpoint.batch, endpoint.validate, endpoint.pixel):
            await gateway.http().request(method, path, headers=endpoint.headers | {"Origin": "https://shop.example"})
    assert (await send(gateway, endpoint)).headers["ratelimit-remaining"] == str(BURST - 1)


@EACH_ENDPOINT
async def test_refused_before_the_body_is_read(endpoint: Endpoint, served: Serve) -> None:
    gateway = served(quota())
    await send(gateway, endpoint, BURST)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("nobody should read")

    async def keep(message: Any) -> None:
        sent.append(message)

    headers = [(name.lower().encode(), value.encode()) for name, value in endpoint.headers.items()]
    for path in (endpoint.path, endpoint.batch, endpoint.validate):
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await gateway.app(scope | {"client": ("127.0.0.1", 1)}, receive, keep)
    assert [message["status"] for message in sent if "status" in message] == [429] * 3


# Of whom


async def test_owners_do_not_share_a_quota(served: Serve) -> None:
    gateway = served(quota())
    hot, other = ENDPOINTS
    assert (await send(gateway, hot, BURST)).status_code == 200
    over_quota(await send(gateway, hot), "quota_app")
    assert (await send(gateway, other)).headers["ratelimit-remaining"] == str(BURST - 1)


async def test_keys_do_not_share_a_quota(served: Serve) -> None:
    gateway = served(quota("key_quota"))
    endpoint = ENDPOINTS[1]
    second = {"X-Public-API-Key": SECOND_PUBLIC_KEY}
    assert (await send(gateway, endpoint, BURST)).status_code == 200
    over_quota(await send(gateway, endpoint), "quota_key")
    response = await gateway.http().post(
        f"{endpoint.path}?public_api_key={SECOND_PUBLIC_KEY}",
        content=endpoint.body,
        headers={"Authorization": CREDENTIALS["Authorization"]},
    )
    assert response.headers["ratelimit-remaining"] == str(BURST - 1)
    assert (await send(gateway, endpoint, **second)).headers["ratelimit-remaining"] == str(BURST - 2)
    over_quota(await send(gateway, endpoint), "quota_key")


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("hot", "cold"),
    [
        ("203.0.113.7", "203.0.113.8"),
        ("2001:db8:0:1::7", "2001:db8:0:2::7"),
        ("203.0.113.7", "2001:db8::cb00:7107"),
    ],
)
async def test_hot_address_is_refused_while_another_is_served(
    hot: str, cold: str, endpoint: Endpoint, served: Serve
) -> None:
    gateway = served(quota("address_quota"))
    for _ in range(BURST):
        assert (await send(gateway, endpoint, peer=hot)).status_code == 200
    for _ in range(3):
        over_quota(await send(gateway, endpoint, peer=hot), "quota_address")
        over_quota(await send(gateway, endpoint, 5, peer=hot), "quota_address")
    for left in reversed(range(BURST)):
        assert (await send(gateway, endpoint, peer=cold)).headers["ratelimit-remaining"] == str(left)


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::7", "2001:db8:0:1:ffff::1"),
        ("203.0.113.7", "::ffff:203.0.113.7"),
        ("2001:db8::7", "2001:0DB8:0000::0007"),
    ],
)
async def test_what_is_one_subscriber_shares_a_quota(one: str, other: str, endpoint: Endpoint, served: Serve) -> None:
    gateway = served(quota("address_quota"))
    assert (await send(gateway, endpoint, BURST, peer=one)).status_code == 200
    over_quota(await send(gateway, endpoint, peer=other), "quota_address")


@EACH_ENDPOINT
async def test_callers_behind_a_trusted_proxy_are_told_apart_and_none_can_pass_for_another(
    endpoint: Endpoint, served: Serve
) -> None:
    gateway = served(quota("address_quota"), trusted_proxies="10.0.0.0/8")
    proxy = {"peer": "10.0.0.1"}

    def by(*addresses: str) -> dict[str, Any]:
        return {"X-Forwarded-For": ", ".join(addresses)}

    assert (await send(gateway, endpoint, BURST, **proxy, **by("203.0.113.7"))).status_code == 200
    over_quota(await send(gateway, endpoint, **proxy, **by("203.0.113.7")), "quota_address")
    assert (await send(gateway, endpoint, **proxy, **by("203.0.113.8"))).status_code == 200
    for spoofed in (by("198.51.100.1", "203.0.113.7"), by("203.0.113.8", "203.0.113.7", "10.9.9.9")):
        over_quota(await send(gateway, endpoint, **proxy, **spoofed), "quota_address")
    # Who is no proxy can neither hide behind a new address each time nor use up another's quota.
    for number in range(BURST):
        response = await send(gateway, endpoint, peer="203.0.113.9", **by(f"198.51.100.{number}"))
        assert response.status_code == 200
    over_quota(await send(gateway, endpoint, peer="203.0.113.9", **by("203.0.113.8")), "quota_address")
    remaining = (await send(gateway, endpoint, **proxy, **by("203.0.113.8"))).headers["ratelimit-remaining"]
    assert remaining == str(BURST - 2)


async def test_addresses_are_told_apart_by_owner(served: Serve) -> None:
    gateway = served(quota("address_quota"))
    hot, other = ENDPOINTS
    assert (await send(gateway, hot, BURST)).status_code == 200
    assert (await send(gateway, other)).headers["ratelimit-remaining"] == str(BURST - 1)


@EACH_ENDPOINT
async def test_the_tightest_of_several_is_told_and_none_is_spent_if_one_refuses(
    endpoint: Endpoint, served: Serve, clock: Clock
) -> None:
    gateway = served(quota(burst=100), quota("address_quota", rate=1, burst=3))
    assert (await send(gateway, endpoint)).headers["ratelimit-limit"] == "3"
    assert (await send(gateway, endpoint, 2)).headers["ratelimit-remaining"] == "0"
    for _ in range(50):
        over_quota(await send(gateway, endpoint), "quota_address")
    # Of the 100 of all callers only three are gone, whatever that one has tried.
    for number in range(97):
        assert (await send(gateway, endpoint, peer=f"203.0.113.{number}")).status_code == 200
    over_quota(await send(gateway, endpoint, peer="203.0.113.200"), f"quota_{endpoint.name}")
    clock.pass_(0.5)
    assert (await send(gateway, endpoint, peer="203.0.113.200")).status_code == 200


# Batches


@EACH_FORM
@EACH_ENDPOINT
async def test_batch_is_taken_whole_or_not_at_all(endpoint: Endpoint, form: Form, served: Serve, clock: Clock) -> None:
    gateway = served(quota())

    async def batch(events: int) -> httpx.Response:
        body = form.of([endpoint.body] * events)
        return await gateway.http().post(endpoint.batch, content=body, headers=endpoint.headers | form.headers)

    response = await batch(8)
    assert (response.status_code, response.headers["ratelimit-remaining"]) == (200, "2")
    for _ in range(3):
        response = await batch(8)
        assert over_quota(response, f"quota_{endpoint.name}") == 3
        assert response.headers["ratelimit-remaining"] == "2"
    assert len(gateway.outbox.records) == 8
    assert (await batch(2)).headers["ratelimit-remaining"] == "0"
    assert len(gateway.outbox.records) == 10
    clock.pass_(4)
    assert (await batch(8)).status_code == 200
    assert gateway.count("gateway_events_refused", status="429") == 24
    assert gateway.count("gateway_events_received") == 18 + 24


@EACH_ENDPOINT
async def test_batch_larger_than_the_burst_is_taken_when_nothing_is_owed_and_paid_in_full(
    endpoint: Endpoint, served: Serve, clock: Clock
) -> None:
    gateway = served(quota())
    response = await send(gateway, endpoint, 100)
    assert (response.status_code, response.headers["ratelimit-remaining"]) == (200, "0")
    assert response.headers["ratelimit-reset"] == "50"
    assert over_quota(await send(gateway, endpoint), f"quota_{endpoint.name}") == 46  # one of ten is free then
    clock.pass_(49)
    over_quota(await send(gateway, endpoint, 100), f"quota_{endpoint.name}")
    clock.pass_(1)
    assert (await send(gateway, endpoint, 100)).status_code == 200


@EACH_ENDPOINT
async def test_rejected_events_of_a_batch_cost_like_others(endpoint: Endpoint, served: Serve) -> None:
    gateway = served(quota())
    body = FORMS[0].of([endpoint.body, b"{}", b"NaN", endpoint.body])
    response = await gateway.http().post(endpoint.batch, content=body, headers=endpoint.headers)
    assert response.headers["ratelimit-remaining"] == str(BURST - 4)
    assert len(gateway.outbox.records) == 2


# A registry that changes


@EACH_ENDPOINT
async def test_reload_changes_the_quotas(endpoint: Endpoint, served: Serve, clock: Clock) -> None:
    gateway = served()
    assert "ratelimit-limit" not in (await send(gateway, endpoint)).headers

    assert await gateway.reload(registry(quota(burst=2)))
    for _ in range(2):
        assert (await send(gateway, endpoint)).headers["ratelimit-limit"] == "2"
    over_quota(await send(gateway, endpoint), f"quota_{endpoint.name}")

    assert await gateway.reload(registry(quota(burst=20)))  # what was spent is spent
    assert (await send(gateway, endpoint)).headers["ratelimit-remaining"] == "17"

    assert not await gateway.reload(registry("quota = { events_per_second = 0 }"))  # refused: the old one is in force
    assert (await send(gateway, endpoint)).headers["ratelimit-remaining"] == "16"

    assert await gateway.reload(registry(quota("address_quota", burst=1)))
    assert (await send(gateway, endpoint)).headers["ratelimit-limit"] == "1"
    over_quota(await send(gateway, endpoint), "quota_address")
    assert await gateway.reload(registry())
    response = await send(gateway, endpoint)
    assert response.status_code == 200
    assert "ratelimit-limit" not in response.headers


async def test_what_was_owed_to_a_slow_quota_is_not_owed_to_a_faster_one_for_ever(served: Serve, clock: Clock) -> None:
    gateway = served(quota(rate=0.001, burst=1_000))
    endpoint = ENDPOINTS[0]
    assert (await send(gateway, endpoint, 1_000)).status_code == 200  # full again in eleven days
    assert await gateway.reload(registry(quota(rate=100, burst=100)))
    retry_after_s = over_quota(await send(gateway, endpoint), "quota_app")
    assert retry_after_s <= 10
    clock.pass_(retry_after_s)
    assert (await send(gateway, endpoint)).status_code == 200


async def test_refusal_says_nothing_of_other_callers(served: Serve) -> None:
    gateway = served(quota("address_quota", burst=1), quota("key_quota", burst=1))
    for path, headers in ((APP_PATH, JSON), (RETRIEVER_PATH, JSON | CREDENTIALS)):
        for _ in range(2):
            response = await gateway.http("203.0.113.7").post(path, content=ENDPOINTS[1].body, headers=headers)
        told = response.text + str(response.headers)
        assert "203.0.113" not in told
        assert "pk_" not in told
    validation_errors(await gateway.http("203.0.113.9").post(APP_PATH, content=b"{"))
