"""When an event happened: by its caller's clock, corrected by what that clock is off, within reason.

A time is one of:
- text: `2026-11-22T06:20:00.123+01:00`, RFC 3339 with a little leniency: seconds, a fraction of 1 to 9 digits and the
  offset may be missing, `T` may be a space, `,` may stand for `.`, `+0100` and `+01` for `+01:00`. Without an offset
  it is UTC, as nearly every receiver has it; the caller's own zone cannot be known;
- a number: milliseconds since 1970. Numbers of ten digits, which would be spring 1970, are seconds.
Digits below the millisecond are cut off. A date alone, a week date, `24:00` and a leap second's `:60` are no times.

Limits: `occurred_at` is between a year before and five minutes after the event's arrival; `client_timestamp` is what
the caller says, between 1900 and 2299, which every ClickHouse holds (before 26.8 a DateTime64 silently ends there).
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

FUTURE_MS_MAX = 5 * 60_000
PAST_MS_MAX = 366 * 86_400_000

CLIENT_TIMESTAMP_MS_MIN = -2_208_988_800_000  # 1900-01-01T00:00:00.000Z
CLIENT_TIMESTAMP_MS_MAX = 10_413_791_999_999  # 2299-12-31T23:59:59.999Z

# Ten digits are seconds from 2001 to 2286, or milliseconds from 12 January to 26 April 1970. Nothing lower is taken for
# seconds: a device whose battery was out counts milliseconds from 1970, and its sent_at puts that right.
SECONDS_MIN = 1_000_000_000
SECONDS_MAX = 10_000_000_000

JAVASCRIPT_MS_MAX = 8_640_000_000_000_000  # what a Date holds; bounds the arithmetic

Times = tuple[Mapping[str, str], tuple[str, ...]]
"""Columns of the row, and codes of warnings for the caller. Shared: not to be changed."""

NONE: Times = ({}, ())

# fromisoformat alone takes any separator, week dates and bare dates, and what it takes grows with Python's version.
_TEXT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9})?)?(?:[Zz]|[+-]\d\d(?::?[0-5]\d)?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)


def times(event: Mapping[str, object], received_ms: int, sent_at: object = None, timestamp: object = None) -> Times:
    """What `timestamp` and `sent_at` of an event say, and, where it has none or one that is no time, those of its
    batch. Columns, if there is a time: `client_timestamp`, `occurred_at` and perhaps `time_flag`. Never raises.

    The caller's clock is off by what lies between `sent_at` and our arrival, its way included. So a caller that tries
    again should stamp `sent_at` again.
    """
    own_timestamp, own_sent_at = event.get("timestamp"), event.get("sent_at")
    if own_timestamp is None and own_sent_at is None and timestamp is None:
        return NONE
    said, timestamp_is_time = _first(own_timestamp, timestamp)
    sent, sent_at_is_time = _first(own_sent_at, sent_at)
    warnings: tuple[str, ...] = ()
    if not timestamp_is_time:
        warnings += ("timestamp_invalid",)
    if not sent_at_is_time:
        warnings += ("sent_at_invalid",)
    if said is None:
        return {}, warnings
    columns = {"client_timestamp": _iso_ms(said)}
    occurred = said if sent is None else said + received_ms - sent
    if occurred > received_ms + FUTURE_MS_MAX:
        occurred = received_ms
        columns["time_flag"] = "clamped_future"
    elif occurred < received_ms - PAST_MS_MAX:
        occurred = received_ms - PAST_MS_MAX
        columns["time_flag"] = "clamped_past"
    columns["occurred_at"] = columns["client_timestamp"] if occurred == said else _iso_ms(occurred)
    return columns, warnings


def milliseconds(value: object) -> int | None:
    """A time as epoch milliseconds, at most those that JavaScript holds; None for what is no time."""
    if type(value) is str:
        return _text_ms(value)
    if type(value) is int or type(value) is float:  # not bool
        return _number_ms(value)
    return None


def _first(own: object, default: object) -> tuple[int | None, bool]:
    """The first that is a time; False if one that was asked is not. null is as good as absent."""
    if own is not None:
        ms = milliseconds(own)
        if ms is not None:
            return ms, True
    if default is None:
        return None, own is None
    ms = milliseconds(default)
    return ms, own is None and ms is not None


def _text_ms(text: str) -> int | None:
    if _TEXT.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:  # no such day, or an offset of more than a day
        return None
    since = moment - (_EPOCH if moment.tzinfo is None else _EPOCH_UTC)
    return since.days * 86_400_000 + since.seconds * 1_000 + since.microseconds // 1_000


def _number_ms(number: int | float) -> int | None:
    if SECONDS_MIN <= number < SECONDS_MAX:
        return round(number * 1_000)  # cut off, 4335538905.037 would lose a millisecond
    if -JAVASCRIPT_MS_MAX <= number <= JAVASCRIPT_MS_MAX:
        return math.floor(number)
    if number != number:  # NaN
        return None
    return JAVASCRIPT_MS_MAX if number > 0 else -JAVASCRIPT_MS_MAX


def _iso_ms(epoch_ms: int) -> str:
    """As `schemas.streams.iso_ms`, but clamped, and with a cache of its own: callers' clocks would empty that one."""
    if epoch_ms < CLIENT_TIMESTAMP_MS_MIN:
        epoch_ms = CLIENT_TIMESTAMP_MS_MIN
    elif epoch_ms > CLIENT_TIMESTAMP_MS_MAX:
        epoch_ms = CLIENT_TIMESTAMP_MS_MAX
    seconds, ms = divmod(epoch_ms, 1000)
    return f"{_iso_seconds(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=1024)
def _iso_seconds(epoch_s: int) -> str:
    return (_EPOCH + timedelta(seconds=epoch_s)).isoformat()
