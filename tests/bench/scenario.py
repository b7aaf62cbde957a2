"""What a scenario is: a question, how it is measured, and what of that the report shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.bench.bench import Bench
from tests.bench.results import Result


@dataclass(frozen=True)
class Measure:
    """A column of the report: key in a run's figures, title with unit, and decimals."""

    key: str
    title: str
    digits: int = 1


@dataclass(frozen=True)
class Plot:
    """`bars`: one a contestant and case. `lines`: one a contestant, over the number that its cases begin with."""

    kind: Literal["bars", "lines"]
    measure: Measure


@dataclass(frozen=True)
class Scenario:
    """`title` is the question it answers."""

    name: str
    title: str
    run: Callable[[Bench, Result], None]
    measures: tuple[Measure, ...]
    plots: tuple[Plot, ...] = ()


CPU_PER_EVENT = Measure("cpu_us_per_event", "CPU µs an event")
EVENTS_PER_S = Measure("events_per_s", "events/s", 0)
BUSY = Measure("busy", "server's cores busy", 2)
PEAK_RSS = Measure("peak_rss_mb", "peak RSS MB", 0)
CPU_PER_ROW = Measure("cpu_us_per_row", "CPU µs a row", 2)
ROWS_PER_S = Measure("rows_per_s", "rows/s", 0)
ENGINE_CPU_PER_ROW = Measure("engine_cpu_us_per_row", "engine's CPU µs a row", 2)
