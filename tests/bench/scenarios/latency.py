"""How long a caller waits, at 10 % and 70 % of what the server can take: an open loop, each server at its own rates."""

from deploy.local.stack import Stack
from tests.bench import cores, saturation, servers, topic
from tests.bench.bench import Bench
from tests.bench.cores import Placement, pinned
from tests.bench.load import open_loop
from tests.bench.results import Figures, Result
from tests.bench.scenario import Measure, Plot, Scenario
from tests.bench.scenarios.gateway import FEW, SLUICE, peers
from tests.bench.servers import Server

LOADS = {"10 % load": 0.1, "70 % load": 0.7}
LATE_SHARE_MAX = 0.5
"""Of a p99, above which it is rather the generator's than the server's."""
P50 = Measure("p50_ms", "p50 ms", 2)
P99 = Measure("p99_ms", "p99 ms", 2)


def latency(bench: Bench, result: Result) -> None:
    placement = cores.one_core_each(bench.cores)
    result.setting = (
        f"{placement.sentence} {bench.options.seconds:g} s at each rate, behind {bench.options.warm_up_s:g} s of it."
    )
    contestants = [servers.sluice(SLUICE), *peers(bench, result)]
    with bench.stack("gateway-latency", placement) as stack:
        for server in bench.interleaved("gateway-latency", contestants, lambda server: server.name):
            _measure(bench, result, server, stack, placement)
            topic.empty(stack.endpoints.kafka_bootstrap_servers)


def _measure(bench: Bench, result: Result, server: Server, stack: Stack, placement: Placement) -> None:
    """The maximum by a closed loop, then both loads, all on one start of the server."""
    with saturation.running(server, stack, placement) as (_, port):
        traffic = server.traffic()
        saturation.load(traffic, stack, placement, port, FEW, bench.options.warm_up_s)
        answers = saturation.load(traffic, stack, placement, port, FEW, max(2.0, bench.options.seconds / 2))
        maximum = answers.answers / answers.seconds
        for case, share in LOADS.items():
            done = result.find(server.name, case)
            # Run by run other arrivals, the same for all servers.
            seed = len(done.runs) if done else 0
            figures = _latencies(bench, result, server, stack, placement, port, maximum * share, seed)
            result.add(server.name, case, {**figures, "maximum_per_s": maximum})


def _latencies(
    bench: Bench,
    result: Result,
    server: Server,
    stack: Stack,
    placement: Placement,
    port: int,
    rate: float,
    seed: int,
) -> Figures:
    seconds = bench.options.seconds
    directory = stack.data_dir / "load"
    generator = open_loop.generator(
        server.traffic(), directory, port, rate, seconds, seed=seed, warm_up_s=bench.options.warm_up_s
    )
    with pinned(placement.load):
        generator.run()
    found = open_loop.latencies(generator)
    if found.refused or found.unanswered:
        result.note(f"{server.name}: {found.refused} refused and {found.unanswered} unanswered at {rate:.0f}/s")
    if found.late_ms["99"] > LATE_SHARE_MAX * found.latency_ms["99"]:
        result.note(
            f"{server.name}, {rate:.0f}/s: of a p99 of {found.latency_ms['99']:.1f} ms the generator's own lateness is "
            f"{found.late_ms['99']:.1f} ms: read it as an upper bound"
        )
    return {
        "rate": rate,
        **{f"p{percent.replace('.', '_')}_ms": value for percent, value in found.latency_ms.items()},
        "late_p99_ms": found.late_ms["99"],
        "generator_busy": found.busy,
    }


LATENCY = Scenario(
    "gateway-latency",
    "Latency of single events from their intended time, open loop (Poisson arrivals)",
    latency,
    (
        Measure("rate", "events/s", 0),
        P50,
        Measure("p90_ms", "p90 ms", 2),
        P99,
        Measure("p99_9_ms", "p99.9 ms", 2),
        Measure("p100_ms", "max ms", 1),
        Measure("late_p99_ms", "generator late, p99 ms", 2),
    ),
    (Plot("bars", P50), Plot("bars", P99)),
)
