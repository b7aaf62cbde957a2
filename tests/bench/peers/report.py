"""What a peer that reads a backlog says at its end: one line of JSON."""

import json
import time
from typing import Self

from tests.bench.figures import Point, pace


class Progress:
    """From the first call of its own work on: rows by time, and CPU time. Start-up does not count."""

    def __init__(self) -> None:
        self.rows = 0
        self._points: list[Point] = []
        self._began_cpu_s = time.process_time()

    def add(self, rows: int) -> Self:
        if rows:
            self.rows += rows
            self._points.append(Point(time.monotonic(), self.rows))
        return self

    def print(self) -> None:
        cpu_s = time.process_time() - self._began_cpu_s
        figures = {"rows": self.rows, "rows_per_s": pace(self._points), "cpu_us_per_row": cpu_s / self.rows * 1e6}
        print(json.dumps(figures), flush=True)
