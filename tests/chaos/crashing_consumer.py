"""The real consumer, that kills itself with SIGKILL at a named step: `CHAOS_STEP`, the `CHAOS_HIT`th time.

The steps are wrapped from outside, so that nothing in the product knows of them.
"""

import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from consumer.__main__ import main
from consumer.clickhouse import ClickHouse
from consumer.dead_letters import DeadLetters
from consumer.ledger import Ledger
from consumer.loop import Consumer
from consumer.lost_rows import LostRows

INSERT_S = 0.02  # about the time an INSERT of these tests takes


class Fuse:
    """Dies at the hit that it was set for."""

    def __init__(self, hit: int) -> None:
        self._left = hit
        self._lock = threading.Lock()

    def burn(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def arm(step: str, fuse: Fuse) -> None:
    if step == "after_intent":
        Ledger.open = _async_then_die(Ledger.open, fuse)  # type: ignore[method-assign]
    elif step == "after_close":
        Ledger.close = _async_then_die(Ledger.close, fuse)  # type: ignore[method-assign]
    elif step == "assigned":
        Consumer.assigned = _async_then_die(Consumer.assigned, fuse)  # type: ignore[method-assign]
    elif step == "revoked":
        Consumer.revoked = _async_then_die(Consumer.revoked, fuse)  # type: ignore[method-assign]
    elif step == "dead_letter_written":
        DeadLetters._copy = _async_then_die(DeadLetters._copy, fuse)  # type: ignore[method-assign]
    elif step == "after_insert":
        ClickHouse.insert = _then_die(ClickHouse.insert, fuse)  # type: ignore[method-assign]
    elif step == "lost_rows_staged":
        LostRows._stage = _then_die(LostRows._stage, fuse)  # type: ignore[method-assign]
    elif step == "lost_rows_moved":
        LostRows._move = _then_die(LostRows._move, fuse)  # type: ignore[method-assign]
    elif step == "during_insert":
        ClickHouse.insert = _die_during(ClickHouse.insert, fuse)  # type: ignore[method-assign]
    else:
        raise ValueError(step)


def _async_then_die(function: Callable[..., Awaitable[Any]], fuse: Fuse) -> Callable[..., Awaitable[Any]]:
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = await function(*args, **kwargs)
        if fuse.burn():
            fuse.die()
        return result

    return wrapped


def _then_die(function: Callable[..., Any], fuse: Fuse) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if fuse.burn():
            fuse.die()
        return result

    return wrapped


def _die_during(function: Callable[..., Any], fuse: Fuse) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if fuse.burn():
            threading.Timer(INSERT_S / 2, fuse.die).start()
        return function(*args, **kwargs)

    return wrapped


if __name__ == "__main__":
    if step := os.environ.get("CHAOS_STEP"):
        arm(step, Fuse(int(os.environ.get("CHAOS_HIT", "1"))))
    main()
