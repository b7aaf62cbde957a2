"""What machine this is, and what runs on it: figures without that say nothing."""

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploy.local import kafka

LOAD_MAX = 0.3
"""Load average at the start above which figures are doubtful."""
PACKAGES = (
    "aiokafka",
    "chdb-core",
    "clickhouse-connect",
    "confluent-kafka",
    "fastapi",
    "httptools",
    "orjson",
    "pydantic",
    "starlette",
    "uvicorn",
    "uvloop",
)


@dataclass(frozen=True)
class Machine:
    """`load` is the average over a minute, at the start; `nice` that of all that runs; `commit` ends with + where files
    have been changed since."""

    cpu: str
    cores: int
    memory_gb: int
    kernel: str
    python: str
    versions: dict[str, str]
    commit: str
    load: float
    nice: int
    time: str

    @property
    def is_busy(self) -> bool:
        return self.load > LOAD_MAX

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"is_busy": self.is_busy}


def describe(cores: int) -> Machine:
    """`cores` are those that we may use."""
    versions = {"kafka": kafka.Release.locked().version}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if go := _output("go", "version"):
        versions["go"] = go.split()[2].removeprefix("go")
    if wrk := _output("wrk", "-v"):
        versions["wrk"] = wrk.split()[1]
    commit = _output("git", "rev-parse", "--short", "HEAD")
    return Machine(
        cpu=_cpu_model(Path("/proc/cpuinfo").read_text()),
        cores=cores,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        kernel=platform.release(),
        python=platform.python_version(),
        versions=versions,
        commit=commit + ("+" if commit and _output("git", "--no-optional-locks", "status", "--porcelain") else ""),
        load=round(os.getloadavg()[0], 2),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        time=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _output(*command: str) -> str:
    """What a command prints, nothing if it is not there. wrk prints its version and fails."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
