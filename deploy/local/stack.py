"""The whole pipeline on one machine: Kafka, ClickHouse, gateway and consumer as child processes.

Everything listens on 127.0.0.1, and everything it keeps is in one data directory, which one stack holds at a
time. Stacks with different directories and ports run side by side. No child outlives the stack, not even
when that is killed (`deploy.local.process`).

    with Stack(tmp_path, Ports.free(), parts=STORES) as stack:
        stack["kafka"].kill()
        stack["kafka"].start()  # same port, same data
"""

import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import NoReturn, Self

from deploy.local import kafka
from deploy.local.process import (
    HOST,
    Failure,
    FileLock,
    Process,
    Report,
    Step,
    answers,
    free_ports,
    refuse_busy_ports,
    unreported,
    wait_ready,
    writable_dir,
)

STORES = ("clickhouse", "kafka")
PARTS = (*STORES, "gateway", "consumer")
PORT_NAMES = {"clickhouse": "clickhouse", "kafka": "kafka", "gateway": "gateway", "consumer": "metrics"}
STOP_ORDER = ("gateway", "consumer", "clickhouse", "kafka")
DISK_BYTES_MIN = 256_000_000
WATCH_S = 0.2
LOCK_NAME = "stack.lock"
ENDPOINTS_NAME = "stack.json"
DATABASE = "interactions"


@dataclass(frozen=True)
class Ports:
    """One for each thing that listens; `metrics` is the consumer's."""

    gateway: int = 8000
    kafka: int = 9092
    clickhouse: int = 8123
    metrics: int = 8001

    def __post_init__(self) -> None:
        if len(set(vars(self).values())) < len(fields(self)):
            raise Failure("The gateway, Kafka, ClickHouse and the consumer's metrics each need a port of their own")

    @classmethod
    def free(cls) -> Self:
        return cls(*free_ports(len(fields(cls))))


@dataclass(frozen=True)
class Endpoints:
    """Where a running stack is found. `stack.json` in its data directory holds the same."""

    pid: int
    gateway_url: str
    consumer_url: str
    clickhouse_url: str
    kafka_bootstrap_servers: str
    data_dir: str
    logs_dir: str


class Stack:
    """`parts` names what to run; `env` is put over the environment of gateway and consumer.

    The processes are `stack["kafka"]` and so on: kill, stop, suspend, resume and restart them at will, they
    keep their ports and their data.
    """

    def __init__(
        self,
        data_dir: Path,
        ports: Ports,
        *,
        parts: Collection[str] = PARTS,
        env: Mapping[str, str] | None = None,
        report: Report = unreported,
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.logs_dir = self.data_dir / "logs"
        self.ports = ports
        self.endpoints = Endpoints(
            pid=os.getpid(),
            gateway_url=f"http://{HOST}:{ports.gateway}",
            consumer_url=f"http://{HOST}:{ports.metrics}",
            clickhouse_url=f"http://{HOST}:{ports.clickhouse}",
            kafka_bootstrap_servers=f"{HOST}:{ports.kafka}",
            data_dir=str(self.data_dir),
            logs_dir=str(self.logs_dir),
        )
        self._env = env or {}
        self._report = report
        self._is_hurried = is_hurried
        self._lock = FileLock(self.data_dir / LOCK_NAME)
        self._kafka_release = kafka.Release.locked()
        make: dict[str, Callable[[], Process]] = {
            "clickhouse": self._new_clickhouse,
            "kafka": self._new_kafka,
            "gateway": self.new_gateway,
            # A static member: killed and started again, it need not wait for the end of its old session.
            "consumer": partial(self.new_consumer, env={"CONSUMER_GROUP_INSTANCE_ID": "local"}),
        }
        self._processes = {name: make[name]() for name in PARTS if name in parts}

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Everything, until it is ready. Raises `Failure`; call `stop` even then."""
        writable_dir(self.data_dir, DISK_BYTES_MIN)
        if not self._lock.acquire():
            raise Failure(
                f"A stack runs in {self.data_dir} already (pid {self._lock.holder}): stop it, or choose another "
                "directory with --data-dir"
            )
        refuse_busy_ports(
            {getattr(self.ports, PORT_NAMES[name]): f"--{PORT_NAMES[name]}-port" for name in self._processes}
        )
        kafka.fetch(self._kafka_release, self._report)
        self._start_together(STORES)
        if not self._processes.keys() <= set(STORES):
            self.migrate()
            self._start_together(("gateway", "consumer"))
        _write_whole(self.data_dir / ENDPOINTS_NAME, json.dumps(asdict(self.endpoints), indent=2) + "\n")

    def stop(self) -> None:
        """Everything, in an order that lets each finish its work with those it needs."""
        for name in STOP_ORDER:
            if name in self._processes:
                self._stop(self._processes[name])
        if self._lock.is_held:
            (self.data_dir / ENDPOINTS_NAME).unlink(missing_ok=True)
            self._lock.release()

    def watch(self) -> NoReturn:
        """Until a process ends that should not: raises `Failure` with its last words."""
        while True:
            for process in self._processes.values():
                if not process.is_running:
                    raise process.failure()
                process.trim_log()
            time.sleep(WATCH_S)

    def migrate(self) -> None:
        """Create topics and tables."""
        began_s = time.monotonic()
        self._report(Step("migrate", "starting", "topics and tables"))
        self._python("migrate", "consumer", "migrate", env=self._consumer_env(), start_s_max=60).run()
        self._report(Step("migrate", "ready", f"in {time.monotonic() - began_s:.1f} s"))

    def new_gateway(
        self, name: str = "gateway", port: int | None = None, env: Mapping[str, str] | None = None
    ) -> Process:
        """One more gateway, with a spool of its own, not started: whoever asks for it also stops it."""
        port = port or self.ports.gateway
        defaults = {
            "GATEWAY_REGISTRY_FILE": str(Path(__file__).with_name("registry.toml")),
            "GATEWAY_SPOOL_DIR": str(self.data_dir / name.replace("gateway", "spool")),
        }
        addresses = {
            "GATEWAY_HOST": HOST,
            "GATEWAY_PORT": str(port),
            "GATEWAY_KAFKA_BOOTSTRAP_SERVERS": self.endpoints.kafka_bootstrap_servers,
        }
        environment = {**defaults, **os.environ, **addresses, **self._env, **(env or {})}
        is_ready = partial(answers, port, "/readyz")
        return self._python(name, "gateway", env=environment, is_ready=is_ready, start_s_max=30, stop_s_max=15)

    def new_consumer(
        self,
        name: str = "consumer",
        metrics_port: int | None = None,
        env: Mapping[str, str] | None = None,
        module: str = "consumer",
    ) -> Process:
        """One more consumer in the same group, not started: whoever asks for it also stops it."""
        port = metrics_port or self.ports.metrics
        environment = {**self._consumer_env(), "CONSUMER_METRICS_PORT": str(port), **(env or {})}
        is_ready = partial(answers, port, "/readyz")
        return self._python(name, module, "run", env=environment, is_ready=is_ready, start_s_max=60, stop_s_max=25)

    def new_command(self, name: str, *module_and_options: str, env: Mapping[str, str] | None = None) -> Process:
        """A command of the consumer's, not started: `run` it."""
        return self._python(name, *module_and_options, env={**self._consumer_env(), **(env or {})})

    def _consumer_env(self) -> dict[str, str]:
        addresses = {
            "CONSUMER_METRICS_HOST": HOST,
            "CONSUMER_KAFKA_BOOTSTRAP_SERVERS": self.endpoints.kafka_bootstrap_servers,
            "CONSUMER_CLICKHOUSE_URL": f"{self.endpoints.clickhouse_url}/{DATABASE}",
        }
        return {**os.environ, **addresses, **self._env}

    def _new_kafka(self) -> Process:
        log_path = self.logs_dir / "kafka.log"
        return kafka.broker(self._kafka_release, self.data_dir / "kafka", self.ports.kafka, log_path)

    def _new_clickhouse(self) -> Process:
        port = self.ports.clickhouse
        options = ("--data-dir", str(self.data_dir / "clickhouse"), "--port", str(port))
        return self._python("clickhouse", "deploy.local.clickhouse", *options, is_ready=partial(answers, port, "/ping"))

    def _python(
        self,
        name: str,
        *module_and_options: str,
        env: Mapping[str, str] = os.environ,
        is_ready: Callable[[], bool] = lambda: True,
        start_s_max: float = 60,
        stop_s_max: float = 15,
    ) -> Process:
        return Process(
            name,
            [sys.executable, "-m", *module_and_options],
            log_path=self.logs_dir / f"{name}.log",
            env={**env, "PYTHONUNBUFFERED": "1"},
            is_ready=is_ready,
            start_s_max=start_s_max,
            stop_s_max=stop_s_max,
        )

    def _start_together(self, names: Collection[str]) -> None:
        processes = [self._processes[name] for name in names if name in self._processes]
        for process in processes:
            self._report(Step(process.name, "starting"))
            process.spawn()
        wait_ready(processes, self._report)

    def _stop(self, process: Process) -> None:
        if not process.is_running:
            process.kill()  # what it may have started, and its guard
            return
        self._report(Step(process.name, "stopping"))
        began_s = time.monotonic()
        state = "stopped" if process.stop(self._is_hurried) else "killed"
        self._report(Step(process.name, state, f"after {time.monotonic() - began_s:.1f} s"))


def running(data_dir: Path) -> Endpoints | None:
    """The stack that is up in `data_dir`; None if there is none, or if it is not ready yet."""
    lock = FileLock(data_dir / LOCK_NAME)
    with suppress(FileNotFoundError):
        endpoints = Endpoints(**json.loads((data_dir / ENDPOINTS_NAME).read_text()))
        # The file of a stack that was killed is still there; its lock is not.
        if not lock.acquire(wait_s_max=0):
            return endpoints
        lock.release()
    return None


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.replace(path)
