"""Field types that both contracts share.

JSON has one kind of number, ClickHouse has many: an integer field takes what fits 64 signed bits and
nothing else. The bound is left out of the JSON schema, because the contract does not state it.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, WithJsonSchema

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

Int64 = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX), WithJsonSchema({"type": "integer"})]
JsonObject = dict[str, Any]


def _without_null_defaults(schema: dict[str, Any]) -> None:
    """The contract marks an optional field by leaving it out of `required`, not by a default."""
    for field in schema["properties"].values():
        if field.get("default", ...) is None:
            del field["default"]


STRICT = ConfigDict(strict=True, json_schema_extra=_without_null_defaults)
"""No coercion: `"2"` and `true` are not integers. That `2.0` is one is settled in `validation`."""
