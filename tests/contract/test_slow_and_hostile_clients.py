"""The real process against callers that dawdle, or never stop talking. Others are served meanwhile."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.process import HOST, Process, answers, free_ports

PATH = "/v1/public/apps/demo-shop/interactions"
REQUEST_S = 1.0
WAIT_S_MAX = 15.0
SLOW_CALLERS = 50


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A gateway whose limits are small enough to be reached in a test."""
    directory = tmp_path_factory.mktemp("slow")
    (directory / "registry.toml").write_text("[apps.demo-shop]\n")
    [number] = free_ports(1)
    process = Process(
        "gateway",
        ["python", "-c", _small_limits()],
        log_path=directory / "gateway.log",
        env={
            "PATH": str(Path(__import__("sys").executable).parent),
            "GATEWAY_PORT": str(number),
            "GATEWAY_REGISTRY_FILE": str(directory / "registry.toml"),
            "GATEWAY_SPOOL_DIR": str(directory / "spool"),
            "GATEWAY_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:1",
        },
        is_ready=lambda: answers(number, "/livez"),
    )
    process.start()
    try:
        yield number
    finally:
        process.stop()


def _small_limits() -> str:
    return (
        "import gateway.server as server\n"
        f"server.REQUEST_S_MAX = {REQUEST_S}\n"
        f"server.CONNECTIONS_MAX = {SLOW_CALLERS * 2}\n"
        "from gateway.__main__ import main\n"
        "main()\n"
    )


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, port), timeout=WAIT_S_MAX) as caller:
        yield caller


def read_answer(caller: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and body of what comes until the server hangs up."""
    received = b""
    while chunk := caller.recv(65_536):
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert head, "hung up without an answer"
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


def is_served(port: int) -> bool:
    body = b'{"event_type":"click"}'
    with connected(port) as caller:
        caller.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (PATH.encode(), len(body), body)
        )
        return read_answer(caller)[0] == 200


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"POST ",
        b"POST %b HTTP/1.1\r\nhost: x\r\n" % PATH.encode(),
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n" % PATH.encode(),
        b'POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"event' % PATH.encode(),
        b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n" % PATH.encode(),
    ],
    ids=["nothing", "half a line", "half a head", "no body", "half a body", "half of the chunks"],
)
def test_a_request_that_does_not_end_is_408(port: int, beginning: bytes) -> None:
    began = time.monotonic()
    with connected(port) as caller:
        caller.sendall(beginning)
        assert is_served(port)
        status, body = read_answer(caller)
    assert status == 408
    assert body["error"]["type"] == "RequestTimeoutError"
    assert time.monotonic() - began >= REQUEST_S * 0.9


def test_a_dripping_head_is_408_however_regular_the_drops(port: int) -> None:
    with connected(port) as caller:
        caller.sendall(b"POST %b HTTP/1.1\r\n" % PATH.encode())
        caller.settimeout(REQUEST_S / 20)
        deadline = time.monotonic() + WAIT_S_MAX
        received = b""
        while not received:
            assert time.monotonic() < deadline
            try:
                caller.sendall(b"x: y\r\n")
                received = caller.recv(65_536)
            except TimeoutError:
                continue
    assert received.startswith(b"HTTP/1.1 408")


def test_an_endless_head_is_431(port: int) -> None:
    with connected(port) as caller:
        caller.sendall(b"POST %b HTTP/1.1\r\nx: " % PATH.encode())
        for _ in range(16):  # the last one is too much; anything behind it would meet a closed door
            caller.sendall(b"x" * 4_096)
        status, body = read_answer(caller)
    assert (status, body["error"]["type"]) == (431, "RequestHeaderFieldsTooLargeError")


def test_slow_callers_do_not_stop_others(port: int) -> None:
    callers = [socket.create_connection((HOST, port), timeout=WAIT_S_MAX) for _ in range(SLOW_CALLERS)]
    try:
        for caller in callers:
            caller.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n" % PATH.encode())
        assert is_served(port)
        assert {read_answer(caller)[0] for caller in callers} == {408}
    finally:
        for caller in callers:
            caller.close()


def test_one_connection_too_many_is_503_and_the_next_is_served_again(port: int) -> None:
    callers = [socket.create_connection((HOST, port), timeout=WAIT_S_MAX) for _ in range(SLOW_CALLERS * 2)]
    try:
        with connected(port) as refused:
            status, body = read_answer(refused)
    finally:
        for caller in callers:
            caller.close()
    assert (status, body["error"]["code"]) == (503, "too_many_connections")
    deadline = time.monotonic() + WAIT_S_MAX
    while True:
        try:
            if is_served(port):
                return
        except (AssertionError, OSError):
            pass
        assert time.monotonic() < deadline


def test_a_connection_that_is_kept_alive_is_not_held_to_it(port: int) -> None:
    """The deadline is a request's, not a connection's."""
    body = b'{"event_type":"click"}'
    request = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body)
    with connected(port) as caller:
        ends_at = time.monotonic() + REQUEST_S * 1.5
        while time.monotonic() < ends_at:
            caller.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):
                answer += caller.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200")
