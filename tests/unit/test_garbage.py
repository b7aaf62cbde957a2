"""Requests leave no cycles behind: the collector may rest, as `schemas.memory` tells it to, and memory stays flat."""

import asyncio
import gc
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.same_head import MISSES_MAX
from gateway.server import HttpProtocol
from tests.contract.gateway_under_test import (
    APP_PATH,
    CREDENTIALS,
    RETRIEVER_PATH,
    Clock,
    Gateway,
    registry,
    serve,
)
from tests.unit.fake_transport import FakeTransport

EVENT_BYTES_MAX = 1_024


@dataclass(frozen=True)
class Sent:
    """A request, and the status of its answer. `reloads`: just before it, the registry is."""

    status: int
    body: bytes = b'{"event_type":"click"}'
    path: str = APP_PATH
    headers: bytes = b""
    reloads: bool = False


ACCEPTED, INVALID, NO_JSON = Sent(200), Sent(422, b'{"event_type":1}'), Sent(422, b"{")
TO_RETRIEVER = Sent(
    200,
    b'{"document_id":"d","interaction_type":["view"],"position":0}',
    RETRIEVER_PATH,
    "".join(f"{name}: {value}\r\n" for name, value in CREDENTIALS.items()).encode(),
)

# What a connection is used for. Behind one that was accepted, those with its head are answered without a task.
REQUESTS = {
    "accepted": [ACCEPTED] * 3,
    "invalid": [INVALID] * 3,
    "invalid behind accepted": [ACCEPTED, INVALID, ACCEPTED, NO_JSON],
    "no JSON": [NO_JSON] * 3,
    "unauthorized": [Sent(401, b"{}", RETRIEVER_PATH)] * 3,
    "unknown": [Sent(404, b"{}", APP_PATH.replace("demo", "other"))] * 3,
    "batch": [Sent(200, b'[{"event_type":"click"},{"event_type":1}]', APP_PATH + "/batch")] * 3,
    "too large behind accepted": [ACCEPTED, ACCEPTED, Sent(413, b" " * EVENT_BYTES_MAX + b"{}")],
    "over the quota": [TO_RETRIEVER, replace(TO_RETRIEVER, status=429), replace(TO_RETRIEVER, status=429)],
    "reloaded": [ACCEPTED, ACCEPTED, replace(ACCEPTED, reloads=True), ACCEPTED],
    "heads that differ": [replace(ACCEPTED, headers=b"x: %d\r\n" % n) for n in range(MISSES_MAX + 3)],
    "the outbox fails": [ACCEPTED, Sent(500, b'{"event_type":"fails"}'), ACCEPTED],
}
ROUNDS = 300
OBJECTS_MAX = 50  # there are none; a cycle in each request would be thousands


class Transport(FakeTransport):
    def __init__(self) -> None:
        super().__init__()
        self.answered = asyncio.Event()

    def write(self, data: bytes) -> None:
        super().write(data)
        self.answered.set()


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    text = registry(retriever=["quota = { events_per_second = 0.001, burst = 1 }"])
    return serve(tmp_path, monkeypatch, text, clock=Clock(), event_bytes_max=EVENT_BYTES_MAX)


def config_of(gateway: Gateway) -> Config:
    config = Config(gateway.app, http=HttpProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    return config


async def exchange(gateway: Gateway, config: Config, kind: str, connections: int) -> None:
    state = ServerState()
    for _ in range(connections):
        gateway.clock.pass_(1_000)
        transport = Transport()
        protocol = HttpProtocol(config=config, server_state=state, app_state={})
        protocol.connection_made(transport)  # type: ignore[arg-type]
        for sent in REQUESTS[kind]:
            if sent.reloads:
                gateway.registry.current = replace(gateway.registry.current)
            gateway.outbox.fault = ValueError("fails") if b"fails" in sent.body else None
            head = b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" % sent.path.encode()
            request = b"%b%bcontent-length: %d\r\n\r\n%b" % (head, sent.headers, len(sent.body), sent.body)
            protocol.get_buffer(-1)[: len(request)] = request
            protocol.buffer_updated(len(request))
            async with asyncio.timeout(10):
                await transport.answered.wait()
            transport.answered.clear()
            await asyncio.gather(*state.tasks)
        protocol.connection_lost(None)
        assert [int(write[9:12]) for write in transport.writes] == [sent.status for sent in REQUESTS[kind]]
        gateway.outbox.records.clear()


@pytest.mark.parametrize("kind", REQUESTS)
async def test_requests_leave_no_cycles(gateway: Gateway, kind: str) -> None:
    config = config_of(gateway)
    await exchange(gateway, config, kind, 20)
    gc.collect()
    gc.disable()
    try:
        await exchange(gateway, config, kind, ROUNDS)
        assert gc.collect() < OBJECTS_MAX
    finally:
        gc.enable()
