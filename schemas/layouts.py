"""What the names of an event say, found once: most events of a producer have the same names in the same order.

Which fields are there, and which names the contract does not know, follows from the names alone. What remains to be
looked at in each event are the values of its fields, every one of them as the model has it.

Limits: LAYOUTS_MAX lists of NAMES_MAX names of NAMES_CHARS_MAX together are remembered, then all are forgotten: at
worst 5 MB a contract. There is one validator for each set of fields, some hundreds at worst.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import filterfalse
from operator import itemgetter
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import CoreConfig, SchemaValidator, ValidationError, core_schema
from typing_extensions import TypedDict

from schemas.validation import require_valid

LAYOUTS_MAX = 512
NAMES_MAX = 64
NAMES_CHARS_MAX = 1_024

READ_BY_GATEWAY = frozenset({"event_id", "timestamp", "sent_at"})
"""Names of `extra` that say more than what is kept of them."""


Columns = Mapping[str, Sequence[Any]]
"""By name, the values that many events have there, in the order of the events."""


class Layout(NamedTuple):
    """`values` of an event are those of its fields; `look_at` raises ValidationError unless all of them are right.
    `look_at_columns` says of many events whether all of theirs are. `unknown` are the names that the contract does not
    have, in the event's order; `is_plain` if none of them is one that the gateway reads."""

    values: Callable[[dict[str, Any]], Any]
    look_at: Callable[[Any], object]
    look_at_columns: Callable[[Columns], bool]
    unknown: tuple[str, ...]
    is_plain: bool


class Layouts:
    """Of the events of one contract."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self._required = frozenset(name for name, field in model.model_fields.items() if field.is_required())
        self._known: dict[tuple[str, ...], Layout] = {}
        schemas = _field_schemas(model)

        @cache
        def validators(fields: tuple[str, ...]) -> tuple[Callable[[Any], object], Callable[[Columns], bool]]:
            of_fields = [schemas[name] for name in fields]
            of_values = core_schema.tuple_schema(of_fields) if len(fields) > 1 else of_fields[0]  # as itemgetter does
            columns = _ColumnValidator({name: schemas[name] for name in fields})
            return SchemaValidator(of_values, CoreConfig(strict=True)).validate_python, columns.are_right

        self._validators = validators

    def check(self, value: Any) -> Layout:
        """Make sure that a JSON value is an event: its fields are as the model has them. Raises `Invalid`.

        Typed integers written as `2.0` are replaced in it by `2`, nothing else changes. To look at values costs half of
        what it costs to make a model of them; what is wrong is for the model to say.
        """
        try:
            layout = self._known[tuple(value)]
            layout.look_at(layout.values(value))
        except (KeyError, TypeError, ValidationError):  # names not seen before, no object, or wrong
            layout = self._check_anew(value)
        return layout

    def check_alike(self, values: Sequence[Any]) -> tuple[Layout, Columns] | None:
        """As `check`, of many at once, at half the cost. None, if not all of them have the same names, or one may be
        wrong: then each is to be checked."""
        try:
            names = tuple(values[0])
            layout = self._known[names]
            for name, found in zip(names, zip(*values, strict=True), strict=True):
                if found.count(name) < len(found):
                    return None
            columns = dict(zip(names, zip(*map(dict.values, values), strict=True), strict=True))
        except (KeyError, TypeError, ValueError):
            return None
        return (layout, columns) if layout.look_at_columns(columns) else None

    def of(self, event: dict[str, Any]) -> Layout:
        """Of an event that is checked. If it is not, nothing is remembered that would let another pass for an event."""
        names = tuple(event)
        layout = self._known.get(names)
        if layout is None:
            model_fields = self._model.model_fields
            fields = tuple(name for name in model_fields if name in event)
            unknown = tuple(filterfalse(model_fields.__contains__, names))
            is_plain = READ_BY_GATEWAY.isdisjoint(unknown)
            layout = Layout(itemgetter(*fields), *self._validators(fields), unknown, is_plain)
            if self._has_required(event) and len(names) <= NAMES_MAX and sum(map(len, names)) <= NAMES_CHARS_MAX:
                if len(self._known) >= LAYOUTS_MAX:
                    self._known.clear()
                self._known[names] = layout
        return layout

    def _check_anew(self, value: Any) -> Layout:
        if type(value) is not dict or not self._has_required(value):
            require_valid(self._model, value)  # which it is not
        layout = self.of(value)
        try:
            layout.look_at(layout.values(value))
        except ValidationError:
            require_valid(self._model, value)
        return layout

    def _has_required(self, event: dict[str, Any]) -> bool:
        return self._required <= event.keys()


class _ColumnValidator:
    """Whether all values of fields are right, column by column: by their types where nothing else counts, which is
    looked up in half of pydantic's time."""

    def __init__(self, schemas: dict[str, core_schema.CoreSchema]) -> None:
        self._types = {name: types for name, schema in schemas.items() if (types := _types(schema))}
        self._others = [name for name in schemas if name not in self._types]
        columns = (core_schema.tuple_schema([schemas[name]], variadic_item_index=0) for name in self._others)
        self._look_at = SchemaValidator(core_schema.tuple_schema([*columns]), CoreConfig(strict=True)).validate_python

    def are_right(self, columns: Columns) -> bool:
        for name, types in self._types.items():
            if not types.issuperset(map(type, columns[name])):
                return False
        try:
            self._look_at(tuple([columns[name] for name in self._others]))
        except ValidationError:
            return False
        return True


_STRING = core_schema.str_schema()
_OBJECT = core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema())


def _types(schema: core_schema.CoreSchema) -> frozenset[type]:
    """Whose every value is right, of those that JSON has; none if there is more to be looked at."""
    if schema["type"] == "nullable" and (types := _types(schema["schema"])):
        return types | {type(None)}
    if schema == _STRING:
        return frozenset({str})
    if schema == _OBJECT:  # JSON has no other keys
        return frozenset({dict})
    return frozenset()


def _field_schemas(model: type[BaseModel]) -> dict[str, core_schema.CoreSchema]:
    """What pydantic makes of each field where there is no default: an absent field is not looked at."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        type_: Any = field.annotation
        for constraint in field.metadata:
            type_ = Annotated[type_, constraint]
        fields[name] = type_ if field.is_required() else NotRequired[type_]
    typed_dict = TypedDict(model.__name__, fields)  # type: ignore[misc]  # which is no literal
    typed_dict.__pydantic_config__ = ConfigDict(strict=True, extra="ignore")  # type: ignore[attr-defined]
    schema = TypeAdapter(typed_dict).core_schema
    assert schema["type"] == "typed-dict", "it has definitions, to which its fields refer"
    return {name: field["schema"] for name, field in schema["fields"].items()}
