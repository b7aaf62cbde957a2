"""A closed loop: so many connections, each with a request under way at all times. It saturates a server.

wrk does it where it is installed. Our own is here for machines without: it takes more of its core than wrk, and what
it cannot saturate it makes look idle; the CPU time per event stays what it is.

Neither says anything about latency: a connection that waits for a slow answer sends nothing meanwhile.

`python -m tests.bench.load.closed_loop TRAFFIC --port N --connections N --seconds S` is our own.
"""

import argparse
import asyncio
import gc
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop

from deploy.local.process import HOST, Failure, Process
from tests.bench.load.connection import Connection, connect
from tests.bench.load.traffic import Traffic

END_S_MAX = 20.0
ANSWER_S_MAX = 10


@dataclass(frozen=True)
class Answers:
    """What a generator has got: answers of 2xx, others, and connections that broke."""

    answers: int
    seconds: float
    refused: int
    broken: int


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def generator(traffic: Traffic, directory: Path, port: int, connections: int, seconds: float) -> Process:
    """Not started; `answers` reads what it has printed when it is over."""
    directory.mkdir(parents=True, exist_ok=True)
    if has_wrk():
        script = directory / "traffic.lua"
        script.write_text(traffic.lua())
        whole_s = max(1, round(seconds))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{whole_s}s", "--timeout", f"{ANSWER_S_MAX}s"]
        command += ["-s", str(script), f"http://{HOST}:{port}"]
    else:
        saved = directory / "traffic.json"
        traffic.save(saved)
        options = ["--port", str(port), "--connections", str(connections), "--seconds", str(seconds)]
        command = [sys.executable, "-m", __name__, str(saved), *options]
    return Process("load", command, log_path=directory / "load.log", start_s_max=seconds + END_S_MAX)


def answers(generator: Process) -> Answers:
    """Raises Failure if it printed none."""
    for line in reversed(generator.last_lines()):
        if line.startswith("{"):
            figures = json.loads(line)
            refused = int(figures["refused"])
            return Answers(int(figures["answers"]) - refused, figures["seconds"], refused, int(figures["broken"]))
    raise Failure("The load generator said nothing of its answers", generator.last_lines())


async def run(traffic: Traffic, port: int, connections: int, seconds: float) -> Answers:
    requests = traffic.requests()
    counts = {"answers": 0, "refused": 0, "broken": 0}
    ends_s = time.monotonic() + seconds

    def answered(connection: Connection, status: int, _: bytes) -> None:
        counts["answers" if 200 <= status < 300 else "refused"] += 1
        if time.monotonic() < ends_s:
            connection.send(next(requests))

    def broken(_: Connection) -> None:
        counts["broken"] += time.monotonic() < ends_s

    began_s = time.monotonic()
    ends_s = began_s + seconds
    opened = await connect(port, connections, answered, broken)
    for connection in opened:
        connection.send(next(requests))
    await asyncio.sleep(ends_s - time.monotonic())
    took_s = time.monotonic() - began_s
    for connection in opened:
        connection.close()
    return Answers(counts["answers"], took_s, counts["refused"], counts["broken"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traffic", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    gc.disable()
    got = uvloop.run(run(Traffic.load(args.traffic), args.port, args.connections, args.seconds))
    print(json.dumps(vars(got) | {"answers": got.answers + got.refused}))


if __name__ == "__main__":
    main()
