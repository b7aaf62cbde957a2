"""The HTTP servers that take events: ours in several ways, its peers, and the bare servers that bound it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.local.process import HOST, Process, answers
from deploy.local.stack import Stack
from gateway.registry import key_digest
from tests.bench import events, go_gateway
from tests.bench.load.traffic import Traffic

APP_PATH = f"/v1/public/apps/{events.APP}/interactions"
RETRIEVER_PATH = f"/v1/public/retrievers/{events.RETRIEVER}/interactions"
PUBLIC_KEY, TOKEN = "pk_bench_only", "tok_bench_only"

REGISTRY = f"""\
# All that an owner may have, with quotas that are counted and never reached.
[apps.{events.APP}]
allowed_origins = ["https://shop.example"]
quota = {{ events_per_second = 1000000, burst = 10000000 }}
address_quota = {{ events_per_second = 1000000, burst = 10000000 }}

[retrievers.{events.RETRIEVER}]
public_key_sha256 = ["{key_digest(PUBLIC_KEY.encode())}"]
token_sha256 = ["{key_digest(TOKEN.encode())}"]
quota = {{ events_per_second = 1000000, burst = 10000000 }}
key_quota = {{ events_per_second = 1000000, burst = 10000000 }}
address_quota = {{ events_per_second = 1000000, burst = 10000000 }}
"""

Start = Callable[[Stack, int], Process]


@dataclass(frozen=True)
class Server:
    """`new` makes its process, not started, for a port; `traffic` is what it is sent. One that `is_bare` answers at
    once and writes nothing."""

    name: str
    new: Start
    traffic: Callable[[], Traffic]
    is_bare: bool = False


def singles(ids: str = "") -> Traffic:
    return Traffic(APP_PATH, events.app_bodies(), ids=ids)


def batches(size: int) -> Traffic:
    return Traffic(f"{APP_PATH}/batch", events.app_batches(size), events=size)


def retriever_singles() -> Traffic:
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Public-API-Key": PUBLIC_KEY}
    return Traffic(RETRIEVER_PATH, events.retriever_bodies(), headers=headers)


def sluice(name: str, traffic: Callable[[], Traffic] = singles, workers: int = 1) -> Server:
    def new(stack: Stack, port: int) -> Process:
        registry = stack.data_dir / "registry.toml"
        registry.write_text(REGISTRY)
        environment = {
            "GATEWAY_REGISTRY_FILE": str(registry),
            "GATEWAY_WORKERS": str(workers),
            "GATEWAY_LOG_LEVEL": "warning",
        }
        return stack.new_gateway(f"gateway-{port}", port, environment)

    return Server(name, new, traffic)


def go(name: str, directory: Path) -> Server:
    """Raises go_gateway.NotBuilt."""
    binary = go_gateway.build(directory)

    def new(stack: Stack, port: int) -> Process:
        address = f"{HOST}:{port}"
        command = [str(binary), "-address", address, "-brokers", stack.endpoints.kafka_bootstrap_servers]
        return _process(stack, "go-gateway", command, port)

    return Server(name, new, singles)


def fastapi(name: str) -> Server:
    def new(stack: Stack, port: int) -> Process:
        options = ["--port", str(port), "--brokers", stack.endpoints.kafka_bootstrap_servers]
        return _process(stack, "fastapi-gateway", [*_module("fastapi_gateway"), *options], port)

    return Server(name, new, singles)


def bare(name: str, protocol: str) -> Server:
    def new(stack: Stack, port: int) -> Process:
        return _process(stack, "bare-asgi", [*_module("bare_asgi"), "--port", str(port), "--protocol", protocol], port)

    return Server(name, new, singles, is_bare=True)


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"tests.bench.peers.{name}"]


def _process(stack: Stack, name: str, command: list[str], port: int) -> Process:
    return Process(
        name,
        command,
        log_path=stack.logs_dir / f"{name}.log",
        is_ready=partial(answers, port, "/readyz"),
        start_s_max=30,
    )
