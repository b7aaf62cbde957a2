"""What a scenario has measured, and its file: one JSON document a scenario, so that each may be run anew by itself."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.bench.figures import Spread, spread

Figures = dict[str, float]
"""One run: value by measure."""


@dataclass
class Series:
    """The runs of one contestant in one case, such as `64 connections`."""

    contestant: str
    case: str
    runs: list[Figures] = field(default_factory=list)

    def values(self, measure: str) -> list[float]:
        return [run[measure] for run in self.runs if measure in run]

    def spread(self, measure: str) -> Spread | None:
        """None if no run has it."""
        values = self.values(measure)
        return spread(values) if values else None


@dataclass
class Result:
    """`setting` says on which cores, and how long; `skipped` why a contestant is missing; `notes` what else is to be
    known about the figures."""

    scenario: str
    setting: str = ""
    series: list[Series] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def add(self, contestant: str, case: str, figures: Figures) -> None:
        found = self.find(contestant, case)
        if found is None:
            found = Series(contestant, case)
            self.series.append(found)
        found.runs.append(figures)

    def find(self, contestant: str, case: str) -> Series | None:
        for series in self.series:
            if (series.contestant, series.case) == (contestant, case):
                return series
        return None

    def note(self, text: str) -> None:
        """Once, however often it happens."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def cases(self) -> list[str]:
        return _unique([series.case for series in self.series])

    @property
    def contestants(self) -> list[str]:
        return _unique([series.contestant for series in self.series])

    def save(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.scenario}.json"
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        document = json.loads(path.read_text())
        return cls(**{**document, "series": [Series(**series) for series in document["series"]]})


def load_all(directory: Path, names: Sequence[str]) -> dict[str, Result]:
    """Those of `names` that have been measured, in that order."""
    paths = {name: directory / f"{name}.json" for name in names}
    return {name: Result.load(path) for name, path in paths.items() if path.exists()}


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
