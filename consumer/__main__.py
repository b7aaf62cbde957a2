"""`python -m consumer run | migrate | status`. Settings come from CONSUMER_… variables."""

import argparse
import asyncio
import signal
import sys

import structlog
import uvloop
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry
from rich.console import Console

from consumer import migrations, status
from consumer.clickhouse import ClickHouse, ClickHouseUnavailable, RowRejected
from consumer.dead_letters import DeadLetters
from consumer.inserter import Inserter
from consumer.landing import Landing
from consumer.loop import Consumer
from consumer.metrics import Metrics
from consumer.recovery import Recovery
from consumer.server import create_server
from consumer.settings import ConsumerSettings
from consumer.source import KafkaSource, KafkaUnavailable
from schemas import kafka, logs
from schemas.streams import STREAMS

log = structlog.get_logger(__name__)

START_RETRY_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="sluice-consumer", description="Insert Kafka's events into ClickHouse.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="consume until SIGTERM")
    commands.add_parser("migrate", help="create topics and tables, or bring them up to date")
    commands.add_parser("status", help="lag per partition, in records and in seconds")
    command = parser.parse_args().command
    settings = ConsumerSettings.load()
    logs.configure(settings.log_level)
    try:
        uvloop.run({"run": run, "migrate": migrate, "status": show_status}[command](settings))
    except (KafkaError, KafkaUnavailable, OSError) as error:
        sys.exit(f"Kafka at {settings.kafka_bootstrap_servers}: {error!r}")
    except (ClickHouseUnavailable, RowRejected) as error:
        sys.exit(f"ClickHouse: {error}")
    except migrations.MigrationError as error:
        sys.exit(str(error))


async def run(settings: ConsumerSettings) -> None:
    """Until SIGTERM or SIGINT, then the batches in hand; Kafka or ClickHouse being away ends nothing."""
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    metrics = Metrics(CollectorRegistry())
    clickhouse = ClickHouse(settings)
    source = KafkaSource(settings, [stream.name for stream in STREAMS])
    inserter = Inserter(clickhouse, metrics)
    recovery = Recovery(clickhouse, inserter, kafka.connection(settings), metrics)
    landing = Landing(clickhouse, inserter, DeadLetters(settings), recovery, metrics)
    consumer = Consumer(settings, source, inserter, landing, recovery, metrics)
    server = create_server(consumer, metrics, settings.metrics_host, settings.metrics_port)
    serving = asyncio.create_task(server.serve(), name="metrics-server")
    try:
        if await _start(source, consumer, stopping):
            consuming = asyncio.create_task(consumer.run(), name="consume")
            stopped = asyncio.create_task(stopping.wait(), name="stopping")
            await asyncio.wait({consuming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            consumer.stop()
            await consuming
    finally:
        await source.stop()
        inserter.close()
        server.should_exit = True
        await serving


async def _start(source: KafkaSource, consumer: Consumer, stopping: asyncio.Event) -> bool:
    """Join the group as soon as Kafka lets us; False if asked to stop before that."""
    while not stopping.is_set():
        try:
            await source.start(consumer)
        except KafkaUnavailable as error:
            log.warning("kafka cannot be reached, will be tried again", error=str(error))
            try:
                await asyncio.wait_for(stopping.wait(), START_RETRY_S)
            except TimeoutError:
                continue
        else:
            return True
    return False


async def migrate(settings: ConsumerSettings) -> None:
    await migrations.create_topics(settings)
    clickhouse = ClickHouse(settings)
    files = migrations.migrations()
    await asyncio.to_thread(migrations.create_tables, clickhouse, files, settings.retention_days)
    clickhouse.close()


async def show_status(settings: ConsumerSettings) -> None:
    Console().print(status.table(await status.partition_statuses(settings)))


if __name__ == "__main__":
    main()
