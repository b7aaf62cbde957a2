"""Who runs on which cores. A process is pinned by starting it within `pinned`: it inherits the cores of its parent.

With two cores the server under test has one, and the load generator and the stores share the other. What needs more
than that says so in its placement's sentence, which goes into the report.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

Cores = frozenset[int]

NICE = -20


@dataclass(frozen=True)
class Placement:
    server: Cores
    load: Cores
    stores: Cores

    @property
    def sentence(self) -> str:
        parts = {"server under test": self.server, "load generator": self.load, "Kafka and ClickHouse": self.stores}
        by_cores: dict[Cores, list[str]] = {}
        for what, cores in parts.items():
            by_cores.setdefault(cores, []).append(what)
        sentence = "; ".join(f"{' and '.join(names)} on {named(cores)}" for cores, names in by_cores.items())
        return sentence[0].upper() + sentence[1:] + "."


def available() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def one_core_each(cores: Sequence[int]) -> Placement:
    """For servers: one core for the server, the load beside it, the stores on what is left."""
    server = cores[:1]
    load = cores[1:2] or server
    return Placement(frozenset(server), frozenset(load), frozenset(cores[2:] or load))


def several_for_the_server(cores: Sequence[int], count: int) -> Placement:
    """`count` cores for the server, as far as there are; where none is left for others, they share."""
    rest = cores[count:] or cores[1:] or cores
    return Placement(frozenset(cores[:count]), frozenset(rest[:1]), frozenset(rest[1:] or rest))


def stores_unbound(cores: Sequence[int]) -> Placement:
    """For consumers: one core for the consumer; the stores may use all the others, and with two cores that one too:
    the engine on a single core would be the limit, whoever consumes."""
    load = cores[1:2] or cores[:1]
    return Placement(frozenset(cores[:1]), frozenset(load), frozenset(cores[1:] if len(cores) > 2 else cores))


def two_for_all(cores: Sequence[int]) -> Placement:
    """Everything together on two cores."""
    both = frozenset(cores[:2])
    return Placement(both, both, both)


def named(cores: Cores) -> str:
    listed = ", ".join(map(str, sorted(cores)))
    return f"core {listed}" if len(cores) == 1 else f"cores {listed}"


def come_first() -> int:
    """Before the machine's other processes, this one and all that it starts, as far as we may; how nice we are then. A
    kernel thread that looks through the memory would else have a server's core for 12 ms at a time, and be its p99."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    return os.getpriority(os.PRIO_PROCESS, 0)


@contextmanager
def pinned(cores: Cores) -> Iterator[None]:
    """This thread, and whatever it starts within."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
