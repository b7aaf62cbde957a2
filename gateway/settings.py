"""Settings of the gateway: `GATEWAY_…` variables."""

import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from schemas.settings import Port, ProcessSettings

RECORD_GROWTH_MAX = 3.8
"""A row is at most this many times its event's bytes: `9e15,` is written as `9000000000000000.0,`."""
ROW_HEAD_BYTES = 3_500
"""Of what the gateway adds to an event: above all a user agent of 512 characters, 2,048 bytes."""
PRIVACY_KEY_BYTES_MIN = 16


class GatewaySettings(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="GATEWAY_")

    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, Field(description="port to listen on")] = 8000
    workers: Annotated[int, Field(ge=1, le=256, description="processes that serve, one core each")] = 1
    trusted_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        NoDecode,
        Field(description="proxies whose X-Forwarded-For is believed: IP addresses or networks, comma separated"),
    ] = ()
    registry_file: Annotated[
        Path, Field(description="TOML file of apps, retrievers and their keys; reloaded when it changes")
    ] = Path("registry.toml")
    event_bytes_max: Annotated[int, Field(ge=1024, le=1_048_576, description="largest body of a single event")] = (
        262_144
    )
    request_bytes_max: Annotated[
        int, Field(ge=1024, le=67_108_864, description="largest body of a request with many events, decoded")
    ] = 5_242_880
    request_events_max: Annotated[int, Field(ge=1, le=10_000, description="most events in one request")] = 1_000
    batch_bytes_max: Annotated[
        int,
        Field(ge=16_384, description="largest record batch sent to Kafka; at most the topic's max.message.bytes"),
    ] = 1_000_000
    pending_bytes_max: Annotated[
        int, Field(ge=1_000_000, description="bytes that may wait for Kafka, per worker; above, 503")
    ] = 67_108_864
    publish_deadline_ms: Annotated[int, Field(ge=10, description="longest wait for Kafka's answer")] = 1_500
    spool_dir: Annotated[
        Path, Field(description="directory of the disk spool, which holds events while Kafka is away")
    ] = Path("spool")
    spool_bytes_max: Annotated[
        int, Field(ge=1_000_000, description="bytes the spool may hold, per worker; above, 503")
    ] = 1_073_741_824
    spool_age_s_max: Annotated[
        int, Field(ge=60, description="age of the oldest spooled event above which no more is taken")
    ] = 7 * 86_400
    replay_records_per_s: Annotated[
        int, Field(ge=1, description="rate at which spooled events follow once Kafka is back, per worker")
    ] = 2_000
    privacy_hmac_key: Annotated[
        SecretStr | None,
        Field(description="key of the registry's privacy policy hmac, at least 16 bytes; the same for all gateways"),
    ] = None
    shutdown_deadline_ms: Annotated[
        int, Field(ge=100, description="time to answer and flush what is in flight on SIGTERM")
    ] = 10_000

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        return tuple(map(_network, value.split(","))) if isinstance(value, str) else value

    @field_validator("privacy_hmac_key")
    @classmethod
    def _key_is_long_enough(cls, key: SecretStr | None) -> SecretStr | None:
        # The digest of an address by a short key is undone by trying keys and addresses.
        if key is not None and len(os.fsencode(key.get_secret_value())) < PRIVACY_KEY_BYTES_MIN:
            raise ValueError(f"must be at least {PRIVACY_KEY_BYTES_MIN} bytes, for example of: openssl rand -hex 32")
        return key

    @model_validator(mode="after")
    def _an_event_fits_a_batch(self) -> Self:
        if self.event_bytes_max * RECORD_GROWTH_MAX + ROW_HEAD_BYTES > self.batch_bytes_max:
            raise ValueError(
                f"event_bytes_max must not exceed batch_bytes_max / {RECORD_GROWTH_MAX}: an event's record must fit a "
                "batch, and it may be that much larger than the event"
            )
        if self.batch_bytes_max > self.pending_bytes_max:
            raise ValueError("batch_bytes_max must not exceed pending_bytes_max: one batch must be able to wait")
        return self


def _network(text: str) -> IPv4Network | IPv6Network:
    """Raises ValueError, whose text does not show the value."""
    try:
        network = ip_network(text.strip())
    except ValueError:
        raise ValueError(
            "must be IP addresses or networks (10.0.0.0/8, no bits set behind the prefix), comma separated"
        ) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        # Callers' addresses are compared as IPv4: this would never match.
        raise ValueError("must not have IPv4 networks mapped into IPv6; write them as IPv4")
    return network
