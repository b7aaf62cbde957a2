"""What Linux knows of processes and cores, read from /proc: CPU time in seconds, memory in bytes.

CPU time is what the kernel has charged to all threads of a process and its children, in user and kernel mode; it is
counted in ticks of 10 ms. A process that ends meanwhile counts for nothing.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


class Stat(NamedTuple):
    """A line of /proc/PID/stat, as far as it is of use."""

    pid: int
    parent: int
    cpu_ticks: int


def parse_stat(line: str) -> Stat:
    """The name in parentheses may hold anything, parentheses and spaces too."""
    head, _, rest = line.rpartition(")")
    fields = rest.split()
    return Stat(int(head.split("(", 1)[0]), int(fields[1]), int(fields[11]) + int(fields[12]))


def parse_status_bytes(text: str, name: str) -> int:
    """A field of /proc/PID/status that is given in kB: VmRSS, VmHWM. Raises KeyError."""
    for line in text.splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0]) * 1024
    raise KeyError(name)


def parse_core_ticks(text: str) -> dict[int, int]:
    """/proc/stat: ticks by core that went to processes (user, nice, system), not to interrupts, nor to the host."""
    ticks = {}
    for line in text.splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks[int(name.removeprefix("cpu"))] = sum(map(int, values[:3]))
    return ticks


def descendants(pid: int, stats: Mapping[int, Stat]) -> set[int]:
    """`pid` and all that it has started, as far as their parents live."""
    found: set[int] = set()
    grown = {pid}
    while grown:
        found |= grown
        grown = {stat.pid for stat in stats.values() if stat.parent in grown} - found
    return found


def cpu_s(pid: int) -> float:
    """Of a process and its children. Raises ProcessLookupError if it has ended."""
    stats = {stat.pid: stat for stat in _stats()}
    if pid not in stats:
        raise ProcessLookupError(pid)
    return sum(stats[member].cpu_ticks for member in descendants(pid, stats) if member in stats) / TICKS_PER_S


def cores_cpu_s(cores: Iterable[int]) -> float:
    """That processes have had of these cores, since the machine has started."""
    ticks = parse_core_ticks((PROC / "stat").read_text())
    return sum(ticks.get(core, 0) for core in cores) / TICKS_PER_S


def peak_rss_bytes(pid: int) -> int:
    """The most that a process, without its children, has held in memory. Raises ProcessLookupError."""
    return _status_bytes(pid, "VmHWM")


def rss_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmRSS")


def children(pid: int) -> set[int]:
    """All processes below `pid`."""
    return descendants(pid, {stat.pid: stat for stat in _stats()}) - {pid}


def _status_bytes(pid: int, name: str) -> int:
    try:
        return parse_status_bytes((PROC / str(pid) / "status").read_text(), name)
    except (FileNotFoundError, KeyError):  # a zombie has no memory
        raise ProcessLookupError(pid) from None


def _stats() -> Iterator[Stat]:
    for path in PROC.iterdir():
        if path.name.isdecimal():
            with suppress(OSError):
                yield parse_stat((path / "stat").read_text())
