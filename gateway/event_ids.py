"""The id of an event: one that its caller gives it, or one of ours, a UUIDv7.

A caller gives it so that it may send it again: a repeat is answered alike and lands once. From the Idempotency-Key
header, the `event_id` of the query (beacons cannot set headers), or the event's own `event_id` field, in this order.
"""

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from uuid_utils import uuid7

from gateway.errors import InvalidEvent
from gateway.requests import Request
from schemas.validation import dumps

HEADER = b"idempotency-key"
CHARS_MAX = 64
DIGEST_BYTES = 6
BATCH_KEY_CHARS_MAX = 44  # with a digest and a number it makes an id

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
RULE = "1 to 64 of A-Z a-z 0-9 . _ : -"


def requested(request: Request, chars_max: int = CHARS_MAX) -> str | None:
    """The id that the request itself names. Raises InvalidEvent for one of another form."""
    given = request.parameter("event_id") if request.query else None
    if given is not None:
        _check(given, chars_max, "query", "event_id")
    header = request.headers.get(HEADER)
    return given if header is None else of_header(header, chars_max)


def of_header(value: bytes, chars_max: int = CHARS_MAX) -> str:
    """The id that a value of HEADER is. Raises InvalidEvent for one of another form."""
    # Its standard wants quotes, most clients send none: "k" and k are one id.
    key = value.decode("latin-1").strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    _check(key, chars_max, "header", "Idempotency-Key")
    return key


def is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def new() -> bytes:
    return str(uuid7()).encode()


_LAST_DIGITS = [b"%02x" % number for number in range(256)]


def many() -> Iterator[bytes]:
    """Ids for what has arrived at once, in order: 256 have all but their last two digits in common, and those count.
    A fifth of the cost of `new`."""
    while True:
        common = new()[: -len(_LAST_DIGITS[0])]
        for digits in _LAST_DIGITS:
            yield common + digits


class Derived:
    """Ids of the events of a batch that has a key: made of the key, the event's content, and how often the batch has
    had the same before. So they hold for a batch that is sent again in part or in another order, too."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._seen: Counter[str] = Counter()

    def of(self, event: dict[str, Any]) -> str:
        """Raises `schemas.validation.Invalid` for one that is nested too deep."""
        if "sent_at" in event:  # which is another each time that the event is sent
            event = {name: value for name, value in event.items() if name != "sent_at"}
        digest = blake2b(dumps(event), digest_size=DIGEST_BYTES).hexdigest()
        before = self._seen[digest]
        self._seen[digest] += 1
        return f"{self._key}:{digest}:{before}" if before else f"{self._key}:{digest}"


def _check(value: str, chars_max: int, place: str, name: str) -> None:
    if not is_id(value) or len(value) > chars_max:
        msg = f"An event id is {RULE}" if chars_max == CHARS_MAX else f"A batch's id is {RULE}, {chars_max} at most"
        raise InvalidEvent([{"loc": [place, name], "msg": msg, "type": "event_id_invalid"}])
