"""A client of aiokafka's is gone when `schemas.kafka.stop` has returned, whatever its own way to stop does."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError

from schemas import kafka
from tests.unit.virtual_time import VirtualTimeLoop

LOOP_FACTORY = VirtualTimeLoop
Ending = Callable[[], Awaitable[None]]


def now() -> float:
    return asyncio.get_running_loop().time()


class Connections:
    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Stops as it is told to, and has tasks like those of a fetcher."""

    _closed = True  # for `__del__`

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._client = Connections()
        self.tasks = {asyncio.ensure_future(asyncio.Event().wait()) for _ in range(2)}
        fetching, *pending = self.tasks
        self._fetcher = SimpleNamespace(_fetch_task=fetching, _pending_tasks=set(pending))

    async def stop(self) -> None:
        await self._ending()


async def in_order() -> None: ...


async def one_of_its_tasks_is_cancelled() -> None:
    task = asyncio.ensure_future(asyncio.sleep(1))
    task.cancel()
    await task


async def fails() -> None:
    raise KafkaConnectionError


async def hangs() -> None:
    await asyncio.Event().wait()


async def overhears_that_it_is_cancelled() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def fails_when_it_is_cancelled() -> None:
    await overhears_that_it_is_cancelled()
    raise KafkaConnectionError


async def overhears_it_and_hangs() -> None:
    await overhears_that_it_is_cancelled()
    await hangs()


@pytest.mark.parametrize(
    ("ending", "seconds"),
    [
        (one_of_its_tasks_is_cancelled, 0),
        (fails, 0),
        (hangs, 3),
        (overhears_that_it_is_cancelled, 3),
        (fails_when_it_is_cancelled, 3),
        (overhears_it_and_hangs, 3 + kafka.TOLD_AGAIN_S),
    ],
)
async def test_what_does_not_stop_in_order_is_stopped_by_force(ending: Ending, seconds: float) -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    client = Consumer(ending)
    await kafka.stop(client, 3)
    assert now() == pytest.approx(seconds)
    assert client._client.closed
    await asyncio.wait(client.tasks, timeout=1)
    assert all(task.cancelled() for task in client.tasks)
    gc.collect()
    assert not [each for each in complaints if "exception" in each], "an error that nobody has looked at"


async def test_what_stops_in_order_is_left_to_it() -> None:
    client = Consumer(in_order)
    await kafka.stop(client)
    assert not client._client.closed
    assert not any(task.done() for task in client.tasks)


async def test_who_is_cancelled_does_not_wait_and_the_client_ends_all_the_same() -> None:
    client = Consumer(hangs)
    caller = asyncio.ensure_future(kafka.stop(client, 3))
    await asyncio.sleep(1)
    caller.cancel()
    await asyncio.wait({caller})
    assert (caller.cancelled(), now()) == (True, 1)
    await asyncio.sleep(2.5)
    assert client._client.closed
