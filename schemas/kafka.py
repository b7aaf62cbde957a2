"""How both processes reach Kafka, and let go of it: settings as the keyword arguments that every aiokafka client takes,
and the end of such a client.

Whoever imports this has aiokafka's connections mended, too: `_or_kafka_error`.
"""

import asyncio
import functools
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

from schemas.settings import ProcessSettings

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 5.0
TOLD_AGAIN_S = 1.0

Client: TypeAlias = AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient


def _or_kafka_error(send: Callable[..., Any]) -> Callable[..., Any]:
    """For a turn or two of the loop after a connection was lost, aiokafka takes it for a good one. To write to it is a
    RuntimeError with uvloop, and nothing with asyncio's own loop. aiokafka does not expect one: its task that renews
    the metadata ends of it, unseen, and all that waits for metadata, commits and heartbeats too, waits for ever."""

    @functools.wraps(send)
    def sending(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return send(self, *args, **options)
        except RuntimeError as error:
            self.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
            raise KafkaConnectionError(f"Connection at {self.host}:{self.port} lost") from error

    return sending


AIOKafkaConnection.send = _or_kafka_error(AIOKafkaConnection.send)
AIOKafkaConnection._send_sasl_token = _or_kafka_error(AIOKafkaConnection._send_sasl_token)


async def stop(client: Client, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End a client, started or not, in little more than `timeout_s`. Raises only CancelledError, for a caller that is
    cancelled; the client ends all the same.

    aiokafka's own `stop` waits for as long as Kafka is away. Some of its tasks overhear that they are to end, and need
    to be told again. And when one of them ends as cancelled, it raises a CancelledError that is no cancellation of
    whoever called it: a task that lets it through ends unseen, and the client's connections stay open.
    """
    await asyncio.shield(asyncio.ensure_future(_stop(client, timeout_s)))


async def _stop(client: Client, timeout_s: float) -> None:
    stopping = client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop()
    if fault := await _fault(stopping, timeout_s):
        log.info("a kafka client had to be stopped by force", client=type(client).__name__, fault=fault)
        for task in _tasks(client):
            task.cancel()
        connections = client.client if hasattr(client, "client") else client._client
        await _fault(connections.close(), TOLD_AGAIN_S)


def _tasks(client: Client) -> list[asyncio.Task[Any]]:
    """What sends or fetches for it. (What renews the metadata ends with the connections.)"""
    if isinstance(client, AIOKafkaConsumer) and client._fetcher is not None:
        return [client._fetcher._fetch_task, *client._fetcher._pending_tasks]
    if isinstance(client, AIOKafkaProducer) and client._sender is not None and client._sender.sender_task is not None:
        return [client._sender.sender_task]
    return []


async def _fault(ending: Coroutine[Any, Any, None], timeout_s: float) -> str | None:
    """Why it did not end, in its time, as it should; None if it did."""
    task = asyncio.ensure_future(ending)
    await asyncio.wait({task}, timeout=timeout_s)
    if not task.done():
        task.cancel()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else looks at it
        await asyncio.wait({task}, timeout=TOLD_AGAIN_S)
        return f"not done after {timeout_s:g} s"
    if task.cancelled():
        return "a task of its own was cancelled"
    return repr(error) if (error := task.exception()) else None


class UnusableCertificate(OSError):
    """`setting` names a file that cannot be read, or is no certificate; the text never has its path."""

    def __init__(self, setting: str, cause: OSError) -> None:
        super().__init__(f"cannot be used: {cause.strerror}")
        self.setting = setting


def connection(settings: ProcessSettings) -> dict[str, Any]:
    """Raises UnusableCertificate."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
    }
    if "SSL" in settings.kafka_security_protocol.split("_"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": password.get_secret_value() if password else None,
        }
    return options


def _ssl_context(settings: ProcessSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file)
    except OSError as error:
        raise UnusableCertificate("kafka_ssl_ca_file", error) from None
    if settings.kafka_ssl_cert_file:
        try:
            context.load_cert_chain(settings.kafka_ssl_cert_file, settings.kafka_ssl_key_file)
        except OSError as error:
            raise UnusableCertificate("kafka_ssl_cert_file", error) from None
    return context
