"""Whether the consumer's pace depends on the number of partitions, or on what the table holds already."""

from contextlib import ExitStack
from itertools import count

from tests.bench import cores, drain
from tests.bench.bench import Bench
from tests.bench.drain import Job
from tests.bench.results import Result
from tests.bench.scenario import CPU_PER_ROW, ENGINE_CPU_PER_ROW, PEAK_RSS, ROWS_PER_S, Plot, Scenario
from tests.bench.scenarios.consumer import FIRST_ROW, READY, SLUICE, at, fill
from tests.bench.tables import Table
from tests.bench.topic import Backlog

PARTITION_COUNTS = (1, 4, 64)


def partitions(bench: Bench, result: Result) -> None:
    """A broker for each number; one ClickHouse."""
    placement = cores.stores_unbound(bench.cores)
    result.setting = placement.sentence
    rows, numbers = bench.options.backlog_rows, count()
    with ExitStack() as stacks:
        stack = stacks.enter_context(bench.stack("consumer-partitions", placement, parts=("clickhouse",)))
        brokers = {}
        for number in PARTITION_COUNTS:
            name = f"partitions-{number}"
            kafka = stacks.enter_context(bench.stack(name, placement, parts=("kafka",)))
            environment = {**at(kafka), "CONSUMER_TOPIC_PARTITIONS": str(number)}
            stack.new_command(f"migrate-{name}", "consumer", "migrate", env=environment).run()
            fill(bench, kafka, Backlog(rows))
            brokers[_partitions(number)] = kafka.endpoints.kafka_bootstrap_servers
        for case in bench.interleaved("consumer-partitions", list(brokers), str):
            result.add(SLUICE, case, drain.ours(Job(stack, placement, rows, f"p{next(numbers)}", brokers[case])))


def table(bench: Bench, result: Result) -> None:
    placement = cores.stores_unbound(bench.cores)
    result.setting = placement.sentence
    rows, held, numbers = bench.options.backlog_rows, bench.options.table_rows, count()
    with bench.stack("consumer-table", placement) as stack:
        full = Table(stack, "bench_full", stack.endpoints.kafka_bootstrap_servers)
        with bench.bars.bar(f"filling the table with {held:,} rows", held) as advance:
            full.fill(held, advance)
        with bench.bars.bar("letting the table's parts be merged", 1):
            full.settle()
        fill(bench, stack, Backlog(rows))
        for before in bench.interleaved("consumer-table", (0, held), _held):
            job = Job(stack, placement, rows, f"t{next(numbers)}")
            result.add(SLUICE, _held(before), drain.ours(job, full if before else None))
            if before:
                full.forget_consumed()
        full.close()


def _partitions(number: int) -> str:
    return f"{number} partition{'s' if number > 1 else ''}"


def _held(rows: int) -> str:
    return f"{rows / 1e6:g} million rows before"


_MEASURES = (ROWS_PER_S, CPU_PER_ROW, ENGINE_CPU_PER_ROW, READY, FIRST_ROW, PEAK_RSS)
_PLOTS = (Plot("lines", ROWS_PER_S), Plot("lines", CPU_PER_ROW))

PARTITIONS = Scenario("consumer-partitions", "A backlog over 1, 4 and 64 partitions", partitions, _MEASURES, _PLOTS)
TABLE = Scenario("consumer-table", "A backlog into an empty table, and into a large one", table, _MEASURES, _PLOTS)
