"""One running pipeline a session and kind of stores; and a Kafka for those who break it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import kafka
from deploy.local.kafka import Release
from deploy.local.process import Process, free_ports
from tests.integration import pipelines
from tests.integration.pipelines import Pipeline


@pytest.fixture(scope="session", params=["embedded", "containers"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    start = getattr(pipelines, request.param)
    with start(tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[tuple[Process, int]]:
    """A broker that runs, and its port."""
    release = Release.locked()
    kafka.fetch(release)
    [port] = free_ports(1)
    broker = kafka.broker(release, tmp_path, port, tmp_path / "kafka.log")
    broker.start()
    yield broker, port
    broker.stop()
