"""`python -m deploy.local up`: the pipeline on this machine, without Docker. `--help` lists the commands."""

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.local import kafka
from deploy.local.process import HOST, Failure, FileLock, Step, refuse_busy_ports, writable_dir
from deploy.local.stack import Ports, Stack

GIVEN_UP = {"fetching": "not fetched", "starting": "not started", "stopping": "not stopped"}
BAR_WIDTH = 20
STYLES = {"fetched": "green", "ready": "green", "stopped": "dim"}

EVENT = '{"event_type":"click","document_id":"doc_abc123","position":2,"query":"red sneakers","session_id":"sess_xyz"}'
QUERY = "SELECT * FROM interactions.app_interactions ORDER BY received_at DESC LIMIT 1 FORMAT Vertical"
UP = """
Sluice is up. Ctrl-C stops it.

  Gateway      {gateway_url}    its API: {gateway_url}/docs
  Metrics      {gateway_url}/metrics and {consumer_url}/metrics
  ClickHouse   {clickhouse_url}    database interactions
  Kafka        {kafka_bootstrap_servers}
  Data         {data_dir}
  Logs         {logs_dir}

Send an event:
  curl -s {gateway_url}/v1/public/apps/demo/interactions -H 'Content-Type: application/json' -d '{event}'

See it, a second later:
  curl -s {clickhouse_url} --data-binary '{query}'
"""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    # These two have options of their own, and wheels that the others should not wait for.
    if argv and argv[0] in ("clickhouse", "demo"):
        return int(importlib.import_module(f"deploy.local.{argv[0]}").main(argv[1:]) or 0)
    args = _parser().parse_args(argv)
    try:
        return {"up": up, "kafka": serve_kafka, "lock-kafka": lock_kafka}[args.command](args)
    except Failure as failure:
        print_failure(failure)
    except OSError as error:  # a disk that fills up on the way, say
        print(error, file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local", description="Sluice on one machine, without Docker."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_stack_options(commands.add_parser("up", help="Kafka, ClickHouse, gateway and consumer, until Ctrl-C"))
    commands.add_parser("demo", help="a shop's search sessions through the pipeline", add_help=False)
    broker = commands.add_parser("kafka", help="the Kafka broker alone, until Ctrl-C")
    broker.add_argument("--data-dir", type=Path, required=True, metavar="DIR")
    broker.add_argument("--port", type=_port, default=Ports.kafka, metavar="N", help="default: %(default)s")
    commands.add_parser("clickhouse", help="the ClickHouse engine alone, behind HTTP, until Ctrl-C", add_help=False)
    lock = commands.add_parser("lock-kafka", help="write kafka.lock.toml anew")
    lock.add_argument("version")
    return parser


def add_stack_options(parser: argparse.ArgumentParser) -> None:
    """Where a stack keeps its data and listens: read them with `ports_of`."""
    parser.add_argument("--data-dir", type=Path, default=Path(".sluice"), metavar="DIR", help="default: %(default)s")
    for name, what in (
        ("gateway", "the gateway"),
        ("kafka", "Kafka"),
        ("clickhouse", "ClickHouse"),
        ("metrics", "the consumer's metrics"),
    ):
        parser.add_argument(
            f"--{name}-port",
            type=_port,
            default=getattr(Ports, name),
            metavar="N",
            help=f"{what}; default: %(default)s",
        )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return int(text)


def ports_of(args: argparse.Namespace) -> Ports:
    return Ports(args.gateway_port, args.kafka_port, args.clickhouse_port, args.metrics_port)


def up(args: argparse.Namespace) -> int:
    display = Display()
    interrupts = Interrupts()
    stack = Stack(args.data_dir, ports_of(args), report=display, is_hurried=lambda: interrupts.is_hurried)
    status = 0
    try:
        with display.live():
            stack.start()
        print(UP.format(event=EVENT, query=QUERY, **vars(stack.endpoints)), flush=True)
        stack.watch()
    except KeyboardInterrupt:
        pass
    except Failure as failure:
        print_failure(failure)
        status = 1
    finally:
        interrupts.is_stopping = True
        with display.live():
            stack.stop()
    return status


def serve_kafka(args: argparse.Namespace) -> int:
    interrupts = Interrupts()
    release = kafka.Release.locked()
    data_dir = writable_dir(args.data_dir.resolve(), kafka.DISK_BYTES_MIN)
    lock = FileLock(data_dir / "broker.lock")
    if not lock.acquire():
        raise Failure(f"A broker runs in {data_dir} already (pid {lock.holder})")
    refuse_busy_ports({args.port: "--port"})
    broker = kafka.broker(release, data_dir, args.port, data_dir / "kafka.log")
    display = Display()
    try:
        with display.live():
            kafka.fetch(release, display)
        broker.start()
        print(f"Kafka {release.version} listening on {HOST}:{args.port}, data in {data_dir}", flush=True)
        while broker.is_running:
            time.sleep(0.2)
        raise broker.failure()
    except KeyboardInterrupt:
        return 0
    finally:
        interrupts.is_stopping = True
        broker.stop(lambda: interrupts.is_hurried)


def lock_kafka(args: argparse.Namespace) -> int:
    release = kafka.lock(args.version)
    print(f"{kafka.LOCK_PATH.name}: Kafka {release.version}, {len(release.jars)} jars")
    return 0


def print_failure(failure: Failure) -> None:
    print("\n".join([str(failure), *(f"  {line}" for line in failure.lines)]), file=sys.stderr, flush=True)


class Interrupts:
    """Ctrl-C, SIGTERM or the terminal closing: KeyboardInterrupt at first, and haste once `is_stopping`."""

    def __init__(self) -> None:
        self.is_stopping = False
        self.is_hurried = False
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._receive)

    def _receive(self, _signum: int, _frame: FrameType | None) -> None:
        if not self.is_stopping:
            raise KeyboardInterrupt
        self.is_hurried = True


class Display:
    """The steps of a start or a stop: a live table on a terminal, a line for each change anywhere else."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._steps: dict[str, Step] = {}

    def __call__(self, step: Step) -> None:
        before = self._steps.get(step.component)
        self._steps[step.component] = step
        if not self._console.is_terminal and (before is None or _stage(before) != _stage(step)):
            print(f"{step.component:10}  {step.state} {step.detail}".rstrip(), flush=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        self._steps.clear()
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self._console, refresh_per_second=10):
            try:
                yield
            except BaseException:
                self._steps = {
                    name: replace(step, state=GIVEN_UP.get(step.state, step.state))
                    for name, step in self._steps.items()
                }
                raise

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for width in (10, 12, None):
            table.add_column(min_width=width, no_wrap=True, overflow="ellipsis")
        for step in self._steps.values():
            is_busy = step.state in GIVEN_UP
            state = Spinner("dots", step.state) if is_busy else Text(step.state, STYLES.get(step.state, "red"))
            table.add_row(step.component, state, Text(_bar(step) + step.detail, "dim"))
        return table


def _bar(step: Step) -> str:
    if step.fraction is None:
        return ""
    done = int(step.fraction * BAR_WIDTH)
    return "━" * done + "─" * (BAR_WIDTH - done) + "  "


def _stage(step: Step) -> tuple[str, int]:
    """What is worth a line: a new state, or another quarter of a download."""
    return step.state, int(4 * (step.fraction or 0))


if __name__ == "__main__":
    sys.exit(main())
