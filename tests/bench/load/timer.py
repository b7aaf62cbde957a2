"""A timer of an event loop that is late by microseconds: the loops' own round up to a whole millisecond.

On Linux by a timerfd, which Python has only from 3.13 on. Where there is none, the loop's own timer.
"""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class _Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]


class _Setting(ctypes.Structure):
    _fields_ = [("every", _Time), ("at", _Time)]


class Timer:
    """Calls `due` once for each `set`. Times are those of time.monotonic()."""

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[], None]) -> None:
        self._loop = loop
        self._due = due
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd >= 0:
            self._setting = _Setting()
            loop.add_reader(self._fd, self._expired)

    def set(self, at_s: float) -> None:
        if self._fd < 0:
            self._loop.call_at(at_s - time.monotonic() + self._loop.time(), self._due)
            return
        self._setting.at.s = int(at_s)
        self._setting.at.ns = max(1, int(at_s % 1 * 1e9))
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._setting), None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _expired(self) -> None:
        os.read(self._fd, 8)
        self._due()
