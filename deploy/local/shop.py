"""A shop's visitors, simulated: what they search for, see, click and buy, as events of the two contracts.

The same seed and run give the same bytes, in the same order; no clock, no network, no global state. Where
results stand matters as it does in real logs. The click model is the position-based one:

    P(click) = P(examined | position) * P(clicked | examined, query, document)

the examination hypothesis of Richardson, Dominowska and Ragno ("Predicting clicks", WWW 2007), which Craswell
et al. test against others ("An experimental comparison of click position-bias models", WSDM 2008). Examination
falls as 1/rank, as in the experiments of Joachims et al. ("Unbiased learning-to-rank with biased feedback",
WSDM 2017). Limits: a model, not a shop. Its visitors click several results of a page independently of each
other, its stream never ends, and it has one page of results per search.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, Stream

PAGE_RESULTS = 6
EXAMINED = tuple(1 / (position + 1) for position in range(PAGE_RESULTS))
"""How likely a visitor is to look at a position at all; positions count from 0."""

RETRIEVER_SHARE = 0.3  # of the sessions; the others are tracked by the app
SEARCHES_MAX = 3  # per session
LONG_VIEW_MS = 30_000
QUICK_RETURN_MS = 5_000
CATALOGUE_SEED = 2008  # the shop stays the same, whoever visits it


@dataclass(frozen=True)
class Result:
    """`relevance` is what the shop would like to know: how likely whoever examines it is to click it."""

    document_id: str
    relevance: float
    score: float
    price_cents: int
    is_sponsored: bool


@dataclass(frozen=True)
class Query:
    """`share` of the sessions start with it; `refined` is what people try next, `page` is empty if nothing is found."""

    text: str
    share: int
    refined: str | None
    result_count: int
    page: tuple[Result, ...]


@dataclass(frozen=True)
class Event:
    """One request: `body` is JSON, to be posted to the endpoint of `stream`."""

    stream: Stream
    body: bytes


@dataclass(frozen=True)
class _Act:
    """What a visitor did, before either contract puts it in its words. `search` counts the session's searches."""

    kind: str
    query: Query
    search: int
    result: Result | None = None
    position: int = 0
    latency_ms: int | None = None
    dwell_ms: int | None = None


def events(seed: int, run: str) -> Iterator[Event]:
    """Sessions, one after the other, without end. `run` marks every event and is part of the session ids."""
    rng = random.Random(seed)
    number = 0
    while True:
        number += 1
        session_id = f"{run}-{number:04}"
        encode = _retriever_event if rng.random() < RETRIEVER_SHARE else _app_event
        for act in _session(rng):
            event = encode(act, session_id, run)
            if event is not None:
                yield event


def _catalogue() -> dict[str, Query]:
    queries = (
        # text, share, refined, shelf, result_count
        ("running shoes", 22, "trail running shoes", "shoe", 143),
        ("rain jacket", 16, "rain jacket women", "jacket", 58),
        ("hiking boots", 13, "waterproof hiking boots", "shoe", 37),
        ("backpack", 11, "backpack 30l", "pack", 86),
        ("sleeping bag", 9, None, "camp", 22),
        ("merino socks", 7, None, "wear", 18),
        ("camping stove", 5, None, "camp", 9),
        ("head torch", 4, None, "camp", 12),
        ("runing shoes", 4, "running shoes", "", 0),
        ("ice axe", 3, None, "", 0),
        ("rainjaket", 3, "rain jacket", "", 0),
        ("left-handed poles", 2, "trekking poles", "", 0),
        ("e-bike", 1, None, "", 0),
        ("trail running shoes", 0, None, "shoe", 41),
        ("rain jacket women", 0, None, "jacket", 27),
        ("waterproof hiking boots", 0, None, "shoe", 15),
        ("backpack 30l", 0, None, "pack", 29),
        ("trekking poles", 0, None, "camp", 14),
    )
    return {
        text: Query(text, share, refined, result_count, _page(text, shelf) if shelf else ())
        for text, share, refined, shelf, result_count in queries
    }


def _page(query: str, shelf: str) -> tuple[Result, ...]:
    """A paid slot on top, then what the shop holds for the most relevant; it knows relevance only roughly."""
    rng = random.Random(f"{CATALOGUE_SEED} {query}")
    found = []
    for number in rng.sample(range(1, 41), 20):
        relevance = rng.uniform(0.1, 0.6)
        score = min(max(rng.gauss(relevance, 0.1), 0.01), 0.99)
        price_cents = 100 * rng.randrange(15, 250) - 5
        found.append(Result(f"{shelf}-{number:03}", round(relevance, 3), round(score, 3), price_cents, False))
    paid = Result(f"{shelf}-{rng.randrange(41, 50):03}", round(rng.uniform(0.27, 0.35), 3), 0.2, 9_995, True)
    found.sort(key=lambda result: -result.score)
    return (paid, *found[: PAGE_RESULTS - 1])


CATALOGUE = _catalogue()
"""Every query that visitors type, by its text, with the page of results it gets."""

_FIRST = [query for query in CATALOGUE.values() if query.share]
_SHARES = [query.share for query in _FIRST]


def _session(rng: random.Random) -> Iterator[_Act]:
    """Search, look, click, and search again if that led nowhere."""
    query = rng.choices(_FIRST, _SHARES)[0]
    for search in range(SEARCHES_MAX):
        yield _Act("search", query, search, latency_ms=_lognormal(rng, median=45, sigma=0.5))
        clicks = 0
        for act in _page_visit(rng, query, search):
            clicks += act.kind == "click"
            yield act
        if clicks or query.refined is None or rng.random() < 0.25:
            return
        yield _Act("query_refinement", query, search)
        query = CATALOGUE[query.refined]


def _page_visit(rng: random.Random, query: Query, search: int) -> Iterator[_Act]:
    """All results are shown; some of them are examined, some of those clicked, some of those bought."""
    for position, result in enumerate(query.page):
        yield _Act("view", query, search, result, position)
    for position, result in enumerate(query.page):
        if rng.random() < EXAMINED[position] and rng.random() < result.relevance:
            yield from _click(rng, query, search, result, position)


def _click(rng: random.Random, query: Query, search: int, result: Result, position: int) -> Iterator[_Act]:
    def act(kind: str, dwell_ms: int | None = None) -> _Act:
        return _Act(kind, query, search, result, position, dwell_ms=dwell_ms)

    yield act("click")
    dwell_ms = _lognormal(rng, median=30_000 * result.relevance, sigma=1.0)
    if dwell_ms < QUICK_RETURN_MS:
        yield act("return_to_results", dwell_ms)
        return
    if dwell_ms >= LONG_VIEW_MS:
        yield act("long_view", dwell_ms)
    if rng.random() < 0.5 * result.relevance:
        yield act("add_to_cart")
        if rng.random() < 0.4:
            yield act("purchase")


def _lognormal(rng: random.Random, *, median: float, sigma: float) -> int:
    return round(rng.lognormvariate(math.log(median), sigma))


def _app_event(act: _Act, session_id: str, run: str) -> Event:
    event: dict[str, Any] = {"event_type": act.kind, "query": act.query.text, "session_id": session_id}
    if act.kind == "search":
        event |= {"result_count": act.query.result_count, "latency_ms": act.latency_ms}
    if act.result is not None:
        event |= {"document_id": act.result.document_id, "position": act.position}
    if act.dwell_ms is not None:
        event["dwell_ms"] = act.dwell_ms
    if metadata := _metadata(act):
        event["metadata"] = metadata
    return Event(APP_INTERACTIONS, orjson.dumps(event | {"demo_run": run}))


def _retriever_event(act: _Act, session_id: str, run: str) -> Event | None:
    """None for a search that finds something: that contract has no such interaction, its views tell of it."""
    kind = act.kind
    if kind == "search":
        if act.query.page:
            return None
        kind = "zero_results"
    # The contract wants a document and a position even where the whole page is meant.
    event: dict[str, Any] = {
        "document_id": act.result.document_id if act.result else "",
        "interaction_type": [kind],
        "position": act.position,
        "execution_id": f"exec_{session_id}-{act.search}",
        "query_snapshot": {"text": act.query.text},
        "session_id": session_id,
        "metadata": {"demo_run": run, **_metadata(act)},
    }
    if act.query.page:
        event["result_set_size"] = len(act.query.page)
    if act.result is not None:
        event["document_score"] = act.result.score
    if act.dwell_ms is not None:
        event["metadata"]["dwell_ms"] = act.dwell_ms
    return Event(RETRIEVER_INTERACTIONS, orjson.dumps(event))


def _metadata(act: _Act) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    if act.kind == "query_refinement":
        metadata["next_query"] = act.query.refined
    if act.result is not None and act.result.is_sponsored:
        metadata["sponsored"] = True
    if act.result is not None and act.kind in ("add_to_cart", "purchase"):
        metadata["price_cents"] = act.result.price_cents
    return metadata
