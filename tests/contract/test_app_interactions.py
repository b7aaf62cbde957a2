"""POST /v1/public/apps/{slug}/interactions: what is taken, what is answered, what is stored."""

import json
import time
import uuid
from typing import Any

import httpx
import pytest

from schemas.streams import iso_ms
from tests.contract.gateway_under_test import APP, APP_PATH, JSON, RecordingOutbox, envelope, validation_errors

FULL_EVENT: dict[str, Any] = {
    "event_type": "click",
    "document_id": "doc_abc123",
    "position": 2,
    "query": "red sneakers",
    "result_count": 40,
    "latency_ms": 12,
    "dwell_ms": 3400,
    "session_id": "sess_xyz",
    "metadata": {"ab": {"test": "B"}, "price": 12.5},
}


async def test_answer_and_record_of_the_contracts_own_example(
    client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    event = {key: FULL_EVENT[key] for key in ("event_type", "document_id", "position", "query", "session_id")}
    before_ms = time.time_ns() // 1_000_000
    response = await client.post(APP_PATH, json=event)
    after_ms = time.time_ns() // 1_000_000

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer == {"success": True, "event_id": answer["event_id"], "durability": "kafka"}
    assert uuid.UUID(answer["event_id"]).version == 7

    [record] = outbox.records
    assert record.topic == "app_interactions"
    assert record.key == answer["event_id"].encode()
    assert before_ms <= record.timestamp_ms <= after_ms
    assert record.row == {
        "event_id": answer["event_id"],
        "app": APP,
        "received_at": iso_ms(record.timestamp_ms),
        **event,
    }


async def test_every_field(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    assert (await client.post(APP_PATH, json=FULL_EVENT)).status_code == 200
    row = outbox.row
    assert {name: row[name] for name in FULL_EVENT} == FULL_EVENT


async def test_event_type_alone_is_enough(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    assert (await client.post(APP_PATH, json={"event_type": ""})).status_code == 200
    assert set(outbox.row) == {"event_id", "app", "received_at", "event_type"}


async def test_event_type_is_required(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    response = await client.post(APP_PATH, json={name: v for name, v in FULL_EVENT.items() if name != "event_type"})
    assert validation_errors(response) == [{"loc": ["body", "event_type"], "msg": "Field required", "type": "missing"}]
    assert not outbox.records


@pytest.mark.parametrize("field", [name for name in FULL_EVENT if name != "event_type"])
async def test_other_fields_may_be_null(field: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    assert (await client.post(APP_PATH, json={"event_type": "e", field: None})).status_code == 200
    assert outbox.row[field] is None


async def test_extra_fields_are_stored_as_they_are(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    extra = {"zone": "eu", "n": 1, "f": 1.0, "null": None, "deep": {"a": [1, {"b": [True]}]}, "": "", "extra": {"x": 1}}
    assert (await client.post(APP_PATH, json={"event_type": "e", **extra})).status_code == 200
    assert json.dumps(outbox.row["extra"]) == json.dumps(extra)


async def test_extra_fields_cannot_forge_columns(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    forged = {"app": "other", "received_at": "1970-01-01T00:00:00.000Z", "kafka_offset": 0}
    assert (await client.post(APP_PATH, json={"event_type": "e", **forged})).status_code == 200
    assert outbox.row["app"] == APP
    assert outbox.row["received_at"] > "2020"
    assert outbox.row["extra"] == forged


async def test_each_event_has_its_own_id(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    ids = [(await client.post(APP_PATH, json={"event_type": "e"})).json()["event_id"] for _ in range(20)]
    assert len(set(ids)) == 20
    assert [record.key.decode() for record in outbox.records] == ids


async def test_no_authentication_is_asked_for(client: httpx.AsyncClient) -> None:
    headers = {"Authorization": "Bearer nobody", "X-Public-API-Key": "none"}
    assert (await client.post(APP_PATH, json={"event_type": "e"}, headers=headers)).status_code == 200


async def test_session_header_means_nothing_here(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    await client.post(APP_PATH, json={"event_type": "e"}, headers={"X-Session-ID": "s"})
    assert "session_id" not in outbox.row


@pytest.mark.parametrize(
    ("written", "slug"),
    [("nobody", "nobody"), ("Demo-Shop", "Demo-Shop"), ("%C3%BC%20%22", 'ü "'), ("%00", "\0"), ("x" * 300, "x" * 200)],
    ids=["unknown", "case", "escaped", "nul", "long"],
)
async def test_unknown_slug(written: str, slug: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    response = await client.post(f"/v1/public/apps/{written}/interactions", json={"event_type": "e"})
    error = envelope(response, 404, "NotFoundError")
    assert error["details"] == {"resource": "app", "id": slug}
    assert not outbox.records


async def test_unknown_slug_is_told_before_the_body_is_looked_at(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/public/apps/nobody/interactions", content=b"{", headers=JSON)
    envelope(response, 404, "NotFoundError")


async def test_name_of_a_retriever_is_no_slug(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/public/apps/products/interactions", json={"event_type": "e"})
    envelope(response, 404, "NotFoundError")


async def test_slug_may_be_written_with_escapes(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    response = await client.post("/v1/public/apps/demo%2Dshop/interactions?x=1", json={"event_type": "e"})
    assert response.status_code == 200
    assert outbox.row["app"] == APP
