"""An open loop: requests leave when their time has come, whatever became of those before.

The times are drawn beforehand, like those of many callers who know nothing of each other (a Poisson process, seeded).
A latency runs from the time at which a request *should* have left to the end of its answer: if the server stalls, the
requests that had to wait for a connection count with their wait (no coordinated omission). So does what the generator
itself is late by; it reports that apart, and where its lateness is not small against the latencies, they are its own.

`python -m tests.bench.load.open_loop TRAFFIC --port N --rate N --seconds S` prints one line of JSON. With `--warm-up S`
the same load goes before, uncounted: connections are new at the start, and both sides have just begun.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import uvloop

from deploy.local.process import Failure, Process
from tests.bench.figures import percentile
from tests.bench.load.connection import Connection, connect
from tests.bench.load.timer import Timer
from tests.bench.load.traffic import Traffic

CONNECTIONS = 256
WAKE_S = 0.0001  # no more often than that, so that thousands a second leave several at a time
LAST_ANSWER_S_MAX = 10.0
PERCENTS = (50, 90, 99, 99.9, 100)


@dataclass(frozen=True)
class Latencies:
    """ms by percent, of `answers` of 2xx; `late_ms` is what the generator itself was late by. `busy` is the share of
    its core that it took; `unanswered` were under way when it gave up waiting."""

    rate: float
    answers: int
    refused: int
    unanswered: int
    latency_ms: dict[str, float]
    late_ms: dict[str, float]
    busy: float


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Pure: when requests leave, in s from the start, ascending: `rate` a second on average."""
    random = Random(seed)
    at, times = random.expovariate(rate), []
    while at < seconds:
        times.append(at)
        at += random.expovariate(rate)
    return times


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"{percent:g}": round(percentile(ordered, percent) * 1000, 4) for percent in PERCENTS}


class OpenLoop:
    """One run. What is due before `warm_up_s` is sent like the rest, and not counted. `accepted` collects what a caller
    of a gateway has in hand: when, and the answer."""

    def __init__(
        self, traffic: Traffic, times: Sequence[float], *, warm_up_s: float = 0.0, keeps_answers: bool = False
    ) -> None:
        self.latencies_s = array("d")
        self.late_s = array("d")
        self.refused = 0
        self.unanswered = len(times)
        self.accepted: list[tuple[float, bytes]] = []
        self._requests = traffic.requests()
        self._times = times
        self._warm_up_s = warm_up_s
        self._keeps_answers = keeps_answers
        self._next = 0
        self._waiting: deque[float] = deque()
        self._idle: deque[Connection] = deque()
        self._is_over = asyncio.Event()
        self._is_broken = False

    async def run(self, port: int, connections: int) -> None:
        opened = await connect(port, connections, self._answered, self._broken)
        self._idle.extend(opened)
        self._timer = Timer(asyncio.get_running_loop(), self._leave)
        self._began_s = time.monotonic() + 0.05
        self._counts_from_s = self._began_s + self._warm_up_s
        self._leave()
        span_s = self._times[-1] if self._times else 0.0
        try:
            async with asyncio.timeout(span_s + LAST_ANSWER_S_MAX):
                await self._is_over.wait()
        except TimeoutError:
            pass  # `unanswered` says so
        finally:
            self._is_over.set()
            self._timer.close()
            for connection in opened:
                connection.close()
        if self._is_broken:
            raise ConnectionError("the server has closed a connection")

    def _leave(self) -> None:
        """Everything whose time has come."""
        now_s = time.monotonic()
        while self._next < len(self._times):
            due_s = self._began_s + self._times[self._next]
            if due_s > now_s:
                self._timer.set(max(due_s, now_s + WAKE_S))
                return
            self._next += 1
            if due_s >= self._counts_from_s:
                self.late_s.append(now_s - due_s)
            if self._idle:
                self._send(self._idle.popleft(), due_s)
            else:
                self._waiting.append(due_s)

    def _send(self, connection: Connection, due_s: float) -> None:
        connection.request = due_s
        connection.send(next(self._requests))

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        now_s = time.monotonic()
        if 200 <= status < 300:
            if connection.request >= self._counts_from_s:
                self.latencies_s.append(now_s - connection.request)
            if self._keeps_answers:
                self.accepted.append((now_s, body))
        else:
            self.refused += 1
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)
        self.unanswered -= 1
        if not self.unanswered:
            self._is_over.set()

    def _broken(self, _: Connection) -> None:
        if not self._is_over.is_set():
            self._is_broken = True
            self._is_over.set()


def generator(
    traffic: Traffic,
    directory: Path,
    port: int,
    rate: float,
    seconds: float,
    *,
    seed: int,
    warm_up_s: float = 0.0,
    answers: Path | None = None,
) -> Process:
    """Not started; `latencies` reads what it has printed when it is over. With `answers`, a file of times (monotonic
    s) and event ids, one a line."""
    directory.mkdir(parents=True, exist_ok=True)
    saved = directory / "traffic.json"
    traffic.save(saved)
    options = ["--port", str(port), "--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed)]
    options += ["--warm-up", str(warm_up_s)]
    if answers is not None:
        options += ["--answers", str(answers)]
    command = [sys.executable, "-m", __name__, str(saved), *options]
    start_s_max = warm_up_s + seconds + LAST_ANSWER_S_MAX + 20
    return Process("open-loop", command, log_path=directory / "open-loop.log", start_s_max=start_s_max)


def latencies(generator: Process) -> Latencies:
    """Raises Failure if it printed none."""
    for line in reversed(generator.last_lines()):
        if line.startswith("{"):
            return Latencies(**json.loads(line))
    raise Failure("The load generator said nothing of its answers", generator.last_lines())


async def run(args: argparse.Namespace) -> Latencies:
    loop = OpenLoop(
        Traffic.load(args.traffic),
        schedule(args.rate, args.warm_up + args.seconds, args.seed),
        warm_up_s=args.warm_up,
        keeps_answers=args.answers is not None,
    )
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    await loop.run(args.port, args.connections)
    busy = (time.process_time() - began_cpu_s) / (time.monotonic() - began_s)
    if args.answers is not None:
        with args.answers.open("w") as file:
            for at_s, body in loop.accepted:
                file.write(f"{at_s:.6f} {json.loads(body)['event_id']}\n")
    return Latencies(
        rate=args.rate,
        answers=len(loop.latencies_s),
        refused=loop.refused,
        unanswered=loop.unanswered,
        latency_ms=percentiles_ms(loop.latencies_s),
        late_ms=percentiles_ms(loop.late_s),
        busy=round(busy, 3),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traffic", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, default=0.0, help="seconds before these, not counted")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--answers", type=Path, help="a file for when each event was accepted")
    args = parser.parse_args()
    gc.disable()  # its pauses would be the server's
    print(json.dumps(asdict(uvloop.run(run(args)))))


if __name__ == "__main__":
    main()
