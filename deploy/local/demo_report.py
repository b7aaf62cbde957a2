"""The demo's findings, on a terminal or in a file, within 80 columns."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from deploy.local.demo_answers import Answers
from deploy.local.demo_audit import Audit
from deploy.local.demo_traffic import Traffic
from deploy.local.shop import EXAMINED
from schemas.streams import STREAMS

QUERIES_MAX = 6
BAR_CHARS = 10
VIEWS_MIN = 200  # of the top position: under that, its CTR is mostly chance


class Board:
    """How far events and rows are: two bars on a terminal, anywhere else a line at each quarter."""

    def __init__(self, console: Console, events: int) -> None:
        self._console = console
        self._quarters: dict[str, int] = {}
        self._began_s = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=36, complete_style="cyan", finished_style="green"),
            TextColumn("{task.completed:>9,.0f} of {task.total:,.0f}"),
            TextColumn("{task.elapsed:.1f} s", style="dim"),
            console=console,
        )
        self._tasks = {name: self._progress.add_task(name, total=events) for name in ("sent", "queryable")}

    @contextmanager
    def live(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        with self._progress:
            yield

    def show(self, name: str, count: int, total: int) -> None:
        self._progress.update(self._tasks[name], completed=count, total=total)
        quarter = 4 * count // max(total, 1)
        if not self._console.is_terminal and quarter > self._quarters.get(name, 0):
            self._quarters[name] = quarter
            took_s = time.monotonic() - self._began_s
            self._console.print(f"{name:10}  {count:,} of {total:,} after {took_s:.1f} s")


def arrival(audit: Audit, traffic: Traffic, stored: Mapping[str, Sequence[str]]) -> RenderableType:
    """Sent, acknowledged, stored and distinct events, and the verdict in one line."""
    table = _table(("table", "left"), "sent", "answered 200", "queryable", "unique ids")
    for name in (stream.name for stream in STREAMS):
        table.add_row(
            name,
            *_counts(traffic.sent[name], len(traffic.acknowledged[name]), len(stored[name]), len(set(stored[name]))),
        )
    table.add_row("together", *_counts(audit.sent, audit.acknowledged, audit.rows, audit.ids), style="bold")
    if audit.faults:
        verdict = Text(f"NOT exactly once: {', '.join(audit.faults)}.", "bold red")
    else:
        verdict = Text(f"Exactly once: all {audit.acknowledged:,} events are there, and none twice.", "bold green")
    lines: list[RenderableType] = [table, Text(), verdict]
    lines += [Text(f"  {count:,} refused: {reason}", "red") for reason, count in traffic.refused.most_common(3)]
    if audit.unknown and not audit.faults:
        lines.append(Text(f"{audit.unknown:,} more are of tries whose answer was lost; each was sent again."))
    return _titled("What arrived", *lines)


def pace(traffic: Traffic, delays_ms: Sequence[float]) -> RenderableType:
    """Events a second, and the time from the gateway's receipt of an event to its row."""
    table = _table(("", "left"), "")
    table.add_row("accepted", f"{traffic.acknowledged_count / max(traffic.took_s, 1e-3):,.0f} events/s")
    for name, ms in zip(("p50", "p95", "p99", "max"), delays_ms, strict=True):
        table.add_row(f"received to inserted, {name}", f"{ms / 1000:.2f} s")
    if traffic.retries:
        table.add_row("tries repeated", f"{traffic.retries:,}")
    return _titled("How fast", table)


def types(rows: Sequence[Sequence[Any]]) -> RenderableType:
    table = _table(("event type", "left"), "app", "retriever")
    for name, app, retriever in rows:
        table.add_row(name, *_counts(app, retriever))
    return _titled("What happened", table)


def positions(rows: Sequence[Sequence[Any]]) -> RenderableType:
    """CTR as it is logged, and with the simulation's position bias divided out."""
    table = _table(
        "position", "views", "clicks", "CTR", ("", "left"), "looked at", "CTR per look", ("", "left"),
    )  # fmt: skip
    ctr_max = max((ctr for _, _, _, ctr, _, _ in rows), default=1) or 1
    corrected_max = max((corrected for *_, corrected in rows), default=1) or 1
    for position, views, clicks, ctr, examined, corrected in rows:
        table.add_row(
            *_counts(position, views, clicks),
            f"{ctr:.1%}", _bar(ctr / ctr_max, "yellow"),
            f"{examined:.0%}",
            f"{corrected:.1%}", _bar(corrected / corrected_max, "green"),
        )  # fmt: skip
    return _titled("Where they clicked", table, Text(), Text(lesson(rows)))


def lesson(rows: Sequence[Sequence[Any]]) -> str:
    """What the two columns say, in words; it is computed, not promised."""
    if len(rows) < 2 or rows[0][1] < VIEWS_MIN:
        return "Too few views to learn from: try more --events."
    ctrs = {position: ctr for position, _, _, ctr, _, _ in rows}
    best, worst = max(ctrs, key=lambda position: ctrs[position]), min(ctrs, key=lambda position: ctrs[position])
    clicks_below = sum(clicks for _, _, clicks, _, _, _ in rows[1:])
    looks_below = sum(views * examined for _, views, _, _, examined, _ in rows[1:])
    return (
        f"Raw CTR makes position {best} look best ({ctrs[best]:.0%}) and position {worst} worst ({ctrs[worst]:.0%}). "
        f"But visitors look at the top first, as people do: per look, the paid slot on top gets {rows[0][5]:.0%}, the "
        f"results below it {clicks_below / looks_below:.0%}."
    )


def queries(rows: Sequence[Sequence[Any]]) -> RenderableType:
    table = _table(("query", "left"), "searches", "clicks", "bought")
    for query, *counts in rows:
        table.add_row(query, *_counts(*counts))
    return _titled("What they searched for", table)


def zero_results(rows: Sequence[Sequence[Any]]) -> RenderableType:
    table = _table(("query", "left"), "searches")
    for query, searches in rows:
        table.add_row(query, f"{searches:,}")
    return _titled("What nobody found", table)


def show_findings(console: Console, answers: Answers, traffic: Traffic) -> None:
    """Everything ClickHouse has to say of the run. Raises `Failure`."""
    for findings in (
        _beside(types(answers.types()), pace(traffic, answers.delays_ms())),
        positions(answers.positions(EXAMINED)),
        _beside(queries(answers.queries(QUERIES_MAX)), zero_results(answers.zero_results(QUERIES_MAX))),
    ):
        show(console, findings)


def show(console: Console, findings: RenderableType) -> None:
    console.print()
    console.print(findings)


def _table(*columns: str | tuple[str, JustifyMethod]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        header, justify = column if isinstance(column, tuple) else (column, "right")
        table.add_column(header, justify=justify, no_wrap=True)
    return table


def _titled(title: str, *parts: RenderableType) -> Group:
    # Not the table's own title: that is wrapped to the width of its columns.
    return Group(Text(title, "bold cyan"), *parts)


def _beside(left: RenderableType, right: RenderableType) -> Table:
    pair = Table.grid(padding=(0, 6, 0, 0))
    pair.add_row(left, right)
    return pair


def _counts(*counts: int) -> list[str]:
    return [f"{count:,}" for count in counts]


def _bar(fraction: float, style: str) -> Text:
    return Text("█" * max(round(fraction * BAR_CHARS), 0), style)
