"""What all scenarios share: options, cores, stacks of stores, interleaved runs, what a run has cost."""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from deploy.local.stack import STORES, Ports, Stack
from tests.bench import cores, proc
from tests.bench.cores import Placement, pinned
from tests.bench.progress import Bars

T = TypeVar("T")

FOREIGN_MAX = 0.05
"""Share of the server's core that others may have before a run is doubtful."""


@dataclass(frozen=True)
class Options:
    """`table_rows` are those that lie in the table already, in the scenario that asks what difference they make."""

    runs: int = 5
    seconds: float = 6
    warm_up_s: float = 2
    backlog_rows: int = 2_000_000
    memory_rows: int = 5_000_000
    table_rows: int = 100_000_000
    is_quick: bool = False

    @classmethod
    def quick(cls) -> "Options":
        """To see that everything runs. Its figures mean nothing."""
        return cls(1, 2, 1, backlog_rows=400_000, memory_rows=400_000, table_rows=1_000_000, is_quick=True)


@dataclass(frozen=True)
class Cost:
    """Of a server over some time. `busy` is the share of its cores that it had, `foreign` what other processes had of
    them: above all then is the machine not ours."""

    seconds: float
    cpu_s: float
    busy: float
    foreign: float


class Meter:
    """What a process and its children take from now on, and what others take of its cores meanwhile."""

    def __init__(self, pid: int, placement: Placement) -> None:
        self._pid = pid
        self._cores = placement.server
        self._at_s, self._cpu_s, self._cores_cpu_s = self._now()

    def read(self) -> Cost:
        at_s, cpu_s, cores_cpu_s = self._now()
        seconds, used_s = at_s - self._at_s, cpu_s - self._cpu_s
        whole_s = seconds * len(self._cores)
        foreign_s = max(0.0, cores_cpu_s - self._cores_cpu_s - used_s)
        return Cost(seconds, used_s, used_s / whole_s, foreign_s / whole_s)

    def _now(self) -> tuple[float, float, float]:
        return time.monotonic(), proc.cpu_s(self._pid), proc.cores_cpu_s(self._cores)


class Bench:
    """`directory` is for all that is written: results, binaries, and the stores' data while they run."""

    def __init__(self, options: Options, directory: Path, bars: Bars) -> None:
        self.options = options
        self.directory = directory
        self.bars = bars
        self.cores = cores.available()

    @property
    def closed_loop(self) -> str:
        """How long servers are under load, for the report."""
        return f"{self.options.seconds:g} s of load behind {self.options.warm_up_s:g} s to warm up."

    @contextmanager
    def stack(
        self,
        name: str,
        placement: Placement,
        *,
        parts: Collection[str] = STORES,
        partitions: int = 4,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[Stack]:
        """Stores with empty topics and tables, on their cores; gone afterwards."""
        data_dir = self.directory / "stacks" / name
        shutil.rmtree(data_dir, ignore_errors=True)
        environment = {
            "CONSUMER_TOPIC_PARTITIONS": str(partitions),
            "CONSUMER_LOG_LEVEL": "info",  # some lines a start, none a row
            "GATEWAY_LOG_LEVEL": "warning",
            **(env or {}),
        }
        stack = Stack(data_dir, Ports.free(), parts=parts, env=environment)
        try:
            with self.bars.bar(f"{name}: starting {', '.join(parts)}", 1), pinned(placement.stores):
                stack.start()
                if set(parts) == set(STORES):
                    stack.migrate()
            yield stack
        finally:
            stack.stop()
            shutil.rmtree(data_dir, ignore_errors=True)

    def interleaved(self, what: str, contestants: Sequence[T], name: Callable[[T], str]) -> Iterator[T]:
        """A B C, A B C, …: what drifts, drifts for all of them."""
        runs = self.options.runs
        with self.bars.steps(what, runs * len(contestants)) as begin:
            for run in range(runs):
                for contestant in contestants:
                    begin(f"{name(contestant)}, run {run + 1}")
                    yield contestant
