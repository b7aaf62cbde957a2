"""Pure: what several runs say together. Medians and ranges, ratios run by run, percentiles, a steady pace."""

from bisect import bisect_left
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

STEADY = (0.1, 0.9)
"""The part of a backlog by which pace is judged: behind the start, and before the last batches wait for their age."""


class Spread(NamedTuple):
    """Of one measure over its runs."""

    median: float
    low: float
    high: float
    runs: int


class Point(NamedTuple):
    """A running total `value` at a time, s."""

    at_s: float
    value: float


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for no runs at all."""
    if not values:
        raise ValueError("no runs")
    return Spread(median(values), min(values), max(values), len(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Run by run: the two of one run have met the same machine. Runs that only one of them has do not count."""
    return [one / other for one, other in zip(ours, theirs, strict=False) if other]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least value that `percent` of all do not exceed (nearest rank). Raises ValueError for no values."""
    if not ordered:
        raise ValueError("no values")
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def cumulated(steps: Sequence[Point]) -> list[Point]:
    """From what came at each time to how much there was."""
    total, points = 0.0, []
    for at_s, value in sorted(steps):
        total += value
        points.append(Point(at_s, total))
    return points


def pace(points: Sequence[Point]) -> float:
    """What comes in a second between the first and the last tenth of the whole (`STEADY`). `points` ascend.

    Raises ValueError where there are too few to tell.
    """
    if not points:
        raise ValueError("nothing came")
    whole = points[-1].value
    first, last = (points[bisect_left(points, share * whole, key=lambda point: point.value)] for share in STEADY)
    if last.at_s <= first.at_s:
        first, last = points[0], points[-1]
    if last.at_s <= first.at_s:
        raise ValueError("everything came at once")
    return (last.value - first.value) / (last.at_s - first.at_s)
