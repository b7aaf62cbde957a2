"""`python -m gateway` itself, without Kafka: what only a real server on a real socket shows."""

import fcntl
import gzip
import hashlib
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.process import free_ports
from tests.contract.gateway_under_test import (
    APP_PATH,
    CREDENTIALS,
    ENDPOINTS,
    JSON,
    OTHER_PUBLIC_KEY,
    OTHER_TOKEN,
    REGISTRY,
    RETRIEVER_PATH,
    SECRETS,
    Endpoint,
    envelope,
    validation_errors,
    write_registry,
)

ROOT = Path(__file__).parents[2]
START_S_MAX = 60.0
POLL_S = 0.02
UNKNOWN_TOKEN, UNKNOWN_KEY = "tok_UNKNOWN_but_secret", "pk_UNKNOWN_but_secret"


def eventually(condition: Callable[[], bool], seconds_max: float = 30.0) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(POLL_S)


class Gateway:
    """A gateway process; `registry` is its file, `spool` its directory, `output` all that it has said.

    `file_bytes_max`: no file that it writes may become larger, as if its disk were full.
    """

    def __init__(self, directory: Path, *, file_bytes_max: int | None = None, **settings: str) -> None:
        self.directory = directory
        self.registry = write_registry(directory)
        self.spool = directory / "spool"
        self.port, port_of_nobody = free_ports(2)
        self._output = directory / "output"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | {
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_REGISTRY_FILE": str(self.registry),
            "GATEWAY_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port_of_nobody}",
            "GATEWAY_LOG_LEVEL": "debug",
            "GATEWAY_SPOOL_DIR": str(self.spool),
            **settings,
        }
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", verify=False)  # no TLS here
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway"], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        if file_bytes_max is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

    @property
    def output(self) -> str:
        return self._output.read_text("utf-8")

    @property
    def spooled(self) -> dict[str, bytes]:
        """Records on the disk by event id, as another process reads them."""
        found: dict[str, bytes] = {}
        for path in self.spool.glob("*.db"):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                for key, value in database.execute("SELECT key, value FROM records"):
                    assert key.decode() not in found
                    found[key.decode()] = value
        return found

    def metric(self, name: str) -> float:
        [line] = [line for line in self.http.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def is_conserving(self, stream: str) -> bool:
        """Whether each event that has arrived was accepted or refused; what is under way is neither."""
        counts = {"received": 0.0, "accepted": 0.0, "refused": 0.0}
        for line in self.http.get("/metrics").text.splitlines():
            match = re.match(rf'gateway_events_(received|accepted|refused)_total{{.*stream="{stream}".*}} (.+)', line)
            if match is not None:
                counts[match[1]] += float(match[2])
        return counts["received"] == counts["accepted"] + counts["refused"] > 0

    def wait_until_live(self) -> None:
        def live() -> bool:
            assert self.process.poll() is None, self.output
            try:
                return self.http.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        eventually(live, START_S_MAX)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit status."""
        self.http.close()
        self.process.send_signal(signum)
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gateway]]:
    """Each for one test. Started together: without Kafka, each waits a while for it before it serves."""
    settings: dict[str, dict[str, Any]] = {
        "killed": {},
        "full": {"GATEWAY_SPOOL_BYTES_MAX": "1000000"},
        "failing": {"file_bytes_max": 600_000},
        "terminated": {},
        "workers": {"GATEWAY_WORKERS": "2"},
        "misspelt": {"GATEWAY_PROT": "DISTINCTIVE"},
    }
    others = {name: Gateway(tmp_path_factory.mktemp(name), **each) for name, each in settings.items()}
    yield others
    for other in others.values():
        if other.process.poll() is None:
            other.stop()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, others: dict[str, Gateway]) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    try:
        gateway.wait_until_live()
        yield gateway
    finally:
        status = gateway.stop()
    assert status == 0
    assert "Traceback" not in gateway.output
    assert '"exception"' not in gateway.output


@pytest.fixture
def connection(gateway: Gateway) -> Iterator[socket.socket]:
    with gateway.connect() as connection:
        yield connection


def head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(connection: socket.socket) -> httpx.Response:
    """The next answer on a connection; of the socket nothing else is read."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += receive(connection)
    top, body = received.split(b"\r\n\r\n", 1)
    status_line, *lines = top.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = int(httpx.Headers(headers).get("content-length", "0"))
    while len(body) < length:
        body += receive(connection)
    assert len(body) == length
    return httpx.Response(int(status_line.split()[1]), headers=headers, content=body)


def accepted(response: httpx.Response) -> str:
    """The event id in the answer for an event that waits on the disk for Kafka."""
    assert response.status_code == 200, response.text
    body = response.json()
    assert body == {"success": True, "event_id": body["event_id"], "durability": "spool"}
    event_id: str = body["event_id"]
    return event_id


def receive(connection: socket.socket) -> bytes:
    received = connection.recv(65_536)
    assert received, "closed before the answer was whole"
    return received


def unsent(connection: socket.socket) -> int:
    """Bytes that the other side's system has not acknowledged (SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side ends the connection (the socket's timeout bounds the wait)."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


# Without Kafka


def test_live_and_ready(gateway: Gateway) -> None:
    assert gateway.http.get("/livez").status_code == 200
    response = gateway.http.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_valid_event_is_on_the_disk_when_it_is_answered(endpoint: Endpoint, gateway: Gateway) -> None:
    event_id = accepted(gateway.http.post(endpoint.path, content=endpoint.body, headers=endpoint.headers))
    row = json.loads(gateway.spooled[event_id])
    assert row["event_id"] == event_id
    assert {name: row[name] for name in endpoint.event} == endpoint.event


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_batch_is_on_the_disk_when_it_is_answered(endpoint: Endpoint, gateway: Gateway) -> None:
    before = gateway.spooled
    texts = [endpoint.body_with(b"n", b"%d" % number) for number in range(998)]
    body = gzip.compress(b"[%b]" % b",".join([b"NaN", *texts, b"{}"]))
    response = gateway.http.post(endpoint.batch, content=body, headers=endpoint.headers | {"Content-Encoding": "gzip"})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["status"] for result in results] == ["rejected", *["accepted"] * 998, "rejected"]
    spooled = {id_: json.loads(value) for id_, value in gateway.spooled.items() if id_ not in before}
    assert [spooled.pop(result["event_id"])["extra"]["n"] for result in results[1:-1]] == list(range(998))
    assert not spooled
    assert {result["durability"] for result in results[1:-1]} == {"spool"}


def test_received_is_accepted_and_refused(gateway: Gateway) -> None:
    """By the real outbox's own count."""
    send = gateway.http.post
    for body in (b'{"event_type":"e"}', b"{", b'[{"event_type":"e"},7,{"event_type":"e"}]', b"[7]", b"["):
        for path in (APP_PATH, f"{APP_PATH}/batch", f"{APP_PATH}/validate", RETRIEVER_PATH, f"{RETRIEVER_PATH}/batch"):
            send(path, content=body, headers=JSON)
            send(path, content=body, headers=JSON | CREDENTIALS)
    eventually(lambda: gateway.is_conserving("app_interactions"))
    eventually(lambda: gateway.is_conserving("retriever_interactions"))


def test_killed_at_any_instant_it_keeps_what_it_has_answered(others: dict[str, Gateway]) -> None:
    gateway = others["killed"]
    gateway.wait_until_live()
    answered = [accepted(gateway.http.post(APP_PATH, json={"event_type": "e"})) for _ in range(30)]
    assert gateway.stop(signal.SIGKILL) == -signal.SIGKILL
    killed, gateway = gateway, Gateway(gateway.directory)
    gateway.wait_until_live()
    assert list(gateway.spooled) == answered
    eventually(lambda: gateway.metric("gateway_spool_records") == 30)
    assert gateway.stop() == 0
    assert list(killed.spooled) == answered


def test_full_spool_is_503_and_unready(others: dict[str, Gateway]) -> None:
    gateway = others["full"]
    gateway.wait_until_live()
    large = {"event_type": "e" * 240_000}
    answered = {accepted(gateway.http.post(APP_PATH, json=large)) for _ in range(4)}
    response = gateway.http.post(APP_PATH, json=large)
    assert envelope(response, 503, "ServiceUnavailableError")["code"] == "spool_full"
    assert int(response.headers["retry-after"]) >= 1
    ready = gateway.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unready")
    assert "spool" in ready.json()["reason"]
    assert "Kafka" in ready.json()["reason"]
    assert gateway.http.get("/livez").status_code == 200
    response = gateway.http.post(f"{APP_PATH}/batch", json=[large, {}, large])  # together, or not at all
    assert envelope(response, 503, "ServiceUnavailableError")["code"] == "spool_full"
    assert set(gateway.spooled) == answered
    assert gateway.is_conserving("app_interactions")

    answered.add(accepted(gateway.http.post(APP_PATH, json={"event_type": "a small one"})))
    assert gateway.http.get("/readyz").status_code == 200
    assert gateway.stop() == 0
    assert set(gateway.spooled) == answered
    assert "Traceback" not in gateway.output


def test_disk_that_fails_is_503_and_nothing_answered_is_lost(others: dict[str, Gateway]) -> None:
    gateway = others["failing"]
    gateway.wait_until_live()
    answered, refused = set(), 0
    for _ in range(30):
        response = gateway.http.post(APP_PATH, json={"event_type": "e" * 100_000})
        if response.status_code == 200:
            answered.add(accepted(response))
        else:
            refused += 1
            assert envelope(response, 503, "ServiceUnavailableError")["code"] == "spool_failed"
            assert int(response.headers["retry-after"]) >= 1
    assert answered
    assert refused
    assert gateway.http.get("/readyz").status_code == 503
    assert gateway.http.get("/livez").status_code == 200
    assert gateway.stop() == 0
    assert answered <= set(gateway.spooled)
    assert "Traceback" not in gateway.output


def test_spool_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    gateway = Gateway(tmp_path, GATEWAY_SPOOL_DIR=str(tmp_path / "a-file" / "spool"))
    assert gateway.process.wait(START_S_MAX) != 0
    assert "spool failed" in gateway.output


def test_invalid_event_is_422_all_the_same(gateway: Gateway) -> None:
    validation_errors(gateway.http.post(APP_PATH, content=b"{", headers=JSON))


def test_openapi_document_is_served(gateway: Gateway) -> None:
    assert gateway.http.get("/openapi.json").json()["openapi"].startswith("3.1.")


def test_metrics_are_served(gateway: Gateway) -> None:
    assert "gateway_events_received_total" in gateway.http.get("/metrics").text


def test_server_does_not_name_itself(gateway: Gateway) -> None:
    assert "server" not in gateway.http.get("/livez").headers


# Bodies that stream in


def test_chunked_body_is_refused_while_it_streams_in(connection: socket.socket) -> None:
    connection.sendall(head(APP_PATH, "Transfer-Encoding: chunked"))
    for _ in range(5):  # 320 KiB, and no end
        connection.sendall(chunk(b"[" * 65_536))
    response = answer(connection)
    envelope(response, 413, "PayloadTooLargeError")
    assert response.headers["connection"] == "close"
    assert is_closed(connection)


def test_announced_length_is_refused_before_the_body(connection: socket.socket) -> None:
    connection.sendall(head(APP_PATH, "Content-Length: 262145"))
    envelope(answer(connection), 413, "PayloadTooLargeError")
    assert is_closed(connection)


def test_body_of_the_largest_size_is_read(connection: socket.socket) -> None:
    body = b'{"event_type":"%b"}' % (b"x" * (262_144 - len(b'{"event_type":""}')))
    connection.sendall(head(APP_PATH, "Content-Length: 262144") + body)
    accepted(answer(connection))


def test_body_in_pieces_over_time(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in head(APP_PATH, "Transfer-Encoding: chunked") + chunk(b'{"event_type"') + chunk(b':"e"}') + b"0\r\n\r\n":
        connection.sendall(bytes([byte]))
    accepted(answer(connection))


def test_connection_is_kept_for_the_next_event(connection: socket.socket) -> None:
    for body, status in ((b"{", 422), (b'{"event_type":"e"}', 200), (b"[]", 422)):
        connection.sendall(head(APP_PATH, f"Content-Length: {len(body)}") + body)
        assert answer(connection).status_code == status


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_events_behind_one_with_the_same_head(endpoint: Endpoint, gateway: Gateway, connection: socket.socket) -> None:
    """In one segment, in two, and behind one that is refused: each is on the disk, and counted."""
    headers = [f"{name}: {value}" for name, value in endpoint.headers.items() if name != "Content-Type"]
    bodies = [endpoint.body_with(b"n", b"%d" % number) for number in range(30)]
    requests = [head(endpoint.path, *headers, f"Content-Length: {len(body)}") + body for body in bodies]
    ids = []
    for request in requests[:10]:
        connection.sendall(request)
        ids.append(accepted(answer(connection)))
    for request in requests[10:20]:
        connection.sendall(request[:-9])
        connection.sendall(request[-9:])
        ids.append(accepted(answer(connection)))
    for request in requests[20:]:
        connection.sendall(head(endpoint.path, *headers, "Content-Length: 1") + b"{")
        assert answer(connection).status_code == 422
        connection.sendall(request)
        ids.append(accepted(answer(connection)))
    spooled = gateway.spooled
    assert [json.loads(spooled[id_])["extra"]["n"] for id_ in ids] == list(range(30))
    assert gateway.is_conserving(endpoint.stream)


def test_expect_100_continue(connection: socket.socket) -> None:
    body = b'{"event_type":"e"}'
    connection.sendall(head(APP_PATH, f"Content-Length: {len(body)}", "Expect: 100-continue"))
    assert receive(connection) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    accepted(answer(connection))


@pytest.mark.parametrize("name", ["Upgrade", "upgrade", "UPGRADE"])
@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.3"])
@pytest.mark.parametrize("in_one_piece", [True, False], ids=["one-piece", "head-then-body"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_offer_to_upgrade_is_ignored(
    framing: str, in_one_piece: bool, protocol: str, name: str, connection: socket.socket
) -> None:
    """Java's HTTP client makes one with every request over plain HTTP: no event may arrive without its body."""
    body = b'{"event_type":"e"}'
    length = f"Content-Length: {len(body)}" if framing == "length" else "Transfer-Encoding: chunked"
    request = head(
        APP_PATH, "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA", f"{name}: {protocol}", length
    )
    if framing == "chunked":
        body = chunk(body) + chunk(b"")
    for _ in range(2):  # on the same connection
        if in_one_piece:
            connection.sendall(request + body)
        else:
            connection.sendall(request)
            eventually(lambda: unsent(connection) == 0)
            connection.sendall(body)
        accepted(answer(connection))


def test_words_of_an_offer_in_a_body_change_no_length(connection: socket.socket) -> None:
    body = b'{"event_type":"e"\r\nUpgrade: 1}'
    for _ in range(2):
        connection.sendall(head(APP_PATH, f"Content-Length: {len(body)}") + body)
        validation_errors(answer(connection))


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [(APP_PATH, 262_145, 413), ("/v1/public/apps/nobody/interactions", 20, 404), (RETRIEVER_PATH, 20, 401)],
    ids=["too-large", "unknown-app", "no-credentials"],
)
def test_expect_100_continue_of_what_is_refused_anyway(
    path: str, length: int, status: int, connection: socket.socket
) -> None:
    connection.sendall(head(path, f"Content-Length: {length}", "Expect: 100-continue"))
    assert answer(connection).status_code == status  # and no 100 before it


def test_caller_who_leaves_midway_is_no_error(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        connection.sendall(head(APP_PATH, "Content-Length: 20") + b'{"event')

    def counted() -> bool:
        return 'type="ClientDisconnected"} ' in gateway.http.get("/metrics").text

    eventually(counted)
    assert "ASGI callable returned without" not in gateway.output


# What is not HTTP


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"POST " + APP_PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST " + APP_PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST " + APP_PATH.encode() + b" HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST " + APP_PATH.encode() + b" HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST " + APP_PATH.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /v1/public/apps/\xff/interactions HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=[
        *("garbage", "tls", "http2", "header-name", "negative-length", "length-no-number"),
        *("two-lengths", "length-and-chunked", "chunk-size", "raw-bytes-in-path"),
    ],
)
def test_bad_http(garbage: bytes, gateway: Gateway, connection: socket.socket) -> None:
    connection.sendall(garbage)
    envelope(answer(connection), 400, "BadRequestError")
    assert is_closed(connection)
    assert gateway.http.get("/livez").status_code == 200


@pytest.mark.parametrize("path", ["%FF", "%00", "%ED%A0%80", "%C0%AF", "%", "%zz", "%2F", "..", "%0A"])
def test_odd_escapes_in_the_path(path: str, connection: socket.socket) -> None:
    connection.sendall(head(f"/v1/public/apps/{path}/interactions", "Content-Length: 0"))
    envelope(answer(connection), 404, "NotFoundError")


# What it says


def test_secrets_never_leave_the_process(gateway: Gateway) -> None:
    """Valid, foreign, unknown and misplaced: no answer has them, and nothing that is written."""
    secrets = {*SECRETS, UNKNOWN_TOKEN, UNKNOWN_KEY}
    headers: list[dict[str, str]] = [
        CREDENTIALS,
        CREDENTIALS | {"X-Public-API-Key": OTHER_PUBLIC_KEY},
        CREDENTIALS | {"Authorization": f"Bearer {OTHER_TOKEN}"},
        {"Authorization": f"Bearer {UNKNOWN_TOKEN}", "X-Public-API-Key": UNKNOWN_KEY},
        CREDENTIALS | {"X-Public-API-Key": UNKNOWN_KEY},
        CREDENTIALS | {"Authorization": UNKNOWN_TOKEN},
        {"Authorization": f"Basic {UNKNOWN_TOKEN}", "Cookie": f"token={UNKNOWN_TOKEN}"},
        CREDENTIALS | {"Upgrade": "websocket", "Connection": "Upgrade"},
    ]
    statuses = set()
    for each in headers:
        for path in (RETRIEVER_PATH, APP_PATH, "/v1/public/retrievers/nobody/interactions", "/nowhere", "/readyz"):
            for body in (ENDPOINTS[1].body, b"{", b'{"position": "x"}', b"[" * 300_000):
                response = gateway.http.post(path, content=body, headers=JSON | each)
                statuses.add(response.status_code)
                told = response.text + str(response.headers)
                assert not [secret for secret in secrets if secret in told]
    assert statuses == {200, 401, 403, 404, 405, 413, 422}

    with gateway.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nAuthorization: Bearer %b\r\nbroken\r\n\r\n" % UNKNOWN_TOKEN.encode())
        assert UNKNOWN_TOKEN not in answer(connection).text
    digests = {hashlib.sha256(secret.encode()).hexdigest() for secret in secrets}
    assert not [secret for secret in secrets | digests if secret in gateway.output]
    spooled = b"".join(path.read_bytes() for path in gateway.spool.iterdir())
    assert b'"doc_1"' in spooled
    assert not [secret for secret in secrets | digests if secret.encode() in spooled]


def test_every_line_it_logs_is_a_json_object(gateway: Gateway) -> None:
    with gateway.connect() as connection:  # so that there is a warning too
        connection.sendall(b"garbage\r\n\r\n")
        answer(connection)
    entries = [json.loads(line) for line in gateway.output.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= set(entry) for entry in entries)
    assert {"info", "warning"} <= {entry["level"] for entry in entries}


# Its life


def test_registry_is_reloaded_and_a_broken_one_is_not(gateway: Gateway) -> None:
    def status(slug: str) -> int:
        return gateway.http.post(f"/v1/public/apps/{slug}/interactions", json={"event_type": "e"}).status_code

    assert status("newcomer") == 404
    try:
        gateway.registry.write_text(REGISTRY + "\n[apps.newcomer]\n")
        eventually(lambda: status("newcomer") == 200)
        gateway.registry.write_text("[apps.broken]\ncolour = 'DISTINCTIVE'\n")
        eventually(lambda: "refused" in gateway.output)
        assert status("newcomer") == 200
        assert "DISTINCTIVE" not in gateway.output
    finally:
        gateway.registry.write_text(REGISTRY)
    eventually(lambda: status("newcomer") == 404)


def test_sigterm_lets_what_is_under_way_end(others: dict[str, Gateway]) -> None:
    gateway = others["terminated"]
    gateway.wait_until_live()
    with gateway.connect() as connection:
        connection.sendall(head(APP_PATH, "Content-Length: 18", "Expect: 100-continue"))
        assert receive(connection).startswith(b"HTTP/1.1 100")  # it is being handled
        gateway.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Shutting down" in gateway.output)
        connection.sendall(b'{"event_type":"e"}')
        event_id = accepted(answer(connection))
    assert gateway.stop() == 0
    assert list(gateway.spooled) == [event_id]
    assert [json.loads(line)["level"] for line in gateway.output.splitlines()]
    assert "Unclosed" not in gateway.output


def test_several_workers(others: dict[str, Gateway]) -> None:
    gateway = others["workers"]
    gateway.wait_until_live()
    eventually(lambda: gateway.output.count("Application startup complete") == 2)
    assert "gateway_events_received" in gateway.http.get("/metrics").text
    asked_at = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - asked_at < 8  # less than its deadline: there was nothing to wait for


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"GATEWAY_PORT": "DISTINCTIVE"}, "GATEWAY_PORT: "),
        ({"GATEWAY_REGISTRY_FILE": "/nowhere/DISTINCTIVE"}, "GATEWAY_REGISTRY_FILE: cannot be read"),
        ({"GATEWAY_REGISTRY_FILE": os.devnull + "/DISTINCTIVE"}, "GATEWAY_REGISTRY_FILE: cannot be read"),
        ({"GATEWAY_REGISTRY_FILE": str(ROOT / "pyproject.toml")}, "GATEWAY_REGISTRY_FILE: build-system: "),
        (
            {"GATEWAY_KAFKA_SECURITY_PROTOCOL": "SSL", "GATEWAY_KAFKA_SSL_CA_FILE": "/nowhere/DISTINCTIVE"},
            "GATEWAY_KAFKA_SSL_CA_FILE: cannot be used",
        ),
    ],
    ids=["port", "no-registry", "no-directory", "not-a-registry", "certificate"],
)
def test_bad_setting_stops_the_start(settings: dict[str, str], line: str, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, **settings)
    assert gateway.process.wait(START_S_MAX) == 2
    assert gateway.output.startswith(line)
    assert len(gateway.output.splitlines()) == 1
    assert "DISTINCTIVE" not in gateway.output


def test_misspelt_variable_is_warned_of_once(others: dict[str, Gateway]) -> None:
    gateway = others["misspelt"]
    gateway.wait_until_live()
    assert gateway.stop(signal.SIGINT) == 0
    assert gateway.output.count("GATEWAY_PROT is not a setting (did you mean GATEWAY_PORT?)") == 1
    assert "DISTINCTIVE" not in gateway.output
