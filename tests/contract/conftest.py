"""The real application over HTTP, in process; only its outbox is a double."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.asgi import ASGIApp
from tests.contract.gateway_under_test import Clock, Gateway, RecordingOutbox, serve


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    return serve(tmp_path, monkeypatch)


@pytest.fixture
def outbox(gateway: Gateway) -> RecordingOutbox:
    return gateway.outbox


@pytest.fixture
def app(gateway: Gateway) -> ASGIApp:
    return gateway.app


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http() as client:
        yield client


@pytest.fixture
def clock() -> Clock:
    return Clock()
