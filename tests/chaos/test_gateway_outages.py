"""Every event that was answered with 200 is a row, whatever happens to Kafka, the network, the disk or the gateway.

A gateway (two workers, where nothing else is said) serves real HTTP connections while something breaks. At the end
everything is mended, the gateways are stopped with SIGTERM and must leave no event in any spool; then rows, records
and answers are compared: one row an event. A repeat, a second record of one event, is allowed only where a gateway died
or was stopped with a batch unanswered, and only if it is marked `replay`; the consumer makes no row of it.
"""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from clickhouse_connect.driver.exceptions import ClickHouseError
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.process import HOST, Process, free_ports
from deploy.local.stack import Stack
from tests.chaos.arena import PARTITIONS, TOPIC, Arena, arena, http_get
from tests.chaos.conftest import OUTAGE_S
from tests.chaos.load import MARKER, Figures, Load
from tests.chaos.tcp_proxy import Fault, TcpProxy

pytestmark = pytest.mark.timeout(240 + 5 * OUTAGE_S)

P99_MS_MAX = 1_500 + 500  # GATEWAY_PUBLISH_DEADLINE_MS, and what the issue grants on top
SAMPLES_MIN = 200
DISK_BYTES = 20_000_000
WAIT_S_MAX = 60


class LogRecord(NamedTuple):
    event_id: str
    is_replay: bool


class Site:
    """Gateways under load, a consumer, and the reckoning."""

    def __init__(
        self, arena: Arena, figures: Figures, count: int, query_chars_max: int, env: Mapping[str, str]
    ) -> None:
        self.arena = arena
        self.figures = figures
        self.random = arena.random
        self.kafka = arena.stack["kafka"]
        self.ports = free_ports(count)
        self.gateways = [self._new_gateway(index, env) for index in range(count)]
        self.load = Load(
            arena.name, self.ports, arena.seed, seconds_max=5 * OUTAGE_S + 120, query_chars_max=query_chars_max
        )
        self.outages: list[tuple[float, float]] = []

    def _new_gateway(self, index: int, env: Mapping[str, str]) -> Process:
        name = f"{self.arena.name}-gateway-{index}"
        return self.arena.stack.new_gateway(name, self.ports[index], env={"GATEWAY_WORKERS": "2", **env})

    @property
    def spool_dirs(self) -> list[Path]:
        return [Path((gateway.env or {})["GATEWAY_SPOOL_DIR"]) for gateway in self.gateways]

    # What happens

    @contextlib.contextmanager
    def outage(self, seconds: float = OUTAGE_S) -> Iterator[None]:
        """The body breaks something; then it stays so, for what is left of `seconds`."""
        began_s = time.monotonic()
        yield
        time.sleep(max(0.0, began_s + seconds - time.monotonic()))
        self.outages.append((began_s, time.monotonic()))

    def wait_answered(self, durability: str, count: int = 100) -> None:
        """Until so many more events have been answered so."""
        begun = len(self.load.attempts)
        self.wait_until(
            lambda: sum(attempt.durability == durability for attempt in self.load.attempts[begun:]) >= count,
            f"{count} answers by {durability}",
        )

    def wait_no_room(self, *codes: str) -> None:
        """Until the gateway says so, to probes and to callers."""
        reasons: list[str] = []

        def is_unready() -> bool:
            status, reason = self.ready()
            reasons.append(reason)
            return status == 503

        self.wait_until(is_unready, "no room")
        assert "spool" in reasons[-1], f"{self.seed}: {reasons[-1]}"
        assert self.is_alive()
        self.wait_until(lambda: any(attempt.status == 503 for attempt in self.load.attempts), "a refusal")
        refused = next(attempt for attempt in self.load.attempts if attempt.status == 503)
        assert refused.answer["error"]["code"] in codes, f"{self.seed}: {refused}"

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S_MAX
        while not _ask(condition):
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{self.seed}: waited {WAIT_S_MAX} s for {what}\n{self.logs()}")
            time.sleep(0.05)
        print(f"{time.monotonic() + WAIT_S_MAX - deadline_s:.1f} s for {what}", file=sys.stderr)  # shown on failure

    @property
    def seed(self) -> str:
        return f"seed {self.arena.seed}"

    def logs(self) -> str:
        lines = [line for gateway in self.gateways for line in [f"--- {gateway.name}", *gateway.last_lines(15)]]
        return "\n".join([self.arena.logs(), *lines])

    # What is asked

    def ready(self, index: int = 0) -> tuple[int, str]:
        answer = http_get(self.ports[index], "/readyz")
        return answer.status_code, answer.json().get("reason", "")

    def is_alive(self, index: int = 0) -> bool:
        return http_get(self.ports[index], "/livez").status_code == 200

    def counted(self, index: int = 0) -> Counter[str]:
        """Events by the gateway's own account: received, kafka, spool, refused."""
        page = http_get(self.ports[index], "/metrics").text
        names = {"gateway_events_received": "received", "gateway_events_refused": "refused"}
        counts: Counter[str] = Counter()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if family.name in names:
                    counts[names[family.name]] += int(sample.value)
                elif family.name == "gateway_events_accepted":
                    counts[sample.labels["durability"]] += int(sample.value)
        return counts

    def spooled(self) -> int:
        """Events on the disks of the spools, by what the files say."""
        return sum(_records(path) for directory in self.spool_dirs for path in directory.glob("*.db"))

    # The reckoning

    def rest(self) -> None:
        """No load any more, and every 200 landed. The account of each gateway that still counts is balanced."""
        self.load.stop()
        accepted = {attempt.event_id for attempt in self.load.attempts if attempt.status == 200}
        self.wait_until(lambda: self._landed() >= len(accepted), f"{len(accepted)} events that were answered 200")
        self.wait_until(lambda: self.spooled() == 0, "empty spools")

    def reckon(self, *, may_repeat: bool = False, unanswered: bool = False, refused: bool = False) -> None:
        """After `rest`. Whether there may be repeats in the log, attempts without an answer, and refusals."""
        for gateway in self.gateways:
            assert gateway.stop(), f"{self.seed}: {gateway.name} did not drain in time\n{self.logs()}"
            assert gateway.exit_code == 0, f"{self.seed}: {gateway.exit_code}\n{self.logs()}"
        left = [path.name for directory in self.spool_dirs for path in directory.glob("*.db")]
        assert not left, f"{self.seed}: spool files of nobody: {left}\n{self.logs()}"
        records = asyncio.run(_records_since(self.arena))
        events = {record.event_id for record in records.values()}
        self.wait_until(lambda: self._landed() >= len(events) and self._lag() == 0, f"{len(events)} events")
        self.arena.consumers[0].stop()
        rows = self._rows()
        assert Counter(id_ for id_, _, _ in rows) == Counter(events), f"{self.seed}: {len(rows)} rows of {len(events)}"
        assert {at for _, _, at in rows} <= records.keys(), self.seed
        self._compare_answers([(id_, marker) for id_, marker, _ in rows])
        self._compare_records(records, may_repeat)
        self.figures.rows = len(rows)
        self.figures.add(self.load.attempts)
        assert unanswered or self.figures.unanswered == 0, f"{self.seed}: {self.figures.unanswered} without an answer"
        assert refused or self.figures.refused == 0, f"{self.seed}: {self.figures.refused} refused\n{self.logs()}"
        self._measure()

    def _compare_answers(self, rows: Sequence[tuple[str, str]]) -> None:
        ids_of: defaultdict[str, set[str]] = defaultdict(set)
        for event_id, marker in rows:
            ids_of[marker].add(event_id)
        for attempt in self.load.attempts:
            found = ids_of[attempt.marker]
            assert len(found) <= 1, f"{self.seed}: {attempt} is {found}"
            if attempt.status == 200:
                assert found == {attempt.event_id}, f"{self.seed}: {attempt} is {found}\n{self.logs()}"
        strangers = ids_of.keys() - {attempt.marker for attempt in self.load.attempts}
        assert not strangers, f"{self.seed}: rows of no attempt: {strangers}"

    def _compare_records(self, records: Mapping[tuple[int, int], LogRecord], may_repeat: bool) -> None:
        first_sends = Counter(record.event_id for record in records.values() if not record.is_replay)
        unmarked = [id_ for id_, count in first_sends.items() if count > 1]
        assert not unmarked, f"{self.seed}: {len(unmarked)} events twice without a mark\n{self.logs()}"
        self.figures.repeats = len(records) - len({record.event_id for record in records.values()})
        assert may_repeat or self.figures.repeats == 0, f"{self.seed}: {self.figures.repeats} repeats\n{self.logs()}"

    def _measure(self) -> None:
        """The answers to what was sent during the outages, and their bound."""
        for attempt in self.load.attempts:
            if attempt.status is not None and any(began <= attempt.began_s < ended for began, ended in self.outages):
                self.figures.took_s.append(attempt.took_s)
        if len(self.figures.took_s) >= SAMPLES_MIN:
            p99_ms = self.figures.percentile_ms(99)
            assert p99_ms <= P99_MS_MAX, f"{self.seed}: p99 {p99_ms} ms of {len(self.figures.took_s)}\n{self.logs()}"

    def _lag(self) -> float:
        """Records that the consumer has not dealt with."""
        assert self.arena.consumers[0].env is not None
        page = http_get(int(self.arena.consumers[0].env["CONSUMER_METRICS_PORT"]), "/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(page)}
        return sum(sample.value for sample in families["consumer_lag_records"].samples)

    def _landed(self) -> int:
        return int(self.arena.value(f"SELECT uniqExact(event_id) FROM {TOPIC}"))

    def _rows(self) -> list[tuple[str, str, tuple[int, int]]]:
        """Event id, marker, and coordinates in Kafka."""
        columns = f"(event_id, JSONExtractString(extra, '{MARKER}'), kafka_partition, kafka_offset)"
        rows = self.arena.value(f"SELECT groupArray({columns}) FROM {TOPIC}")
        return [(id_, marker, (partition, offset)) for id_, marker, partition, offset in rows]


@contextlib.contextmanager
def site(
    stores: Stack,
    seed: int,
    figures: list[Figures],
    scenario: str,
    *,
    gateways: int = 1,
    query_chars_max: int = 300,
    **env: str,
) -> Iterator[Site]:
    with arena(stores, seed) as a:
        entered = Site(a, Figures(scenario), gateways, query_chars_max, env)
        consumer = a.consumer()
        consumer.spawn()
        try:
            for gateway in entered.gateways:
                gateway.start()
            with entered.load:
                entered.wait_answered("kafka")
                yield entered
            figures.append(entered.figures)
        finally:
            for gateway in entered.gateways:
                gateway.kill()
            entered.kafka.resume()
            if not entered.kafka.is_running:
                entered.kafka.start()


def balance(site: Site, index: int = 0) -> None:
    """received = kafka + spool + refused, and all of it is the load's."""
    counts = site.counted(index)
    assert counts["received"] == counts["kafka"] + counts["spool"] + counts["refused"], f"{site.seed}: {counts}"
    assert counts["received"] == len(site.load.attempts), f"{site.seed}: {counts}"
    answered = Counter(attempt.durability or "refused" for attempt in site.load.attempts)
    assert counts == answered + Counter(received=len(site.load.attempts)), f"{site.seed}: {counts}, {answered}"


def test_kafka_is_stopped(stores: Stack, seed: int, figures: list[Figures]) -> None:
    with site(stores, seed, figures, "Kafka stopped, and started again") as s:
        with s.outage():
            s.kafka.stop()
            s.wait_answered("spool")
            assert s.ready() == (200, "")
            assert s.is_alive()
        s.kafka.start()
        s.wait_answered("kafka")
        s.rest()
        balance(s)
        s.reckon()


def test_kafka_hangs(stores: Stack, seed: int, figures: list[Figures]) -> None:
    """It takes connections and requests, and answers nothing."""
    with site(stores, seed, figures, "Kafka hangs (SIGSTOP)") as s:
        with s.outage():
            s.kafka.suspend()
            s.wait_answered("spool")
            assert s.ready() == (200, "")
            assert s.is_alive()
        s.kafka.resume()
        s.wait_answered("kafka")
        s.rest()
        balance(s)
        s.reckon()


@pytest.mark.parametrize(
    ("fault", "scenario"),
    [
        (Fault.DELAY, "network: every request and answer up to 3 s late"),
        (Fault.RESET, "network: every other request or answer ends in a reset"),
        (Fault.LOSE, "network: half of every other request or answer is lost"),
    ],
)
def test_the_network_to_kafka(stores: Stack, seed: int, figures: list[Figures], fault: Fault, scenario: str) -> None:
    with TcpProxy(stores.ports.kafka, Random(seed)) as proxy:
        through = {"GATEWAY_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{proxy.port}"}
        with site(stores, seed, figures, scenario, **through) as s:
            with s.outage():
                proxy.fault = fault
            proxy.fault = Fault.NONE
            assert proxy.struck > 0
            s.wait_answered("kafka")
            s.rest()
            balance(s)
            s.reckon()


def test_the_gateway_is_killed(stores: Stack, seed: int, figures: list[Figures]) -> None:
    with site(stores, seed, figures, "gateway killed, twice") as s:
        for _ in range(2):
            with s.outage(0):
                s.wait_answered("kafka", s.random.randint(1, 200))
                s.gateways[0].kill()
                s.gateways[0].start()
        s.wait_answered("kafka")
        s.rest()
        s.reckon(may_repeat=True, unanswered=True)


def test_the_gateway_is_killed_while_kafka_is_down(stores: Stack, seed: int, figures: list[Figures]) -> None:
    """It starts, and is ready, without Kafka. The second kill is in the middle of the replay."""
    slow = {"GATEWAY_REPLAY_RECORDS_PER_S": "700"}
    with site(stores, seed, figures, "Kafka down, and the gateway killed, then again in the replay", **slow) as s:
        s.kafka.kill()
        with s.outage(0):
            s.wait_answered("spool", s.random.randint(100, 600))
            s.gateways[0].kill()
            files = set(s.spool_dirs[0].glob("*.db"))
            s.gateways[0].start()
            assert s.ready() == (200, "")
            assert s.is_alive()
            s.wait_until(lambda: not files & set(s.spool_dirs[0].glob("*.db")), "its files to be adopted")
            s.wait_answered("spool", s.random.randint(100, 1_500))
        spooled = s.spooled()
        s.kafka.start()
        s.wait_until(lambda: 0 < s.spooled() < spooled, "the replay to begin")
        s.gateways[0].kill()
        s.gateways[0].start()
        s.wait_answered("kafka")
        s.rest()
        s.reckon(may_repeat=True, unanswered=True)


def test_a_worker_is_killed_while_kafka_is_down(stores: Stack, seed: int, figures: list[Figures]) -> None:
    """Its successor adopts its file. The gateway's account goes on across the kill: only what the worker was busy
    with is missing from it."""
    with site(stores, seed, figures, "Kafka down, and one of two workers killed") as s:
        s.kafka.kill()
        s.wait_answered("spool")
        with s.outage(0):
            files = set(s.spool_dirs[0].glob("*.db"))
            victim = s.random.choice(_workers(s.gateways[0]))
            os.kill(victim, signal.SIGKILL)
            s.wait_until(
                lambda: victim not in (now := _workers(s.gateways[0])) and len(now) == 2, "the worker's successor"
            )
            s.wait_until(lambda: len(files - set(s.spool_dirs[0].glob("*.db"))) == 1, "its file to be adopted")
            s.wait_answered("spool")
        s.kafka.start()
        s.wait_answered("kafka")
        s.rest()
        counts = s.counted()
        answered = Counter(attempt.durability or "none" for attempt in s.load.attempts)
        lost = counts["received"] - counts["kafka"] - counts["spool"] - counts["refused"]
        assert 0 <= lost <= answered["none"], f"{s.seed}: {counts}, {answered}"
        assert counts["kafka"] >= answered["kafka"], f"{s.seed}: {counts}, {answered}"
        s.reckon(may_repeat=True, unanswered=True)


def test_kafka_returns_when_nobody_sends_any_more(stores: Stack, seed: int, figures: list[Figures]) -> None:
    """The spool needs no traffic to find out that Kafka is back."""
    with site(stores, seed, figures, "Kafka down, and no event after it") as s:
        with s.outage(0):
            s.kafka.kill()
            s.wait_answered("spool")
            s.load.stop()
        s.kafka.start()
        s.rest()
        balance(s)
        s.reckon()


def test_the_spool_is_full(stores: Stack, seed: int, figures: list[Figures]) -> None:
    """503 for what is neither in Kafka nor on the disk."""
    bound = {"GATEWAY_WORKERS": "1", "GATEWAY_SPOOL_BYTES_MAX": "1000000"}
    with site(stores, seed, figures, "Kafka down, and the spool full", query_chars_max=4_000, **bound) as s:
        with s.outage(0):
            s.kafka.kill()
            s.wait_no_room("spool_full")
        s.kafka.start()
        s.wait_answered("kafka")
        s.rest()
        balance(s)
        s.reckon(refused=True)


def test_the_disk_is_full(stores: Stack, seed: int, figures: list[Figures], tmp_path: Path) -> None:
    """The spool has filled it: what it needs to become empty again it has left free."""
    disk = {"GATEWAY_WORKERS": "1", "GATEWAY_SPOOL_DIR": str(tmp_path)}
    with (
        small_disk(tmp_path),
        site(
            stores, seed, figures, "Kafka down, and the spool has filled the disk", query_chars_max=20_000, **disk
        ) as s,
    ):
        with s.outage(0):
            s.kafka.kill()
            s.wait_no_room("spool_full")
        s.kafka.start()
        s.wait_answered("kafka")
        s.rest()
        balance(s)
        s.reckon(refused=True)


def test_others_fill_the_disk(stores: Stack, seed: int, figures: list[Figures], tmp_path: Path) -> None:
    """To the last byte, and until after Kafka is back: what cannot leave the spool is not sent again and again."""
    disk = {"GATEWAY_WORKERS": "1", "GATEWAY_SPOOL_DIR": str(tmp_path)}
    with small_disk(tmp_path), site(stores, seed, figures, "Kafka down, and others have filled the disk", **disk) as s:
        with s.outage(0):
            s.kafka.kill()
            s.wait_answered("spool")
            filler = tmp_path / "filler"
            fill(filler)
            s.wait_no_room("spool_full", "spool_failed")
        s.kafka.start()
        s.wait_answered("kafka", 500)
        s.load.stop()
        filler.unlink()
        s.rest()
        balance(s)
        s.reckon(refused=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1_000))


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "sluice", path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs without root: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_two_gateways_are_restarted_in_turn(stores: Stack, seed: int, figures: list[Figures]) -> None:
    with site(stores, seed, figures, "rolling restart of two gateways", gateways=2, GATEWAY_WORKERS="1") as s:
        for gateway in s.gateways:
            with s.outage(0):
                assert gateway.stop(), s.logs()
                assert gateway.exit_code == 0
                s.wait_answered("kafka")
                gateway.start()
                s.wait_answered("kafka")
        s.rest()
        s.reckon(unanswered=True)


def test_the_gateway_is_stopped_while_kafka_hangs(stores: Stack, seed: int, figures: list[Figures]) -> None:
    """It drains within its bound; what Kafka did not take stays in the spool, and its successor sends it."""
    short = {"GATEWAY_SHUTDOWN_DEADLINE_MS": "3000"}
    with site(stores, seed, figures, "Kafka hangs, and the gateway is restarted", **short) as s:
        with s.outage(0):
            s.kafka.suspend()
            s.wait_answered("spool")
            assert s.gateways[0].stop(), s.logs()
            assert s.gateways[0].exit_code == 0
            assert s.spooled() > 0
            s.gateways[0].start()
            s.wait_answered("spool")
        s.kafka.resume()
        s.wait_answered("kafka")
        s.rest()
        s.reckon(may_repeat=True, unanswered=True)


def _workers(gateway: Process) -> list[int]:
    """Of uvicorn's supervisor."""
    found = subprocess.run(["pgrep", "-P", str(gateway.pid), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def _records(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as database:
        return int(database.execute("SELECT count(*) FROM records").fetchone()[0])


def _ask(condition: Callable[[], bool]) -> bool:
    """An answer that fails because a process starts, or a file goes to another owner, is no answer."""
    try:
        return condition()
    except (OSError, sqlite3.Error, httpx.HTTPError, ClickHouseError):
        return False


async def _records_since(arena: Arena) -> dict[tuple[int, int], LogRecord]:
    """Of each record behind the arena's beginning."""
    consumer = AIOKafkaConsumer(bootstrap_servers=arena.stack.endpoints.kafka_bootstrap_servers)
    await consumer.start()
    try:
        partitions = [TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, arena.begins[partition.partition])
        ends = await consumer.end_offsets(partitions)
        found = {}
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                for record in records:
                    is_replay = ("replay", b"1") in record.headers
                    found[record.partition, record.offset] = LogRecord(record.key.decode(), is_replay)
        return found
    finally:
        await consumer.stop()
