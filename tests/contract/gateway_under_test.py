"""The gateway as its callers meet it, without Kafka and disk: an outbox that keeps the records, a registry with two
retrievers, and what both endpoints need for a request that is valid in everything but what a test changes."""

import asyncio
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import structlog
from prometheus_client import CollectorRegistry

from gateway import app as composition
from gateway.asgi import ASGIApp
from gateway.kafka_batch import PublisherRefusal
from gateway.metrics import Metrics
from gateway.record import Durability, Record, Records
from gateway.registry import Registry, RegistryFile
from gateway.settings import GatewaySettings
from gateway.spool import SpoolRefusal

APP = "demo-shop"
RETRIEVER, OTHER_RETRIEVER = "products", "articles"
EVENT_BYTES_MAX = 262_144

PUBLIC_KEY, TOKEN = "pk_of_products_DISTINCTIVE", "tok_of_products_DISTINCTIVE"
SECOND_PUBLIC_KEY = "pk_of_products_too_DISTINCTIVE"
OTHER_PUBLIC_KEY, OTHER_TOKEN = "pk_of_articles_DISTINCTIVE", "tok_of_articles_DISTINCTIVE"
SECRETS = (PUBLIC_KEY, TOKEN, SECOND_PUBLIC_KEY, OTHER_PUBLIC_KEY, OTHER_TOKEN)

APP_PATH = f"/v1/public/apps/{APP}/interactions"
RETRIEVER_PATH = f"/v1/public/retrievers/{RETRIEVER}/interactions"
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
CREDENTIALS = {"Authorization": f"Bearer {TOKEN}", "X-Public-API-Key": PUBLIC_KEY}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def registry(*lines: str, app: Sequence[str] = (), retriever: Sequence[str] = ()) -> str:
    """The registry file, with `lines` in the tables of the app and of the first retriever, and more in either."""
    of_app, of_retriever = ("\n".join([*lines, *more]) for more in (app, retriever))
    return f"""
[apps.{APP}]
{of_app}

[retrievers.{RETRIEVER}]
public_key_sha256 = ["{_digest(PUBLIC_KEY)}", "{_digest(SECOND_PUBLIC_KEY)}"]
token_sha256 = ["{_digest(TOKEN)}"]
{of_retriever}

[retrievers.{OTHER_RETRIEVER}]
public_key_sha256 = ["{_digest(OTHER_PUBLIC_KEY)}"]
token_sha256 = ["{_digest(OTHER_TOKEN)}"]
"""


REGISTRY = registry()


def write_registry(directory: Path, text: str = REGISTRY) -> Path:
    path = directory / "registry.toml"
    path.write_text(text)
    return path


class KeptRecord(Record):
    @property
    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.value)
        return row


Refusal: TypeAlias = PublisherRefusal | SpoolRefusal


@dataclass
class RecordingOutbox:
    """Keeps what it takes. `fault` is given or raised instead, `durability` is where it says that a record is, unless
    `place` says it of that record."""

    durability: Durability = "kafka"
    fault: Exception | None = None
    place: Callable[[KeptRecord], Durability | Refusal] | None = None
    unready_reason: str | None = None
    records: list[KeptRecord] = field(default_factory=list)

    async def start(self) -> None: ...

    async def stop(self, deadline_s: float) -> None: ...

    def publish(self, record: Record) -> asyncio.Future[Durability | Refusal]:
        future: asyncio.Future[Durability | Refusal] = asyncio.get_running_loop().create_future()
        future.set_result(self._place(record))
        return future

    def publish_all(self, records: Records) -> asyncio.Future[list[Durability | Refusal]]:
        assert records, "nobody asks for nothing"
        future: asyncio.Future[list[Durability | Refusal]] = asyncio.get_running_loop().create_future()
        try:
            future.set_result([self._place(record) for record in records.since(0)])
        except Exception as error:
            future.set_exception(error)
        return future

    def _place(self, record: Record) -> Durability | Refusal:
        if isinstance(self.fault, Refusal):
            return self.fault
        if self.fault is not None:
            raise self.fault
        kept = KeptRecord(*record)
        place = self.durability if self.place is None else self.place(kept)
        if not isinstance(place, Refusal):
            self.records.append(kept)
        return place

    @property
    def row(self) -> dict[str, Any]:
        """Of the one record there is."""
        [record] = self.records
        return record.row

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [record.row for record in self.records]

    def take(self) -> list[KeptRecord]:
        """What was kept since it was last asked."""
        records, self.records = self.records, []
        return records


@dataclass
class Clock:
    """The time as the endpoints see it; it stands still but for `pass_`."""

    now_s: float = 1_790_000_000.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return round(self.now_s * 1000) * 1_000_000

    @property
    def now_ms(self) -> int:
        return self.time_ns() // 1_000_000

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Gateway:
    """The application over an outbox that keeps the records, and what a test wants to look at or to change."""

    app: ASGIApp
    outbox: RecordingOutbox
    clock: Clock
    registry: RegistryFile
    counters: CollectorRegistry

    def http(self, peer: str = "127.0.0.1") -> httpx.AsyncClient:
        """A caller from that address, who says nothing of itself but that it is a browser."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(peer, 1234))
        headers = {"User-Agent": BROWSER}
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)

    async def reload(self, text: str) -> bool:
        """Put another registry in force; whether it is."""
        self.registry._path.write_text(text)
        return await self.registry.reload_if_changed()

    def count(self, name: str, **labels: str) -> int:
        """Of a counter, over all label values that are not given."""
        return round(
            sum(
                sample.value
                for metric in self.counters.collect()
                for sample in metric.samples
                if sample.name == f"{name}_total" and labels.items() <= sample.labels.items()
            )
        )


DOCUMENT = functools.cache(composition.openapi_document)


def serve(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str = REGISTRY,
    *,
    clock: Clock | None = None,
    **settings: Any,
) -> Gateway:
    """A gateway in this process. With a `clock`, it has the time from there."""
    files: list[RegistryFile] = []

    def registry_file(path: Path, *, check: Callable[[Registry], None] = lambda _: None) -> RegistryFile:
        files.append(RegistryFile(path, check=check))
        return files[0]

    if clock is not None:
        for module in ("endpoints", "single_event", "event_batch", "dry_run"):
            monkeypatch.setattr(f"gateway.{module}.time", clock)
    outbox, counters = RecordingOutbox(), CollectorRegistry()
    # structlog's default shows the local variables of every frame, which takes a second.
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[structlog.processors.KeyValueRenderer()])
    monkeypatch.setattr("gateway.endpoints.log", log)
    with monkeypatch.context() as patch:
        patch.setattr(composition, "RegistryFile", registry_file)
        patch.setattr(composition, "openapi_document", DOCUMENT)  # most of the time to compose, and always the same
        registry = write_registry(directory, text)
        app = composition.compose(GatewaySettings(registry_file=registry, **settings), outbox, Metrics(counters))
    return Gateway(app, outbox, clock or Clock(), files[0], counters)


@dataclass(frozen=True)
class Endpoint:
    """One of the two, with a request that it takes."""

    name: str
    path: str
    headers: dict[str, str]
    event: dict[str, Any]

    @property
    def batch(self) -> str:
        return f"{self.path}/batch"

    @property
    def validate(self) -> str:
        return f"{self.path}/validate"

    @property
    def pixel(self) -> str:
        return f"{self.path}.gif"

    @property
    def stream(self) -> str:
        return f"{self.name}_interactions"

    @property
    def owner(self) -> str:
        return APP if self.name == "app" else RETRIEVER

    @property
    def body(self) -> bytes:
        return json.dumps(self.event).encode()

    def body_with(self, field: bytes, value: bytes) -> bytes:
        """A valid event and one more field, spelt as given."""
        return self.body[:-1] + b',"%b":%b}' % (field, value)


ENDPOINTS = (
    Endpoint("app", APP_PATH, JSON, {"event_type": "view"}),
    Endpoint(
        "retriever",
        RETRIEVER_PATH,
        JSON | CREDENTIALS,
        {"document_id": "doc_1", "interaction_type": ["view"], "position": 0},
    ),
)


@dataclass(frozen=True)
class Form:
    """One of the ways to write a batch, of the texts of its events."""

    name: str
    headers: dict[str, str]
    before: bytes
    between: bytes
    after: bytes

    def of(self, texts: Iterable[bytes]) -> bytes:
        return self.before + self.between.join(texts) + self.after


FORMS = (
    Form("array", JSON, b"[", b",", b"]"),
    Form("object", JSON, b'{"events":[', b",", b"]}"),
    Form("ndjson", NDJSON, b"", b"\n", b"\n"),
)


def envelope(response: httpx.Response, status: int, type_: str) -> dict[str, Any]:
    """The error in an answer that is one in every respect that the contract has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"success", "status", "error"}
    assert body["success"] is False
    assert body["status"] == status
    error: dict[str, Any] = body["error"]
    assert {"message", "type"} <= set(error) <= {"message", "type", "code", "details"}
    assert error["type"] == type_
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error.get("code", ""), str)
    assert isinstance(error.get("details", {}), dict)
    return error


def validation_errors(response: httpx.Response, place: str = "body") -> list[dict[str, Any]]:
    """The entries of an answer that is exactly an HTTPValidationError, all about the same part of the request."""
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["detail"]
    assert body["detail"]
    for entry in body["detail"]:
        assert set(entry) == {"loc", "msg", "type"}
        assert entry["loc"][0] == place
        assert all(type(part) in (str, int) for part in entry["loc"])
        assert isinstance(entry["msg"], str)
        assert isinstance(entry["type"], str)
    detail: list[dict[str, Any]] = body["detail"]
    return detail
