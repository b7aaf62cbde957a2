"""Settings of the gateway: `GATEWAY_…` variables."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from schemas.settings import Port, ProcessSettings

RECORD_GROWTH_MAX = 3.8
"""A row is at most this many times its event's bytes: `9e15,` is written as `9000000000000000.0,`."""
ROW_HEAD_BYTES = 1_000


class GatewaySettings(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="GATEWAY_")

    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, Field(description="port to listen on")] = 8000
    workers: Annotated[int, Field(ge=1, le=256, description="processes that serve, one core each")] = 1
    registry_file: Annotated[
        Path, Field(description="TOML file of apps, retrievers and their keys; reloaded when it changes")
    ] = Path("registry.toml")
    event_bytes_max: Annotated[int, Field(ge=1024, le=1_048_576, description="largest body of a single event")] = (
        262_144
    )
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
    shutdown_deadline_ms: Annotated[
        int, Field(ge=100, description="time to answer and flush what is in flight on SIGTERM")
    ] = 10_000

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
