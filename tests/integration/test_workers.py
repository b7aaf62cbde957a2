"""Several workers are one gateway: they share the port, the metrics add up, and a dead one is replaced."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.process import Process, free_ports
from deploy.local.stack import Ports, Stack
from tests.integration.test_pipeline import APP

EVENTS = 200
WAIT_S_MAX = 60


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str]]:
    directory = tmp_path_factory.mktemp("workers")
    with Stack(directory, Ports.free(), parts=("kafka", "clickhouse")) as stack:
        stack.migrate()
        [port] = free_ports(1)
        process = stack.new_gateway("gateway-workers", port, {"GATEWAY_WORKERS": "2"})
        process.start()
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def workers(process: Process) -> list[int]:
    log = Path(process.log_path).read_text()
    started = [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log)]
    return [pid for pid in started if Path(f"/proc/{pid}").exists()]


def metric(url: str, line: str) -> float:
    page = httpx.get(f"{url}/metrics", verify=False).text
    return sum(float(found) for found in re.findall(rf"^{re.escape(line)} (\S+)$", page, re.MULTILINE))


def send(url: str) -> None:
    for n in range(EVENTS):  # a connection each, so that both workers get some; to make TLS for each would take long
        assert httpx.post(url + APP, json={"event_type": "worker", "n": n}, verify=False).status_code == 200


def eventually(condition: Callable[[], bool]) -> None:
    """The worker that answers does not know what the other is about to tell (`gateway.metrics.Tally`)."""
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the workers in /proc")
def test_metrics_add_up_over_workers_and_their_deaths(gateway: tuple[Process, str]) -> None:
    process, url = gateway
    received = 'gateway_events_received_total{stream="app_interactions"}'
    accepted = 'gateway_events_accepted_total{durability="kafka",stream="app_interactions"}'
    send(url)
    eventually(lambda: metric(url, received) == metric(url, accepted) == EVENTS)
    first = workers(process)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    eventually(lambda: bool(set(workers(process)) - set(first)))
    send(url)
    spooled = 'gateway_events_accepted_total{durability="spool",stream="app_interactions"}'
    eventually(lambda: metric(url, received) == metric(url, accepted) + metric(url, spooled) == 2 * EVENTS)
    assert process.stop()
    assert process.exit_code == 0
