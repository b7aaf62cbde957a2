"""What an acknowledged event costs a gateway: ours, its peers, and the bare servers below them."""

import secrets
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from deploy.local.process import Failure
from tests.bench import cores, go_gateway, saturation, servers
from tests.bench.bench import Bench
from tests.bench.results import Result
from tests.bench.scenario import BUSY, CPU_PER_EVENT, EVENTS_PER_S, PEAK_RSS, Measure, Plot, Scenario
from tests.bench.servers import Server

SLUICE = "Sluice"
GO = "Go: net/http, franz-go"
FASTAPI = "FastAPI, aiokafka send_and_wait"
BARE = "limit: bare ASGI on uvicorn"
BARE_OURS = "limit: bare ASGI on our protocol"
WITH_IDS = "Sluice, callers' ids"
WITH_KEYS = "Sluice, retriever events with keys"
BATCHES = "Sluice, batches of 100"

FEW, MANY = 64, 256
BATCH_EVENTS = 100
WORKER_COUNTS = (1, 2, 4)
FOREIGN = Measure("foreign", "others on its cores", 2)


class Entry(NamedTuple):
    server: Server
    connections: int

    @property
    def name(self) -> str:
        return f"{self.server.name}, {case(self.connections)}"


def case(connections: int) -> str:
    return f"{connections} connections"


def with_ids() -> Server:
    """No id comes twice, in any run."""
    return servers.sluice(WITH_IDS, lambda: servers.singles(ids=f"{secrets.token_hex(4)}-"))


def peers(bench: Bench, result: Result) -> Iterator[Server]:
    """Those that write to Kafka, as far as they can be had here."""
    try:
        yield servers.go(GO, bench.directory)
    except go_gateway.NotBuilt as reason:
        result.skipped[GO] = str(reason)
    yield servers.fastapi(FASTAPI)


def single(bench: Bench, result: Result) -> None:
    placement = cores.one_core_each(bench.cores)
    result.setting = f"{placement.sentence} {bench.closed_loop}"
    against = [*peers(bench, result), servers.bare(BARE, "uvicorn"), servers.bare(BARE_OURS, "ours")]
    entries = [Entry(server, count) for count in (FEW, MANY) for server in (servers.sluice(SLUICE), *against)]
    variants = [with_ids(), servers.sluice(WITH_KEYS, servers.retriever_singles)]
    entries += [Entry(server, FEW) for server in variants]
    with bench.stack("gateway-single", placement) as stack:
        for entry in bench.interleaved("gateway-single", entries, lambda entry: entry.name):
            if entry.server.name in result.skipped:
                continue
            try:
                figures = saturation.measure(bench, result, entry.server, stack, placement, entry.connections)
            except Failure as failure:
                if entry.server.name == SLUICE:
                    raise
                result.skipped[entry.server.name] = str(failure)
            else:
                result.add(entry.server.name, case(entry.connections), figures)


def batch(bench: Bench, result: Result) -> None:
    placement = cores.one_core_each(bench.cores)
    result.setting = f"{placement.sentence} {bench.closed_loop}"
    contestants = [servers.sluice(SLUICE), servers.sluice(BATCHES, partial(servers.batches, BATCH_EVENTS))]
    with bench.stack("gateway-batch", placement) as stack:
        for server in bench.interleaved("gateway-batch", contestants, lambda server: server.name):
            figures = saturation.measure(bench, result, server, stack, placement, FEW)
            result.add(server.name, case(FEW), figures)


def workers(bench: Bench, result: Result) -> None:
    sentences = []
    with bench.stack("gateway-workers", cores.one_core_each(bench.cores)) as stack:
        for count in bench.interleaved("gateway-workers", WORKER_COUNTS, _workers):
            placement = cores.several_for_the_server(bench.cores, count)
            sentences.append(f"{_workers(count)}: {placement.sentence}")
            server = servers.sluice(SLUICE, workers=count)
            result.add(SLUICE, _workers(count), saturation.measure(bench, result, server, stack, placement, MANY))
    result.setting = " ".join([*dict.fromkeys(sentences), bench.closed_loop])
    if len(bench.cores) < max(WORKER_COUNTS) + 2:
        result.note(
            f"With {len(bench.cores)} cores, more than one worker shares its cores with the load generator and Kafka: "
            "events/s cannot grow in proportion, CPU an event should stay flat"
        )


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


_MEASURES = (CPU_PER_EVENT, EVENTS_PER_S, BUSY, FOREIGN, PEAK_RSS)

SINGLE = Scenario(
    "gateway-single",
    "CPU time of the server for an acknowledged single event, one core, closed loop",
    single,
    _MEASURES,
    (Plot("bars", CPU_PER_EVENT),),
)
BATCH = Scenario(
    "gateway-batch",
    "The same for an event in a batch of 100, against one by itself",
    batch,
    _MEASURES,
    (Plot("bars", CPU_PER_EVENT),),
)
WORKERS = Scenario(
    "gateway-workers",
    "What more workers bring",
    workers,
    _MEASURES,
    (Plot("lines", EVENTS_PER_S), Plot("lines", CPU_PER_EVENT)),
)
