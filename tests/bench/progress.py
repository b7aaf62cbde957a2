"""Bars on the terminal: one for the runs of a scenario, one for whatever else takes time. A line a step elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bars:
    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description:<52.52}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    @contextmanager
    def live(self) -> Iterator[None]:
        with self._progress:
            yield

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Call what it gives with how much more is done."""
        self._say(what)
        task = self._progress.add_task(what, total=total)
        try:
            yield lambda more: self._progress.advance(task, more)
        finally:
            self._progress.remove_task(task)

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """Call what it gives with the name of each step as it begins."""
        task = self._progress.add_task(what, total=total)
        begun = 0

        def begin(step: str) -> None:
            nonlocal begun
            begun += 1
            self._progress.update(task, completed=begun - 1, description=f"{what}: {step}")
            self._say(f"{what}: {step} ({begun} of {total})")

        try:
            yield begin
        finally:
            self._progress.remove_task(task)

    def warn(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
