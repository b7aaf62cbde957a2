"""How both processes reach Kafka: settings as the keyword arguments that every aiokafka client takes.

Whoever imports this has aiokafka's connections mended, too: `_or_kafka_error`.
"""

import functools
import ssl
from collections.abc import Callable
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

from schemas.settings import ProcessSettings


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
