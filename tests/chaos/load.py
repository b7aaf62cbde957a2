"""Load on gateways: HTTP/1.1 connections with one request under way each, at a steady pace, and what became of each.

Every attempt carries a marker of its own in a field that the contract does not name, so that its row can be found
even if nobody was told the event's id. A connection that breaks or is refused goes to the next gateway, as behind a
load balancer. Limits: `ATTEMPTS_MAX`, `seconds_max`, and ANSWER_S_MAX for each answer.
"""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Self

from deploy.local.process import HOST

PATH = "/v1/public/apps/demo/interactions"
MARKER = "attempt"
CONNECTIONS = 24
EVENTS_PER_S = 300
ATTEMPTS_MAX = 60_000
ANSWER_S_MAX = 10.0
RECONNECT_S = 0.05


@dataclass(frozen=True)
class Attempt:
    """One POST. `status` is None where no whole answer came; `answer` is the JSON that came with it."""

    marker: str
    began_s: float
    took_s: float
    status: int | None
    answer: dict[str, Any]

    @property
    def event_id(self) -> str | None:
        return self.answer.get("event_id")

    @property
    def durability(self) -> str | None:
        return self.answer.get("durability")


@dataclass
class Figures:
    """What a scenario has cost; `took_s` are the times of answers to attempts that began during its outage."""

    scenario: str
    kafka: int = 0
    spool: int = 0
    refused: int = 0
    unanswered: int = 0
    took_s: list[float] = field(default_factory=list)
    rows: int = 0
    repeats: int = 0

    def add(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            if attempt.status is None:
                self.unanswered += 1
            elif attempt.status != 200:
                self.refused += 1
            elif attempt.durability == "kafka":
                self.kafka += 1
            else:
                self.spool += 1

    def percentile_ms(self, percent: int) -> int:
        ordered = sorted(self.took_s)
        return round(1000 * ordered[(len(ordered) - 1) * percent // 100]) if ordered else 0


def table(figures: Sequence[Figures]) -> str:
    """Markdown, one line a scenario: all its seeds together."""
    sums: dict[str, Figures] = {}
    for one in figures:
        total = sums.setdefault(one.scenario, Figures(one.scenario))
        for name in ("kafka", "spool", "refused", "unanswered", "rows", "repeats", "took_s"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
    lines = [
        "| scenario | 200: in Kafka | 200: in the spool | 503 | no answer | p50 ms | p99 ms | rows | repeats |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {f.scenario} | {f.kafka} | {f.spool} | {f.refused} | {f.unanswered} "
        f"| {f.percentile_ms(50)} | {f.percentile_ms(99)} | {f.rows} | {f.repeats} |"
        for f in sums.values()
    ]
    return "\n".join(lines) + "\n"


class Load:
    """Runs in a thread of its own, from `with` on until `stop`."""

    def __init__(
        self, name: str, ports: Sequence[int], seed: int, *, seconds_max: float, query_chars_max: int = 300
    ) -> None:
        self.attempts: list[Attempt] = []
        self._name = name
        self._ports = ports
        self._seed = seed
        self._seconds_max = seconds_max
        self._query_chars_max = query_chars_max
        self._is_stopped = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def __enter__(self) -> Self:
        self._ends_s = time.monotonic() + self._seconds_max
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait for the answers to what is under way."""
        self._is_stopped = True
        self._thread.join(ANSWER_S_MAX + 5)
        assert not self._thread.is_alive(), "the load does not stop"

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as connections:
            for index in range(CONNECTIONS):
                connections.create_task(self._connection(index))

    @property
    def _goes_on(self) -> bool:
        return not self._is_stopped and len(self.attempts) < ATTEMPTS_MAX and time.monotonic() < self._ends_s

    async def _connection(self, index: int) -> None:
        random = Random(f"{self._seed}-{index}")
        sent = gateway = 0
        while self._goes_on:
            port = self._ports[(index + gateway) % len(self._ports)]
            try:
                reader, writer = await asyncio.open_connection(HOST, port)
            except OSError:  # nothing was sent: no attempt
                gateway += 1
                await asyncio.sleep(RECONNECT_S)
                continue
            is_open = True
            while is_open and not reader.at_eof() and self._goes_on:
                sent += 1
                attempt, is_open = await self._attempt(f"{self._name}-{index}-{sent}", random, reader, writer)
                self.attempts.append(attempt)
                await asyncio.sleep(random.uniform(0, 2) * CONNECTIONS / EVENTS_PER_S)
            writer.close()
            gateway += 1

    async def _attempt(
        self, marker: str, random: Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Attempt, bool]:
        """The attempt, and whether the connection may be used again."""
        event = {
            "event_type": random.choice(["view", "click"]),
            "query": "q" * random.randint(1, self._query_chars_max),
        }
        body = json.dumps(event | {MARKER: marker}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        began_s = time.monotonic()
        status, answer, is_open = None, {}, False
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                writer.write(f"{head}\r\n\r\n".encode() + body)
                status, answer, is_open = await read_answer(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        return Attempt(marker, began_s, time.monotonic() - began_s, status, answer), is_open


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any], bool]:
    """Status, body, and whether the connection stays open."""
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(status_line.split()[1]), json.loads(body), headers.get("connection") != "close"
