"""Requests leave no cycles behind: the collector may rest, as `gateway.__main__` tells it to, and memory stays flat."""

import asyncio
import gc
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.app import compose
from gateway.metrics import Metrics
from gateway.server import HttpProtocol
from gateway.settings import GatewaySettings
from tests.contract.gateway_under_test import APP_PATH, RETRIEVER_PATH, RecordingOutbox, write_registry
from tests.unit.fake_transport import FakeTransport

REQUESTS = {
    "accepted": (APP_PATH, b'{"event_type":"click"}', b"200"),
    "invalid": (APP_PATH, b'{"event_type":1}', b"422"),
    "no JSON": (APP_PATH, b"{", b"422"),
    "unauthorized": (RETRIEVER_PATH, b"{}", b"401"),
    "unknown": (APP_PATH.replace("demo", "other"), b"{}", b"404"),
    "batch": (APP_PATH + "/batch", b'[{"event_type":"click"},{"event_type":1}]', b"200"),
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
def config(tmp_path: Path) -> Config:
    settings = GatewaySettings(registry_file=write_registry(tmp_path))
    app = compose(settings, RecordingOutbox(), Metrics(CollectorRegistry()))
    config = Config(app, http=HttpProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    return config


async def exchange(config: Config, kind: str, connections: int) -> None:
    path, body, status = REQUESTS[kind]
    state = ServerState()
    for _ in range(connections):
        transport = Transport()
        protocol = HttpProtocol(config=config, server_state=state, app_state={})
        protocol.connection_made(transport)  # type: ignore[arg-type]
        for _ in range(3):
            request = (
                b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (path.encode(), len(body), body)
            )
            protocol.get_buffer(-1)[: len(request)] = request
            protocol.buffer_updated(len(request))
            async with asyncio.timeout(10):
                await transport.answered.wait()
            transport.answered.clear()
            await asyncio.gather(*state.tasks)
        protocol.connection_lost(None)
        assert [write[9:12] for write in transport.writes] == [status] * 3


@pytest.mark.parametrize("kind", REQUESTS)
async def test_requests_leave_no_cycles(config: Config, kind: str) -> None:
    await exchange(config, kind, 20)
    gc.collect()
    gc.disable()
    try:
        await exchange(config, kind, ROUNDS)
        assert gc.collect() < OBJECTS_MAX
    finally:
        gc.enable()
