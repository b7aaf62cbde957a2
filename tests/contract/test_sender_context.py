"""What of its sender goes into an event: address, user agent, bot, times; as its owner's policy has it, and nowhere
else: not in a log, not in an answer."""

import hmac
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

import pytest

from gateway.registry import RegistryError
from schemas.streams import iso_ms
from tests.contract import test_gateway_process as process
from tests.contract.gateway_under_test import (
    APP_PATH,
    BROWSER,
    ENDPOINTS,
    FORMS,
    JSON,
    OTHER_PUBLIC_KEY,
    PUBLIC_KEY,
    SECRETS,
    TOKEN,
    Clock,
    Endpoint,
    Gateway,
    envelope,
    registry,
    serve,
)

EACH_ENDPOINT = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)

ADDRESS, NETWORK = "203.0.113.77", "203.0.113.0"
USER_AGENT = BROWSER.replace("131.0.0.0", "131.0.6778.204")
HMAC_KEY = "0123456789abcdef0123"

Serve: TypeAlias = Callable[..., Gateway]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Serve:
    """With these lines in the registry."""

    def served(*lines: str, **settings: Any) -> Gateway:
        return serve(tmp_path, monkeypatch, registry(*lines), clock=clock, **settings)

    return served


def privacy(**policy: str | bool) -> str:
    return f"privacy = {{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in policy.items())} }}"


async def rows(
    gateway: Gateway,
    endpoint: Endpoint,
    event: dict[str, Any] | None = None,
    *,
    peer: str = ADDRESS,
    headers: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What is stored of an event that is sent in every way: alone, in each form of batch, as a pixel; and rehearsed."""
    event = endpoint.event | (event or {})
    body, sent = json.dumps(event).encode(), endpoint.headers | {"User-Agent": USER_AGENT} | (headers or {})
    sent = {name: value for name, value in sent.items() if value is not None}
    client = gateway.http(peer)
    if "User-Agent" not in sent:
        del client.headers["user-agent"]
    for path, content, form in [
        (endpoint.path, body, {}),
        *((endpoint.batch, form.of([body, body]), form.headers) for form in FORMS),
    ]:
        response = await client.post(path, content=content, headers=sent | form)
        assert response.status_code == 200, response.text
    if all(type(value) in (str, list) or name == "position" for name, value in event.items()):
        response = await client.get(f"{endpoint.pixel}?{urlencode(event, doseq=True)}", headers=sent)
        assert response.status_code == 200, response.text
    found = [record.row for record in gateway.outbox.take()]
    response = await client.post(endpoint.validate, content=body, headers=sent)
    found.append(response.json()["row"])
    return found


async def the_row(gateway: Gateway, endpoint: Endpoint, *arguments: Any, **options: Any) -> dict[str, Any]:
    """The same however it is sent, but for its id."""
    first, *others = [{**row, "event_id": 0} for row in await rows(gateway, endpoint, *arguments, **options)]
    assert all(row == first for row in others)
    return first


# Privacy


@EACH_ENDPOINT
async def test_nothing_is_kept_by_default(endpoint: Endpoint, served: Serve) -> None:
    row = await the_row(served(), endpoint, headers={"DNT": "1", "Sec-GPC": "1"})
    assert row == {"event_id": 0, endpoint.name: endpoint.owner, "received_at": row["received_at"], **endpoint.event}


def digest(kind: str, value: bytes) -> str:
    """As the documentation of `gateway.privacy` has it."""
    return hmac.digest(HMAC_KEY.encode(), kind.encode() + b"\0" + value, "sha256").hex()[:32]


KEPT = {
    "client_address": {
        "keep": ADDRESS,
        "truncate": NETWORK,
        "hmac": digest("client_address", socket.inet_pton(socket.AF_INET, ADDRESS)),
        "drop": None,
    },
    "user_agent": {
        "keep": USER_AGENT,
        "truncate": BROWSER,
        "hmac": digest("user_agent", USER_AGENT.encode()),
        "drop": None,
    },
}


@EACH_ENDPOINT
@pytest.mark.parametrize("of_user_agent", KEPT["user_agent"])
@pytest.mark.parametrize("of_address", KEPT["client_address"])
async def test_policy(of_address: str, of_user_agent: str, endpoint: Endpoint, served: Serve) -> None:
    policy = privacy(client_address=of_address, user_agent=of_user_agent)
    row = await the_row(served(policy, privacy_hmac_key=HMAC_KEY), endpoint, headers={"DNT": "1", "Sec-GPC": "1"})
    kept = {"client_address": KEPT["client_address"][of_address], "user_agent": KEPT["user_agent"][of_user_agent]}
    assert {name: row.get(name) for name in kept} == kept
    assert not [name for name, value in kept.items() if value is None and name in row]


async def test_owners_have_policies_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    text = registry(app=[privacy(client_address="keep")], retriever=[privacy(user_agent="keep")])
    gateway = serve(tmp_path, monkeypatch, text, clock=clock)
    of_app, of_retriever = [await the_row(gateway, endpoint) for endpoint in ENDPOINTS]
    assert (of_app["client_address"], "user_agent" in of_app) == (ADDRESS, False)
    assert ("client_address" in of_retriever, of_retriever["user_agent"]) == (False, USER_AGENT)


async def test_digest_is_the_same_for_all_owners_and_another_with_another_key(served: Serve) -> None:
    policy = privacy(client_address="hmac", user_agent="hmac")
    found = []
    for key in (HMAC_KEY, "another key of more than 16 bytes"):
        gateway = served(policy, privacy_hmac_key=key)
        found.append([await the_row(gateway, endpoint) for endpoint in ENDPOINTS])
    for column in ("client_address", "user_agent"):
        assert [len({row[column] for row in pair}) for pair in found] == [1, 1]
        assert found[0][0][column] != found[1][0][column]
        assert re.fullmatch("[0-9a-f]{32}", found[0][0][column])


@EACH_ENDPOINT
@pytest.mark.parametrize("user_agent", [None, "", " ", "\t"], ids=repr)
async def test_nothing_is_kept_of_nothing(user_agent: str | None, endpoint: Endpoint, served: Serve) -> None:
    for policy in ("keep", "truncate", "hmac"):
        gateway = served(privacy(user_agent=policy), privacy_hmac_key=HMAC_KEY)
        row = await the_row(gateway, endpoint, headers={"User-Agent": user_agent})
        assert "user_agent" not in row
        assert row["bot_reason"] == "no_user_agent"


@EACH_ENDPOINT
@pytest.mark.parametrize("opted_out", [{"DNT": "1"}, {"Sec-GPC": "1"}, {"DNT": "0", "Sec-GPC": "1"}], ids=repr)
async def test_opting_out_is_honoured_where_the_owner_says_so(
    opted_out: dict[str, str], endpoint: Endpoint, served: Serve
) -> None:
    kept = {"client_address": "keep", "user_agent": "keep"}
    event = {"session_id": "sess_1", "zone": "eu"}
    headers = opted_out | {"X-Session-ID": "sess_2"}

    row = await the_row(served(privacy(**kept)), endpoint, event, headers=headers)
    assert (row["client_address"], row["user_agent"], row["session_id"]) == (ADDRESS, USER_AGENT, "sess_1")

    row = await the_row(served(privacy(**kept, honour_do_not_track=True)), endpoint, event, headers=headers)
    assert "client_address" not in row
    assert "user_agent" not in row
    assert row["session_id"] is None
    assert row["extra"] == {"zone": "eu"}  # what the event itself says is its sender's business
    assert {name: row[name] for name in endpoint.event} == endpoint.event


@EACH_ENDPOINT
@pytest.mark.parametrize("not_opted_out", [{}, {"DNT": "0"}, {"Sec-GPC": "0"}, {"DNT": ""}, {"DNT": "null"}], ids=repr)
async def test_only_1_is_opting_out(not_opted_out: dict[str, str], endpoint: Endpoint, served: Serve) -> None:
    gateway = served(privacy(client_address="keep", honour_do_not_track=True))
    row = await the_row(gateway, endpoint, {"session_id": "sess_1"}, headers=not_opted_out)
    assert (row["client_address"], row["session_id"]) == (ADDRESS, "sess_1")


async def test_session_header_is_not_kept_of_whoever_has_opted_out(served: Serve) -> None:
    gateway = served(privacy(honour_do_not_track=True))
    row = await the_row(gateway, ENDPOINTS[1], headers={"X-Session-ID": "sess_1", "DNT": "1"})
    assert row["session_id"] is None


# The address


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        (ADDRESS, None, ADDRESS),
        (ADDRESS, "198.51.100.1", ADDRESS),
        (ADDRESS, "10.0.0.1", ADDRESS),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "192.0.2.1, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "192.0.2.1, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:DB8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1"),
        ("10.0.0.1", "'; DROP TABLE", "10.0.0.1"),
        ("fd00::1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("2001:db8::1", "198.51.100.1", "2001:db8::1"),
    ],
)
async def test_forwarded_address_is_believed_of_trusted_proxies_alone(
    peer: str, forwarded: str | None, expected: str, endpoint: Endpoint, served: Serve
) -> None:
    gateway = served(privacy(client_address="keep"), trusted_proxies="10.0.0.0/8, fd00::/8")
    row = await the_row(gateway, endpoint, peer=peer, headers={"X-Forwarded-For": forwarded})
    assert row["client_address"] == expected


@EACH_ENDPOINT
@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP"])
async def test_nobody_is_trusted_by_default(name: str, endpoint: Endpoint, served: Serve) -> None:
    gateway = served(privacy(client_address="keep"))
    row = await the_row(gateway, endpoint, peer="127.0.0.1", headers={name: "198.51.100.1"})
    assert row["client_address"] == "127.0.0.1"


async def test_lines_of_a_forwarded_header_are_one_list(served: Serve) -> None:
    gateway = served(privacy(client_address="keep"), trusted_proxies="10.0.0.0/8")
    lines = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "10.0.0.2")]
    await gateway.http("10.0.0.1").post(APP_PATH, content=ENDPOINTS[0].body, headers=lines)
    assert gateway.outbox.row["client_address"] == "198.51.100.1"


# Bots


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        (BROWSER, {}),
        (
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            {"is_bot": True, "bot_reason": "crawler:googlebot"},
        ),
        (BROWSER.replace("Chrome", "HeadlessChrome"), {"is_bot": True, "bot_reason": "automation:headlesschrome"}),
        ("curl/8.5.0", {"bot_reason": "http_client:curl"}),
        ("okhttp/4.12.0", {"bot_reason": "http_client:okhttp"}),
        (None, {"bot_reason": "no_user_agent"}),
    ],
)
async def test_bots_are_flagged_and_stored(
    user_agent: str | None, expected: dict[str, Any], endpoint: Endpoint, served: Serve
) -> None:
    """Whatever the privacy policy: the reason is a word of ours."""
    for policy in (privacy(), privacy(user_agent="keep"), privacy(honour_do_not_track=True)):
        row = await the_row(served(policy), endpoint, headers={"User-Agent": user_agent, "DNT": "1"})
        assert {name: row[name] for name in ("is_bot", "bot_reason") if name in row} == expected


@EACH_ENDPOINT
async def test_event_cannot_say_what_the_gateway_says(endpoint: Endpoint, served: Serve) -> None:
    forged = {"is_bot": False, "bot_reason": "no", "client_address": "::", "user_agent": "x", "occurred_at": "x"}
    gateway = served(privacy(client_address="keep", user_agent="keep"))
    row = await the_row(gateway, endpoint, forged, headers={"User-Agent": "Googlebot/2.1"})
    assert row["extra"] == forged
    assert (row["is_bot"], row["client_address"], row["user_agent"]) == (True, ADDRESS, "Googlebot/2.1")
    assert "occurred_at" not in row


# Times

S = 1_000
DAY_MS = 86_400 * S


def times(row: dict[str, Any]) -> dict[str, str]:
    return {name: row[name] for name in ("client_timestamp", "occurred_at", "time_flag") if name in row}


@EACH_ENDPOINT
@pytest.mark.parametrize(
    ("timestamp_ms", "sent_at_ms", "client_ms", "occurred_ms", "flag"),
    [
        (-5 * S, None, -5 * S, -5 * S, None),
        (-5 * S, 0, -5 * S, -5 * S, None),
        (-65 * S, -60 * S, -65 * S, -5 * S, None),  # a clock that is a minute slow
        (3_595 * S, 3_600 * S, 3_595 * S, -5 * S, None),  # and one that is an hour fast
        (3_600 * S, None, 3_600 * S, 0, "clamped_future"),
        (300 * S, None, 300 * S, 300 * S, None),
        (-400 * DAY_MS, None, -400 * DAY_MS, -366 * DAY_MS, "clamped_past"),
    ],
)
async def test_when_it_happened(
    timestamp_ms: int,
    sent_at_ms: int | None,
    client_ms: int,
    occurred_ms: int,
    flag: str | None,
    endpoint: Endpoint,
    served: Serve,
    clock: Clock,
) -> None:
    """All as milliseconds from the arrival."""
    event: dict[str, Any] = {"timestamp": iso_ms(clock.now_ms + timestamp_ms)}
    if sent_at_ms is not None:
        event["sent_at"] = iso_ms(clock.now_ms + sent_at_ms)
    expected = {
        "client_timestamp": iso_ms(clock.now_ms + client_ms),
        "occurred_at": iso_ms(clock.now_ms + occurred_ms),
    }
    row = await the_row(served(), endpoint, event)
    assert times(row) == expected | ({} if flag is None else {"time_flag": flag})
    assert row["received_at"] == iso_ms(clock.now_ms)
    assert row["extra"] == event  # what the contract does not name is kept as it was sent


@EACH_ENDPOINT
async def test_times_of_a_batch_are_for_events_that_have_none(endpoint: Endpoint, served: Serve, clock: Clock) -> None:
    gateway, now_ms = served(), clock.now_ms
    own = endpoint.body_with(b"timestamp", b"%d" % (now_ms - 65 * S))
    own_sent_at = endpoint.body_with(b"sent_at", b"%d" % (now_ms - 30 * S))
    wrong = endpoint.body_with(b"timestamp", b'"yesterday"')
    body = FORMS[1].of([endpoint.body, own, own_sent_at, wrong])[:-1]
    body += b',"timestamp":%d,"sent_at":"%b"}' % (now_ms - 70 * S, iso_ms(now_ms - 60 * S).encode())
    response = await gateway.http().post(endpoint.batch, content=body, headers=endpoint.headers)
    found = [row["occurred_at"] for row in gateway.outbox.rows]
    assert found == [iso_ms(now_ms + seconds * S) for seconds in (-10, -5, -40, -10)]
    warnings = [[w["code"] for w in result.get("warnings", [])] for result in response.json()["results"]]
    assert warnings == [[], [], [], ["timestamp_invalid"]]
    kept = [list(row.get("extra", {})) for row in gateway.outbox.rows]
    assert kept == [[], ["timestamp"], ["sent_at"], ["timestamp"]]


@EACH_ENDPOINT
@pytest.mark.parametrize("wrong", ["yesterday", "", "2026-09-21", True, [], {}, "24:00"], ids=repr)
@pytest.mark.parametrize("name", ["timestamp", "sent_at"])
async def test_what_is_no_time_is_kept_and_warned_of(name: str, wrong: Any, endpoint: Endpoint, served: Serve) -> None:
    gateway = served()
    body = json.dumps(endpoint.event | {name: wrong})
    response = await gateway.http().post(endpoint.path, content=body, headers=endpoint.headers)
    assert response.status_code == 200
    [warning] = response.json()["warnings"]
    assert (warning["code"], warning["loc"]) == (f"{name}_invalid", [name])
    assert not times(gateway.outbox.row)
    assert gateway.outbox.row["extra"] == {name: wrong}


@EACH_ENDPOINT
@pytest.mark.parametrize("event", [{}, {"timestamp": None}, {"sent_at": None}, {"timestamp": None, "sent_at": None}])
async def test_null_is_as_good_as_no_time(event: dict[str, Any], endpoint: Endpoint, served: Serve) -> None:
    gateway = served()
    body = json.dumps(endpoint.event | event)
    response = await gateway.http().post(endpoint.path, content=body, headers=endpoint.headers)
    assert "warnings" not in response.json()
    assert not times(gateway.outbox.row)


# A policy that cannot be kept to


@pytest.mark.parametrize("column", ["client_address", "user_agent"])
@pytest.mark.parametrize("table", ["app", "retriever"])
async def test_digest_without_a_key_is_no_registry(
    table: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    line = privacy(**{column: "hmac"})
    text = registry(app=[line]) if table == "app" else registry(retriever=[line])
    name = "apps.demo-shop" if table == "app" else "retrievers.products"
    with pytest.raises(RegistryError, match=f"^{name}.privacy.{column}: hmac needs GATEWAY_PRIVACY_HMAC_KEY$"):
        serve(tmp_path, monkeypatch, text)

    gateway = serve(tmp_path, monkeypatch, registry(privacy(client_address="keep")), clock=clock)
    assert not await gateway.reload(text)
    assert (await the_row(gateway, ENDPOINTS[0]))["client_address"] == ADDRESS  # the old one is in force
    gateway = serve(tmp_path, monkeypatch, clock=clock, privacy_hmac_key=HMAC_KEY)
    assert await gateway.reload(text)


# A real process: what it says, and to whom

DISTINCTIVE = "DISTINCTIVE"
FORWARDED = ("198.51.100.201", "198.51.100.202", "2001:db8:d157:1::c7", "192.0.2.233")
AGENTS = ("DistinctiveBrowser/7.7", "DistinctiveGooglebot/2.1")
TRACES = (DISTINCTIVE, "Distinctive", "istinctive", *FORWARDED, "2001:0db8:d157")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[process.Gateway]:
    """Behind a proxy on this machine, with everything on that could tell of a caller."""
    directory = tmp_path_factory.mktemp("context")
    gateway = process.Gateway(
        directory,
        GATEWAY_TRUSTED_PROXIES="127.0.0.1",
        GATEWAY_PRIVACY_HMAC_KEY=f"{DISTINCTIVE} key of the digest",
    )
    gateway.registry.write_text(
        registry(
            'allowed_origins = ["https://shop.example"]',
            "quota = { events_per_second = 0.001, burst = 100000 }",
            "address_quota = { events_per_second = 0.001, burst = 40 }",
            app=[privacy(client_address="hmac", user_agent="hmac")],
        )
    )
    try:
        gateway.wait_until_live()
        yield gateway
    finally:
        status = gateway.stop()
    assert status == 0
    assert "Traceback" not in gateway.output
    assert '"exception"' not in gateway.output


def test_address_and_user_agent_of_a_real_connection(gateway: process.Gateway) -> None:
    headers = {"X-Forwarded-For": f"192.0.2.1, {FORWARDED[0]}", "User-Agent": AGENTS[0]}
    ids = [gateway.http.post(APP_PATH, json={"event_type": "e"}, headers=headers).json()["event_id"] for _ in range(2)]
    rows_ = [json.loads(gateway.spooled[id_]) for id_ in ids]
    assert len({row["client_address"] for row in rows_}) == len({row["user_agent"] for row in rows_}) == 1
    assert re.fullmatch("[0-9a-f]{32}", rows_[0]["client_address"])


HOSTILE_BODIES = (
    *(b'{"event_type":"%b"', b'["%b"]', b'{"event_type":7,"query":"%b"}', b'{"%b":1}', b'"%b"', b"%b", b"[%b]"),
    *(b'{"event_type":"%b","position":"%b"}', b'{"event_type":"%b","metadata":"%b"}', b"\xff%b", b'{"events":"%b"}'),
    *(b'{"event_type":"%b","n":1e400}', b'{"document_id":"d","interaction_type":["%b"],"position":0}', b'{"%b":NaN}'),
)


def test_nothing_of_a_caller_is_in_an_answer_or_in_what_is_written(gateway: process.Gateway) -> None:
    """Whatever it sends, and whatever comes of it; but for an unknown name, which the answer repeats."""
    told: list[tuple[int, str]] = []
    who = {"User-Agent": AGENTS[0], "Cookie": f"id={DISTINCTIVE}", "Referer": f"https://shop.example/{DISTINCTIVE}"}
    key = {"Idempotency-Key": f"key {DISTINCTIVE}"}

    def send(method: str, target: str, body: bytes = b"", **headers: str) -> None:
        sent = JSON | who | {"X-Forwarded-For": FORWARDED[len(told) % 4]} | headers
        response = gateway.http.request(method, target, content=body, headers=sent)
        told.append((response.status_code, response.text + str(response.headers)))

    for endpoint in ENDPOINTS:
        credentials = {name: value for name, value in endpoint.headers.items() if name != "Content-Type"}
        for body in HOSTILE_BODIES:
            hostile = body.replace(b"%b", DISTINCTIVE.encode())
            for path in (endpoint.path, endpoint.batch, endpoint.validate):
                send("POST", path, hostile, **credentials)
        batch = FORMS[0].of([body.replace(b"%b", DISTINCTIVE.encode()) for body in HOSTILE_BODIES[2:4]])
        send("POST", endpoint.batch, batch, **credentials)
        for path in (endpoint.path, endpoint.batch, endpoint.validate):
            send("POST", path, endpoint.body, **credentials, **key)
            send("POST", f"{path}?event_id={DISTINCTIVE}%20", endpoint.body, **credentials)
            send("POST", f"{path}?{DISTINCTIVE}=%FF", endpoint.body, **credentials)
            send("POST", path, endpoint.body, **credentials | {"Content-Type": f"text/{DISTINCTIVE}"})
            send("POST", path, endpoint.body, **credentials | {"Content-Type": f"text/plain;charset={DISTINCTIVE}"})
            send("POST", path, endpoint.body, **credentials | {"Content-Encoding": DISTINCTIVE})
            send("POST", path, DISTINCTIVE.encode(), **credentials | {"Content-Encoding": "gzip"})
            send("POST", path, DISTINCTIVE.encode() * 600_000, **credentials)
            send("PUT", f"{path}?{DISTINCTIVE}", **credentials)
            send("OPTIONS", f"{path}?{DISTINCTIVE}", Origin=f"https://{DISTINCTIVE}.example")
            unknown = {"Authorization": f"Bearer {DISTINCTIVE}", "X-Public-API-Key": DISTINCTIVE}
            send("POST", path, endpoint.body, **unknown)
            send("POST", f"{path}?public_api_key={OTHER_PUBLIC_KEY}", endpoint.body, Authorization=f"Bearer {TOKEN}")
        for query in (f"position={DISTINCTIVE}", f"event_type=e&metadata={DISTINCTIVE}", f"event_id=%20{DISTINCTIVE}"):
            send("GET", f"{endpoint.pixel}?{query}&public_api_key={PUBLIC_KEY}", **credentials)
    hot = {"X-Forwarded-For": FORWARDED[3]}
    for _ in range(45):
        send("POST", ENDPOINTS[0].path, ENDPOINTS[0].body, **hot)
    send("POST", ENDPOINTS[0].batch, b"[{}]", **hot)

    accepted = [text for status, text in told if status == 200]
    assert {status for status, _ in told} == {200, 400, 401, 403, 405, 413, 415, 422, 429}
    for text in (text for status, text in told if status != 200):
        assert not [trace for trace in (*TRACES, *SECRETS) if trace in text], text
    assert accepted
    # Unknown names are the one thing that is repeated, and only to whoever has sent them.
    response = gateway.http.post(f"/v1/public/apps/{DISTINCTIVE}/interactions", headers=who)
    assert envelope(response, 404, "NotFoundError")["details"]["id"] == DISTINCTIVE
    envelope(gateway.http.get(f"/{DISTINCTIVE}?{DISTINCTIVE}", headers=who), 404, "NotFoundError")
    with gateway.connect() as connection:
        connection.sendall(f"GET /{DISTINCTIVE} HTTP/1.1\r\n{DISTINCTIVE}\r\n\r\n".encode())
        assert DISTINCTIVE not in process.answer(connection).text

    assert "Application startup complete" in gateway.output
    assert not [trace for trace in (*TRACES, *SECRETS) if trace in gateway.output]
    spooled = b"".join(gateway.spooled.values())
    assert not [address for address in FORWARDED if address.encode() in spooled]
    assert not [agent for agent in AGENTS if agent.encode() in spooled]
    assert DISTINCTIVE not in gateway.http.get("/metrics").text


def test_real_answers_to_what_has_no_body(gateway: process.Gateway) -> None:
    """On one connection, so that none of them is longer or shorter than it says."""
    with gateway.connect() as connection:
        for request, status in (
            (f"OPTIONS {APP_PATH} HTTP/1.1\r\nOrigin: https://shop.example", 204),
            (f"HEAD {APP_PATH}.gif?event_type=e HTTP/1.1\r\nOrigin: https://shop.example", 405),
            (f"GET {APP_PATH}.gif?event_type=e HTTP/1.1\r\nX-Forwarded-For: 203.0.113.1", 200),
            ("HEAD /openapi.json HTTP/1.1", 200),
            (f"OPTIONS {APP_PATH}/batch HTTP/1.1\r\nOrigin: https://evil.example", 403),
            (f"GET {APP_PATH}.gif?position=x HTTP/1.1\r\nX-Forwarded-For: 203.0.113.1", 422),
            ("GET /livez HTTP/1.1", 200),
        ):
            connection.sendall(f"{request}\r\nHost: gateway\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1)
            assert head.startswith(b"HTTP/1.1 %d " % status), (request, head)
            length = re.search(rb"content-length: (\d+)", head)
            if length is not None and not request.startswith("HEAD"):
                left = int(length[1])
                while left:
                    left -= len(connection.recv(left))


def test_query_in_raw_utf8_is_no_dead_end(gateway: process.Gateway) -> None:
    """Some callers do not escape it: then it is either read or refused, on a connection that goes on or is closed."""
    with gateway.connect() as connection:
        connection.sendall(f"GET {APP_PATH}.gif?event_type=é HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
        assert process.answer(connection).status_code in (200, 400, 422)


def test_reload_changes_the_quotas(gateway: process.Gateway) -> None:
    headers = {"X-Forwarded-For": "203.0.113.99"}

    def limit() -> str | None:
        return gateway.http.post(APP_PATH, json={"event_type": "e"}, headers=headers).headers.get("ratelimit-limit")

    before = gateway.registry.read_text()
    try:
        gateway.registry.write_text(registry("quota = { events_per_second = 1000, burst = 4711 }"))
        process.eventually(lambda: limit() == "4711")
    finally:
        gateway.registry.write_text(before)
    process.eventually(lambda: limit() == "40")


def test_digest_without_a_key_stops_the_start(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(registry(privacy(user_agent="hmac")))
    gateway = process.Gateway(tmp_path, GATEWAY_REGISTRY_FILE=str(elsewhere))
    assert gateway.process.wait(process.START_S_MAX) == 2
    assert gateway.output == (
        "GATEWAY_REGISTRY_FILE: apps.demo-shop.privacy.user_agent: hmac needs GATEWAY_PRIVACY_HMAC_KEY\n"
    )


def test_key_that_is_too_short_stops_the_start(tmp_path: Path) -> None:
    gateway = process.Gateway(tmp_path, GATEWAY_PRIVACY_HMAC_KEY=DISTINCTIVE)
    assert gateway.process.wait(process.START_S_MAX) == 2
    assert gateway.output.startswith("GATEWAY_PRIVACY_HMAC_KEY: must be at least 16 bytes")
    assert len(gateway.output.splitlines()) == 1
    assert DISTINCTIVE not in gateway.output
