"""gateway.metrics.Tally: what was counted is told soon, before anybody looks, and before the worker ends."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateway.app import compose
from gateway.asgi import Message
from gateway.metrics import TALLY_S, Metrics, Tally
from gateway.settings import GatewaySettings
from tests.contract.gateway_under_test import RecordingOutbox, write_registry
from tests.unit.virtual_time import VirtualTimeLoop

LOOP_FACTORY = VirtualTimeLoop

STREAM = "app_interactions"


class Counting:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.tally: Tally = self.metrics.received(STREAM)

    @property
    def told(self) -> float:
        """What the counter has, and with several workers its file: without a look at the page, which asks for more."""
        value: float = self.metrics._received.labels(STREAM)._value.get()
        return value

    @property
    def shown(self) -> float | None:
        return self.registry.get_sample_value("gateway_events_received_total", {"stream": STREAM})


@pytest.fixture
def counting() -> Counting:
    return Counting()


def timers() -> int:
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not timer.cancelled() for timer in scheduled)


async def test_is_told_a_little_later(counting: Counting) -> None:
    for amount in (1, 5, 1):
        counting.tally.inc(amount)
    assert (counting.told, timers()) == (0, 1)
    await asyncio.sleep(TALLY_S + 0.001)
    assert (counting.told, timers()) == (7, 0)
    counting.tally.inc()
    await asyncio.sleep(TALLY_S + 0.001)
    assert counting.told == 8


async def test_is_told_when_the_page_is_read(counting: Counting) -> None:
    counting.tally.inc(3)
    assert counting.shown == 3
    assert b'gateway_events_received_total{stream="app_interactions"} 3.0' in counting.metrics.render()
    counting.tally.inc()
    await asyncio.sleep(TALLY_S + 0.001)  # the timer of the first may be the second's, too
    assert counting.told == counting.shown == 4


async def test_is_told_before_what_became_of_it(counting: Counting) -> None:
    """Or a worker that is killed would have accepted more than it has received."""
    for number in range(3):
        counting.tally.inc(2)
        counting.metrics.accepted(STREAM, "kafka", 1)
        assert counting.told == 3 * number + 2
        counting.tally.inc()
        counting.metrics.refused(STREAM, "503", "ServiceUnavailableError", 1)
        assert counting.told == 3 * number + 3
    assert timers() == 1


async def test_tallies_of_one_counter_add_up(counting: Counting) -> None:
    """One an endpoint: single events and batches are counted together."""
    other = counting.metrics.received(STREAM)
    counting.tally.inc(2)
    other.inc(3)
    counting.metrics.pass_on()
    counting.metrics.pass_on()
    assert counting.told == 5


async def test_what_was_counted_last_is_told_when_the_worker_stops(tmp_path: Path) -> None:
    """With several workers, the counts of one outlive it."""
    counting = Counting()

    class Outbox(RecordingOutbox):
        async def stop(self, deadline_s: float) -> None:
            counting.tally.inc(5)  # callers whose connections are still open

    app = compose(GatewaySettings(registry_file=write_registry(tmp_path)), Outbox(), counting.metrics)
    messages: asyncio.Queue[Message] = asyncio.Queue()
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            counting.tally.inc(2)
            await messages.put({"type": "lifespan.shutdown"})

    await messages.put({"type": "lifespan.startup"})
    await app({"type": "lifespan", "state": {}}, messages.get, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert counting.told == 7
