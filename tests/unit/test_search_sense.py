"""schemas.search_sense: which legal events are odd, what is said of them, and that all others are left in peace."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings

from schemas.fields import INT64_MAX, INT64_MIN
from schemas.search_sense import CLICKS, DURATION_MS_MAX, RESULT_PAGE_TYPES, app_warnings, retriever_warnings
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, Stream
from tests.unit.test_row_properties import APP_FIELDS, INTERACTION_TYPES, RETRIEVER_FIELDS

bounded = settings(max_examples=150, derandomize=True, deadline=None, database=None)

CLICK: dict[str, Any] = {"event_type": "click", "document_id": "d", "position": 0, "query": "q", "session_id": "s"}
VIEW: dict[str, Any] = {"event_type": "view", "document_id": "d"}
SEARCH: dict[str, Any] = {"event_type": "search", "query": "q", "result_count": 7, "latency_ms": 40}
RESULT: dict[str, Any] = {
    "document_id": "d",
    "interaction_type": ["click"],
    "position": 0,
    "execution_id": "e",
    "query_snapshot": {"text": "q"},
}

CODES = {
    "click_without_document",
    "click_without_position",
    "click_without_search",
    "contradictory_types",
    "document_without_results",
    "duration_implausible",
    "event_type_empty",
    "negative_number",
    "position_beyond_results",
    "search_without_query",
}
"""Programs and dashboards know these: none is renamed or dropped lightly."""

APP_CASES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({**CLICK}, []),
    ({**VIEW}, []),
    ({**SEARCH}, []),
    ({"event_type": "anything at all"}, []),
    (dict.fromkeys(APP_INTERACTIONS.fields) | {"event_type": "view"}, []),
    ({**CLICK, "position": 6, "result_count": 7}, []),
    ({**CLICK, "position": 7, "result_count": 7}, [("position_beyond_results", "position")]),
    ({**CLICK, "position": INT64_MAX, "result_count": 7}, [("position_beyond_results", "position")]),
    ({**VIEW, "position": 7, "result_count": 7}, [("position_beyond_results", "position")]),
    (
        {"event_type": "search", "query": "q", "position": 0, "result_count": 0},
        [("position_beyond_results", "position")],
    ),
    ({**CLICK, "position": -1}, [("negative_number", "position")]),
    ({**CLICK, "position": INT64_MIN, "result_count": 7}, [("negative_number", "position")]),
    ({**SEARCH, "result_count": 0}, []),
    ({**SEARCH, "result_count": -1}, [("negative_number", "result_count")]),
    ({**CLICK, "result_count": -1}, [("negative_number", "result_count")]),
    ({**CLICK, "result_count": 0}, [("document_without_results", "document_id")]),
    ({**VIEW, "result_count": 0}, [("document_without_results", "document_id")]),
    ({**VIEW, "document_id": "", "result_count": 0}, []),
    ({**SEARCH, "latency_ms": 0}, []),
    ({**SEARCH, "latency_ms": -1}, [("negative_number", "latency_ms")]),
    ({**SEARCH, "latency_ms": DURATION_MS_MAX}, []),
    ({**SEARCH, "latency_ms": DURATION_MS_MAX + 1}, [("duration_implausible", "latency_ms")]),
    ({**CLICK, "dwell_ms": -1}, [("negative_number", "dwell_ms")]),
    ({**CLICK, "dwell_ms": 1_763_800_000_123}, [("duration_implausible", "dwell_ms")]),
    *(
        ({**CLICK, "event_type": name, "document_id": None}, [("click_without_document", "document_id")])
        for name in sorted(CLICKS)
    ),
    *(
        ({**CLICK, "event_type": name, "document_id": ""}, [("click_without_document", "document_id")])
        for name in sorted(CLICKS)
    ),
    ({**CLICK, "event_type": "CLICK", "document_id": None}, [("click_without_document", "document_id")]),
    ({**CLICK, "event_type": "clicked", "document_id": None}, []),
    ({**CLICK, "event_type": "filter_click", "document_id": None, "position": None}, []),
    ({**CLICK, "position": None}, [("click_without_position", "position")]),
    ({**CLICK, "query": None}, []),
    ({**CLICK, "session_id": None}, []),
    ({**CLICK, "session_id": None, "query": None}, [("click_without_search", "query")]),
    ({**CLICK, "session_id": "", "query": ""}, [("click_without_search", "query")]),
    (
        {"event_type": "click"},
        [
            ("click_without_document", "document_id"),
            ("click_without_position", "position"),
            ("click_without_search", "query"),
        ],
    ),
    ({"event_type": "Search"}, [("search_without_query", "query")]),
    ({"event_type": "search", "query": ""}, []),
    ({"event_type": ""}, [("event_type_empty", "event_type")]),
    ({"event_type": " \t\u00a0"}, [("event_type_empty", "event_type")]),
]

RETRIEVER_CASES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({**RESULT}, []),
    *(
        ({**RESULT, "interaction_type": [type_], "document_id": ""}, [])
        for type_ in sorted({*INTERACTION_TYPES} - RESULT_PAGE_TYPES)
    ),
    ({**RESULT, "interaction_type": ["purchase"], "execution_id": None, "query_snapshot": None}, []),
    (
        dict.fromkeys(RETRIEVER_INTERACTIONS.fields)
        | {"document_id": "d", "interaction_type": ["view"], "position": 9},
        [],
    ),
    ({**RESULT, "position": 9, "result_set_size": 10}, []),
    ({**RESULT, "position": 10, "result_set_size": 10}, [("position_beyond_results", "position")]),
    ({**RESULT, "execution_id": None}, []),
    ({**RESULT, "query_snapshot": None}, []),
    ({**RESULT, "execution_id": None, "query_snapshot": None}, [("click_without_search", "execution_id")]),
    ({**RESULT, "execution_id": "", "query_snapshot": {}}, [("click_without_search", "execution_id")]),
    *(
        (
            {**RESULT, "interaction_type": ["view", type_], "document_id": ""},
            [("click_without_document", "document_id")],
        )
        for type_ in sorted(RESULT_PAGE_TYPES)
    ),
    ({**RESULT, "interaction_type": ["zero_results"]}, [("document_without_results", "document_id")]),
    ({**RESULT, "interaction_type": ["zero_results"], "document_id": "", "result_set_size": 1, "position": 1}, []),
    ({**RESULT, "interaction_type": ["view", "click", "long_view", "purchase"]}, []),
    ({**RESULT, "interaction_type": ["click", "click"]}, []),
    (
        {**RESULT, "interaction_type": ["negative_feedback", "view", "positive_feedback"]},
        [("contradictory_types", "interaction_type")],
    ),
    ({**RESULT, "interaction_type": ["skip", "click"]}, [("contradictory_types", "interaction_type")]),
    (
        {**RESULT, "interaction_type": ["skip", "click", "negative_feedback", "positive_feedback"]},
        [("contradictory_types", "interaction_type")],
    ),
]
CASES = [(APP_INTERACTIONS, *case) for case in APP_CASES] + [
    (RETRIEVER_INTERACTIONS, *case) for case in RETRIEVER_CASES
]


@pytest.mark.parametrize(("stream", "event", "expected"), CASES, ids=[f"{case[0].owner}-{case[1]}" for case in CASES])
def test_what_is_odd_is_said(stream: Stream, event: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    as_sent = stream.check({**event})  # all that is warned about is legal
    assert [(warning.code, *warning.loc) for warning in stream.warnings(event)] == expected
    assert event == as_sent


def test_codes() -> None:
    assert {code for _, _, expected in CASES for code, _ in expected} == CODES


def test_message_is_one_line_and_names_its_field() -> None:
    for stream, event, _ in CASES:
        for _, loc, message in stream.warnings(event):
            assert "\n" not in message
            assert len(message) < 110
            assert str(loc[0]) in message


@bounded
@given(event=APP_FIELDS)
def test_any_app_event_has_its_warnings(event: dict[str, Any]) -> None:
    told = [(warning.code, warning.loc) for warning in app_warnings(event)]
    assert len(told) == len(set(told))
    assert {code for code, _ in told} <= CODES


@bounded
@given(event=RETRIEVER_FIELDS)
def test_any_retriever_event_has_its_warnings(event: dict[str, Any]) -> None:
    told = [(warning.code, warning.loc) for warning in retriever_warnings(event)]
    assert len(told) == len(set(told))
    assert {code for code, _ in told} <= CODES


# Many events with the same names

APP_VALUES: dict[str, list[Any]] = {
    "event_type": ["click", "Click", "search", "view", "", " \u2003", "SELECT_ITEM"],
    "document_id": ["d", "", None],
    "position": [0, 3, 7, -1, None],
    "query": ["q", "", None],
    "result_count": [7, 4, 1, 0, -1, None],
    "latency_ms": [0, 40, DURATION_MS_MAX, DURATION_MS_MAX + 1, -1, None],
    "dwell_ms": [0, 40, DURATION_MS_MAX, DURATION_MS_MAX + 1, -1, None],
    "session_id": ["s", "", None],
}
RETRIEVER_VALUES: dict[str, list[Any]] = {
    "document_id": ["d", ""],
    "interaction_type": [["click"], ["view"], ["share"], ["zero_results"], ["click", "skip"], ["view", "share"]],
    "position": [0, 3, 7],
    "execution_id": ["e", "", None],
    "query_snapshot": [{"text": "q"}, {}, None],
    "result_set_size": [8, 4, 1, None],
}


@pytest.mark.parametrize(
    ("stream", "values"),
    [(APP_INTERACTIONS, APP_VALUES), (RETRIEVER_INTERACTIONS, RETRIEVER_VALUES)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_event_is_odd_where_none_may_be(stream: Stream, values: dict[str, list[Any]]) -> None:
    """Most events are alike in their values, too, so that both answers come often."""
    required = [name for name, field in stream.model.model_fields.items() if field.is_required()]
    random = Random(1)
    answers: Counter[bool] = Counter()
    for _ in range(20_000):
        names = [name for name in values if name in required or random.random() < 0.6]
        usual = {name: random.choice(values[name][: random.choice([1, 4, 4])]) for name in names}
        odd = random.choice([0.0, 0.02, 0.2])
        events = [
            {name: random.choice(values[name]) if random.random() < odd else usual[name] for name in names}
            for _ in range(random.randint(1, 4))
        ]
        columns = {name: tuple(event[name] for event in events) for name in names}
        may_warn = stream.may_warn(columns)
        answers[may_warn] += 1
        assert may_warn or not any(map(stream.warnings, events)), events
    assert min(answers.values()) > 1_000


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        (APP_INTERACTIONS, CLICK),
        (APP_INTERACTIONS, VIEW),
        (APP_INTERACTIONS, SEARCH),
        (RETRIEVER_INTERACTIONS, RESULT),
        (RETRIEVER_INTERACTIONS, {"document_id": "", "interaction_type": ["share"], "position": 0}),
    ],
)
def test_events_of_usual_producers_are_not_asked_one_by_one(stream: Stream, event: dict[str, Any]) -> None:
    assert not stream.may_warn({name: (value,) * 3 for name, value in event.items()})
