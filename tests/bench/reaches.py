"""What is asked of Sluice: for each measure what it must reach, and what to reach for. Judged run by run.

A reach against a peer is a ratio of two contestants of the same runs; the others are the measure itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tests.bench.figures import Spread, ratios, spread
from tests.bench.results import Result
from tests.bench.scenarios import consumer, end_to_end, gateway, memory
from tests.bench.scenarios.gateway import FEW, MANY, case


@dataclass(frozen=True)
class Reach:
    """`peer` makes it a ratio. At most `must`, or at least, if `is_floor`. A `case` that ends with * stands for the
    one that begins so: its size is an option."""

    what: str
    scenario: str
    measure: str
    contestant: str
    case: str
    must: float
    reach: float
    peer: str | None = None
    is_floor: bool = False
    unit: str = ""


class Verdict(NamedTuple):
    """`measured` is None if there is nothing to judge, and `reason` says why."""

    measured: Spread | None
    meets_must: bool = False
    meets_reach: bool = False
    reason: str = ""


US = "cpu_us_per_event"
BACKLOG = "*"

REACHES = (
    Reach(
        "single events against the Go gateway, 64 connections: CPU an event",
        "gateway-single", US, gateway.SLUICE, case(FEW), 1.2, 1.0, gateway.GO,
    ),
    Reach(
        "the same, 256 connections",
        "gateway-single", US, gateway.SLUICE, case(MANY), 1.0, 0.9, gateway.GO,
    ),
    Reach(
        "single events against FastAPI + aiokafka, 64 connections: CPU an event",
        "gateway-single", US, gateway.SLUICE, case(FEW), 0.2, 0.15, gateway.FASTAPI,
    ),
    Reach(
        "batch of 100 against our own single event: CPU an event",
        "gateway-batch", US, gateway.BATCHES, case(FEW), 0.15, 0.1, gateway.SLUICE,
    ),
    Reach("p50 at 10 % load", "gateway-latency", "p50_ms", gateway.SLUICE, "10 % load", 2.5, 1.5, unit="ms"),
    Reach("p99 at 70 % of the maximum", "gateway-latency", "p99_ms", gateway.SLUICE, "70 % load", 15, 8, unit="ms"),
    Reach(
        "consumer against the engine alone on one connection: rows/s",
        "consumer", "rows_per_s", consumer.SLUICE, BACKLOG, 0.8, 1.2, consumer.ENGINE, is_floor=True,
    ),
    Reach(
        "consumer against aiokafka getmany alone: CPU a row",
        "consumer", "cpu_us_per_row", consumer.SLUICE, BACKLOG, 0.8, 0.5, consumer.GETMANY,
    ),
    Reach(
        "consumer against a tutorial consumer: rows/s",
        "consumer", "rows_per_s", consumer.SLUICE, BACKLOG, 4, 8, consumer.TUTORIAL, is_floor=True,
    ),
    Reach(
        "accepted → queryable, 3,000 events/s on two cores: p99",
        "end-to-end", "p99_ms", end_to_end.SLUICE, end_to_end.CASE, 2500, 1500, unit="ms",
    ),
    Reach(
        "memory of a gateway worker under full load",
        "memory", "peak_rss_mb", memory.GATEWAY, memory.FULL_LOAD, 200, 100, unit="MB",
    ),
    Reach(
        "memory of a consumer with a backlog of 5 million events",
        "memory", "peak_rss_mb", memory.CONSUMER, BACKLOG, 500, 250, unit="MB",
    ),
)  # fmt: skip


def judge(reach: Reach, results: Mapping[str, Result]) -> Verdict:
    result = results.get(reach.scenario)
    if result is None:
        return Verdict(None, reason="not measured")
    values = _values(result, reach.contestant, reach)
    if reach.peer is not None:
        if reach.peer in result.skipped:
            return Verdict(None, reason=result.skipped[reach.peer])
        values = ratios(values, _values(result, reach.peer, reach))
    if not values:
        return Verdict(None, reason="not measured")
    measured = spread(values)
    return Verdict(measured, _meets(measured.median, reach.must, reach), _meets(measured.median, reach.reach, reach))


def _values(result: Result, contestant: str, reach: Reach) -> list[float]:
    for series in result.series:
        if series.contestant == contestant and _is_case(series.case, reach.case):
            return series.values(reach.measure)
    return []


def _is_case(case: str, wanted: str) -> bool:
    return case.startswith(wanted[:-1]) if wanted.endswith("*") else case == wanted


def _meets(value: float, bound: float, reach: Reach) -> bool:
    return value >= bound if reach.is_floor else value <= bound
