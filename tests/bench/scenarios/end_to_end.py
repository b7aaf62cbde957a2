"""How long after its 200 an event can be queried, under a steady load: the whole pipeline on two cores.

An event counts as queryable when an answer of ClickHouse's has shown it, asked every POLL_S: an upper bound.
"""

import time
from pathlib import Path

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from deploy.local.process import Failure, Process
from deploy.local.stack import PARTS, Stack
from tests.bench import cores, servers
from tests.bench.bench import Bench
from tests.bench.cores import Placement, pinned
from tests.bench.events import TOPIC
from tests.bench.figures import percentile
from tests.bench.load import open_loop
from tests.bench.results import Figures, Result
from tests.bench.scenario import Measure, Plot, Scenario

SLUICE = "Sluice"
RATE = 3_000
CASE = f"{RATE:,} events/s"
CONNECTIONS_S = 2.0
POLL_S = 0.1
LANDING_S_MAX = 60.0
SECONDS_TIMES = 3  # as long as a run under a closed loop

# A block is known by its partition and the time that its rows bear.
BLOCK = "kafka_partition, toUnixTimestamp64Milli(inserted_at)"
SEEN = f"SELECT {BLOCK}, count() FROM interactions.{TOPIC} GROUP BY ALL"
PLACES = f"SELECT event_id, {BLOCK} FROM interactions.{TOPIC}"
PERCENTS = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


Block = tuple[int, int]
Sightings = dict[Block, float]
"""When the first answer came (monotonic s) that showed a block."""


def end_to_end(bench: Bench, result: Result) -> None:
    placement = cores.two_for_all(bench.cores)
    result.setting = placement.sentence
    for _ in bench.interleaved("end-to-end", [SLUICE], str):
        registry = bench.directory / "registry.toml"
        registry.write_text(servers.REGISTRY)
        environment = {"GATEWAY_REGISTRY_FILE": str(registry.resolve())}
        with bench.stack("end-to-end", placement, parts=PARTS, env=environment) as stack:
            result.add(SLUICE, CASE, _measure(bench, stack, placement))


def _measure(bench: Bench, stack: Stack, placement: Placement) -> Figures:
    answers = stack.data_dir / "answers.txt"
    warm_up_s = bench.options.warm_up_s + CONNECTIONS_S
    seconds = bench.options.seconds * SECONDS_TIMES + warm_up_s
    directory, port = stack.data_dir / "load", stack.ports.gateway
    generator = open_loop.generator(servers.singles(), directory, port, RATE, seconds, seed=1, answers=answers)
    client = clickhouse_connect.get_client(dsn=stack.endpoints.clickhouse_url, autogenerate_session_id=False)
    sightings: Sightings = {}
    with pinned(placement.load):
        generator.spawn()
        _watch(client, generator, sightings)
    if generator.exit_code:
        raise generator.failure()
    found = open_loop.latencies(generator)
    if found.refused or found.unanswered:
        raise Failure(f"{found.refused} events were refused and {found.unanswered} not answered")
    accepted = _accepted(answers)
    _watch_until(client, len(accepted), sightings)
    places: dict[str, Block] = {event_id: tuple(block) for event_id, *block in client.query(PLACES).result_rows}
    client.close()
    first_s = min(accepted.values()) + warm_up_s
    took_s = sorted(sightings[places[event]] - at_s for event, at_s in accepted.items() if at_s >= first_s)
    figures = {f"{name}_ms": percentile(took_s, percent) * 1000 for name, percent in PERCENTS.items()}
    return figures | {"answer_p99_ms": found.latency_ms["99"], "events": len(took_s)}


def _watch(client: Client, generator: Process, sightings: Sightings) -> None:
    """For as long as the generator runs."""
    while generator.is_running:
        _look(client, sightings)


def _watch_until(client: Client, rows: int, sightings: Sightings) -> None:
    ends_s = time.monotonic() + LANDING_S_MAX
    while _look(client, sightings) < rows:
        if time.monotonic() > ends_s:
            raise Failure(f"Not all of {rows} accepted events were in the table after {LANDING_S_MAX:.0f} s")


def _look(client: Client, sightings: Sightings) -> int:
    """One question, and a pause. How many rows there are."""
    began_s = time.monotonic()
    seen = client.query(SEEN).result_rows
    now_s = time.monotonic()
    for partition, ms, _ in seen:
        sightings.setdefault((partition, ms), now_s)
    time.sleep(max(0.0, began_s + POLL_S - time.monotonic()))
    return sum(rows for _, _, rows in seen)


def _accepted(path: Path) -> dict[str, float]:
    """When each event's 200 came, monotonic s."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {event_id: float(at_s) for at_s, event_id in lines}


END_TO_END = Scenario(
    "end-to-end",
    "From an event's 200 until it can be queried, at a steady rate",
    end_to_end,
    (
        Measure("p50_ms", "p50 ms", 0),
        Measure("p90_ms", "p90 ms", 0),
        Measure("p99_ms", "p99 ms", 0),
        Measure("max_ms", "max ms", 0),
        Measure("answer_p99_ms", "answer's own p99 ms", 1),
    ),
    (Plot("bars", Measure("p99_ms", "p99 ms", 0)),),
)
