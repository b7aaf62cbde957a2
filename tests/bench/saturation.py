"""One run of one server under a closed loop: events a second, and what an acknowledged event has cost it.

Each run starts the server anew, warms it up and counts what follows. The acknowledged events of a run must be in
Kafka, all of them; what a server answered and did not write makes the run invalid.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from deploy.local.process import Failure, Process, free_ports
from deploy.local.stack import Stack
from tests.bench import proc, topic
from tests.bench.bench import FOREIGN_MAX, Bench, Meter
from tests.bench.cores import Placement, pinned
from tests.bench.load import closed_loop
from tests.bench.load.closed_loop import Answers
from tests.bench.load.traffic import Traffic
from tests.bench.results import Figures, Result
from tests.bench.servers import Server

FAULTS_MAX = 0.001
"""Of all answers: a busy machine may break a connection, and no more."""


@contextmanager
def running(server: Server, stack: Stack, placement: Placement) -> Iterator[tuple[Process, int]]:
    """The server on its cores, and its port."""
    [port] = free_ports(1)
    process = server.new(stack, port)
    try:
        with pinned(placement.server):
            process.start()
        yield process, port
    finally:
        process.stop()


def load(traffic: Traffic, stack: Stack, placement: Placement, port: int, connections: int, seconds: float) -> Answers:
    """Raises Failure if more than a few requests were refused, or connections broke."""
    generator = closed_loop.generator(traffic, stack.data_dir / "load", port, connections, seconds)
    with pinned(placement.load):
        generator.run()
    answers = closed_loop.answers(generator)
    if answers.refused + answers.broken >= FAULTS_MAX * answers.answers:
        raise Failure(
            f"{answers.answers} answers of 2xx, {answers.refused} others, {answers.broken} broken connections: "
            "that is no measurement"
        )
    return answers


def measure(
    bench: Bench, result: Result, server: Server, stack: Stack, placement: Placement, connections: int
) -> Figures:
    brokers = stack.endpoints.kafka_bootstrap_servers
    traffic = server.traffic()
    with running(server, stack, placement) as (process, port):
        load(traffic, stack, placement, port, connections, bench.options.warm_up_s)
        before = 0 if server.is_bare else topic.records(brokers)
        meter = Meter(process.pid, placement)
        answers = load(traffic, stack, placement, port, connections, bench.options.seconds)
        cost = meter.read()
        peak_rss = max(proc.peak_rss_bytes(pid) for pid in {process.pid, *proc.children(process.pid)})
        events = answers.answers * traffic.events
        if not server.is_bare and (records := topic.records(brokers) - before) < events:
            result.note(f"{server.name}: {events - records} of {events} events of a run were not in Kafka at its end")
    if cost.foreign > FOREIGN_MAX:
        result.note("Other processes had more than 5 % of the server's cores in some runs: the machine was not ours")
    if not server.is_bare:
        topic.empty(brokers)
    return {
        "cpu_us_per_event": cost.cpu_s / events * 1e6,
        "events_per_s": events / answers.seconds,
        "busy": cost.busy,
        "foreign": cost.foreign,
        "peak_rss_mb": peak_rss / 1e6,
    }
