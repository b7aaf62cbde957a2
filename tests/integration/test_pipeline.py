"""HTTP to Kafka to ClickHouse: every event answered with 200 is one row, each value as it was sent."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.pipelines import Pipeline

UBI_LOG = Path(__file__).parents[3] / "shared/data/ubi-sample/ubi_queries_events.ndjson.gz"
CREDENTIALS = {"Authorization": "Bearer tok_demo_local_only", "X-Public-API-Key": "pk_demo_local_only"}
APP = "/v1/public/apps/demo/interactions"
RETRIEVER = "/v1/public/retrievers/demo/interactions"
QUERYABLE_S_MAX = 60
CONNECTIONS = 16


async def send_all(url: str, events: list[dict[str, Any]], path: str = APP) -> list[str]:
    """The event ids, in the order of the events; every one must be answered with 200."""
    ids: dict[int, str] = {}
    todo = iter(enumerate(events))

    async def send(client: httpx.AsyncClient) -> None:
        for index, event in todo:
            response = await client.post(path, content=json.dumps(event), headers={"content-type": "application/json"})
            assert response.status_code == 200, response.text
            answer = response.json()
            answer.pop("warnings", None)
            assert answer == {"success": True, "event_id": answer["event_id"], "durability": "kafka"}
            ids[index] = answer["event_id"]

    async with httpx.AsyncClient(base_url=url, headers=CREDENTIALS, timeout=30) as client:
        await asyncio.gather(*(send(client) for _ in range(CONNECTIONS)))
    return [ids[index] for index in range(len(events))]


def rows_when(pipeline: Pipeline, enough: Callable[[list[dict[str, Any]]], bool], sql: str) -> list[dict[str, Any]]:
    """Poll until there is enough, or fail with what there is."""
    deadline = time.monotonic() + QUERYABLE_S_MAX
    while True:
        rows = pipeline.query(sql)
        if enough(rows):
            return rows
        assert time.monotonic() < deadline, f"{len(rows)} rows after {QUERYABLE_S_MAX} s"
        time.sleep(0.05)


def ubi_events() -> list[dict[str, Any]]:
    """The real click log, by the mapping that its README gives."""
    lines = gzip.decompress(UBI_LOG.read_bytes()).decode().splitlines()
    documents = [
        json.loads(document)
        for action, document in zip(lines[::2], lines[1::2], strict=True)
        if json.loads(action)["index"]["_index"] == "ubi_events"
    ]
    mapped = {"action_name": "event_type", "user_query": "query", "session_id": "session_id"}
    events = []
    for document in documents:
        event = {mapped.get(name, name): value for name, value in document.items()}
        attributes = document.get("event_attributes") or {}
        if "object_id" in (attributes.get("object") or {}):
            event["document_id"] = attributes["object"]["object_id"]
        if "ordinal" in (attributes.get("position") or {}):
            event["position"] = attributes["position"]["ordinal"]
        events.append(event)
    return events


@pytest.mark.skipif(not UBI_LOG.exists(), reason="the UBI sample log is not beside the project")
async def test_a_real_click_log_arrives_field_by_field(pipeline: Pipeline) -> None:
    events = ubi_events()
    assert len(events) == 3_448
    ids = await send_all(pipeline.gateway_url, events)
    assert len(set(ids)) == len(ids)
    found = rows_when(
        pipeline,
        lambda rows: len(rows) >= len(events),
        "SELECT * FROM app_interactions WHERE JSONHas(extra, 'client_id') OR JSONHas(extra, 'query_id')",
    )
    by_id = {row["event_id"]: row for row in found}
    assert len(found) == len(events)
    assert by_id.keys() == set(ids)
    fields = ("event_type", "document_id", "position", "query", "result_count", "latency_ms", "dwell_ms", "session_id")
    for event_id, event in zip(ids, events, strict=True):
        row = by_id[event_id]
        assert row["app"] == "demo"
        assert {name: row[name] for name in fields} == {name: event.get(name) for name in fields}
        assert row["metadata"] is None
        assert json.loads(row["extra"]) == {name: value for name, value in event.items() if name not in fields}


async def test_values_stay_intact(pipeline: Pipeline) -> None:
    event = {
        "event_type": 'intact\x00\u2028é😀\\"',
        "position": -(2**63),
        "result_count": 2**63 - 1,
        "query": "",
        "document_id": None,
        "metadata": {
            "big": 123456789012345678901234567890,
            "float": 1.0,
            "nul": "\x00",
            "null": None,
            "deep": [[[{}]]],
        },
        "event_id": "mine",
        "kafka_offset": "theirs",
        "exponent": 1e300,
        "": "empty name",
        "é\x00": -0.0,
    }
    [event_id] = await send_all(pipeline.gateway_url, [event])
    [row] = rows_when(pipeline, bool, f"SELECT * FROM app_interactions WHERE event_id = '{event_id}'")
    assert row["event_type"] == event["event_type"]
    assert (row["position"], row["result_count"]) == (-(2**63), 2**63 - 1)
    assert (row["query"], row["document_id"]) == ("", None)
    assert row["metadata"] == json.dumps(event["metadata"], ensure_ascii=False, separators=(",", ":"))
    extra = ("event_id", "kafka_offset", "exponent", "", "é\x00")
    assert json.loads(row["extra"]) == {name: event[name] for name in extra}
    assert '"exponent":1e+300' in row["extra"]
    assert ":-0.0" in row["extra"]


async def test_an_integer_may_be_written_as_a_float(pipeline: Pipeline) -> None:
    [event_id] = await send_all(pipeline.gateway_url, [{"event_type": "float", "position": 2.0, "extra": 2.0}])
    [row] = rows_when(pipeline, bool, f"SELECT * FROM app_interactions WHERE event_id = '{event_id}'")
    assert row["position"] == 2
    assert row["extra"] == '{"extra":2.0}'


async def test_a_retriever_interaction_arrives_field_by_field(pipeline: Pipeline) -> None:
    event = {
        "document_id": "d1",
        "interaction_type": ["click", "long_view"],
        "position": 0,
        "execution_id": "exec_1",
        "query_snapshot": {"text": "wireless headphones", "filters": {"price": {"lt": 99.90}}},
        "document_score": 0.95,
        "result_set_size": 10,
        "metadata": {},
        "surprise": [1, 2.0],
    }
    least = {"document_id": "d2", "interaction_type": ["view"], "position": 3, "document_score": 1, "metadata": None}
    ids = await send_all(pipeline.gateway_url, [event, least], RETRIEVER)
    rows = rows_when(
        pipeline, lambda rows: len(rows) == 2, f"SELECT * FROM retriever_interactions WHERE event_id IN {tuple(ids)}"
    )
    full, bare = sorted(rows, key=lambda row: row["document_id"])
    assert full["retriever"] == "demo"
    assert json.loads(full.pop("query_snapshot")) == event.pop("query_snapshot")
    assert full.pop("metadata") == "{}"
    assert full.pop("extra") == '{"surprise":[1,2.0]}'
    for name in ("document_id", "interaction_type", "position", "execution_id", "document_score", "result_set_size"):
        assert full[name] == event[name]
    nulls = ("execution_id", "query_snapshot", "result_set_size", "session_id", "metadata")
    assert [bare[name] for name in nulls] == [None] * len(nulls)
    assert (bare["document_score"], bare["extra"]) == (1.0, "{}")


async def test_received_at_is_set_by_the_gateway(pipeline: Pipeline) -> None:
    before = time.time()
    [event_id] = await send_all(pipeline.gateway_url, [{"event_type": "time"}])
    after = time.time()
    [row] = rows_when(
        pipeline,
        bool,
        "SELECT toUnixTimestamp64Milli(received_at) AS received, toUnixTimestamp64Milli(inserted_at) AS inserted "
        f"FROM app_interactions WHERE event_id = '{event_id}'",
    )
    assert int(before * 1000) <= row["received"] <= after * 1000
    assert row["received"] <= row["inserted"]


async def test_every_offset_is_one_row(pipeline: Pipeline) -> None:
    ids = await send_all(pipeline.gateway_url, [{"event_type": "offsets", "n": n} for n in range(2_000)])
    rows_when(
        pipeline,
        lambda rows: rows[0]["n"] == len(ids),
        "SELECT count() AS n FROM app_interactions WHERE event_type = 'offsets'",
    )
    partitions = pipeline.query(
        "SELECT count() AS rows, uniqExact(kafka_offset) AS offsets, max(kafka_offset) - min(kafka_offset) + 1 AS span "
        "FROM app_interactions WHERE event_type = 'offsets' GROUP BY kafka_partition"
    )
    assert len(partitions) == 4
    for partition in partitions:
        assert partition["rows"] == partition["offsets"] == partition["span"]
