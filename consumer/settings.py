"""Settings of the consumer: `CONSUMER_…` variables."""

from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from schemas.settings import Port, ProcessSettings


class ConsumerSettings(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="CONSUMER_")

    group_id: Annotated[str, Field(min_length=1, description="Kafka consumer group; its offsets are the ledger")] = (
        "sluice"
    )
    group_instance_id: Annotated[
        str | None,
        Field(description="stable name of this process in the group: a restart then keeps its partitions"),
    ] = None
    session_timeout_ms: Annotated[
        int, Field(ge=6_000, description="silence after which Kafka gives our partitions to others")
    ] = 15_000
    topic_partitions: Annotated[int, Field(ge=1, description="partitions of a topic that `migrate` creates")] = 4
    topic_replication_factor: Annotated[int, Field(ge=1, description="replicas of a topic that `migrate` creates")] = 1
    clickhouse_url: Annotated[
        SecretStr, Field(description="http(s)://user:password@host:port/database; https checks the certificate")
    ] = SecretStr("http://127.0.0.1:8123/interactions")
    clickhouse_ca_file: Annotated[
        str | None, Field(description="CA certificates (PEM) for https; default: the system's")
    ] = None
    insert_timeout_ms: Annotated[int, Field(ge=1_000, description="longest wait for ClickHouse's answer")] = 30_000
    batch_rows_max: Annotated[int, Field(ge=1, le=1_000_000, description="a batch closes at this many rows")] = 50_000
    batch_bytes_max: Annotated[
        int, Field(ge=65_536, le=268_435_456, description="a batch closes at this many bytes")
    ] = 16_777_216
    batch_age_ms_max: Annotated[int, Field(ge=10, description="a batch closes when its first row is this old")] = 1_000
    inserts_per_second_max: Annotated[
        float, Field(gt=0, description="batches that close by age take turns at this rate")
    ] = 8.0
    buffer_bytes_max: Annotated[
        int, Field(ge=1_048_576, description="rows held in memory, all partitions together; above, fetching pauses")
    ] = 134_217_728
    dedupe_window_s: Annotated[
        int,
        Field(
            ge=0,
            le=604_800,
            description="how long a caller's event id is known again, at least 60; 0: no repeat is dropped at all",
        ),
    ] = 3_600
    dedupe_ids_max: Annotated[
        int,
        Field(
            ge=1_000,
            le=10_000_000,
            description="event ids remembered for that, per partition, 220 bytes each; above, the oldest go early",
        ),
    ] = 200_000
    retention_days: Annotated[
        int, Field(ge=0, description="rows older than this are dropped by ClickHouse; 0 keeps them; set by `migrate`")
    ] = 0
    metrics_host: Annotated[str, Field(description="address of /metrics and /readyz")] = "127.0.0.1"
    metrics_port: Annotated[Port, Field(description="port of /metrics and /readyz")] = 8001
    shutdown_deadline_ms: Annotated[int, Field(ge=100, description="time to finish the batch in hand")] = 20_000

    @field_validator("clickhouse_url")
    @classmethod
    def _is_http_url_with_database(cls, url: SecretStr) -> SecretStr:
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/"):
            raise ValueError("must be http(s)://user:password@host:port/database")
        return url

    @model_validator(mode="after")
    def _a_batch_fits_the_buffer(self) -> Self:
        if self.batch_bytes_max > self.buffer_bytes_max:
            raise ValueError("batch_bytes_max must not exceed buffer_bytes_max: one batch must fit in memory")
        return self

    @field_validator("dedupe_window_s")
    @classmethod
    def _window_is_a_minute_or_none(cls, seconds: int) -> int:
        if 0 < seconds < 60:
            raise ValueError("must be at least 60, or 0: the window is kept in minutes of the log's time")
        return seconds

    @property
    def database(self) -> str:
        """The last part of `clickhouse_url`."""
        return unquote(urlsplit(self.clickhouse_url.get_secret_value()).path.strip("/"))
