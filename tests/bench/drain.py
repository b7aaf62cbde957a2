"""One run of one consumer: a backlog that lies in Kafka, until all of it is in the table.

Rows a second are those between the first and the last tenth to land (`figures.STEADY`): neither the start of the
process nor the age that its last batches wait for counts. CPU a row is of the whole backlog, from the moment the
consumer is ready (peers: from their first read) until its last row has landed.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from deploy.local.process import Failure, Process, answers, free_ports
from deploy.local.stack import Stack
from tests.bench import proc
from tests.bench.cores import Placement, pinned
from tests.bench.figures import pace
from tests.bench.results import Figures
from tests.bench.tables import Table

READY_POLL_S = 0.005
LANDED_POLL_S = 0.25
READY_S_MAX = 60.0
DRAIN_S_MAX = 900.0
SLOW_START_S = 10.0
"""Until the first row; of what takes longer the logs are kept, in `slow-starts`: it has been seen once, unexplained."""


@dataclass(frozen=True)
class Job:
    """`rows` are how many there are to drain; `brokers` default to the stack's own."""

    stack: Stack
    placement: Placement
    rows: int
    run: str
    brokers: str = ""

    @property
    def kafka(self) -> str:
        return self.brokers or self.stack.endpoints.kafka_bootstrap_servers


@contextmanager
def fresh_table(job: Job) -> Iterator[Table]:
    """Gone afterwards."""
    table = Table(job.stack, f"bench_{job.run}", job.kafka)
    try:
        yield table
    finally:
        table.drop()
        table.close()


def ours(job: Job, table: Table | None = None) -> Figures:
    """Into `table`, or one of its own. Raises Failure unless every row lands, once."""
    if table is None:
        with fresh_table(job) as table:
            return ours(job, table)
    [port] = free_ports(1)
    environment = {
        "CONSUMER_GROUP_ID": f"bench-{job.run}",
        "CONSUMER_KAFKA_BOOTSTRAP_SERVERS": job.kafka,
        "CONSUMER_CLICKHOUSE_URL": table.url,
    }
    consumer = job.stack.new_consumer(f"consumer-{job.run}", port, environment)
    engine = job.stack["clickhouse"].pid
    try:
        with pinned(job.placement.server):
            consumer.spawn()
        began_s = time.time()
        before_cpu_s, engine_before_s = _until_ready(consumer, port, engine)
        ready_s = time.time() - began_s
        landed = partial(_landed, consumer, table, job.rows)
        while not landed():
            time.sleep(LANDED_POLL_S)
        cpu_s = proc.cpu_s(consumer.pid) - before_cpu_s
        engine_cpu_s = proc.cpu_s(engine) - engine_before_s
        peak_rss = proc.peak_rss_bytes(consumer.pid)
    finally:
        consumer.stop()
    if (rows := table.rows()) != job.rows or table.distinct() != job.rows:
        raise Failure(f"Of {job.rows} records, {table.distinct()} are in the table, in {rows} rows")
    landings = table.landings()
    first_row_s = landings[0].at_s - began_s
    if first_row_s > SLOW_START_S:
        kept = job.stack.data_dir.parents[1] / "slow-starts" / f"{job.stack.data_dir.name}-{job.run}"
        shutil.copytree(job.stack.logs_dir, kept, dirs_exist_ok=True)
    return {
        "rows_per_s": pace(landings),
        "cpu_us_per_row": cpu_s / job.rows * 1e6,
        "engine_cpu_us_per_row": engine_cpu_s / job.rows * 1e6,
        "ready_s": ready_s,
        "first_row_s": first_row_s,
        "peak_rss_mb": peak_rss / 1e6,
    }


def peer(job: Job, module: str, *options: str, fills_table: bool = True) -> Figures:
    """A module of tests.bench.peers, which ends by itself and says what it has cost. Those that only read are judged
    by what they say of their own pace."""
    if not fills_table:
        return _said(_run(job, module, [*_brokers(job, module), *options]))
    with fresh_table(job) as table:
        engine = job.stack["clickhouse"].pid
        before_s = proc.cpu_s(engine)
        said = _said(_run(job, module, [*_brokers(job, module), "--clickhouse", table.url, *options]))
        engine_cpu_s = proc.cpu_s(engine) - before_s
        return said | {
            "rows_per_s": pace(table.landings()),
            "engine_cpu_us_per_row": engine_cpu_s / said["rows"] * 1e6,
        }


def _brokers(job: Job, module: str) -> Sequence[str]:
    return () if module == "engine_alone" else ("--brokers", job.kafka)


def _run(job: Job, module: str, options: Sequence[str]) -> Process:
    command = [sys.executable, "-m", f"tests.bench.peers.{module}", "--rows", str(job.rows), *options]
    process = Process(module, command, log_path=job.stack.logs_dir / f"{module}.log", start_s_max=DRAIN_S_MAX)
    with pinned(job.placement.server):
        process.run()
    return process


def _said(process: Process) -> Figures:
    for line in reversed(process.last_lines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    raise Failure(f"{process.name} said nothing of its run", process.last_lines())


def _until_ready(consumer: Process, port: int, engine: int) -> tuple[float, float]:
    """CPU time of the consumer and of the engine when the consumer was last seen not to be ready."""
    ends_s = time.monotonic() + READY_S_MAX
    while time.monotonic() < ends_s:
        if not consumer.is_running:
            raise consumer.failure()
        before = proc.cpu_s(consumer.pid), proc.cpu_s(engine)
        if answers(port, "/readyz"):
            return before
        time.sleep(READY_POLL_S)
    raise Failure(f"{consumer.name} was not ready after {READY_S_MAX:.0f} s", consumer.last_lines())


def _landed(consumer: Process, table: Table, rows: int) -> bool:
    if not consumer.is_running:
        raise consumer.failure()
    if time.monotonic() > consumer.started_at_s + DRAIN_S_MAX:
        raise Failure(f"{table.rows()} of {rows} rows after {DRAIN_S_MAX:.0f} s", consumer.last_lines())
    return table.rows() >= rows
