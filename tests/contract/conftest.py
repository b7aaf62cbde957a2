"""The real application over HTTP, in process; only its outbox is a double."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gateway.app import compose
from gateway.asgi import ASGIApp
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from tests.contract.gateway_under_test import EVENT_BYTES_MAX, RecordingOutbox, write_registry


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def outbox() -> RecordingOutbox:
    return RecordingOutbox()


@pytest.fixture
def app(tmp_path: Path, outbox: RecordingOutbox) -> ASGIApp:
    settings = GatewaySettings(registry_file=write_registry(tmp_path))
    assert settings.event_bytes_max == EVENT_BYTES_MAX  # what the tests say of the default is so
    return compose(settings, outbox, Metrics(CollectorRegistry()))


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
