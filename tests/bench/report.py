"""Results as Markdown: the reaches first, then a table a scenario, the machine, and what to know about the figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.figures import Spread
from tests.bench.reaches import REACHES, Reach, Verdict, judge
from tests.bench.results import Result, Series
from tests.bench.scenario import Measure, Scenario

BEGIN, END = "<!-- bench: written by make bench ARGS=--write -->", "<!-- /bench -->"


def render(scenarios: Sequence[Scenario], results: Mapping[str, Result], plots: Mapping[str, Sequence[str]]) -> str:
    """`plots` are the paths of each scenario's images, as the document is to name them."""
    parts = [reaches_table(results)]
    for scenario in scenarios:
        if scenario.name in results:
            parts.append(_section(scenario, results[scenario.name], plots.get(scenario.name, ())))
    parts.append("### The machine\n")
    parts += dict.fromkeys(machine_sentence(result) for result in results.values())
    return "\n".join(parts)


def reaches_table(results: Mapping[str, Result]) -> str:
    lines = [
        "| what | measured: median (range) | must | reach for | |",
        "|---|--:|--:|--:|---|",
    ]
    for reach in REACHES:
        verdict = judge(reach, results)
        measured = verdict.reason if verdict.measured is None else _with_range(verdict.measured, _digits(reach))
        unit = f" {reach.unit}" if reach.unit and verdict.measured is not None else ""
        sign = "≥" if reach.is_floor else "≤"
        bounds = f"{sign} {reach.must:g} | {sign} {reach.reach:g}"
        lines.append(f"| {reach.what} | {measured}{unit} | {bounds} | {_word(verdict)} |")
    return "\n".join(lines) + "\n"


def machine_sentence(result: Result) -> str:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, Linux {machine['kernel']}, "
        f"nice {machine['nice']}, Python {machine['python']}, {versions}.\n"
    )


def series_table(measures: Sequence[Measure], result: Result) -> str:
    """Medians and ranges, case by case."""
    shown = [measure for measure in measures if any(series.values(measure.key) for series in result.series)]
    lines = [
        f"| | | {' | '.join(measure.title for measure in shown)} |",
        f"|---|---|{'--:|' * len(shown)}",
    ]
    for case in result.cases:
        for series in (one for one in result.series if one.case == case):
            cells = " | ".join(_cell(series, measure) for measure in shown)
            lines.append(f"| {case} | {series.contestant} | {cells} |")
    return "\n".join(lines) + "\n"


def written_into(document: str, text: str) -> str:
    """The document with what is between the marks replaced. Raises ValueError if it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def write_into(path: Path, text: str) -> None:
    path.write_text(written_into(path.read_text(), text))


def _section(scenario: Scenario, result: Result, plots: Sequence[str]) -> str:
    machine, runs = result.machine, result.options["runs"]
    facts = [
        f"{runs} interleaved run{'s' if runs > 1 else ''}. {result.setting}",
        f"{machine['time']}, commit {machine['commit']}, load {machine['load']:g} at the start.",
    ]
    notes = [*_warnings(result), *(f"Skipped {name}: {reason}." for name, reason in result.skipped.items())]
    notes += [f"{note}." for note in result.notes]
    lines = [f"### {scenario.name}", "", f"{scenario.title}.", "", series_table(scenario.measures, result)]
    lines += [f"![{scenario.name}]({plot})" for plot in plots]
    lines += ["", *facts, ""]
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def _warnings(result: Result) -> list[str]:
    warnings = []
    if result.options.get("is_quick"):
        warnings.append("**--quick: these figures mean nothing.**")
    if result.machine["is_busy"]:
        warnings.append(f"**The machine was busy at the start (load {result.machine['load']:g}).**")
    return warnings


def _cell(series: Series, measure: Measure) -> str:
    found = series.spread(measure.key)
    return "" if found is None else _with_range(found, measure.digits)


def _with_range(found: Spread, digits: int) -> str:
    median, low, high = (f"{value:,.{digits}f}" for value in found[:3])
    return median if found.runs == 1 else f"{median} ({low} to {high})"


def _digits(reach: Reach) -> int:
    return 2 if reach.peer is not None or reach.must < 100 else 0


def _word(verdict: Verdict) -> str:
    if verdict.measured is None:
        return ""
    if verdict.meets_reach:
        return "reached"
    return "met" if verdict.meets_must else "**missed**"
