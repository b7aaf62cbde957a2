"""What several unit tests share."""

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest
import structlog

PLAIN = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


@pytest.fixture(autouse=True)
def _plain_tracebacks() -> None:
    """structlog's own show the local variables of every frame, which takes 100 ms."""
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], PLAIN])


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A test module may name its event loop: `LOOP_FACTORY = VirtualTimeLoop`."""
    module = item.getparent(pytest.Module)
    return {"loop": getattr(module and module.obj, "LOOP_FACTORY", asyncio.new_event_loop)}
