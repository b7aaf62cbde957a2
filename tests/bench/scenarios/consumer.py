"""How fast a backlog gets from Kafka into the table, and what a row costs: our consumer, a tutorial's, the limits."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple

from deploy.local.stack import Stack
from tests.bench import cores, drain, topic
from tests.bench.bench import Bench
from tests.bench.drain import Job
from tests.bench.results import Figures, Result
from tests.bench.scenario import (
    CPU_PER_ROW,
    ENGINE_CPU_PER_ROW,
    PEAK_RSS,
    ROWS_PER_S,
    Measure,
    Plot,
    Scenario,
)
from tests.bench.topic import Backlog

SLUICE = "Sluice"
TUTORIAL = "tutorial: json.loads, client.insert"
ENGINE = "limit: engine alone, 1 connection"
ENGINE_TWO = "limit: engine alone, 2 connections"
GETMANY = "limit: aiokafka getmany alone"
CONFLUENT = "limit: confluent-kafka consume alone"
OWN_IDS, CALLERS_IDS = "ids of ours", "callers' ids"

TUTORIAL_SHARE = 4
"""The tutorial consumer gets a part of the backlog: it would take longer than all others together."""
READY = Measure("ready_s", "start to ready s", 1)
FIRST_ROW = Measure("first_row_s", "start to first row s", 1)

LIMITS = (
    "All read the same log from the page cache, on the same core. The limits have the stores to themselves: while "
    "getmany or consume alone reads, the engine rests, and while the engine alone inserts, Kafka does. getmany alone "
    "runs with Python's own thresholds of the collector."
)

Drain = Callable[[Job], Figures]


class Contestant(NamedTuple):
    name: str
    drain: Drain
    share: int = 1


def case(rows: int) -> str:
    return f"{rows:,} rows, 4 partitions"


def fill(bench: Bench, stack: Stack, backlog: Backlog) -> None:
    with bench.bars.bar(f"filling Kafka with {backlog.rows:,} records", backlog.rows) as advance:
        topic.fill(stack.endpoints.kafka_bootstrap_servers, backlog, advance)


def consumer(bench: Bench, result: Result) -> None:
    placement = cores.stores_unbound(bench.cores)
    result.setting = f"{placement.sentence} {LIMITS}"
    rows, numbers = bench.options.backlog_rows, count()
    contestants = [
        Contestant(SLUICE, drain.ours),
        Contestant(ENGINE, partial(_peer, "engine_alone", "--connections", "1")),
        Contestant(GETMANY, partial(_reader, "getmany_alone")),
        Contestant(ENGINE_TWO, partial(_peer, "engine_alone", "--connections", "2")),
        Contestant(CONFLUENT, partial(_reader, "confluent_alone")),
        Contestant(TUTORIAL, _tutorial, TUTORIAL_SHARE),
    ]
    with bench.stack("consumer", placement) as stack:
        fill(bench, stack, Backlog(rows))
        for contestant in bench.interleaved("consumer", contestants, lambda contestant: contestant.name):
            job = Job(stack, placement, rows // contestant.share, f"c{next(numbers)}")
            result.add(contestant.name, case(rows), contestant.drain(job))


def ids(bench: Bench, result: Result) -> None:
    """Marked records go through the window that knows repeats; unmarked ones do not."""
    placement = cores.stores_unbound(bench.cores)
    result.setting = placement.sentence
    rows, numbers = bench.options.backlog_rows, count()
    with bench.stack("consumer-ids", placement) as stack, bench.stack("marked", placement, parts=("kafka",)) as marked:
        stack.new_command("migrate-marked", "consumer", "migrate", env=at(marked)).run()
        fill(bench, stack, Backlog(rows))
        fill(bench, marked, Backlog(rows, has_ids=True))
        backlogs = {OWN_IDS: stack, CALLERS_IDS: marked}
        for name in bench.interleaved("consumer-ids", list(backlogs), str):
            brokers = backlogs[name].endpoints.kafka_bootstrap_servers
            result.add(SLUICE, name, drain.ours(Job(stack, placement, rows, f"i{next(numbers)}", brokers)))


def _peer(module: str, *options_and_job: object) -> Figures:
    *options, job = options_and_job
    assert isinstance(job, Job)
    return drain.peer(job, module, *map(str, options))


def _reader(module: str, job: Job) -> Figures:
    return drain.peer(job, module, fills_table=False)


def _tutorial(job: Job) -> Figures:
    return drain.peer(job, "tutorial_consumer", "--group", f"tutorial-{job.run}")


def at(stack: Stack) -> dict[str, str]:
    return {"CONSUMER_KAFKA_BOOTSTRAP_SERVERS": stack.endpoints.kafka_bootstrap_servers}


_MEASURES = (ROWS_PER_S, CPU_PER_ROW, ENGINE_CPU_PER_ROW, READY, FIRST_ROW, PEAK_RSS)

CONSUMER = Scenario(
    "consumer",
    "A backlog of 320-byte rows, drained into the table",
    consumer,
    _MEASURES,
    (Plot("bars", ROWS_PER_S), Plot("bars", CPU_PER_ROW)),
)
IDS = Scenario(
    "consumer-ids",
    "What it costs to know repeats: records whose ids are ours, and whose callers gave them",
    ids,
    _MEASURES,
    (Plot("bars", CPU_PER_ROW),),
)
