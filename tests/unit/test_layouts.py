"""schemas.layouts: what is remembered of the names of events changes nothing of what is said of an event."""

import copy
import json
from collections.abc import Callable
from itertools import permutations
from typing import Annotated, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StringConstraints, ValidationError
from pydantic_core import CoreConfig, SchemaValidator

from schemas import layouts
from schemas.layouts import LAYOUTS_MAX, NAMES_CHARS_MAX, NAMES_MAX, Layouts
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, STREAMS, Stream, iso_ms
from schemas.validation import Invalid, dumps, require_valid
from tests.unit.test_row_properties import APP_FIELDS, INTERACTION_TYPES, RESERVED, RETRIEVER_FIELDS, texts, values

BOTH_STREAMS = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
FIELDS = {APP_INTERACTIONS: APP_FIELDS, RETRIEVER_INTERACTIONS: RETRIEVER_FIELDS}
SMALLEST: dict[Stream, dict[str, Any]] = {
    APP_INTERACTIONS: {"event_type": "e"},
    RETRIEVER_INTERACTIONS: {"document_id": "d", "interaction_type": ["view"], "position": 0},
}

bounded = settings(max_examples=150, derandomize=True, deadline=None, database=None)

# Values of a kind that is right for some field, and their neighbours that are not.
near_misses = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2.0, -0.0, 0.5, "", "1", "view", [], {}, [{}], {"a": [1]}),
        *(2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, 1e19, float(2**63), 1.5e308),
        *(["view"], ["view", "skip"], ["view", "view"], ["view", "View"], ["view", 1], ["view", None], [["view"]]),
        *([{"view": 1}], ["x"], list(INTERACTION_TYPES)),
    ]
)


@st.composite
def producers(draw: st.DrawFn, stream: Stream) -> list[dict[str, Any]]:
    """Events that have the same names in the same order, most of them valid in most of their fields."""
    valid = draw(FIELDS[stream])
    extra = draw(st.dictionaries(texts | st.sampled_from(RESERVED), values, max_size=3))
    names = draw(st.permutations([*valid, *(name for name in extra if name not in stream.fields)]))
    wrong = draw(st.dictionaries(st.sampled_from(names), st.lists(near_misses | values, max_size=3), max_size=3))
    missing = draw(st.sets(st.sampled_from(names), max_size=1)) if draw(st.integers(0, 9)) == 0 else set()
    event = {name: (valid | extra)[name] for name in names if name not in missing}
    times = max(map(len, wrong.values()), default=0) + 1
    events = [copy.deepcopy(event) for _ in range(times)]
    for name, replacements in wrong.items():
        for other, value in zip(events, replacements, strict=False):
            if name in other:
                other[name] = copy.deepcopy(value)
    return draw(st.permutations(events))


def verdict(check: Callable[[Any], object], value: Any) -> tuple[object, str]:
    """What is wrong with a value, or None; and the value as it is afterwards."""
    detail = None
    try:
        check(value)
    except Invalid as invalid:
        detail = invalid.detail
    return detail, repr(value)


@bounded
@given(data=st.data())
@BOTH_STREAMS
def test_a_known_layout_changes_no_verdict(stream: Stream, data: st.DataObject) -> None:
    known = Layouts(stream.model)
    for event in data.draw(producers(stream)):
        expected = verdict(lambda value: require_valid(stream.model, value), copy.deepcopy(event))
        for check in (Layouts(stream.model).check, known.check, known.check):
            assert verdict(check, copy.deepcopy(event)) == expected


def row_of(stream: Stream, event: dict[str, Any], event_id: str, owner: str, context: dict[str, Any]) -> bytes:
    """As it is defined: a dict of all columns, written as JSON."""
    row = {"event_id": event_id, stream.owner: owner, "received_at": iso_ms(0), **context}
    row |= {name: value for name, value in event.items() if name in stream.fields}
    unknown = {name: value for name, value in event.items() if name not in stream.fields}
    return dumps(row | {"extra": unknown} if unknown else row)


contexts = st.sampled_from([{}, {"bot_reason": "http_client:curl"}, {"is_bot": True, "client_address": "::1"}])


@bounded
@given(data=st.data(), owner=st.sampled_from(["shop", 'quote"', "größe", "back\\slash"]), context=contexts)
@BOTH_STREAMS
def test_a_row_is_to_the_byte_what_its_columns_are(
    stream: Stream, data: st.DataObject, owner: str, context: dict[str, Any]
) -> None:
    for event in data.draw(producers(stream)):
        try:
            stream.check(event)
            expected = row_of(stream, event, "id", owner, context)
        except Invalid:
            continue
        assert stream.encode(event, "id", owner, 0, context) == expected


@BOTH_STREAMS
def test_columns_of_the_gateway_are_no_fields(stream: Stream) -> None:
    """Else a row would have them twice."""
    ours = {"event_id", "app", "retriever", "received_at", "extra", "is_bot", "bot_reason", "client_address"}
    ours |= {"user_agent", "client_timestamp", "occurred_at", "time_flag"}
    assert not ours & stream.fields


@BOTH_STREAMS
@pytest.mark.parametrize("value", [None, True, 1, 1.5, "event_type", [], ["event_type"], [["event_type"]], {}, [{}]])
def test_what_is_no_object_is_no_event_whatever_is_known(stream: Stream, value: Any) -> None:
    """The names of a known layout, too: as a list, they are no event."""
    known = Layouts(stream.model)
    known.check({**SMALLEST[stream]})
    for each in (value, list(SMALLEST[stream]), tuple(SMALLEST[stream])):
        with pytest.raises(Invalid):
            known.check(each)


@BOTH_STREAMS
def test_an_event_that_was_not_checked_lets_no_other_pass(stream: Stream) -> None:
    known = Layouts(stream.model)
    for name in SMALLEST[stream]:
        incomplete = {"session_id": "s", **SMALLEST[stream]}
        del incomplete[name]
        known.of(incomplete)
        with pytest.raises(Invalid, match="Field required"):
            known.check(incomplete)


@BOTH_STREAMS
def test_the_model_is_not_asked_about_what_is_right(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes an object of all that is there, a hundred thousand unknown names too."""
    known = Layouts(stream.model)
    first, second = ({**SMALLEST[stream], "session_id": text, "zone": text} for text in "ab")
    monkeypatch.delattr(layouts, "require_valid")
    layout = known.check(first)
    assert layout.unknown == ("zone",)
    assert known.check(second) is layout
    with pytest.raises(ValidationError):
        layout.look_at(layout.values({**first, "session_id": 1}))


# Bounds


def event_with(stream: Stream, *names: str) -> dict[str, Any]:
    return {**dict.fromkeys(names), **SMALLEST[stream]}


@BOTH_STREAMS
def test_so_many_layouts_are_remembered_and_no_more(stream: Stream) -> None:
    known = Layouts(stream.model)
    for number in range(3 * LAYOUTS_MAX + 1):
        known.check(event_with(stream, f"name{number}"))
        assert len(known._known) <= LAYOUTS_MAX
    assert len(known._known) == 1  # all others are forgotten
    assert len({id(layout.look_at) for layout in known._known.values()}) == 1


LONG = "x" * NAMES_CHARS_MAX


@BOTH_STREAMS
@pytest.mark.parametrize("names", [[LONG], [LONG[1:], "y"], [str(number) for number in range(NAMES_MAX)]])
def test_long_and_many_names_are_not_remembered(stream: Stream, names: list[str]) -> None:
    known = Layouts(stream.model)
    layout = known.check(event_with(stream, *names))
    assert layout.unknown == tuple(names)
    assert not known._known


@BOTH_STREAMS
def test_validators_are_shared_by_all_orders_of_names(stream: Stream) -> None:
    known = Layouts(stream.model)
    names = [*SMALLEST[stream], "session_id", "metadata", "zone"][:5]
    event = event_with(stream, *names)
    found = {id(known.check({name: event[name] for name in order}).look_at) for order in permutations(names)}
    assert len(found) == 1


def test_a_row_may_hold_what_orjson_cannot_write() -> None:
    event = APP_INTERACTIONS.parse(b'{"event_type":"e","n":[12345678901234567890123]}')
    row = APP_INTERACTIONS.encode(event, "id", "größe", 0)
    assert json.loads(row)["extra"]["n"] == [12345678901234567890123]
    with pytest.raises(orjson.JSONEncodeError):
        orjson.dumps(json.loads(row))


class Bounded(BaseModel):
    """Fields for which a type alone says nothing, beside some for which it does."""

    plain: str
    short: Annotated[str, Field(max_length=2)]
    pattern: Annotated[str | None, Field(pattern="^v")]
    stripped: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    counts: dict[str, int]
    few: Annotated[dict[str, Any], Field(max_length=0)]
    object: dict[str, Any] | None
    either: str | int
    flag: bool
    number: float | None
    nullable: str | None
    anything: Any


@pytest.mark.parametrize("model", [Bounded, *(stream.model for stream in STREAMS)], ids=lambda model: model.__name__)
@bounded
@given(data=st.data())
def test_columns_are_right_if_each_value_is(model: type[BaseModel], data: st.DataObject) -> None:
    schemas = layouts._field_schemas(model)
    names = data.draw(st.lists(st.sampled_from(sorted(schemas)), min_size=1, unique=True))
    columns = {name: tuple(data.draw(st.lists(near_misses, min_size=1, max_size=3))) for name in names}
    wanted = True
    for name, column in columns.items():
        validator = SchemaValidator(schemas[name], CoreConfig(strict=True))
        wanted &= all(map(validator.isinstance_python, column))
    assert layouts._ColumnValidator({name: schemas[name] for name in names}).are_right(columns) is wanted


def test_types_say_all_of_some_fields_and_not_enough_of_others() -> None:
    null = type(None)
    schemas = layouts._field_schemas(Bounded)
    said = {name: set(types) for name, schema in schemas.items() if (types := layouts._types(schema))}
    assert said == {"plain": {str}, "nullable": {str, null}, "object": {dict, null}}
