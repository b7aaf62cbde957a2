"""`python -m deploy.local demo`: the whole pipeline, as a newcomer meets it; and what it does when things go wrong."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest

from deploy.local import demo_traffic
from deploy.local.demo_answers import Answers
from deploy.local.demo_audit import Audit
from deploy.local.demo_traffic import REFUSED_MAX, Traffic
from deploy.local.process import Failure, is_port_free
from deploy.local.shop import events
from deploy.local.stack import Ports, Stack, running

APP, RETRIEVER = "app_interactions", "retriever_interactions"


def command(data_dir: Path, ports: Ports | None, count: int) -> list[str]:
    options = [] if ports is None else [f"--{name}-port={port}" for name, port in asdict(ports).items()]
    return [sys.executable, "-m", "deploy.local", "demo", f"--events={count}", f"--data-dir={data_dir}", *options]


def run(data_dir: Path, ports: Ports | None, count: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(data_dir, ports, count), capture_output=True, text=True, timeout=150)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def assert_nothing_runs(data_dir: Path, ports: Ports) -> None:
    assert running(data_dir) is None
    assert all(map(is_port_free, asdict(ports).values()))


def test_a_newcomer_sees_every_event_arrive_once(data_dir: Path) -> None:
    ports = Ports.free()
    demo = run(data_dir, ports, 300)
    assert (demo.returncode, demo.stderr) == (0, "")
    assert re.search(r"^together +300 +300 +300 +300$", demo.stdout, re.MULTILINE)
    assert "Exactly once: all 300 events are there, and none twice." in demo.stdout
    for title in ("What arrived", "What happened", "How fast", "Where they clicked", "What they searched for"):
        assert re.search(rf"\b{title}\b", demo.stdout)
    assert re.search(r"received to inserted, p99 +\d+\.\d\d s", demo.stdout)
    assert f"make up ARGS='--data-dir {data_dir} --gateway-port {ports.gateway}" in demo.stdout
    assert max(len(line) for line in demo.stdout.splitlines() if str(data_dir) not in line) <= 80
    assert_nothing_runs(data_dir, ports)


def test_ctrl_c_stops_what_it_started_and_leaves_no_traceback(data_dir: Path) -> None:
    ports = Ports.free()
    demo = subprocess.Popen(
        command(data_dir, ports, 100_000), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert demo.stdout
    while "A shop's visitors" not in demo.stdout.readline():
        assert demo.poll() is None
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (130, "")
    assert out.endswith("Interrupted.\n")
    assert_nothing_runs(data_dir, ports)


def test_a_stack_that_is_up_is_used_and_left_alone(data_dir: Path) -> None:
    with Stack(data_dir, Ports.free()) as stack:
        for _ in range(2):  # the rows of another run in the same tables are not counted
            demo = run(data_dir, None, 50)
            assert (demo.returncode, demo.stderr) == (0, "")
            assert demo.stdout.startswith(f"Using the stack that is up in {data_dir} (pid {os.getpid()})\n")
            assert "Exactly once: all 50 events are there" in demo.stdout
        assert running(data_dir) == stack.endpoints
        advice = demo.stdout.partition("while it runs:\n")[2]
        shown = subprocess.run(advice, shell=True, capture_output=True, text=True, timeout=30)
        assert shown.stdout.count("event_id:") == 2


Answer = Callable[[int], bytes | None]
"""What to answer to the n-th request; None closes the connection instead."""


@asynccontextmanager
async def gateway(answer: Answer) -> AsyncIterator[str]:
    """The URL of a server that reads requests and answers as told."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while head := await _head(reader):
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length
            await reader.readexactly(int(length[1]))
            asked += 1
            body = answer(asked)
            if body is None:
                break
            writer.write(body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


def taken(number: int) -> bytes:
    return http("200 OK", f'{{"success":true,"event_id":"id-{number}"}}')


async def send(url: str, count: int) -> Traffic:
    traffic = Traffic(url)
    await traffic.send(islice(events(1, "test"), count))
    return traffic


@pytest.fixture
def _without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_traffic, "RETRY_DELAYS_S", (0, 0))


@pytest.mark.usefixtures("_without_delay")
async def test_tries_again_and_remembers_what_may_have_arrived() -> None:
    def flaky(number: int) -> bytes | None:
        return {1: None, 2: http("503 Service Unavailable", "not now")}.get(number, taken(number))

    async with gateway(flaky) as url:
        traffic = await send(url, 40)
    assert traffic.acknowledged_count == traffic.sent.total() == 40
    assert (traffic.retries, traffic.unanswered, traffic.refused) == (2, 2, {})


@pytest.mark.usefixtures("_without_delay")
async def test_gives_an_event_up_after_a_few_tries_or_at_once_if_it_is_its_own_fault() -> None:
    async with gateway(lambda _: http("503 Service Unavailable", "not now")) as url:
        traffic = await send(url, 1)
    assert (traffic.retries, traffic.refused) == (2, {"HTTP 503: not now": 1})

    async with gateway(lambda _: http("422 Unprocessable Entity", "wrong")) as url:
        traffic = await send(url, 1_000)
    assert (traffic.retries, traffic.unanswered) == (0, 0)
    assert REFUSED_MAX <= traffic.refused["HTTP 422: wrong"] <= REFUSED_MAX + demo_traffic.CONNECTIONS
    assert traffic.acknowledged_count == 0


@pytest.mark.usefixtures("_without_delay")
async def test_what_was_never_sent_cannot_have_arrived() -> None:
    async with gateway(taken) as url:
        pass
    traffic = await send(url, 1)
    assert (traffic.refused.total(), traffic.unanswered) == (1, 0)


def test_clickhouse_that_does_not_answer_is_a_failure_in_one_line() -> None:
    url = f"http://127.0.0.1:{Ports.free().clickhouse}"
    with pytest.raises(Failure, match=rf"^ClickHouse at {url} did not answer:$"):
        Answers(url, "test")


def audit(acknowledged: list[str], stored: list[str], unanswered: int = 0, sent: int | None = None) -> Audit:
    traffic = Traffic("http://127.0.0.1")
    traffic.acknowledged[APP] = acknowledged
    traffic.sent[APP] = len(acknowledged) if sent is None else sent
    traffic.unanswered = unanswered
    return Audit.of(traffic, {APP: stored, RETRIEVER: []})


def test_exactly_once_is_every_acknowledged_event_in_one_row() -> None:
    assert audit(["a", "b"], ["b", "a"]).faults == []
    assert audit(["a", "b"], ["a", "c"]).faults == [
        "1 acknowledged but not queryable in time",
        "1 stored but never sent",
    ]
    assert audit(["a", "b"], ["a", "b", "b"]).faults == ["1 stored again"]
    assert audit(["a", "a"], ["a"]).faults == ["1 answered with another event's id"]
    assert audit(["a"], ["a"], sent=2).faults == ["1 not accepted"]


def test_a_row_without_an_acknowledgement_needs_a_try_without_an_answer() -> None:
    assert audit(["a"], ["a", "b"]).faults == ["1 stored but never sent"]
    assert audit(["a"], ["a", "b"], unanswered=1).faults == []
    assert audit(["a"], ["a", "b", "c"], unanswered=1).faults == ["1 stored but never sent"]
