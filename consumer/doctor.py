"""`python -m consumer doctor`: is everything around the consumer as it needs it, and what to change if not.

It changes nothing. `bad` is what loses, doubles or stops events, now or at the next fault; `warn` what a person
should know. What it cannot see from outside: whether Kafka would take a commit or a dead letter of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

State = Literal["ok", "warn", "bad"]

_STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}


@dataclass(frozen=True)
class Check:
    """`advice` is what was found where all is well, and what to change where it is not."""

    name: str
    state: State
    advice: str


def ok(name: str, found: str = "") -> Check:
    return Check(name, "ok", found)


def warn(name: str, advice: str) -> Check:
    return Check(name, "warn", advice)


def bad(name: str, advice: str) -> Check:
    return Check(name, "bad", advice)


def table(checks: Sequence[Check]) -> Table:
    shown = Table(title="Doctor")
    shown.add_column("check")
    shown.add_column("state")
    shown.add_column("advice", overflow="fold")
    for check in checks:
        shown.add_row(Text(check.name), Text(check.state, _STYLES[check.state]), Text(check.advice))
    return shown


def verdict(checks: Sequence[Check]) -> str:
    counts = {state: sum(check.state == state for check in checks) for state in _STYLES}
    if counts["bad"]:
        return f"BAD: {counts['bad']} to be mended, {counts['warn']} to be known."
    return f"OK: {counts['ok']} checks" + (f", {counts['warn']} to be known." if counts["warn"] else ".")
