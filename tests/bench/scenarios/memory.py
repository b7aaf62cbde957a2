"""The most that a gateway worker and a consumer hold in memory when there is much to do."""

from itertools import count

from tests.bench import cores, drain, proc, saturation, servers, topic
from tests.bench.bench import Bench
from tests.bench.drain import Job
from tests.bench.results import Result
from tests.bench.scenario import PEAK_RSS, Measure, Plot, Scenario
from tests.bench.scenarios.consumer import fill
from tests.bench.scenarios.gateway import BATCH_EVENTS, FEW, MANY
from tests.bench.topic import Backlog

GATEWAY, CONSUMER = "Sluice gateway, one worker", "Sluice consumer"
FULL_LOAD = "full load"


def backlog_case(rows: int) -> str:
    return f"backlog of {rows:,}"


def memory(bench: Bench, result: Result) -> None:
    for_server, for_consumer = cores.one_core_each(bench.cores), cores.stores_unbound(bench.cores)
    result.setting = f"Gateway: {for_server.sentence} Consumer: {for_consumer.sentence}"
    rows, numbers, seconds = bench.options.memory_rows, count(), bench.options.seconds
    server = servers.sluice(GATEWAY)
    with bench.stack("memory-gateway", for_server) as stack:
        for _ in bench.interleaved("memory", [GATEWAY], str):
            with saturation.running(server, stack, for_server) as (process, port):
                saturation.load(servers.singles(), stack, for_server, port, MANY, seconds)
                singles_rss = proc.rss_bytes(process.pid)
                saturation.load(servers.batches(BATCH_EVENTS), stack, for_server, port, FEW, seconds)
                figures = {"singles_rss_mb": singles_rss / 1e6, "peak_rss_mb": proc.peak_rss_bytes(process.pid) / 1e6}
            result.add(GATEWAY, FULL_LOAD, figures)
            topic.empty(stack.endpoints.kafka_bootstrap_servers)
    with bench.stack("memory-consumer", for_consumer) as stack:
        fill(bench, stack, Backlog(rows))
        for _ in bench.interleaved("memory", [CONSUMER], str):
            figures = drain.ours(Job(stack, for_consumer, rows, f"m{next(numbers)}"))
            result.add(CONSUMER, backlog_case(rows), {"peak_rss_mb": figures["peak_rss_mb"]})


MEMORY = Scenario(
    "memory",
    f"Peak RSS: a worker under {MANY} connections and then {FEW} with batches of {BATCH_EVENTS}; a consumer's backlog",
    memory,
    (PEAK_RSS, Measure("singles_rss_mb", "RSS after single events MB", 0)),
    (Plot("bars", PEAK_RSS),),
)
