"""Warnings about events that are legal but make no sense to who reads them: such an event is stored like any other.

What search analytics count (click-through rate, click position, searches without results) they count by document,
position and query, and what breaks it in practice is the same everywhere: clicks that lead back to no search or no
result, positions that begin at one, durations that are times. Algolia's Insights, Coveo's usage analytics, Elastic's
behavioral analytics and UBI require or check much the same; here it costs nobody an event.

One warning a fault: a handful of look-ups an event, at most one warning of a code and field. Of many events with the
same names it is first asked, column by column, whether there may be anything at all to say: mostly there is not.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import lt
from typing import Any, NamedTuple


class Warning(NamedTuple):
    """`code` is for programs and stays as it is; `loc` is the path of the field within the event."""

    code: str
    loc: tuple[str | int, ...]
    message: str


DURATION_MS_MAX = 86_400_000
"""A day. Above, it is a time since 1970, or a page left open."""

CLICKS = frozenset({"click", "select", "open", "result_click", "search_click", "select_item"})
"""Event types of an app, in lower case, that say a result was opened: plain words, those of Elastic and of GA4."""

RESULT_PAGE_TYPES = frozenset({"click", "skip", "long_view", "return_to_results"})
"""Interaction types that need a page of results. A purchase or a share may well come from elsewhere."""

CONTRADICTIONS = (("positive_feedback", "negative_feedback"), ("click", "skip"))

_EVENT_TYPE_EMPTY = Warning("event_type_empty", ("event_type",), "event_type is empty: nobody will find this event")
_SEARCH_WITHOUT_QUERY = Warning(
    "search_without_query", ("query",), "A search without query; send an empty one if nothing was typed"
)
_CLICK_WITHOUT_DOCUMENT = Warning(
    "click_without_document", ("document_id",), "A click without document_id: nobody knows on what"
)
_CLICK_WITHOUT_POSITION = Warning(
    "click_without_position", ("position",), "A click without position does not count in click positions"
)
_CLICK_WITHOUT_QUERY_OR_SESSION = Warning(
    "click_without_search", ("query",), "A click with neither query nor session_id belongs to no search"
)
_CLICK_WITHOUT_EXECUTION = Warning(
    "click_without_search",
    ("execution_id",),
    "An interaction with a page of results, with neither execution_id nor query_snapshot, belongs to no search",
)
_DOCUMENT_WITHOUT_RESULTS = Warning(
    "document_without_results", ("document_id",), "The search had no results, but document_id is not empty"
)
_CONTRADICTORY_TYPES = Warning(
    "contradictory_types",
    ("interaction_type",),
    "interaction_type has types that contradict each other; send them as several events",
)


def _beyond_results(count: str) -> Warning:
    return Warning(
        "position_beyond_results",
        ("position",),
        f"position is not below {count}; it counts from 0, and {count} from the first page on",
    )


def _negative(name: str) -> Warning:
    return Warning("negative_number", (name,), f"{name} is negative; leave it out if it is not known")


def _odd_duration(name: str, duration_ms: int) -> Warning:
    if duration_ms < 0:
        return _negative(name)
    return Warning("duration_implausible", (name,), f"{name} is more than a day; it is a duration in milliseconds")


_BEYOND_RESULT_COUNT = _beyond_results("result_count")
_BEYOND_RESULT_SET_SIZE = _beyond_results("result_set_size")
_NEGATIVE_POSITION = _negative("position")
_NEGATIVE_RESULT_COUNT = _negative("result_count")


def app_warnings(event: Mapping[str, Any]) -> list[Warning]:
    """For an event that `InteractionRequest` has checked."""
    found: list[Warning] = []
    get = event.get
    event_type = event["event_type"].lower()
    position = get("position")
    result_count = get("result_count")
    if result_count is not None:
        if result_count < 0:
            found.append(_NEGATIVE_RESULT_COUNT)
        elif result_count == 0 and get("document_id"):
            found.append(_DOCUMENT_WITHOUT_RESULTS)
        elif position is not None and position >= result_count:
            found.append(_BEYOND_RESULT_COUNT)
    if position is not None and position < 0:
        found.append(_NEGATIVE_POSITION)
    if "latency_ms" in event or "dwell_ms" in event:
        for name in ("latency_ms", "dwell_ms"):
            duration_ms = get(name)
            if duration_ms is not None and not 0 <= duration_ms <= DURATION_MS_MAX:
                found.append(_odd_duration(name, duration_ms))
    if event_type in CLICKS:
        if not get("document_id"):
            found.append(_CLICK_WITHOUT_DOCUMENT)
        if position is None:
            found.append(_CLICK_WITHOUT_POSITION)
        if not get("query") and not get("session_id"):
            found.append(_CLICK_WITHOUT_QUERY_OR_SESSION)
    elif event_type == "search":
        if get("query") is None:
            found.append(_SEARCH_WITHOUT_QUERY)
    elif not event_type or event_type.isspace():
        found.append(_EVENT_TYPE_EMPTY)
    return found


def app_may_warn(columns: Mapping[str, Sequence[Any]]) -> bool:
    """False only if `app_warnings` has nothing to say of any of these checked events, whose fields are `columns`."""
    types = set(map(str.lower, set(columns["event_type"])))
    if not all(map(str.strip, types)) or ("search" in types and None in columns.get("query", (None,))):
        return True
    positions, counts = columns.get("position"), columns.get("result_count")
    try:
        if positions is not None and min(positions) < 0:
            return True
        if counts is not None and (min(counts) < 1 or not (positions is None or all(map(lt, positions, counts)))):
            return True
        for name in ("latency_ms", "dwell_ms"):
            if name in columns and not (min(columns[name]) >= 0 and max(columns[name]) <= DURATION_MS_MAX):
                return True
    except TypeError:  # there is a null among them
        return True
    if types.isdisjoint(CLICKS):
        return False
    of_a_search = _all_given(columns, "query") or _all_given(columns, "session_id")
    return positions is None or not _all_given(columns, "document_id") or not of_a_search


def _all_given(columns: Mapping[str, Sequence[Any]], name: str) -> bool:
    return name in columns and all(columns[name])


def retriever_warnings(event: Mapping[str, Any]) -> list[Warning]:
    """For an event that `TrackInteractionRequest` has checked."""
    found: list[Warning] = []
    get = event.get
    types = event["interaction_type"]
    result_set_size = get("result_set_size")
    if "zero_results" in types:
        if event["document_id"]:  # which the contract requires, but it may be empty
            found.append(_DOCUMENT_WITHOUT_RESULTS)
    elif result_set_size is not None and event["position"] >= result_set_size:
        found.append(_BEYOND_RESULT_SET_SIZE)
    if not RESULT_PAGE_TYPES.isdisjoint(types):
        if not event["document_id"]:
            found.append(_CLICK_WITHOUT_DOCUMENT)
        if not get("execution_id") and not get("query_snapshot"):
            found.append(_CLICK_WITHOUT_EXECUTION)
    if len(types) > 1:
        for one, other in CONTRADICTIONS:
            if one in types and other in types:
                found.append(_CONTRADICTORY_TYPES)
                break
    return found


def retriever_may_warn(columns: Mapping[str, Sequence[Any]]) -> bool:
    """As `app_may_warn`, of `retriever_warnings`."""
    lists = columns["interaction_type"]
    types = set(chain.from_iterable(lists))
    if "zero_results" in types or max(map(len, lists)) > 1:
        return True
    sizes = columns.get("result_set_size")
    try:
        if sizes is not None and not all(map(lt, columns["position"], sizes)):
            return True
    except TypeError:  # there is a null among them
        return True
    if types.isdisjoint(RESULT_PAGE_TYPES):
        return False
    of_a_search = _all_given(columns, "execution_id") or _all_given(columns, "query_snapshot")
    return not all(columns["document_id"]) or not of_a_search
