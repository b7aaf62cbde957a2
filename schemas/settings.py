"""Settings come from the environment alone; a bad one stops the start with one line that names it.

What both processes need (Kafka, logs) is declared here once. Values never appear in error texts: a
password in the wrong variable must not end up in a log.
"""

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]


class ProcessSettings(BaseSettings):
    """Fields become variables: `PREFIX_` and the name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    kafka_bootstrap_servers: Annotated[
        str, Field(min_length=1, description="Kafka brokers, host:port, comma separated")
    ] = "127.0.0.1:9092"
    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Field(description="how to talk to Kafka")
    ] = "PLAINTEXT"
    kafka_ssl_ca_file: Annotated[
        Path | None, Field(description="CA certificates (PEM) that sign the brokers'; default: the system's")
    ] = None
    kafka_ssl_cert_file: Annotated[Path | None, Field(description="client certificate (PEM), for mutual TLS")] = None
    kafka_ssl_key_file: Annotated[Path | None, Field(description="its private key (PEM)")] = None
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Field(description="with a SASL protocol")
    ] = "PLAIN"
    kafka_sasl_username: Annotated[str | None, Field(description="with a SASL protocol")] = None
    kafka_sasl_password: Annotated[SecretStr | None, Field(description="with a SASL protocol")] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="least level logged")] = "info"

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _brokers_have_ports(cls, servers: str) -> str:
        # aiokafka would only find out when it connects, again and again.
        for server in servers.split(","):
            host, colon, port = server.strip().rpartition(":")
            if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
                raise ValueError("must be host:port, comma separated")
        return servers

    @model_validator(mode="after")
    def _kafka_credentials_fit_protocol(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL") and (
            self.kafka_sasl_username is None or self.kafka_sasl_password is None
        ):
            raise ValueError(
                f"kafka_security_protocol {self.kafka_security_protocol} needs kafka_sasl_username and "
                "kafka_sasl_password"
            )
        return self

    @classmethod
    def load(cls) -> Self:
        """From the environment; prints one line a fault to stderr and exits with status 2 where it is bad."""
        try:
            settings = cls()
        except ValidationError as error:
            for entry in error.errors(include_url=False, include_context=False, include_input=False):
                print(cls._sentence(entry["loc"], entry["msg"]), file=sys.stderr)
            sys.exit(2)
        for name in cls.unknown_variables():
            print(f"{name} is not a setting{_did_you_mean(name, cls.variables())}; ignored.", file=sys.stderr)
        return settings

    @classmethod
    def refuse(cls, name: str, reason: str) -> NoReturn:
        """For what only its user finds out: one line about the setting `name` to stderr, exit status 2."""
        print(cls._sentence((name,), reason), file=sys.stderr)
        sys.exit(2)

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Field name by variable name, in order of declaration."""
        prefix = cls.model_config["env_prefix"]
        return {f"{prefix}{name.upper()}": name for name in cls.model_fields}

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """Variables with our prefix that are no setting: most likely misspelt."""
        prefix = cls.model_config["env_prefix"]
        return sorted(name for name in os.environ if name.startswith(prefix) and name not in cls.variables())

    @classmethod
    def _sentence(cls, loc: tuple[int | str, ...], msg: str) -> str:
        prefix = cls.model_config["env_prefix"]
        msg = msg.removeprefix("Value error, ")
        for variable, name in cls.variables().items():
            if loc and loc[0] == name:
                return f"{variable}: {msg}"
        return f"{prefix}…: {msg}"


def _did_you_mean(name: str, known: dict[str, str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
