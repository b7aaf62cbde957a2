"""POST /v1/public/retrievers/{public_name}/interactions: who may, what is taken, what is stored."""

import json
import uuid
from typing import Any

import httpx
import pytest

from tests.contract.gateway_under_test import (
    CREDENTIALS,
    JSON,
    OTHER_PUBLIC_KEY,
    OTHER_TOKEN,
    PUBLIC_KEY,
    RETRIEVER,
    RETRIEVER_PATH,
    SECRETS,
    TOKEN,
    RecordingOutbox,
    envelope,
    validation_errors,
)

EVENT: dict[str, Any] = {"document_id": "doc_1", "interaction_type": ["view"], "position": 0}
FULL_EVENT: dict[str, Any] = {
    "document_id": "doc_1",
    "interaction_type": ["view", "click"],
    "position": 1,
    "execution_id": "exec_abc123xyz",
    "query_snapshot": {"text": "wireless headphones"},
    "document_score": 0.95,
    "result_set_size": 10,
    "session_id": "sess_abc123",
    "metadata": {},
}


async def post(client: httpx.AsyncClient, event: dict[str, Any], **headers: str) -> httpx.Response:
    return await client.post(RETRIEVER_PATH, json=event, headers=CREDENTIALS | headers)


# What is taken


async def test_answer_and_record_of_the_contracts_own_example(
    client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await post(client, FULL_EVENT)
    assert response.status_code == 200
    answer = response.json()
    assert answer == {"success": True, "event_id": answer["event_id"], "durability": "kafka"}
    assert uuid.UUID(answer["event_id"]).version == 7
    [record] = outbox.records
    assert record.topic == "retriever_interactions"
    assert record.key == answer["event_id"].encode()
    assert record.row == {
        "event_id": answer["event_id"],
        "retriever": RETRIEVER,
        "received_at": record.row["received_at"],
        **FULL_EVENT,
    }


@pytest.mark.parametrize("field", EVENT)
async def test_required_field(field: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    for event in ({k: v for k, v in FULL_EVENT.items() if k != field}, FULL_EVENT | {field: None}):
        assert [entry["loc"] for entry in validation_errors(await post(client, event))] == [["body", field]]
    assert not outbox.records


@pytest.mark.parametrize("field", [name for name in FULL_EVENT if name not in EVENT])
async def test_other_fields_may_be_null(field: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    assert (await post(client, EVENT | {field: None})).status_code == 200
    assert outbox.row[field] is None


@pytest.mark.parametrize(
    "interaction_type",
    [
        *("view", "click", "positive_feedback", "negative_feedback", "purchase", "add_to_cart", "wishlist"),
        *("long_view", "share", "bookmark", "query_refinement", "zero_results", "filter_toggle", "skip"),
        "return_to_results",
    ],
)
async def test_each_interaction_type(interaction_type: str, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    assert (await post(client, EVENT | {"interaction_type": [interaction_type]})).status_code == 200
    assert outbox.row["interaction_type"] == [interaction_type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"interaction_type": []},
        {"interaction_type": "view"},
        {"interaction_type": ["VIEW"]},
        {"interaction_type": ["view", "buy"]},
        {"interaction_type": {"view": 1}},
        {"position": -1},
        {"position": 0.5},
        {"position": "0"},
        {"position": True},
        {"result_set_size": 0},
        {"result_set_size": "10"},
        {"document_id": 7},
        {"document_score": "0.95"},
        {"query_snapshot": "text"},
        {"metadata": []},
    ],
    ids=json.dumps,
)
async def test_wrong_value(wrong: dict[str, Any], client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    [field] = wrong
    assert validation_errors(await post(client, EVENT | wrong))[0]["loc"][:2] == ["body", field]
    assert not outbox.records


async def test_unknown_fields_are_stored_as_they_are(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    extra = {"zone": "eu", "f": 1.0, "null": None, "retriever": "forged", "event_id": "forged", "kafka_offset": 1}
    response = await post(client, EVENT | extra)
    assert response.status_code == 200
    assert set(response.json()) == {"success", "event_id", "durability"}
    assert json.dumps(outbox.row["extra"]) == json.dumps(extra)
    assert outbox.row["retriever"] == RETRIEVER
    assert outbox.row["event_id"] == response.json()["event_id"]


# The session


@pytest.mark.parametrize(
    ("body", "header", "stored"),
    [
        ({}, "from-header", "from-header"),
        ({"session_id": None}, "from-header", "from-header"),
        ({"session_id": "from-body"}, "from-header", "from-body"),
        ({"session_id": ""}, "from-header", ""),
        ({"session_id": "from-body"}, None, "from-body"),
        ({"session_id": None}, None, None),
        ({}, "ünï", "ünï"),
        ({}, '"\\', '"\\'),
    ],
    ids=["absent", "null", "both", "empty", "body-only", "neither", "unicode", "escapes"],
)
async def test_session_id(
    body: dict[str, Any],
    header: str | None,
    stored: str | None,
    client: httpx.AsyncClient,
    outbox: RecordingOutbox,
) -> None:
    headers = CREDENTIALS | ({} if header is None else {"X-Session-ID": header})
    response = await client.post(
        RETRIEVER_PATH, json=EVENT | body, headers={name: value.encode() for name, value in headers.items()}
    )
    assert response.status_code == 200
    assert outbox.row["session_id"] == stored


@pytest.mark.parametrize("header", [None, b""], ids=["absent", "empty"])
async def test_no_session_at_all(header: bytes | None, client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    headers: dict[str, Any] = dict(CREDENTIALS) | ({} if header is None else {"X-Session-ID": header})
    assert (await client.post(RETRIEVER_PATH, json=EVENT, headers=headers)).status_code == 200
    assert "session_id" not in outbox.row


async def test_session_header_in_another_charset(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    headers: dict[str, Any] = dict(CREDENTIALS) | {"X-Session-ID": b"caf\xe9"}
    assert (await client.post(RETRIEVER_PATH, json=EVENT, headers=headers)).status_code == 200
    assert outbox.row["session_id"] == "café"


async def test_session_header_does_not_mend_a_wrong_session_id(
    client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await post(client, EVENT | {"session_id": 7}, **{"X-Session-ID": "s"})
    assert validation_errors(response)[0]["loc"] == ["body", "session_id"]
    assert not outbox.records


# Who may

KEY = {"X-Public-API-Key": PUBLIC_KEY}


def bearer(authorization: str, **more: str) -> dict[str, str]:
    return KEY | {"Authorization": authorization} | more


@pytest.mark.parametrize(
    "headers",
    [
        {},
        KEY,
        {"Authorization": f"Bearer {TOKEN}"},
        bearer(""),
        bearer("Bearer"),
        bearer("Bearer "),
        bearer("Bearer    "),
        bearer(TOKEN),
        bearer(f"Basic {TOKEN}"),
        bearer(f"Bearer{TOKEN}"),
        bearer(f"Token {TOKEN}"),
        bearer(f"Bearer: {TOKEN}"),
        bearer(f"Bearer {TOKEN}x"),
        bearer(f"Bearer {TOKEN[:-1]}"),
        bearer(f"Bearer {TOKEN.lower()}"),
        bearer(f"Bearer {TOKEN} {TOKEN}"),
        bearer(f"Bearer {TOKEN},{TOKEN}"),
        bearer(f"Bearer {PUBLIC_KEY}"),
        bearer("Bearer nobody"),
        bearer("Bearer " + "x" * 10_000),
        bearer(f"Bearer {TOKEN}", **{"X-Public-API-Key": ""}),
        bearer(f"Bearer {TOKEN}", **{"X-Public-API-Key": "nobody"}),
        bearer(f"Bearer {TOKEN}", **{"X-Public-API-Key": TOKEN}),
        bearer(f"Bearer {TOKEN}", **{"X-Public-API-Key": PUBLIC_KEY.upper()}),
    ],
    ids=[
        *("nothing", "no-token", "no-key", "empty", "scheme-only", "blank", "blanks", "bare-token", "basic", "glued"),
        *("other-scheme", "colon", "longer", "shorter", "other-case", "twice", "list", "key-as-token", "unknown"),
        *("huge", "empty-key", "unknown-key", "token-as-key", "key-in-other-case"),
    ],
)
@pytest.mark.parametrize("name", [RETRIEVER, "nobody"], ids=["known-retriever", "unknown-retriever"])
async def test_unauthorized(
    name: str, headers: dict[str, str], client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await client.post(f"/v1/public/retrievers/{name}/interactions", json=EVENT, headers=headers)
    envelope(response, 401, "UnauthorizedError")
    assert response.headers["www-authenticate"] == "Bearer"
    assert not outbox.records
    assert not any(secret in response.text for secret in SECRETS)


@pytest.mark.parametrize("token", [b"\xff\xfe", "tökén".encode(), b"\x01"], ids=repr)
async def test_token_of_odd_bytes_is_unknown(token: bytes, client: httpx.AsyncClient) -> None:
    headers: dict[str, Any] = KEY | {"Authorization": b"Bearer " + token}
    envelope(await client.post(RETRIEVER_PATH, json=EVENT, headers=headers), 401, "UnauthorizedError")


@pytest.mark.parametrize("authorization", [f"bearer {TOKEN}", f"BEARER {TOKEN}", f"Bearer   {TOKEN} "])
async def test_scheme_is_read_as_http_has_it(authorization: str, client: httpx.AsyncClient) -> None:
    assert (await client.post(RETRIEVER_PATH, json=EVENT, headers=bearer(authorization))).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}", "X-Public-API-Key": OTHER_PUBLIC_KEY},
        {"Authorization": f"Bearer {OTHER_TOKEN}", "X-Public-API-Key": PUBLIC_KEY},
        {"Authorization": f"Bearer {OTHER_TOKEN}", "X-Public-API-Key": OTHER_PUBLIC_KEY},
    ],
    ids=["key", "token", "both"],
)
async def test_credentials_of_another_retriever(
    headers: dict[str, str], client: httpx.AsyncClient, outbox: RecordingOutbox
) -> None:
    response = await client.post(RETRIEVER_PATH, json=EVENT, headers=headers)
    envelope(response, 403, "ForbiddenError")
    assert "www-authenticate" not in response.headers
    assert not outbox.records
    assert not any(secret in response.text for secret in SECRETS)


async def test_unknown_retriever(client: httpx.AsyncClient, outbox: RecordingOutbox) -> None:
    response = await client.post("/v1/public/retrievers/n%C3%B6body/interactions", json=EVENT, headers=CREDENTIALS)
    error = envelope(response, 404, "NotFoundError")
    assert error["details"] == {"resource": "retriever", "id": "nöbody"}
    assert not outbox.records


async def test_slug_of_an_app_is_no_retriever(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/public/retrievers/demo-shop/interactions", json=EVENT, headers=CREDENTIALS)
    envelope(response, 404, "NotFoundError")


async def test_caller_is_known_before_the_body_is_looked_at(client: httpx.AsyncClient) -> None:
    response = await client.post(RETRIEVER_PATH, content=b"{" * 300_000, headers=JSON)
    envelope(response, 401, "UnauthorizedError")
