"""The local Kafka is a real one: what the pipeline leans on holds, over SIGKILL and a change of port, too."""

import asyncio
import hashlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import OffsetAndMetadata

from deploy.local import kafka
from deploy.local.kafka import Jar, Release
from deploy.local.process import HOST, Failure, Process, free_ports

GROUP = "readers"


@pytest.fixture(scope="module")
def release() -> Release:
    release = Release.locked()
    kafka.fetch(release)
    return release


@pytest.fixture(scope="module")
def node(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, int, Path]]:
    """The broker that the tests share, its port and its directory."""
    directory = tmp_path_factory.mktemp("kafka")
    [port] = free_ports(1)
    broker = kafka.broker(release, directory, port, directory / "kafka.log")
    yield broker, port, directory
    broker.stop()


@pytest.fixture
def broker(node: tuple[Process, int, Path]) -> Process:
    process, _, _ = node
    if not process.is_running:
        process.start()
    return process


async def create_topic(port: int, topic: str, configs: dict[str, str] | None = None) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=f"{HOST}:{port}")
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1, topic_configs=configs)])
    finally:
        await admin.close()


async def produce(port: int, topic: str, values: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=f"{HOST}:{port}", acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def consume(port: int, topic: str, count: int, commit: OffsetAndMetadata | None = None) -> list[bytes]:
    """`count` records of partition 0, as a member of the group, which goes on from its offset."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=f"{HOST}:{port}",
        group_id=GROUP,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            values = [(await consumer.getone()).value for _ in range(count)]
        if commit:
            await consumer.commit({TopicPartition(topic, 0): commit})
    finally:
        await consumer.stop()
    return values


async def committed(port: int, topic: str) -> OffsetAndMetadata:
    """Of partition 0. aiokafka drops the error of a coordinator that still loads: such an answer is empty."""
    partition = TopicPartition(topic, 0)
    admin = AIOKafkaAdminClient(bootstrap_servers=f"{HOST}:{port}")
    await admin.start()
    try:
        async with asyncio.timeout(20):
            while partition not in (found := await admin.list_consumer_group_offsets(GROUP, partitions=[partition])):
                pass
    finally:
        await admin.close()
    return found[partition]


@pytest.mark.usefixtures("broker")
async def test_commits_keep_their_metadata(node: tuple[Process, int, Path]) -> None:
    _, port, _ = node
    await create_topic(port, "metadata")
    await produce(port, "metadata", [b"a", b"b", b"c"])

    assert await consume(port, "metadata", 3, OffsetAndMetadata(2, '{"range":[2,3]}')) == [b"a", b"b", b"c"]
    assert await committed(port, "metadata") == OffsetAndMetadata(2, '{"range":[2,3]}')


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_knows_every_compression(node: tuple[Process, int, Path], codec: str) -> None:
    """The broker itself compresses for such a topic, which takes the native libraries in its jars."""
    _, port, _ = node
    await create_topic(port, codec, {"compression.type": codec})
    await produce(port, codec, [b"x" * 10_000])


async def test_sigkill_loses_nothing_and_the_port_may_change(
    node: tuple[Process, int, Path], broker: Process, release: Release
) -> None:
    _, port, directory = node
    await create_topic(port, "killed")
    await produce(port, "killed", [b"%d" % number for number in range(100)])
    await consume(port, "killed", 10, OffsetAndMetadata(10, "ten"))
    await asyncio.to_thread(broker.kill)

    [other_port] = free_ports(1)
    successor = kafka.broker(release, directory, other_port, directory / "kafka.log")
    await asyncio.to_thread(successor.start)
    try:
        assert await committed(other_port, "killed") == OffsetAndMetadata(10, "ten")
        assert await consume(other_port, "killed", 90) == [b"%d" % number for number in range(10, 100)]
    finally:
        await asyncio.to_thread(successor.stop)


def test_command_serves_until_sigterm(release: Release, tmp_path: Path) -> None:
    [port] = free_ports(1)
    with command(tmp_path, port) as serving:
        assert serving.stdout
        line = serving.stdout.readline()
        assert line == f"Kafka {release.version} listening on {HOST}:{port}, data in {tmp_path}\n"
        with command(tmp_path, *free_ports(1)) as second:
            _, complaint = second.communicate(timeout=30)
        assert (second.returncode, complaint) == (1, f"A broker runs in {tmp_path} already (pid {serving.pid})\n")

        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
    assert not kafka.is_serving(port)


def test_command_names_a_busy_port(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with command(tmp_path, port) as refused:
            _, complaint = refused.communicate(timeout=30)
    assert refused.returncode == 1
    assert complaint == f"In use by another program: port {port} (choose another with --port)\n"


def test_command_names_a_directory_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with command(tmp_path / "file" / "below", 9092) as refused:
        _, complaint = refused.communicate(timeout=30)
    assert refused.returncode == 1
    assert complaint == f"Cannot write to {tmp_path / 'file' / 'below'}: Not a directory\n"


def command(data_dir: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.local", "kafka", "--data-dir", data_dir, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Maven:
    """A repository of two small jars on this machine, in place of Maven Central."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[str] = []
        self._root = root / "repository"
        maven = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                maven.requests.append(self.path)

        self._root.mkdir()
        self.server = ThreadingHTTPServer((HOST, 0), partial(Handler, directory=self._root))
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        configuration = root / "jgo.conf"
        configuration.write_text(f"[repositories]\ncentral = http://{HOST}:{self.server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(configuration))
        monkeypatch.setenv("SLUICE_CACHE_DIR", str(root / "cache"))
        self.release = Release("0", (self._publish("one", b"1" * 50_000), self._publish("two", b"2")))

    def _publish(self, artifact: str, content: bytes) -> Jar:
        path = self._root / "org" / "example" / artifact / "7" / f"{artifact}-7.jar"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return Jar(f"org.example:{artifact}:7", len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maven]:
    maven = Maven(tmp_path, monkeypatch)
    yield maven
    maven.server.shutdown()
    maven.server.server_close()


def test_jars_are_fetched_once(maven: Maven) -> None:
    kafka.fetch(maven.release)

    assert sorted(path.name for path in maven.release.cache_dir.rglob("*.jar")) == ["one-7.jar", "two-7.jar"]
    assert not [path for path in maven.requests if path.endswith(".pom")]
    maven.requests.clear()
    kafka.fetch(maven.release)
    assert maven.requests == []


def test_a_jar_with_another_checksum_is_refused_by_name(maven: Maven) -> None:
    one, two = maven.release.jars
    release = replace(maven.release, jars=(one, replace(two, sha256="0" * 64)))

    with pytest.raises(Failure, match=r"^two-7\.jar is not the file that kafka\.lock\.toml names"):
        kafka.fetch(release)
    assert not (release.cache_dir / two.file_name).exists()
    assert not (release.cache_dir / "partial").exists()


def test_a_jar_that_nobody_has_is_named(maven: Maven) -> None:
    release = replace(maven.release, jars=(Jar("org.example:three:7", 1, ""),))
    with pytest.raises(Failure, match=r"^No Maven repository has org\.example:three:7"):
        kafka.fetch(release)


def test_a_jar_damaged_in_the_cache_is_fetched_again(maven: Maven) -> None:
    kafka.fetch(maven.release)
    damaged = maven.release.cache_dir / "one-7.jar"
    damaged.write_bytes(b"1")

    kafka.fetch(maven.release)
    assert maven.release.jars[0].is_at(damaged)


def test_what_a_killed_fetch_left_is_no_obstacle(maven: Maven) -> None:
    half = maven.release.cache_dir / "partial" / "org" / "example" / "one" / "7" / "one-7.jar"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"1")

    kafka.fetch(maven.release)
    assert maven.release.jars[0].is_at(maven.release.cache_dir / "one-7.jar")


def test_fetching_at_once_fetches_once(maven: Maven) -> None:
    failures: list[BaseException] = []

    def fetch() -> None:
        try:
            kafka.fetch(maven.release)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len([path for path in maven.requests if path.endswith(".jar")]) == 2
