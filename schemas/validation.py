"""From the bytes of one event to a checked dict, and from a row back to bytes; every value stays intact.

orjson is the gate: it refuses NaN, Infinity, numbers beyond a double (1e400), lone surrogates, bytes that
are not UTF-8, byte order marks and trailing text, and it is the fastest there is. Two things it cannot do:
- keep an integer of more than 64 bits (it reads a float): a body that seems to have one is read again by the
  standard library, which keeps every digit and reads all else alike;
- write such an integer, or more than 254 levels of nesting: `dumps` tells the two apart.
Of a key that comes twice the last value counts, as in every JSON reader we know of.
"""

import json
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic_core import ValidationError

NESTING_MAX = 254
"""Levels of arrays and objects in a row; orjson's own limit, and well under ClickHouse's (1,000)."""

Detail = dict[str, Any]
"""One entry of the contract's `HTTPValidationError`: `loc`, `msg`, `type`."""

_NUMBERS_ALIKE = bytes.maketrans(b"123456789:[ \t\r\n", b"000000000,,,,,,")  # what may precede a number is a comma
_LONG = b"0" * 19
_LONG_NEGATIVE = b"-" + b"0" * 19  # -2**63 has 19 digits; fewer always fit
_LONG_POSITIVE = b"," + b"0" * 20  # 2**64 has 20


class Invalid(Exception):
    """An event that the contract does not allow; `detail` is the list that the 422 answer carries."""

    def __init__(self, detail: list[Detail]) -> None:
        super().__init__(detail[0]["msg"])
        self.detail = detail


def loads(body: bytes) -> Any:
    """JSON text to Python values. Raises `Invalid` for what is not JSON."""
    try:
        value = orjson.loads(body)
        if has_long_integer(body):
            value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid("json_invalid", f"JSON decode error: {error}") from None
    return value


def has_long_integer(body: bytes) -> bool:
    """Whether JSON text may hold an integer beyond what orjson keeps: -2**63 to 2**64 - 1.

    True, to be safe, for what looks like one within a string. Ids of 19 digits and nanoseconds since 1970 do not: they
    are no reason to read a body twice.
    """
    text = body.translate(_NUMBERS_ALIKE)
    return _LONG in text and (_LONG_NEGATIVE in text or _LONG_POSITIVE in text or text.startswith(_LONG_POSITIVE[1:]))


def require_valid(model: type[BaseModel], value: Any) -> None:
    """Make sure that a `model` can be made of a JSON value; what can be mended is mended in it. Raises `Invalid`."""
    try:
        model.__pydantic_validator__.validate_python(value)
    except ValidationError as error:
        if not _mend_integers(error, value):
            raise Invalid(_details(error)) from None
        require_valid(model, value)


def dumps(row: dict[str, Any]) -> bytes:
    """A row as compact JSON text. Raises `Invalid` if it is nested deeper than `NESTING_MAX`."""
    try:
        return orjson.dumps(row)
    except orjson.JSONEncodeError:
        if _nesting_exceeds_max(row):
            raise _invalid("nesting_too_deep", f"Nested deeper than {NESTING_MAX} levels") from None
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def dumps_all(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    """As `dumps`, of each."""
    try:
        return list(map(orjson.dumps, rows))
    except orjson.JSONEncodeError:
        return list(map(dumps, rows))


_JSON_WORDS = {  # pydantic speaks of Python's types; the caller sent JSON
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be an array",
}


def _invalid(type_: str, msg: str) -> Invalid:
    return Invalid([{"loc": ["body"], "msg": msg, "type": type_}])


def _mend_integers(error: ValidationError, value: Any) -> bool:
    """Replace `2.0` by `2` in the typed integer fields: JSON Schema calls both an integer."""
    mended = False
    for entry in error.errors(include_url=False, include_context=False):
        number = entry["input"]
        if entry["type"] == "int_type" and type(number) is float and number.is_integer():
            value[entry["loc"][0]] = int(number)
            mended = True
    return mended


def _details(error: ValidationError) -> list[Detail]:
    return [
        {
            "loc": ["body", *entry["loc"]],
            "msg": _JSON_WORDS.get(entry["type"], entry["msg"]),
            "type": entry["type"],
        }
        for entry in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _nesting_exceeds_max(row: dict[str, Any]) -> bool:
    level: list[Any] = [row]
    for _ in range(NESTING_MAX):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(parent: dict[str, Any] | list[Any]) -> list[Any]:
    values = parent.values() if type(parent) is dict else parent
    return [value for value in values if type(value) in (dict, list)]
