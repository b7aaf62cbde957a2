"""Child processes that are started with a log and a readiness probe, and never outlive us.

Each child leads a process group of its own, so that Ctrl-C at the terminal reaches it only through us. It
shares the group with a guard: a shell that reads from a socket whose other end is ours alone, and kills the
group when that end closes, be it because we stopped the child or because we were killed ourselves. The
guard is there before the child's command runs, so there is no moment without it; and as a member it keeps
the group's number from being used again.

Limits: Linux and macOS. `suspend` and `stop` signal the child alone, `kill` its whole group.
"""

import errno
import fcntl
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

HOST = "127.0.0.1"
GUARDED = 'exec 3<&0; { read -r _ <&3; kill -s KILL -- "-$$"; } & printf . >&3; exec "$@" </dev/null 3<&-'
LOG_BYTES_MAX = 20_000_000
POLL_S = 0.05
PORTS_FREE_S_MAX = 1.0
# Below the ranges from which Linux (32768) and macOS (49152) take ports for outgoing connections: a port
# from those may be lost to a client while its server restarts, and a client that retries may even connect
# to itself.
FREE_PORTS = range(20_000, 32_768)
PORTS_HELD_MAX = 256
_held_ports: deque[socket.socket] = deque()


class Failure(Exception):
    """What went wrong, in one line for the person at the terminal; `lines` are the evidence, if any."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


@dataclass(frozen=True)
class Step:
    """What a component is doing now: `fetching`, `fetched`, `starting`, `ready`, `stopping`, `stopped` or `killed`."""

    component: str
    state: str
    detail: str = ""
    fraction: float | None = None


Report = Callable[[Step], None]


def unreported(_: Step) -> None:
    """For callers who do not watch."""


class Process:
    """One child. Its methods block, with a bound; call them from any thread, but one at a time.

    `before_start` runs before each start and may raise `Failure`; `is_ready` is polled after it. The log
    holds what the child prints from this start on; the log of the start before is kept beside it as `.1`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        before_start: Callable[[], None] = lambda: None,
        is_ready: Callable[[], bool] = lambda: True,
        start_s_max: float = 60,
        stop_s_max: float = 15,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.start_s_max = start_s_max
        self.stop_s_max = stop_s_max
        self.started_at_s = 0.0
        self.is_ready = is_ready
        self.env = env
        self._command = [str(part) for part in command]
        self._cwd = cwd
        self._before_start = before_start
        self._child: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None

    @property
    def is_running(self) -> bool:
        """True of a suspended child, too."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise Failure(f"{self.name} has not been started")
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """Of the last start; negative is the signal that ended it, None if it still runs."""
        return None if self._child is None else self._child.poll()

    def spawn(self) -> None:
        """Start without waiting for readiness."""
        if self.is_running:
            raise Failure(f"{self.name} is running already (pid {self.pid})")
        self.kill()  # what is left of a child that ended by itself: its own children may hold its port
        self.started_at_s = time.monotonic()
        self._before_start()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(_previous(self.log_path))
        self._child = None
        self._lifeline, guard_end = socket.socketpair()
        with guard_end, self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", GUARDED, self.name, *self._command],
                stdin=guard_end.fileno(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self._cwd,
                start_new_session=True,
            )
        # Until the guard is there: whoever suspended the shell before that would suspend its forking, too.
        self._lifeline.recv(1)

    def start(self) -> None:
        """Start and wait until it is ready. Raises `Failure`, and leaves nothing running, if it never is."""
        self.spawn()
        try:
            wait_ready([self])
        except BaseException:
            self.kill()
            raise

    def run(self) -> None:
        """Start and wait for its end. Raises `Failure` unless it exits with 0 within `start_s_max`."""
        self.spawn()
        try:
            while self.is_running:
                if time.monotonic() > self.started_at_s + self.start_s_max:
                    raise Failure(f"{self.name} did not finish in {self.start_s_max:.0f} s", self.last_lines())
                time.sleep(POLL_S)
        finally:
            self.kill()
        if self.exit_code:
            raise self.failure()

    def stop(self, is_hurried: Callable[[], bool] = lambda: False) -> bool:
        """SIGTERM, and SIGKILL after `stop_s_max` or once `is_hurried`. False if it did not end by itself."""
        if self._child is not None:
            deadline_s = time.monotonic() + self.stop_s_max
            self._child.terminate()
            self.resume()
            while self.is_running and time.monotonic() < deadline_s and not is_hurried():
                time.sleep(POLL_S)
        self.kill()
        return self.exit_code != -signal.SIGKILL

    def kill(self) -> None:
        """SIGKILL the child and all that it started; reap it."""
        if self._child is not None and self._lifeline is not None:
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._cut_lifeline()

    def restart(self) -> None:
        self.stop()
        self.start()

    def suspend(self) -> None:
        """SIGSTOP: it keeps its sockets and answers nothing."""
        if self._child is not None:
            self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGCONT)

    def last_lines(self, count: int = 12) -> list[str]:
        with suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 100_000))
            return log.read().decode(errors="replace").splitlines()[-count:]
        return []

    def trim_log(self) -> None:
        """Keep the log under `LOG_BYTES_MAX`, by starting it again. The child appends, so it never notices."""
        with suppress(OSError):
            if self.log_path.stat().st_size > LOG_BYTES_MAX:
                shutil.copyfile(self.log_path, _previous(self.log_path))
                os.truncate(self.log_path, 0)

    def failure(self) -> Failure:
        """That it ended, how, and its last words."""
        code = self.exit_code
        end = "ended"
        if code is not None:
            end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return Failure(f"{self.name} {end}. The end of its log ({self.log_path}):", self.last_lines())

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None


def wait_ready(processes: Iterable[Process], report: Report = unreported) -> None:
    """Until all answer their probes; each has its own deadline. Raises `Failure` at the first that cannot."""
    waiting = list(processes)
    while waiting:
        for process in list(waiting):
            took_s = time.monotonic() - process.started_at_s
            if process.is_running and process.is_ready():
                waiting.remove(process)
                report(Step(process.name, "ready", f"in {took_s:.1f} s"))
            elif not process.is_running:
                raise process.failure()
            elif took_s > process.start_s_max:
                raise Failure(
                    f"{process.name} was not ready after {process.start_s_max:.0f} s. "
                    f"The end of its log ({process.log_path}):",
                    process.last_lines(),
                )
        if waiting:
            time.sleep(POLL_S)


class FileLock:
    """An flock: it goes with its holder, however that ends. The file names the holder's pid."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self, wait_s_max: float = 0.5) -> bool:
        """False if another holds it for longer than `wait_s_max`."""
        deadline_s = time.monotonic() + wait_s_max
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    os.close(fd)
                    return False
                time.sleep(POLL_S)
            else:
                os.truncate(fd, 0)
                os.write(fd, str(os.getpid()).encode())
                self._fd = fd
                return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def is_held(self) -> bool:
        return self._fd is not None

    @property
    def holder(self) -> str:
        return self._path.read_text() or "unknown"


def writable_dir(path: Path, bytes_min: int) -> Path:
    """`path`, made if need be. Raises `Failure` if nothing can be written there, or less than `bytes_min`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise Failure(f"Cannot write to {path}: {os.strerror(error.errno or errno.EIO)}") from error
    free = shutil.disk_usage(path).free
    if free < bytes_min:
        raise Failure(f"The disk of {path} has {free // 1_000_000} MB left; {bytes_min // 1_000_000} MB are needed")
    return path


def is_port_free(port: int) -> bool:
    # macOS lets us bind a port that another holds on all addresses, so ask for an answer, too.
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, port))
        except OSError:
            return False
    with socket.socket() as client:
        client.settimeout(0.5)
        return client.connect_ex((HOST, port)) != 0


def refuse_busy_ports(options: Mapping[int, str]) -> None:
    """Raises `Failure` that names each busy port, and the option that would choose another."""
    # What served a stack that was killed a moment ago may still be about to vanish.
    deadline_s = time.monotonic() + PORTS_FREE_S_MAX
    while busy := [port for port in options if not is_port_free(port)]:
        if time.monotonic() > deadline_s:
            ports = ", ".join(f"{port} (choose another with {options[port]})" for port in busy)
            raise Failure(f"In use by another program: port {ports}")
        time.sleep(POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has. On Linux this process holds the newest PORTS_HELD_MAX of them until it ends: nobody else
    is given them, by this function or by the kernel, while a server that is told to take one gets it."""
    shuffled = random.SystemRandom().sample(FREE_PORTS, len(FREE_PORTS))
    return list(islice(filter(_take, shuffled), count))


def _take(port: int) -> bool:
    holder = socket.socket()
    try:
        holder.bind((HOST, port))
    except OSError:
        holder.close()
        return False
    if sys.platform != "linux":  # a server could not bind what we hold
        holder.close()
        return is_port_free(port)
    # Set only now: a port that somebody else holds must not pass for a free one. Servers set it, too, and two such
    # sockets may share a port as long as one of them does not listen.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held_ports.append(holder)
    if len(_held_ports) > PORTS_HELD_MAX:
        _held_ports.popleft().close()
    return True


def answers(port: int, path: str) -> bool:
    """True if GET `path` is answered with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _previous(log_path: Path) -> Path:
    return log_path.with_name(log_path.name + ".1")
