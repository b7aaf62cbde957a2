"""`python -m consumer run`, and the commands in `consumer.commands`. Settings come from CONSUMER_… variables."""

import argparse
import asyncio
import logging
import signal
import sys

import structlog
import uvloop
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from consumer import commands
from consumer.audit_timer import AuditTimer
from consumer.clickhouse import ClickHouse, ClickHouseUnavailable, RowRejected
from consumer.dead_letter_commands import UnknownLetter
from consumer.dead_letter_log import TooManyDeadLetters
from consumer.dead_letters import DeadLetters
from consumer.group import GroupActive, IntentRefused
from consumer.inserter import Inserter
from consumer.landing import Landing
from consumer.ledger import UnreadableIntent
from consumer.loop import Consumer
from consumer.lost_rows import LostRows
from consumer.metrics import Metrics
from consumer.migrations import MigrationError
from consumer.recovery import Recovery
from consumer.rewind import RewindRefused
from consumer.server import create_server
from consumer.settings import ConsumerSettings
from consumer.source import KafkaSource, KafkaUnavailable
from consumer.warm_up import WarmUp
from schemas import kafka, logs, memory
from schemas.streams import STREAMS

log = structlog.get_logger(__name__)

START_RETRY_S = 1.0
COMMAND_ERRORS = (
    GroupActive,
    IntentRefused,
    MigrationError,
    RewindRefused,
    TooManyDeadLetters,
    UnknownLetter,
    UnreadableIntent,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="sluice-consumer", description="Insert Kafka's events into ClickHouse.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    subparsers.add_parser("run", help="consume until SIGTERM").set_defaults(command=run)
    commands.add(subparsers)
    arguments = parser.parse_args()
    settings = ConsumerSettings.load()
    logs.configure(settings.log_level)
    if arguments.command is not run:
        # What the client libraries complain of on the way is in the one line that a command ends with.
        for library in ("aiokafka", "clickhouse_connect", "urllib3"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        sys.exit(uvloop.run(arguments.command(settings, arguments)))
    except kafka.UnusableCertificate as error:
        settings.refuse(error.setting, str(error))
    except KafkaUnavailable as error:
        sys.exit(f"Kafka at {settings.kafka_bootstrap_servers}: {error}")
    except (KafkaError, OSError) as error:
        sys.exit(f"Kafka at {settings.kafka_bootstrap_servers}: {error!r}")
    except (ClickHouseUnavailable, RowRejected) as error:
        sys.exit(f"ClickHouse: {error}")
    except COMMAND_ERRORS as error:
        sys.exit(str(error))


async def run(settings: ConsumerSettings, _: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT, then the batches in hand; Kafka or ClickHouse being away ends nothing."""
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    metrics = Metrics(CollectorRegistry())
    clickhouse = ClickHouse(settings)
    source = KafkaSource(settings, [stream.name for stream in STREAMS])
    inserter = Inserter(clickhouse, metrics)
    recovery = Recovery(clickhouse, inserter, kafka.connection(settings), metrics)
    lost_rows = LostRows(clickhouse, inserter, recovery, metrics)
    window_ms = settings.dedupe_window_s * 1000
    landing = Landing(clickhouse, inserter, DeadLetters(settings), recovery, lost_rows, window_ms, metrics)
    warm_up = WarmUp(kafka.connection(settings), settings.dedupe_window_s)
    consumer = Consumer(settings, source, inserter, landing, recovery, warm_up, metrics)
    server = create_server(consumer, metrics, settings.metrics_host, settings.metrics_port)
    serving = asyncio.create_task(server.serve(), name="metrics-server")
    auditing = asyncio.create_task(AuditTimer(settings, clickhouse, metrics).run(), name="audit")
    memory.settle()
    try:
        if await _start(source, consumer, stopping):
            consuming = asyncio.create_task(consumer.run(), name="consume")
            stopped = asyncio.create_task(stopping.wait(), name="stopping")
            await asyncio.wait({consuming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            consumer.stop()
            await consuming
    finally:
        auditing.cancel()
        await source.stop()
        inserter.close()
        server.should_exit = True
        await serving
    return 0


async def _start(source: KafkaSource, consumer: Consumer, stopping: asyncio.Event) -> bool:
    """Join the group as soon as Kafka lets us; False if asked to stop before that."""
    while not stopping.is_set():
        try:
            # A group may take its time to find together, and a signal does not wait for it.
            starting = asyncio.create_task(source.start(consumer), name="start")
            stopped = asyncio.create_task(stopping.wait(), name="stopping")
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
                return False
            await starting
        except KafkaUnavailable as error:
            log.warning("kafka cannot be reached, will be tried again", error=str(error))
            try:
                await asyncio.wait_for(stopping.wait(), START_RETRY_S)
            except TimeoutError:
                continue
        else:
            return True
    return False


if __name__ == "__main__":
    main()
