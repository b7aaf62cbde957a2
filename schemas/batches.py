"""The bytes of a batch to its events: one entry an event, in order. An event that cannot be read harms no other.

Three forms: `[…]`; `{"events": […], "sent_at": …, "timestamp": …}`; and NDJSON, one value a line. A batch is read in
one go. Only if that fails is it cut, by its quotes, brackets and commas alone, into the texts of its events, and each
is read by itself: `NaN`, bad UTF-8, a lone surrogate, an unknown escape or 100,000 levels of nesting stay within their
event. Where an event ends is never guessed: if brackets do not match or a quote is missing, anywhere, the request as a
whole is refused, and so it is if what is around the events is not JSON.

The values of a batch are those that its events would have, each read alone by `schemas.validation.loads`.

Limits, for the sake of all others whom the event loop serves: `events_max` events, `VALUES_MAX` values, and, while a
batch is cut, `STEPS_MAX` turns of nesting and `FIELDS_MAX` fields around the events. What they let through of 5 MiB
takes about 0.3 s at the very worst.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson

from schemas.validation import Detail, Invalid, has_long_integer, loads

VALUES_MAX = 300_000
"""Commas and opening brackets, those in strings included: 17 bytes each in 5 MiB. JSON of events has more than 20."""

STEPS_MAX = 200_000  # half a microsecond each
FIELDS_MAX = 100

UNKNOWN_MAX = 10
UNKNOWN_CHARS_MAX = 64

READ_TWICE_BYTES_MAX = 262_144
"""A body with an integer of more than 64 bits is read by the slower reader, and, if that fails, by both again, event by
event. A larger body is not given two chances."""

_FIELDS = frozenset({"events", "sent_at", "timestamp"})


class TooManyEvents(Exception):
    """More than the `events_max` of the call."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`events` has the JSON value of each event, not yet checked, or the `Invalid` that says why there is none.
    `unknown` names other fields beside the events: the first `UNKNOWN_MAX`, cut to `UNKNOWN_CHARS_MAX`."""

    events: list[Any]
    sent_at: object = None
    timestamp: object = None
    unknown: list[str] = field(default_factory=list)


def parse_batch(body: bytes, *, ndjson: bool, events_max: int) -> Batch:
    """Raises `Invalid` for what is no batch or has no events, TooManyEvents."""
    if ndjson:
        return Batch(_require_events(_lines(body, events_max), ["body"]))
    if _has_too_many_values(body):
        with suppress(_CannotCut):
            _find_events(body, events_max)  # which says so, if they are too many
        raise _too_many_values()
    return _batch(_read_batch(body, events_max), events_max)


def of_event(index: int, detail: Sequence[Detail]) -> list[Detail]:
    """What is wrong with an event, said of a batch: `["body", "position"]` becomes `["body", 7, "position"]`."""
    return [{**entry, "loc": [*entry["loc"][:1], index, *entry["loc"][1:]]} for entry in detail]


def _batch(value: Any, events_max: int) -> Batch:
    fields: dict[str, Any] = {}
    loc = ["body"]
    events = value
    if type(value) is dict:
        if "events" not in value:
            raise _invalid(["body", "events"], "Field required", "missing")
        fields, events, loc = value, value["events"], ["body", "events"]
    if type(events) is not list:
        raise _invalid(loc, "Input should be an array", "list_type")
    if len(events) > events_max:
        raise TooManyEvents
    unknown = islice((name for name in fields if name not in _FIELDS), UNKNOWN_MAX)
    return Batch(
        _require_events(events, loc),
        fields.get("sent_at"),
        fields.get("timestamp"),
        [name[:UNKNOWN_CHARS_MAX] for name in unknown],
    )


def _require_events(events: list[Any], loc: list[str]) -> list[Any]:
    if not events:
        raise _invalid(loc, "List should have at least 1 item after validation, not 0", "too_short")
    return events


def _invalid(loc: list[str], msg: str, type_: str) -> Invalid:
    return Invalid([{"loc": loc, "msg": msg, "type": type_}])


def _read(text: bytes) -> Any:
    """The value, or the Invalid that says why there is none."""
    try:
        return loads(text)
    except Invalid as invalid:
        return invalid


_LINE = re.compile(rb"[^ \t\r\n].*")  # of those that are not blank


def _lines(body: bytes, events_max: int) -> list[Any]:
    lines = [line.group() for line in islice(_LINE.finditer(body), events_max + 1)]
    if len(lines) > events_max:
        raise TooManyEvents
    if _has_too_many_values(body):
        raise _too_many_values()
    if not has_long_integer(body):
        with suppress(ValueError):
            return [orjson.loads(line) for line in lines]  # all that `loads` does if there is no such integer
    return [_read(line) for line in lines]


def _has_too_many_values(body: bytes) -> bool:
    return len(body) > VALUES_MAX and body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES_MAX


def _too_many_values() -> Invalid:
    return _invalid(["body"], f"More than {VALUES_MAX} values", "too_many_values")


class _CannotCut(Exception):
    """Brackets do not match, a string is not closed, there are no events, or to find them takes too many steps."""


_Span = tuple[int, int]

# Possessive throughout: nothing is tried in two ways, so the time is linear in the text. What follows a string tells
# whether it is one: where a quote is missing, strings are taken for what is between them, and the other way round.
# What does not match is a quote that makes no string. A flat array or object is passed in one step.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(?=[ \t\r\n]*+[]},:])'
_FLAT = rb'\[(?:[^][{}"]++|%b)*+\]|\{(?:[^][{}"]++|%b)*+\}' % (_STRING, _STRING)
_WITHIN = re.compile(rb'(?:[^][{}"]++|%b|%b)*+([\[{]++|[\]}]++)?' % (_STRING, _FLAT), re.DOTALL)
_BETWEEN = re.compile(rb'(?:[^][{}",]++|%b)*+([\[{]++|[\]},])?' % _STRING, re.DOTALL)
_KEY = re.compile(rb"[ \t\r\n]*+(%b)[ \t\r\n]*+:[ \t\r\n]*+" % _STRING, re.DOTALL)
_CLOSED_BY = bytes.maketrans(b"[{", b"]}")


class _Cutter:
    """Where values end, by what every reader of JSON would agree on."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._steps_left = STEPS_MAX

    def value_end(self, at: int) -> int:
        """Where the comma or closing bracket is that ends the value which begins at `at`. Raises _CannotCut."""
        to_close = bytearray()  # innermost last
        while True:
            self._steps_left -= 1
            match = (_WITHIN if to_close else _BETWEEN).match(self._body, at)
            brackets = match[1] if match else None
            if match is None or brackets is None or self._steps_left < 0:
                raise _CannotCut
            if brackets[0] in b"[{":
                to_close += brackets.translate(_CLOSED_BY)
            elif not to_close:
                return match.start(1)
            else:
                closing = brackets[: len(to_close)]
                if to_close[-len(closing) :] != closing[::-1]:
                    raise _CannotCut
                del to_close[-len(closing) :]
                if len(closing) < len(brackets):
                    return match.start(1) + len(closing)
            at = match.end()

    def elements(self, opening: int, count_max: int) -> list[_Span]:
        """Of the array that begins at `opening`, at least one, blank if there is nothing. The last ends where the
        array does. Raises _CannotCut, TooManyEvents."""
        spans: list[_Span] = []
        begin = opening + 1
        while True:
            end = self.value_end(begin)
            spans.append((begin, end))
            if self._body[end] != ord(","):
                break
            if len(spans) == count_max:
                raise TooManyEvents
            begin = end + 1
        if self._body[end] != ord("]"):
            raise _CannotCut
        return spans

    def events(self, opening: int, count_max: int) -> list[_Span]:
        """Elements of the `events` of the object that begins at `opening`; the last counts, as in every reader of
        JSON. Raises _CannotCut, TooManyEvents."""
        body = self._body
        spans: list[_Span] = []
        at = opening + 1
        for _ in range(FIELDS_MAX):
            key = _KEY.match(body, at)
            if key is None:
                raise _CannotCut
            at = key.end()
            if _is_events(key.group(1)):
                spans = self.elements(at, count_max) if body[at : at + 1] == b"[" else []
                at = spans[-1][1] + 1 if spans else at
            at = self.value_end(at)
            if body[at] != ord(","):
                break
            at += 1
        if body[at] != ord("}") or not spans:
            raise _CannotCut
        return spans


def _is_events(key: bytes) -> bool:
    return key == b'"events"' or (b"\\" in key and _read(key) == "events")


def _find_events(body: bytes, events_max: int) -> list[_Span]:
    """Raises _CannotCut, TooManyEvents."""
    opening = len(body) - len(body.lstrip(b" \t\r\n"))
    first = body[opening : opening + 1]
    if first == b"[":
        return _Cutter(body).elements(opening, events_max)
    if first == b"{":
        return _Cutter(body).events(opening, events_max)
    raise _CannotCut


def _read_batch(body: bytes, events_max: int) -> Any:
    """The value of the body, with an Invalid in the place of each event that cannot be read.

    Raises Invalid for what is no JSON beyond that, TooManyEvents.
    """
    if len(body) <= READ_TWICE_BYTES_MAX or not has_long_integer(body):
        with suppress(Invalid):
            return loads(body)
    try:
        return _read_apart(body, events_max)
    except _CannotCut:
        return loads(body)  # says what is wrong


def _read_apart(body: bytes, events_max: int) -> Any:
    """Raises Invalid for what is around the events, _CannotCut, TooManyEvents."""
    spans = _find_events(body, events_max)
    begin, end = spans[0][0], spans[-1][1]
    around = loads(body[:begin] + b" " * (end - begin) + body[end:])  # spaces keep the positions that errors tell
    events = [_read(body[first:last]) for first, last in spans]
    if len(spans) == 1 and not body[begin:end].strip(b" \t\r\n"):
        events = []
    if type(around) is list:
        return events
    around["events"] = events
    return around
