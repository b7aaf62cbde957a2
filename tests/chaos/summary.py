"""The table at the end of `make chaos`: per scenario, how many seeds held and which did not."""

import re
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from rich.console import Console
from rich.table import Table

_CASE = re.compile(r"::(?P<test>\w+)(?:\[(?P<params>.*)\])?$")


@dataclass
class Scenario:
    passed: int = 0
    failed_seeds: list[str] = field(default_factory=list)
    seconds: float = 0.0


_scenarios: dict[str, Scenario] = defaultdict(Scenario)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    found = _CASE.search(report.nodeid)
    if found is None or report.when != "call" or report.skipped:
        return
    params = (found["params"] or "").split("-")
    seeds = [part for part in params if part.isdigit()]
    rest = [part for part in params if part and not part.isdigit()]
    name = " ".join([found["test"].removeprefix("test_").replace("_", " "), *(f"({part})" for part in rest)])
    scenario = _scenarios[name]
    scenario.seconds += report.duration
    if report.passed:
        scenario.passed += 1
    else:
        scenario.failed_seeds.append(seeds[0] if seeds else "-")


def pytest_terminal_summary() -> None:
    table = Table(title="Chaos: every record one row?")
    for column, justify in (("scenario", "left"), ("held", "right"), ("failed at seed", "left"), ("s", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, scenario in _scenarios.items():
        runs = scenario.passed + len(scenario.failed_seeds)
        table.add_row(
            name,
            f"{scenario.passed} of {runs}",
            ", ".join(scenario.failed_seeds),
            f"{scenario.seconds / runs:.1f}",
            style="red" if scenario.failed_seeds else None,
        )
    Console().print(table)
