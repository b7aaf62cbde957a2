"""The commands of the command line, besides `run`: each prints what it found and returns its exit status."""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from consumer import (
    audit_report,
    dead_letter_commands,
    dead_letter_log,
    doctor,
    doctor_clickhouse,
    doctor_kafka,
    intents,
    migrations,
    moments,
    rewind,
    status,
)
from consumer.audit import audit
from consumer.clickhouse import ClickHouse
from consumer.settings import ConsumerSettings

PIPE_COLUMNS = 200  # where there is no terminal to fit into

Arguments = argparse.Namespace


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare them all; `command(settings, arguments)` of the parsed arguments runs one."""

    def declare(name: str, command: object, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text)
        parser.set_defaults(command=command)
        return parser

    declare("migrate", migrate, "create topics and tables, or bring them up to date")
    declare("status", show_status, "lag per partition, in records and in seconds")
    declare("doctor", show_doctor, "check what is around the consumer, and say what to change")
    declare("intents", show_intents, "ranges whose INSERT was announced and not yet closed")
    parser = declare("audit", show_audit, "duplicates and gaps in the tables; exit status 1 if there are any")
    parser.add_argument("--since", type=moments.epoch_ms, metavar="TIME", help=f"{moments.HELP}; default: all")
    parser = declare("rewind", do_rewind, "read records again, and insert what is missing; no row becomes two")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--to", type=moments.epoch_ms, metavar="TIME", help=moments.HELP)
    to.add_argument(
        "--to-offset", type=rewind.partition_offset, nargs="+", default=[], metavar="TOPIC:PARTITION:OFFSET"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    _add_dead_letters(declare("dead-letters", list_letters, "records that no table could take"))


def _add_dead_letters(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    parser = actions.add_parser("ls", help="how many, why, and which")
    parser.set_defaults(command=list_letters)
    parser.add_argument("--all", action="store_true", help="those that were replayed or dropped, too")
    parser.add_argument("--limit", type=int, default=50, help="letters listed, the newest first; default: 50")
    parser = actions.add_parser("show", help="one letter whole, with the record's bytes")
    parser.set_defaults(command=show_letter)
    parser.add_argument("key", metavar="KEY", help="topic:partition:offset, as `ls` has it")
    for name, command, text in (
        ("replay", replay_letters, "insert their records after all, if the tables can take them now"),
        ("drop", drop_letters, "give their records up"),
    ):
        parser = actions.add_parser(name, help=text)
        parser.set_defaults(command=command)
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("keys", nargs="*", default=[], metavar="KEY", help="topic:partition:offset")
        which.add_argument("--all", action="store_true", help="all that are open")


async def migrate(settings: ConsumerSettings, _: Arguments) -> int:
    await migrations.create_topics(settings)
    files = migrations.migrations()
    with _clickhouse(settings) as clickhouse:
        await asyncio.to_thread(migrations.create_tables, clickhouse, files, settings.retention_days)
    return 0


async def show_status(settings: ConsumerSettings, _: Arguments) -> int:
    _print(status.table(await status.partition_statuses(settings)))
    return 0


async def show_audit(settings: ConsumerSettings, arguments: Arguments) -> int:
    with _clickhouse(settings) as clickhouse:
        audits = await audit(settings, clickhouse, arguments.since, count_repeated=True)
    _print(audit_report.table(audits), *audit_report.examples(audits), audit_report.advice(audits))
    _print(audit_report.verdict(audits))
    return int(any(found.is_wrong for found in audits))


async def show_intents(settings: ConsumerSettings, _: Arguments) -> int:
    with _clickhouse(settings) as clickhouse:
        found = await intents.open_intents(settings, clickhouse)
    _print(intents.table(found) if found else "No intent is open: everything before the committed offsets has landed.")
    return 0


async def do_rewind(settings: ConsumerSettings, arguments: Arguments) -> int:
    moves = await rewind.plan(settings, arguments.to, dict(arguments.to_offset))
    _print(rewind.table(moves))
    moving = [move for move in moves if move.intent]
    offsets = sum(move.offsets for move in moving)
    if not moving:
        _print("Nothing to rewind.")
        return 0
    if arguments.dry_run:
        _print(f"Would read {offsets:,} offsets again and insert what the tables lack of them. Nothing was changed.")
        return 0
    await rewind.refuse_while_active(settings)
    await rewind.carry_out(settings, moving)
    _print(
        f"Rewound: the next consumer reads {offsets:,} offsets again and inserts what the tables lack of them. "
        "Dead letters among them are written again. `intents` tells when it is done, `audit` whether all is there."
    )
    return 0


async def show_doctor(settings: ConsumerSettings, _: Arguments) -> int:
    checks = [check async for check in doctor_kafka.checks(settings)]
    with _clickhouse(settings) as clickhouse:
        checks += await asyncio.to_thread(lambda: list(doctor_clickhouse.checks(clickhouse, settings)))
    _print(doctor.table(checks), doctor.verdict(checks))
    return int(any(check.state == "bad" for check in checks))


async def list_letters(settings: ConsumerSettings, arguments: Arguments) -> int:
    letters = list((await dead_letter_commands.find(settings)).values())
    if not arguments.all:
        letters = [letter for letter in letters if letter.state == dead_letter_log.OPEN]
    if not letters:
        _print("No dead letters.")
        return 0
    _print(dead_letter_commands.groups_table(letters), dead_letter_commands.letters_table(letters, arguments.limit))
    return 0


async def show_letter(settings: ConsumerSettings, arguments: Arguments) -> int:
    for name, text in await dead_letter_commands.show(settings, arguments.key):
        sys.stdout.write(f"{name}: {text}\n")
    return 0


async def replay_letters(settings: ConsumerSettings, arguments: Arguments) -> int:
    with _clickhouse(settings) as clickhouse:
        return _report(await dead_letter_commands.replay(settings, clickhouse, _keys(arguments)))


async def drop_letters(settings: ConsumerSettings, arguments: Arguments) -> int:
    return _report(await dead_letter_commands.drop(settings, _keys(arguments)))


def _keys(arguments: Arguments) -> list[str] | None:
    return None if arguments.all else list(arguments.keys)


def _report(outcomes: list[dead_letter_commands.Outcome]) -> int:
    """A line each; exit status 1 if one was refused."""
    refused = [outcome for outcome in outcomes if outcome.refusal is not None]
    for outcome in outcomes:
        _print(f"{outcome.key} {outcome.done if outcome.refusal is None else 'refused: ' + outcome.refusal}")
    _print(f"{len(outcomes) - len(refused)} done, {len(refused)} refused.")
    return int(bool(refused))


@contextlib.contextmanager
def _clickhouse(settings: ConsumerSettings) -> Iterator[ClickHouse]:
    clickhouse = ClickHouse(settings)
    try:
        yield clickhouse
    finally:
        clickhouse.close()


def _print(*parts: Table | str) -> None:
    """Tables fit the terminal; lines are never broken or coloured, so that they can be searched."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    for part in parts:
        if isinstance(part, Table):
            console.print(part)
        elif part:
            console.print(part, markup=False, highlight=False, soft_wrap=True)
