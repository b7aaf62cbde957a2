"""gateway.clock: what is a time, which, and when the event happened by it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import clock
from gateway.clock import (
    CLIENT_TIMESTAMP_MS_MAX,
    CLIENT_TIMESTAMP_MS_MIN,
    FUTURE_MS_MAX,
    JAVASCRIPT_MS_MAX,
    PAST_MS_MAX,
    milliseconds,
    times,
)

bounded = settings(max_examples=400, derandomize=True, deadline=None, database=None)

RECEIVED_MS = 1_763_800_000_123
RECEIVED = "2025-11-22T08:26:40.123Z"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ms(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)


def columns(event: dict[str, Any], received_ms: int = RECEIVED_MS, **batch: Any) -> dict[str, str]:
    found, warnings = times(event, received_ms, **batch)
    assert warnings == ()
    return dict(found)


@pytest.mark.parametrize(
    ("value", "utc"),
    [
        (RECEIVED, RECEIVED),
        ("2025-11-22T09:26:40.123+01:00", RECEIVED),
        ("2025-11-22T22:26:40.123+14:00", RECEIVED),
        ("2025-11-21T20:26:40.123-1200", RECEIVED),
        ("2025-11-22T09:26:40.123+01", RECEIVED),
        ("2025-11-22T08:26:40.123-00:00", RECEIVED),
        ("2025-11-22 08:26:40,123", RECEIVED),
        ("2025-11-22t08:26:40.123z", RECEIVED),
        ("2025-11-22T08:26:40.1239", RECEIVED),
        ("2025-11-22T08:26:40.123456789Z", RECEIVED),
        ("2025-11-22T08:26:40.1Z", "2025-11-22T08:26:40.100Z"),
        ("2025-11-22T08:26:40Z", "2025-11-22T08:26:40.000Z"),
        ("2025-11-22T08:26Z", "2025-11-22T08:26:00.000Z"),
        ("1969-12-31T23:59:59.9995Z", "1969-12-31T23:59:59.999Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z"),
        (1_763_800_000_123, RECEIVED),
        (1_763_800_000_123.0, RECEIVED),
        (1_763_800_000_123.9, RECEIVED),  # performance.timeOrigin + performance.now()
        (1_763_800_000, "2025-11-22T08:26:40.000Z"),  # seconds: ten digits
        (1_763_800_000.123, RECEIVED),
        (4_335_538_905.037, "2107-05-22T20:21:45.037Z"),
        (999_999_999, "1970-01-12T13:46:39.999Z"),
        (1_000_000_000, "2001-09-09T01:46:40.000Z"),
        (9_999_999_999, "2286-11-20T17:46:39.000Z"),
        (10_000_000_000, "1970-04-26T17:46:40.000Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (-0.5, "1969-12-31T23:59:59.999Z"),
    ],
)
def test_time(value: object, utc: str) -> None:
    assert milliseconds(value) == ms(utc)
    assert columns({"timestamp": value})["client_timestamp"] == utc


@pytest.mark.parametrize(
    ("value", "utc"),
    [
        ("1900-01-01T00:00:00.000Z", "1900-01-01T00:00:00.000Z"),
        ("1899-12-31T23:59:59.999Z", "1900-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00Z", "1900-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00+14:00", "1900-01-01T00:00:00.000Z"),
        ("2299-12-31T23:59:59.999Z", "2299-12-31T23:59:59.999Z"),
        ("2300-01-01T00:00:00Z", "2299-12-31T23:59:59.999Z"),
        ("9999-12-31T23:59:59.999999999-14:00", "2299-12-31T23:59:59.999Z"),
        (10**400, "2299-12-31T23:59:59.999Z"),
        (-(10**400), "1900-01-01T00:00:00.000Z"),
        (1.7976931348623157e308, "2299-12-31T23:59:59.999Z"),
        (-1.7976931348623157e308, "1900-01-01T00:00:00.000Z"),
        (float("inf"), "2299-12-31T23:59:59.999Z"),
    ],
)
def test_limits_of_the_column(value: object, utc: str) -> None:
    found = columns({"timestamp": value})
    assert found["client_timestamp"] == utc
    assert found["time_flag"] == ("clamped_past" if utc < RECEIVED else "clamped_future")


NO_TIMES: list[object] = [
    "",
    "now",
    "1763800000123",
    "2025-11-22",
    "20251122T082640Z",
    "2025-W47-6T08:26:40Z",
    "2025-326T08:26:40Z",
    "2025-11-22T08Z",
    "2025-11-22_08:26:40Z",
    "2025-11-22T08:26:40.Z",
    "2025-11-22T08:26:40.1234567890Z",
    "2025-11-22T24:00:00Z",
    "2016-12-31T23:59:60Z",
    "2025-11-22T08:26:40+24:00",
    "2025-11-22T08:26:40+00:60",
    "2025-11-22T08:26:40 01:00",  # what is left of +01:00 in a query string
    "2025-02-29T00:00:00Z",
    "2025-13-01T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "+012025-11-22T08:26:40Z",
    " 2025-11-22T08:26:40Z",
    "2025-11-22T08:26:40Z\n",
    "\uff12025-11-22T08:26:40Z",
    "2025-11-22T08:26:40Z\0",
    "\ud800",
    "2" * 1_000_000,
    True,
    False,
    [],
    [RECEIVED_MS],
    {},
    {"$date": RECEIVED},
    float("nan"),
]


@pytest.mark.parametrize("value", NO_TIMES, ids=lambda value: repr(value)[:40])
def test_no_time(value: object) -> None:
    assert milliseconds(value) is None
    assert times({"timestamp": value}, RECEIVED_MS) == ({}, ("timestamp_invalid",))
    # The event keeps it; without the correction the time itself still counts.
    event = {"timestamp": RECEIVED, "sent_at": value}
    assert times(event, RECEIVED_MS) == (
        {"client_timestamp": RECEIVED, "occurred_at": RECEIVED},
        ("sent_at_invalid",),
    )
    assert event == {"timestamp": RECEIVED, "sent_at": value}


def test_nothing_said() -> None:
    nothing: tuple[dict[str, str], tuple[str, ...]] = ({}, ())
    assert times({}, RECEIVED_MS) == nothing
    assert times({"timestamp": None, "sent_at": None}, RECEIVED_MS) == nothing
    assert times({"sent_at": RECEIVED}, RECEIVED_MS) == nothing
    assert times({}, RECEIVED_MS, sent_at=RECEIVED) == nothing
    assert times({"sent_at": "?"}, RECEIVED_MS) == ({}, ("sent_at_invalid",))


@pytest.mark.parametrize("clock_is_off_by_ms", [0, -50, 3_600_000, -9 * 3_600_000, -RECEIVED_MS, 10**13])
def test_a_clock_that_is_wrong_is_corrected(clock_is_off_by_ms: int) -> None:
    """Also one that counts from 1970, because its battery was out."""
    there = RECEIVED_MS + clock_is_off_by_ms
    found = columns({"timestamp": there - 70_000, "sent_at": there})
    assert found["occurred_at"] == "2025-11-22T08:25:30.123Z"
    assert "time_flag" not in found


def test_a_zone_that_is_missing_in_both_is_corrected_too() -> None:
    found = columns({"timestamp": "2025-11-22T17:25:30.123", "sent_at": "2025-11-22T17:26:40.123"})
    assert found == {"client_timestamp": "2025-11-22T17:25:30.123Z", "occurred_at": "2025-11-22T08:25:30.123Z"}


@pytest.mark.parametrize(
    ("occurred_ms", "clamped_ms", "flag"),
    [
        (RECEIVED_MS + FUTURE_MS_MAX, RECEIVED_MS + FUTURE_MS_MAX, None),
        (RECEIVED_MS + FUTURE_MS_MAX + 1, RECEIVED_MS, "clamped_future"),
        (RECEIVED_MS - PAST_MS_MAX, RECEIVED_MS - PAST_MS_MAX, None),
        (RECEIVED_MS - PAST_MS_MAX - 1, RECEIVED_MS - PAST_MS_MAX, "clamped_past"),
    ],
)
@pytest.mark.parametrize("sent_ms", [None, RECEIVED_MS, 86_400_000])
def test_clamps(occurred_ms: int, clamped_ms: int, flag: str | None, sent_ms: int | None) -> None:
    event = {"timestamp": occurred_ms} if sent_ms is None else {"timestamp": occurred_ms - RECEIVED_MS + sent_ms}
    found = columns(event, sent_at=sent_ms)
    assert ms(found["occurred_at"]) == clamped_ms
    assert found.get("time_flag") == flag


def test_skew_beyond_reason_is_clamped() -> None:
    assert columns({"timestamp": RECEIVED, "sent_at": "0001-01-01T00:00:00Z"})["time_flag"] == "clamped_future"
    assert columns({"timestamp": RECEIVED, "sent_at": 10**400})["time_flag"] == "clamped_past"


@pytest.mark.parametrize(
    ("event", "timestamp", "sent_at", "occurred_at", "warnings"),
    [
        ({}, RECEIVED, None, RECEIVED, ()),
        ({"timestamp": RECEIVED}, "2001-01-01T00:00:00Z", None, RECEIVED, ()),
        ({"timestamp": RECEIVED}, "?", None, RECEIVED, ()),
        ({"timestamp": None}, RECEIVED, None, RECEIVED, ()),
        ({"timestamp": "?"}, RECEIVED, None, RECEIVED, ("timestamp_invalid",)),
        ({"timestamp": "?"}, "?", None, None, ("timestamp_invalid",)),
        ({}, "?", None, None, ("timestamp_invalid",)),
        ({"timestamp": 5_000}, None, 6_123, "2025-11-22T08:26:39.000Z", ()),
        ({"timestamp": 5_000, "sent_at": 5_123}, None, 6_123, "2025-11-22T08:26:40.000Z", ()),
        ({"timestamp": 5_000, "sent_at": "?"}, None, 6_123, "2025-11-22T08:26:39.000Z", ("sent_at_invalid",)),
        ({"timestamp": RECEIVED}, None, "?", RECEIVED, ("sent_at_invalid",)),
        ({"timestamp": "?", "sent_at": "?"}, None, None, None, ("timestamp_invalid", "sent_at_invalid")),
    ],
)
def test_batch_speaks_for_events_that_do_not(
    event: dict[str, Any], timestamp: object, sent_at: object, occurred_at: str | None, warnings: tuple[str, ...]
) -> None:
    found, said = times(event, RECEIVED_MS, sent_at=sent_at, timestamp=timestamp)
    assert found.get("occurred_at") == occurred_at
    assert said == warnings


odd_numbers = st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.integers(-(10**13), 10**14)
moments = st.datetimes(timezones=st.timezones() | st.none()).map(datetime.isoformat)
texts = st.text(max_size=30) | st.from_regex(clock._TEXT, fullmatch=True) | st.text("0123456789-+:.,TZ W", max_size=30)
values = odd_numbers | moments | texts | st.none() | st.booleans() | st.lists(st.integers(), max_size=2)
receptions = st.integers(0, ms("2200-01-01T00:00:00+00:00"))


@bounded
@given(timestamp=values, sent_at=values, batch_timestamp=values, batch_sent_at=values, received_ms=receptions)
def test_whatever_is_sent(
    timestamp: object, sent_at: object, batch_timestamp: object, batch_sent_at: object, received_ms: int
) -> None:
    event = {"timestamp": timestamp, "sent_at": sent_at}
    found, warnings = times(event, received_ms, sent_at=batch_sent_at, timestamp=batch_timestamp)
    assert set(warnings) <= {"timestamp_invalid", "sent_at_invalid"}
    assert found.keys() - {"time_flag"} in (set(), {"client_timestamp", "occurred_at"})
    json.dumps(found)
    if found:
        assert received_ms - PAST_MS_MAX <= ms(found["occurred_at"]) <= received_ms + FUTURE_MS_MAX
        assert CLIENT_TIMESTAMP_MS_MIN <= ms(found["client_timestamp"]) <= CLIENT_TIMESTAMP_MS_MAX


@bounded
@given(instant=st.integers(CLIENT_TIMESTAMP_MS_MIN, CLIENT_TIMESTAMP_MS_MAX), minutes=st.integers(-1439, 1439))
def test_what_is_written_is_what_was_read(instant: int, minutes: int) -> None:
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    local = datetime(1970, 1, 1) + timedelta(milliseconds=instant, minutes=minutes)
    text = f"{local.isoformat(timespec='milliseconds')}{sign}{hours:02}:{rest:02}"
    written = columns({"timestamp": text})["client_timestamp"]
    assert len(written) == len(RECEIVED)
    assert ms(written) == instant == milliseconds(written)


@bounded
@given(value=values)
def test_milliseconds_are_bounded(value: object) -> None:
    found = milliseconds(value)
    assert found is None or (type(found) is int and abs(found) <= JAVASCRIPT_MS_MAX)
