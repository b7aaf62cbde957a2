"""The gateway as its callers meet it, without Kafka and disk: an outbox that keeps the records, a registry with two
retrievers, and what both endpoints need for a request that is valid in everything but what a test changes."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gateway.outbox import Durability
from gateway.record import Record

APP = "demo-shop"
RETRIEVER, OTHER_RETRIEVER = "products", "articles"
EVENT_BYTES_MAX = 262_144

PUBLIC_KEY, TOKEN = "pk_of_products_DISTINCTIVE", "tok_of_products_DISTINCTIVE"
OTHER_PUBLIC_KEY, OTHER_TOKEN = "pk_of_articles_DISTINCTIVE", "tok_of_articles_DISTINCTIVE"
SECRETS = (PUBLIC_KEY, TOKEN, OTHER_PUBLIC_KEY, OTHER_TOKEN)

APP_PATH = f"/v1/public/apps/{APP}/interactions"
RETRIEVER_PATH = f"/v1/public/retrievers/{RETRIEVER}/interactions"
JSON = {"Content-Type": "application/json"}
CREDENTIALS = {"Authorization": f"Bearer {TOKEN}", "X-Public-API-Key": PUBLIC_KEY}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


REGISTRY = f"""
[apps.{APP}]

[retrievers.{RETRIEVER}]
public_key_sha256 = ["{_digest(PUBLIC_KEY)}"]
token_sha256 = ["{_digest(TOKEN)}"]

[retrievers.{OTHER_RETRIEVER}]
public_key_sha256 = ["{_digest(OTHER_PUBLIC_KEY)}"]
token_sha256 = ["{_digest(OTHER_TOKEN)}"]
"""


def write_registry(directory: Path) -> Path:
    path = directory / "registry.toml"
    path.write_text(REGISTRY)
    return path


class KeptRecord(Record):
    @property
    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.value)
        return row


@dataclass
class RecordingOutbox:
    """Keeps what it takes. `fault` is raised instead, `durability` is where it says that a record is."""

    durability: Durability = "kafka"
    fault: Exception | None = None
    unready_reason: str | None = None
    records: list[KeptRecord] = field(default_factory=list)

    async def start(self) -> None: ...

    async def stop(self, deadline_s: float) -> None: ...

    async def publish(self, record: Record) -> Durability:
        if self.fault is not None:
            raise self.fault
        self.records.append(KeptRecord(*record))
        return self.durability

    @property
    def row(self) -> dict[str, Any]:
        """Of the one record there is."""
        [record] = self.records
        return record.row


@dataclass(frozen=True)
class Endpoint:
    """One of the two, with a request that it takes."""

    name: str
    path: str
    headers: dict[str, str]
    event: dict[str, Any]

    @property
    def body(self) -> bytes:
        return json.dumps(self.event).encode()

    def body_with(self, field: bytes, value: bytes) -> bytes:
        """A valid event and one more field, spelt as given."""
        return self.body[:-1] + b',"%b":%b}' % (field, value)


ENDPOINTS = (
    Endpoint("app", APP_PATH, JSON, {"event_type": "click"}),
    Endpoint(
        "retriever",
        RETRIEVER_PATH,
        JSON | CREDENTIALS,
        {"document_id": "doc_1", "interaction_type": ["view"], "position": 0},
    ),
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


def validation_errors(response: httpx.Response) -> list[dict[str, Any]]:
    """The entries of an answer that is exactly an HTTPValidationError."""
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["detail"]
    assert body["detail"]
    for entry in body["detail"]:
        assert set(entry) == {"loc", "msg", "type"}
        assert entry["loc"][0] == "body"
        assert all(type(part) in (str, int) for part in entry["loc"])
        assert isinstance(entry["msg"], str)
        assert isinstance(entry["type"], str)
    detail: list[dict[str, Any]] = body["detail"]
    return detail
