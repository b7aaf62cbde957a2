"""All scenarios, in the order in which they run."""

from tests.bench.scenario import Scenario
from tests.bench.scenarios import consumer, consumer_sizes, end_to_end, gateway, latency, memory

ALL: tuple[Scenario, ...] = (
    gateway.SINGLE,
    gateway.BATCH,
    latency.LATENCY,
    gateway.WORKERS,
    consumer.CONSUMER,
    consumer.IDS,
    consumer_sizes.PARTITIONS,
    consumer_sizes.TABLE,
    end_to_end.END_TO_END,
    memory.MEMORY,
)
BY_NAME = {scenario.name: scenario for scenario in ALL}
