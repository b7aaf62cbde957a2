"""The local stack's processes: ready when they say so, gone when we are, on the same port when they return."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.local import process, stack
from deploy.local.kafka import is_serving
from deploy.local.process import HOST, Failure, FileLock, Process, Step, answers, free_ports, is_port_free
from deploy.local.stack import STORES, Ports, Stack

SLEEPER = "import time; print('asleep', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
# Starts a child of its own, as a gateway with several workers does, and prints the child's pid.
PARENT = (
    f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]).pid, flush=True); {SLEEPER}"
)


def until(is_so: Callable[[], bool], s_max: float = 30) -> None:
    deadline_s = time.monotonic() + s_max
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """False of a zombie, too: whom nobody reaps is dead all the same."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


Child = Callable[..., Process]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """Makes a process of some Python; it counts as ready once it has printed a line."""
    made: list[Process] = []

    def make(code: str, **options: Any) -> Process:
        log_path = tmp_path / f"{len(made)}.log"
        is_ready = options.pop("is_ready", lambda: bool(log_path.read_text()))
        made.append(Process("child", [sys.executable, "-c", code], log_path=log_path, is_ready=is_ready, **options))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def test_starts_stops_and_starts_again(child: Child) -> None:
    sleeper = child(SLEEPER)
    sleeper.start()
    assert sleeper.is_running
    assert sleeper.last_lines() == ["asleep"]
    first_pid = sleeper.pid

    assert sleeper.stop()
    assert (sleeper.is_running, sleeper.exit_code) == (False, -signal.SIGTERM)
    sleeper.restart()
    assert sleeper.pid != first_pid
    assert sleeper.log_path.with_name(sleeper.log_path.name + ".1").read_text() == "asleep\n"


def test_a_child_that_ends_while_starting_is_reported_with_its_last_words(child: Child) -> None:
    broken = child("raise SystemExit('no luck')", is_ready=lambda: False)
    with pytest.raises(Failure, match=r"^child exited with code 1\.") as failed:
        broken.start()
    assert failed.value.lines == ("no luck",)


def test_a_child_that_never_gets_ready_is_given_up(child: Child) -> None:
    slow = child(SLEEPER, is_ready=lambda: False, start_s_max=0.3)
    with pytest.raises(Failure, match=r"^child was not ready after 0 s"):
        slow.start()
    assert not slow.is_running


def test_nothing_starts_when_its_preparation_fails(child: Child) -> None:
    def refuse() -> None:
        raise Failure("no room")

    unprepared = child(SLEEPER, before_start=refuse)
    with pytest.raises(Failure, match="no room"):
        unprepared.start()
    assert not unprepared.is_running


def test_a_child_that_ignores_sigterm_is_killed(child: Child) -> None:
    stubborn = child(STUBBORN, stop_s_max=0.2)
    stubborn.start()
    assert not stubborn.stop()
    assert stubborn.exit_code == -signal.SIGKILL


def test_stopping_can_be_hurried(child: Child) -> None:
    stubborn = child(STUBBORN)
    stubborn.start()
    assert not stubborn.stop(is_hurried=lambda: True)


def test_a_suspended_child_is_running_and_can_be_stopped(child: Child) -> None:
    sleeper = child(SLEEPER)
    sleeper.start()
    sleeper.suspend()
    until(lambda: state_of(sleeper.pid) == "T")
    assert sleeper.is_running
    sleeper.resume()
    until(lambda: state_of(sleeper.pid) != "T")

    sleeper.suspend()
    assert sleeper.stop()


def state_of(pid: int) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout[:1]


def test_kill_takes_the_children_of_the_child(child: Child) -> None:
    parent = child(PARENT)
    parent.start()
    grandchild = int(parent.last_lines()[0])
    parent.kill()
    assert parent.exit_code == -signal.SIGKILL
    until(lambda: not is_alive(grandchild))


def test_run_waits_for_the_end(child: Child) -> None:
    child("print('done')").run()
    with pytest.raises(Failure, match=r"^child exited with code 3\."):
        child("raise SystemExit(3)").run()
    with pytest.raises(Failure, match=r"^child did not finish in 0 s"):
        child(SLEEPER, start_s_max=0.2).run()


@pytest.mark.parametrize("ends", ["suspended", "running"])
def test_no_child_survives_us(tmp_path: Path, ends: str) -> None:
    ours = f"""
from pathlib import Path; from deploy.local.process import Process; import sys
child = Process("child", [sys.executable, "-c", {SLEEPER!r}], log_path=Path({str(tmp_path / "log")!r}))
child.start()
if {ends!r} == "suspended": child.suspend()
print(child.pid, flush=True)
{SLEEPER}
"""
    with subprocess.Popen([sys.executable, "-c", ours], stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout
        pid = int(us.stdout.readline())
        assert is_alive(pid)
        us.kill()
    until(lambda: not is_alive(pid))


def test_a_log_has_a_bound(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 10)
    talker = child("import sys\nfor line in sys.stdin: pass\nprint('x' * 100, flush=True); " + SLEEPER)
    talker.start()
    until(lambda: talker.last_lines()[-1:] == ["asleep"])
    talker.trim_log()
    assert talker.log_path.read_text() == ""
    assert talker.log_path.with_name("0.log.1").stat().st_size > 100


def test_free_ports_are_free_and_apart() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert all(map(is_port_free, ports))
    with socket.create_server((HOST, ports[0])):
        assert not is_port_free(ports[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a server have a port that another holds for it")
def test_nobody_else_is_given_a_port_before_its_server_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FREE_PORTS", taken := free_ports(4))
    assert free_ports(4) == []
    another = f"from deploy.local import process; process.FREE_PORTS = {taken}; print(process.free_ports(4))"
    assert subprocess.check_output([sys.executable, "-c", another], text=True) == "[]\n"
    for _ in range(2):  # and once more when the server is restarted
        with socket.create_server((HOST, taken[0])):
            pass
    assert free_ports(4) == []


def test_only_so_many_ports_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PORTS_HELD_MAX", 3)
    monkeypatch.setattr(process, "_held_ports", held := deque())
    free_ports(5)
    assert len(held) <= 3
    for holder in held:
        holder.close()


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire(wait_s_max=0)
    assert second.holder == str(os.getpid())
    first.release()
    assert second.acquire()
    second.release()


def test_busy_ports_are_named_before_anything_starts(tmp_path: Path) -> None:
    ports = Ports.free()
    busy = Stack(tmp_path, ports)
    with socket.create_server((HOST, ports.kafka)), socket.create_server((HOST, ports.metrics)):
        with pytest.raises(Failure) as refused:
            busy.start()
        busy.stop()
    assert str(refused.value) == (
        f"In use by another program: port {ports.kafka} (choose another with --kafka-port), "
        f"{ports.metrics} (choose another with --metrics-port)"
    )
    assert not (tmp_path / "logs").exists()


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    gateway, kafka, metrics = free_ports(3)
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        options = f"--gateway-port {gateway} --kafka-port {kafka} --metrics-port {metrics} --clickhouse-port {port}"
        command = [sys.executable, "-m", "deploy.local", "up", "--data-dir", str(tmp_path), *options.split()]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"In use by another program: port {port} (choose another with --clickhouse-port)\n"


def test_a_full_disk_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    with pytest.raises(Failure, match=rf"^The disk of {tmp_path} has 5 MB left; 256 MB are needed$"):
        Stack(tmp_path, Ports.free()).start()


def test_the_users_environment_wins_over_defaults_but_not_over_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_REGISTRY_FILE", "mine.toml")
    monkeypatch.setenv("GATEWAY_PORT", "1")
    monkeypatch.setenv("CONSUMER_CLICKHOUSE_URL", "http://elsewhere:8123/x")
    ports = Ports.free()
    ours = Stack(tmp_path, ports, env={"CONSUMER_BATCH_ROWS_MAX": "7"})

    gateway, consumer = ours["gateway"].env or {}, ours["consumer"].env or {}
    assert gateway["GATEWAY_REGISTRY_FILE"] == "mine.toml"
    assert gateway["GATEWAY_SPOOL_DIR"] == str(tmp_path / "spool")
    assert gateway["GATEWAY_PORT"] == str(ports.gateway)
    assert consumer["CONSUMER_CLICKHOUSE_URL"] == f"http://127.0.0.1:{ports.clickhouse}/interactions"
    assert consumer["CONSUMER_BATCH_ROWS_MAX"] == "7"


def test_a_stack_that_was_killed_is_not_taken_for_a_running_one(tmp_path: Path) -> None:
    assert stack.running(tmp_path) is None
    endpoints = Stack(tmp_path, Ports.free(), parts=()).endpoints
    (tmp_path / "stack.json").write_text(json.dumps(asdict(endpoints)))
    assert stack.running(tmp_path) is None

    with Stack(tmp_path, Ports.free(), parts=()) as running:
        assert stack.running(tmp_path) == running.endpoints
        with pytest.raises(Failure, match=rf"^A stack runs in {tmp_path} already \(pid {os.getpid()}\)"):
            Stack(tmp_path, Ports.free(), parts=()).start()
        assert stack.running(tmp_path) == running.endpoints
    assert stack.running(tmp_path) is None


STORE_STEPS: list[Step] = []


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka and ClickHouse, shared by the tests below."""
    with Stack(tmp_path_factory.mktemp("stack"), Ports.free(), parts=STORES, report=STORE_STEPS.append) as stores:
        yield stores


def are_serving(stores: Stack) -> bool:
    return is_serving(stores.ports.kafka) and answers(stores.ports.clickhouse, "/ping")


def test_stores_come_up(stores: Stack) -> None:
    assert are_serving(stores)
    assert {step.component for step in STORE_STEPS if step.state == "ready"} == set(STORES)
    assert stack.running(stores.data_dir) == stores.endpoints


@pytest.mark.parametrize("name", STORES)
def test_a_killed_store_is_noticed_and_returns_on_its_port(stores: Stack, name: str) -> None:
    stores[name].kill()
    assert not are_serving(stores)
    with pytest.raises(Failure, match=f"^{name} was ended by SIGKILL"):
        stores.watch()
    stores[name].start()
    assert are_serving(stores)


@pytest.mark.parametrize("name", STORES)
def test_a_suspended_store_is_silent_until_it_is_resumed(stores: Stack, name: str) -> None:
    stores[name].suspend()
    assert not are_serving(stores)
    stores[name].resume()
    until(lambda: are_serving(stores))
