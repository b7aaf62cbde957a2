"""schemas.streams: the record on the wire."""

import json
from typing import Any

import pytest

from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, Stream, iso_ms

RECEIVED_MS = 1_763_800_000_123
RECEIVED_ISO = "2025-11-22T08:26:40.123Z"


@pytest.mark.parametrize(
    ("epoch_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1000, "1970-01-01T00:00:01.000Z"),
        (951_825_600_000, "2000-02-29T12:00:00.000Z"),
        (RECEIVED_MS, RECEIVED_ISO),
        (2_147_483_648_007, "2038-01-19T03:14:08.007Z"),
        (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
    ],
    ids=str,
)
def test_iso_ms(epoch_ms: int, text: str) -> None:
    assert iso_ms(epoch_ms) == text


def test_iso_ms_shares_a_second_but_not_its_milliseconds() -> None:
    assert [iso_ms(RECEIVED_MS + ms)[-5:] for ms in (0, 1, 876, 877)] == [".123Z", ".124Z", ".999Z", ".000Z"]
    assert iso_ms(RECEIVED_MS + 877) == "2025-11-22T08:26:41.000Z"


def test_row_of_a_smallest_app_event() -> None:
    row = APP_INTERACTIONS.encode({"event_type": "click"}, "id-1", "shop", RECEIVED_MS)
    assert row == b'{"event_id":"id-1","app":"shop","received_at":"%b","event_type":"click"}' % RECEIVED_ISO.encode()


def test_row_of_a_smallest_retriever_event() -> None:
    event = {"document_id": "d", "interaction_type": ["view", "click"], "position": 0}
    row = RETRIEVER_INTERACTIONS.encode(event, "id-1", "shop", RECEIVED_MS)
    assert row == (
        b'{"event_id":"id-1","retriever":"shop","received_at":"%b",'
        b'"document_id":"d","interaction_type":["view","click"],"position":0}' % RECEIVED_ISO.encode()
    )


@pytest.mark.parametrize(
    "name", ["event_id", "app", "retriever", "received_at", "extra", "kafka_partition", "kafka_offset", "", "x y"]
)
@pytest.mark.parametrize(
    ("stream", "event"),
    [
        (APP_INTERACTIONS, {"event_type": "e"}),
        (RETRIEVER_INTERACTIONS, {"document_id": "d", "interaction_type": ["view"], "position": 0}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_extra_field_never_takes_the_place_of_a_column(stream: Stream, event: dict[str, Any], name: str) -> None:
    row = json.loads(stream.encode({**event, name: {"forged": 1}}, "id-1", "shop", RECEIVED_MS))
    assert row == {
        "event_id": "id-1",
        stream.owner: "shop",
        "received_at": RECEIVED_ISO,
        **event,
        "extra": {name: {"forged": 1}},
    }


def test_fields_keep_apart_from_extra() -> None:
    event = {"zone": "eu", "event_type": "e", "position": 2, "ab": None, "metadata": {"position": 3}}
    row = json.loads(APP_INTERACTIONS.encode(event, "id-1", "shop", RECEIVED_MS))
    assert row["extra"] == {"zone": "eu", "ab": None}
    assert (row["position"], row["metadata"]) == (2, {"position": 3})


def test_null_is_not_absent() -> None:
    row = json.loads(APP_INTERACTIONS.encode({"event_type": "e", "query": None}, "id-1", "shop", RECEIVED_MS))
    assert row["query"] is None
    assert "document_id" not in row


@pytest.mark.parametrize("owner", ["größe", 'quote"', "back\\slash", "nul\0", "\u2028"], ids=ascii)
def test_owner_is_written_as_json(owner: str) -> None:
    row: dict[str, Any] = json.loads(APP_INTERACTIONS.encode({"event_type": "e"}, "id-1", owner, RECEIVED_MS))
    assert row["app"] == owner
