"""`python -m deploy.local demo`: a shop's visitors, through the whole pipeline, and what the tables say of them.

Uses the stack that is up in the data directory, or starts one and stops it again. Promise: exit code 0 means
that every event was accepted and is queryable, exactly once. Limits: it waits `STALL_S_MAX` for a next row,
no longer, and looks once: what lands later is not in its tables.
"""

import argparse
import asyncio
import io
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from rich.console import Console

from deploy.local import demo_report, shop
from deploy.local.__main__ import Display, Interrupts, add_stack_options, ports_of, print_failure
from deploy.local.demo_answers import Answers
from deploy.local.demo_audit import Audit
from deploy.local.demo_report import Board
from deploy.local.demo_traffic import Traffic
from deploy.local.process import Failure
from deploy.local.stack import Endpoints, Stack, running

EVENTS_MAX = 1_000_000
POLL_S = 0.3
STALL_S_MAX = 30.0
INTERRUPTED = 130
T = TypeVar("T")

STOPPED = """
The rows stay in {data_dir}. To keep the pipeline running:
  {up}
"""
ASK = """
To ask ClickHouse more, while it runs:
  curl {clickhouse} -d \\
    'SELECT * FROM interactions.app_interactions LIMIT 2 FORMAT Vertical'
"""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without bars still gets its numbers
    console = Console(highlight=False)
    interrupts = Interrupts()
    try:
        with stack_of(args, console, interrupts) as endpoints:
            status = demonstrate(endpoints, args.events, args.seed, console)
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return INTERRUPTED
    except Failure as failure:
        print_failure(failure)
        return 1
    if status == 0:
        console.print(closing(endpoints, args), end="", soft_wrap=True)
    return status


@contextmanager
def stack_of(args: argparse.Namespace, console: Console, interrupts: Interrupts) -> Iterator[Endpoints]:
    """The stack that is up, or one of our own for as long as it is needed. Raises `Failure`."""
    endpoints = running(args.data_dir)
    if endpoints is not None:
        console.print(f"Using the stack that is up in {args.data_dir} (pid {endpoints.pid})")
        yield endpoints
        return
    display = Display()
    stack = Stack(args.data_dir, ports_of(args), report=display, is_hurried=lambda: interrupts.is_hurried)
    try:
        with display.live():
            stack.start()
        yield stack.endpoints
    finally:
        interrupts.is_stopping = True
        console.print()
        with display.live():
            stack.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local demo",
        description="A shop's search sessions through the whole pipeline, and what they say. Uses the stack that is "
        "up in the data directory, or starts one and stops it again.",
    )
    parser.add_argument(
        "--events", type=_events, default=5_000, metavar="N", help="how many to send; default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="the same seed makes the same events; default: %(default)s"
    )
    add_stack_options(parser)
    return parser


def _events(text: str) -> int:
    count = int(text)
    if not 1 <= count <= EVENTS_MAX:
        raise argparse.ArgumentTypeError(f"must be from 1 to {EVENTS_MAX}")
    return count


def demonstrate(endpoints: Endpoints, events: int, seed: int, console: Console) -> int:
    """The exit code. Raises `Failure` if ClickHouse does not answer, KeyboardInterrupt."""
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    console.print(f"\nA shop's visitors: {events:,} events, seed {seed}, marked {run}\n")
    answers = Answers(endpoints.clickhouse_url, run)
    traffic = Traffic(endpoints.gateway_url)
    board = Board(console, events)
    with board.live():
        stored = asyncio.run(_interruptible(_flow(seed, run, events, traffic, answers, board)))
    audit = Audit.of(traffic, stored)
    demo_report.show(console, demo_report.arrival(audit, traffic, stored))
    if audit.faults:
        console.print(f"The logs may say why: {endpoints.logs_dir}", soft_wrap=True)
        return 1
    demo_report.show_findings(console, answers, traffic)
    return 0


async def _flow(
    seed: int, run: str, events: int, traffic: Traffic, answers: Answers, board: Board
) -> dict[str, list[str]]:
    """Send, and watch the rows come; their ids, once none is missing or none has come for too long."""
    sending = asyncio.create_task(traffic.send(islice(shop.events(seed, run), events)))
    rows, grown_s = 0, time.monotonic()
    while True:
        await asyncio.wait([sending], timeout=POLL_S)
        is_sent = sending.done()
        rows_before = rows
        with suppress(Failure):  # ClickHouse may be away for a while
            rows = await asyncio.to_thread(answers.count)
        if rows > rows_before or not is_sent:
            grown_s = time.monotonic()
        board.show("sent", traffic.acknowledged_count, events)
        board.show("queryable", rows, traffic.acknowledged_count if is_sent else events)
        if is_sent:
            sending.result()
            is_late = time.monotonic() - grown_s > STALL_S_MAX
            if is_late or rows >= traffic.acknowledged_count:
                stored = await asyncio.to_thread(answers.event_ids)
                if is_late or not Audit.of(traffic, stored).missing:
                    return stored
            await asyncio.sleep(POLL_S)


async def _interruptible(flow: Coroutine[Any, Any, T]) -> T:
    """`flow`; the signals that interrupt us cancel it, and come out as KeyboardInterrupt.

    Raised in the midst of it, as it is everywhere else, that would be some task's exception, for asyncio to print.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(flow)

    def cancel(_signum: int, _frame: object) -> None:
        loop.call_soon_threadsafe(task.cancel)

    handlers = {signum: signal.signal(signum, cancel) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def closing(endpoints: Endpoints, args: argparse.Namespace) -> str:
    """How to go on from here."""
    ask = ASK.format(clickhouse=endpoints.clickhouse_url.removeprefix("http://"))
    if endpoints.pid != os.getpid():
        return ask
    return STOPPED.format(data_dir=args.data_dir, up=_up(args)) + ask


def _up(args: argparse.Namespace) -> str:
    """The command that starts the stack with the data and ports of this run."""
    defaults = vars(_parser().parse_args([]))
    options = [
        word
        for name, value in vars(args).items()
        if name not in ("events", "seed") and value != defaults[name]
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return f"make up ARGS={shlex.quote(shlex.join(options))}" if options else "make up"
