"""Figures as PNG images: bars by contestant, lines over what a scenario varies. Whiskers and bands are the ranges."""

import re
from pathlib import Path

import matplotlib

from tests.bench.results import Result, Series
from tests.bench.scenario import Measure, Plot, Scenario

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

OURS = "#1f6f8b"
THEIRS = "#b8b8b8"
LIMIT = "#e3d3a4"
DPI = 110


def draw(scenario: Scenario, result: Result, directory: Path) -> list[Path]:
    """One image a plot; those without any figures are left out."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for plot in scenario.plots:
        if any(series.values(plot.measure.key) for series in result.series):
            path = directory / f"{scenario.name}-{plot.measure.key}.png"
            _draw(scenario, plot, result, path)
            paths.append(path)
    return paths


def _draw(scenario: Scenario, plot: Plot, result: Result, path: Path) -> None:
    rows = len([series for series in result.series if series.values(plot.measure.key)])
    height = 1.3 + 0.32 * rows if plot.kind == "bars" else 3.2
    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    (_bars if plot.kind == "bars" else _lines)(axes, plot.measure, result)
    axes.set_title(f"{scenario.name}: {plot.measure.title}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _bars(axes: Axes, measure: Measure, result: Result) -> None:
    shown = [series for case in result.cases for series in result.series if series.case == case]
    shown = [series for series in shown if series.values(measure.key)]
    for place, series in enumerate(shown):
        found = series.spread(measure.key)
        assert found is not None
        axes.barh(place, found.median, color=_colour(series), height=0.75)
        axes.plot([found.low, found.high], [place, place], color="#333333", linewidth=1.2)
        text = f" {found.median:,.{measure.digits}f}"
        axes.text(found.high, place, text, va="center", fontsize=8)
    names = [f"{series.contestant} · {series.case}" if len(result.cases) > 1 else series.contestant for series in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)


def _lines(axes: Axes, measure: Measure, result: Result) -> None:
    for contestant in result.contestants:
        points = []
        for series in result.series:
            found = series.spread(measure.key) if series.contestant == contestant else None
            if found is not None:
                points.append((_number(series.case), found))
        points.sort()
        places = [str(f"{number:g}") for number, _ in points]
        spreads = [found for _, found in points]
        axes.plot(places, [found.median for found in spreads], marker="o", color=OURS, label=contestant)
        axes.fill_between(
            places, [found.low for found in spreads], [found.high for found in spreads], color=OURS, alpha=0.15
        )
    axes.set_xlabel(re.sub(r"^[\d.,]+ ", "", result.cases[-1]), fontsize=8)
    axes.set_ylim(bottom=0)


def _number(case: str) -> float:
    match = re.match(r"[\d.]+", case)
    return float(match[0]) if match else 0.0


def _colour(series: Series) -> str:
    if series.contestant.startswith("limit"):
        return LIMIT
    return OURS if series.contestant.startswith("Sluice") else THEIRS
