"""The same pipeline over two sets of stores: embedded ones, and official images where a Docker engine answers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from deploy.local.process import free_ports
from deploy.local.stack import Ports, Stack

KAFKA_IMAGE = "apache/kafka:4.1.1"
CLICKHOUSE_IMAGE = "clickhouse/clickhouse-server:25.8"
QUICK = {"CONSUMER_BATCH_AGE_MS_MAX": "200", "CONSUMER_INSERTS_PER_SECOND_MAX": "100"}


@dataclass(frozen=True)
class Pipeline:
    """Gateway and consumer run; `clickhouse` is plain clickhouse-connect to where the rows land."""

    stack: Stack
    gateway_url: str
    clickhouse_dsn: str

    def query(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        with clickhouse_connect.get_client(dsn=self.clickhouse_dsn) as client:
            result = client.query(sql, parameters=parameters)
            return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]


@contextlib.contextmanager
def embedded(directory: Path) -> Iterator[Pipeline]:
    with Stack(directory, Ports.free(), env=QUICK) as stack:
        yield Pipeline(stack, stack.endpoints.gateway_url, f"{stack.endpoints.clickhouse_url}/interactions")


@contextlib.contextmanager
def containers(directory: Path) -> Iterator[Pipeline]:
    _require_docker()
    # Imported here: it looks for a Docker engine as it is imported.
    from testcontainers.community.clickhouse import ClickHouseContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.waiting_utils import wait_for_logs

    [kafka_port] = free_ports(1)
    kafka = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, kafka_port)
    for name, value in {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{kafka_port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }.items():
        kafka = kafka.with_env(name, value)
    clickhouse = ClickHouseContainer(CLICKHOUSE_IMAGE, username="sluice", password="sluice", dbname="default")
    with kafka, clickhouse:
        wait_for_logs(kafka, "Kafka Server started", timeout=90)
        address = f"{clickhouse.get_container_host_ip()}:{clickhouse.get_exposed_port(8123)}"
        dsn = f"http://sluice:sluice@{address}/interactions"
        bootstrap = f"127.0.0.1:{kafka_port}"
        env = {
            **QUICK,
            "GATEWAY_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "CONSUMER_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "CONSUMER_CLICKHOUSE_URL": dsn,
        }
        with Stack(directory, Ports.free(), parts=("gateway", "consumer"), env=env) as stack:
            yield Pipeline(stack, stack.endpoints.gateway_url, dsn)


def _require_docker() -> None:
    import docker

    try:
        docker.from_env(timeout=5).ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
