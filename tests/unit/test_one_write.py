"""gateway.server.OneWrite: an answer's head and body leave in one write, and nothing is ever kept back for good."""

import asyncio
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.asgi import Receive, Scope, Send
from gateway.server import HttpProtocol, OneWrite

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class FakeTransport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def one_write(transport: FakeTransport) -> OneWrite:
    return OneWrite(transport)  # type: ignore[arg-type]


def test_head_waits_for_the_body(one_write: OneWrite, transport: FakeTransport) -> None:
    one_write.write(HEAD)
    assert transport.writes == []
    one_write.write(b"{}")
    assert transport.writes == [HEAD + b"{}"]
    one_write.write(b"more")
    assert transport.writes == [HEAD + b"{}", b"more"]


def test_head_without_a_body_leaves_at_the_end(one_write: OneWrite, transport: FakeTransport) -> None:
    one_write.write(HEAD)
    one_write.flush()
    one_write.flush()
    assert transport.writes == [HEAD]


def test_head_leaves_before_the_connection_is_closed(one_write: OneWrite, transport: FakeTransport) -> None:
    one_write.write(HEAD)
    one_write.close()
    assert transport.writes == [HEAD]
    assert transport.closed


def test_interim_answer_does_not_wait(one_write: OneWrite, transport: FakeTransport) -> None:
    """The caller sends no body before it has that."""
    one_write.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
async def test_answers_of_the_server_are_one_write(method: bytes, transport: FakeTransport) -> None:
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})
        done.set()

    config = Config(app, http=HttpProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    protocol = HttpProtocol(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(transport)  # type: ignore[arg-type]
    for _ in range(2):
        done.clear()
        protocol.data_received(method + b" / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
        await done.wait()
    assert [write[-4:] for write in transport.writes] == [b"\r\n{}" if method == b"POST" else b"\r\n\r\n"] * 2
    protocol.connection_lost(None)
