"""TLS and credentials, to a real broker and through a real TLS connection to the engine."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from deploy.local.process import HOST, Failure, Process, free_ports
from deploy.local.stack import STORES, Ports, Stack
from tests.integration.test_pipeline import send_all

USER, PASSWORD = "sluice", "a password with ' and \\ in it"
CLICKHOUSE_PASSWORD = "s3cr3t/with@signs"

LISTENERS = """
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller},SECURE://{host}:{secure}
advertised.listeners=PLAINTEXT://{host}:{port},SECURE://{host}:{secure}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL
inter.broker.listener.name=PLAINTEXT
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location=server.pem
listener.name.secure.ssl.truststore.type=PEM
listener.name.secure.ssl.truststore.location=ca.pem
listener.name.secure.ssl.client.auth=required
listener.name.secure.sasl.enabled.mechanisms=PLAIN
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  user_{user}="{password}";
"""


@dataclass
class TlsProxy:
    """Ends TLS in front of a port, and keeps what came from the client."""

    target: int
    context: ssl.SSLContext
    port: int = 0
    seen: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, HOST, 0, ssl=self.context))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self.target)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seen: bytearray) -> None:
            while data := await source.read(65_536):
                seen += data
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, back, self.seen), pump(there, writer, bytearray()), return_exceptions=True)


@dataclass(frozen=True)
class Secured:
    stack: Stack
    proxy: TlsProxy
    env: dict[str, str]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secure")
    authority = trustme.CA()
    server, client = authority.issue_cert(HOST), authority.issue_cert("sluice.test")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    client.cert_chain_pems[0].write_to_path(str(directory / "client.pem"))
    client.private_key_pem.write_to_path(str(directory / "client.key"))
    stack = Stack(directory / "stack", Ports.free(), parts=STORES)
    [secure_port] = free_ports(1)
    _add_secure_listener(stack, secure_port, server, authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.configure_cert(context)
    with stack:
        proxy = TlsProxy(stack.ports.clickhouse, context)
        quoted = CLICKHOUSE_PASSWORD.replace("/", "%2F").replace("@", "%40")
        env = {
            "CONSUMER_CLICKHOUSE_URL": f"https://{USER}:{quoted}@{HOST}:{proxy.port}/interactions",
            "CONSUMER_CLICKHOUSE_CA_FILE": str(directory / "ca.pem"),
            "CONSUMER_BATCH_AGE_MS_MAX": "100",
        }
        for prefix in ("GATEWAY", "CONSUMER"):
            env |= {
                f"{prefix}_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{secure_port}",
                f"{prefix}_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                f"{prefix}_KAFKA_SASL_USERNAME": USER,
                f"{prefix}_KAFKA_SASL_PASSWORD": PASSWORD,
                f"{prefix}_KAFKA_SSL_CA_FILE": str(directory / "ca.pem"),
                f"{prefix}_KAFKA_SSL_CERT_FILE": str(directory / "client.pem"),
                f"{prefix}_KAFKA_SSL_KEY_FILE": str(directory / "client.key"),
            }
        yield Secured(stack, proxy, env)
        proxy.stop()


def _add_secure_listener(stack: Stack, port: int, server: trustme.LeafCert, authority: trustme.CA) -> None:
    """Write it into the broker's settings, each time behind the stack's own."""
    process = stack["kafka"]
    prepare = process._before_start
    data_dir = stack.data_dir / "kafka"

    def prepare_secure() -> None:
        prepare()
        key = load_pem_private_key(server.private_key_pem.bytes(), None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + server.cert_chain_pems[0].bytes()
        (data_dir / "server.pem").write_bytes(pem)
        authority.cert_pem.write_to_path(str(data_dir / "ca.pem"))
        properties = (data_dir / "server.properties").read_text()
        controller = properties.split("CONTROLLER://127.0.0.1:")[1].split()[0]
        listeners = LISTENERS.format(
            host=HOST,
            port=stack.ports.kafka,
            controller=controller,
            secure=port,
            user=USER,
            # Once for Java's properties, once for the quotes around it.
            password=PASSWORD.replace("\\", "\\\\\\\\"),
        )
        (data_dir / "server.properties").write_text(properties + listeners)

    process._before_start = prepare_secure


def run(process: Process) -> str:
    """What it printed, whether it failed or not."""
    with suppress(Failure):
        process.run()
    return process.log_path.read_text()


async def test_an_event_goes_all_the_way(secured: Secured) -> None:
    stack = secured.stack
    migrate = stack.new_command("migrate-secure", "consumer", "migrate", env=secured.env)
    migrate.run()
    gateway_port, metrics_port = free_ports(2)
    gateway = stack.new_gateway("gateway-secure", gateway_port, secured.env)
    consumer = stack.new_consumer("consumer-secure", metrics_port, secured.env)
    try:
        gateway.start()
        consumer.start()
        await send_all(f"http://{HOST}:{gateway_port}", [{"event_type": "secure"}] * 20)
        landed = "SELECT count() FROM interactions.app_interactions WHERE event_type = 'secure' FORMAT TSV"
        deadline = asyncio.get_running_loop().time() + 30
        while await _ask(stack.ports.clickhouse, landed) != "20":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
    finally:
        gateway.kill()
        consumer.kill()
    assert CLICKHOUSE_PASSWORD.encode() not in secured.proxy.seen  # Basic authentication: in base64
    assert b"authorization: basic" in secured.proxy.seen.lower()
    printed = "".join(p.log_path.read_text() for p in (migrate, gateway, consumer))
    assert CLICKHOUSE_PASSWORD not in printed
    assert PASSWORD not in printed


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CONSUMER_KAFKA_SASL_PASSWORD", "wrong-DISTINCTIVE", "Kafka at "),
        ("CONSUMER_KAFKA_SSL_CA_FILE", "/dev/null", "CONSUMER_KAFKA_SSL_CA_FILE: "),
        ("CONSUMER_CLICKHOUSE_CA_FILE", "", "ClickHouse: "),
    ],
    ids=["password", "no certificates", "unknown authority"],
)
def test_what_does_not_fit_is_one_line_without_a_secret(secured: Secured, variable: str, value: str, said: str) -> None:
    command = secured.stack.new_command("doomed", "consumer", "migrate", env={**secured.env, variable: value})
    command.start_s_max = 45
    printed = run(command)
    assert command.exit_code not in (0, None)
    assert said in printed.splitlines()[-1]
    for secret in ("DISTINCTIVE", PASSWORD, CLICKHOUSE_PASSWORD):
        assert secret not in printed


async def _ask(port: int, sql: str) -> str:
    async with httpx.AsyncClient(verify=False) as client:  # no TLS here
        return (await client.post(f"http://{HOST}:{port}", content=sql)).text.strip()
