"""What an audit found, for people."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from consumer.audit_table import PartitionAudit


def table(audits: Sequence[PartitionAudit]) -> Table:
    shown = Table(title="Audit: the tables against the log")
    shown.add_column("topic")
    for column in ("partition", "offsets", "rows", "duplicates", "gaps", "dead letters", "repeats dropped"):
        shown.add_column(column, justify="right")
    for column in ("no record", "expired", "of an earlier log"):
        shown.add_column(column, justify="right")
    shown.add_column("ids repeated", justify="right")
    shown.add_column("note")
    for found in audits:
        shown.add_row(
            found.topic,
            str(found.partition),
            f"{found.first} to {found.end - 1}" if found.end > found.first else "none",
            _count(found.rows),
            _count(found.duplicates, wrong=True),
            _count(found.gaps, wrong=True),
            *map(_count, (found.dead_letters, found.repeats_dropped, found.empty, found.expired, found.earlier)),
            "" if found.repeated is None else _count(found.repeated),
            Text(found.note),
        )
    return shown


def _count(count: int, *, wrong: bool = False) -> Text:
    return Text(f"{count:,}", "bold red" if wrong and count else "")


def examples(audits: Sequence[PartitionAudit]) -> list[str]:
    """A line for each partition and kind of fault."""
    lines = []
    for found in audits:
        for kind, offsets, count in (
            ("duplicates", found.duplicate_offsets, found.duplicates),
            ("gaps", found.gap_offsets, found.gaps),
        ):
            if count:
                shown = ", ".join(map(str, offsets))
                lines.append(f"{found.topic}:{found.partition} {kind} at {shown}{' …' if count > len(offsets) else ''}")
    return lines


def verdict(audits: Sequence[PartitionAudit]) -> str:
    duplicates, gaps = sum(found.duplicates for found in audits), sum(found.gaps for found in audits)
    if duplicates or gaps:
        return f"WRONG: {duplicates:,} duplicate rows, {gaps:,} records without a row."
    rows, dead = sum(found.rows for found in audits), sum(found.dead_letters for found in audits)
    repeats = sum(found.repeats_dropped for found in audits)
    others = [(dead, "dead letters"), (repeats, "repeats of others")]
    return (
        f"OK: {rows:,} records are in the tables exactly once"
        + "".join(f", {count:,} are {what}" for count, what in others if count)
        + "."
    )


def advice(audits: Sequence[PartitionAudit]) -> str:
    """How to mend what can be mended."""
    targets = [
        f"--to-offset {found.topic}:{found.partition}:{min(found.gap_offsets)}" for found in audits if found.gaps
    ]
    return f"`python -m consumer rewind --dry-run {' '.join(targets)}` shows how to bring them back." if targets else ""
