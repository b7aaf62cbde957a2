"""Times as an operator writes them: ISO 8601 (UTC unless it says otherwise), or how long ago, as in `90m`."""

import argparse
import re
import time
from datetime import UTC, datetime

_AGO = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

HELP = "ISO 8601, UTC unless it says otherwise (2026-11-22T06:20:00), or how long ago (90m, 2h, 7d)"


def epoch_ms(text: str) -> int:
    """For argparse: raises ArgumentTypeError."""
    ago = _AGO.fullmatch(text)
    if ago:
        return max(0, time.time_ns() // 1_000_000 - int(ago.group(1)) * _SECONDS[ago.group(2)] * 1_000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write {HELP}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, int(moment.timestamp() * 1_000))


def iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(seconds: float) -> str:
    """`4 s`, `12 min`, `3 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
