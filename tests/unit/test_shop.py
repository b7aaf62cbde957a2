"""deploy.local.shop: the same visitors every time, and clicks that depend on where a result stands."""

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from typing import Any

import orjson
import pytest

from deploy.local.shop import CATALOGUE, EXAMINED, PAGE_RESULTS, Event, events
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS

RUN = "20261122-080000-abcd"


def first(count: int, seed: int = 1, run: str = RUN) -> list[Event]:
    return list(islice(events(seed, run), count))


def acts(stream_of: Iterable[Event]) -> Iterable[tuple[str, dict[str, Any]]]:
    """(kind, event), whichever contract it is of."""
    for event in stream_of:
        value = orjson.loads(event.body)
        yield value.get("event_type") or value["interaction_type"][0], value


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert first(2_000) == first(2_000)
    assert first(2_000) != first(2_000, seed=2)


def test_the_run_changes_nothing_but_its_marks() -> None:
    other = first(500, run="another")
    assert [event.body.replace(b"another", RUN.encode()) for event in other] == [event.body for event in first(500)]


def test_another_process_gives_the_same_bytes() -> None:
    """Whatever order it has its sets in."""
    code = (
        "import hashlib, itertools; from deploy.local.shop import events; "
        f"print(hashlib.sha256(b''.join(e.body for e in itertools.islice(events(1, {RUN!r}), 2000))).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("seed", [0, 1, -7])
def test_every_event_is_valid_and_marked(seed: int) -> None:
    for event in first(3_000, seed):
        parsed = event.stream.parse(event.body)
        row = orjson.loads(event.stream.encode(parsed, "id-1", "demo", 0))
        assert row["session_id"].startswith(RUN)
        marked = row["extra"] if event.stream is APP_INTERACTIONS else row["metadata"]
        assert marked["demo_run"] == RUN


def test_both_contracts_get_their_share() -> None:
    shares = Counter(event.stream for event in first(10_000))
    assert 0.2 < shares[RETRIEVER_INTERACTIONS] / shares.total() < 0.4
    kinds = Counter(kind for kind, _ in acts(first(10_000)))
    assert kinds.keys() == {
        "search",
        "view",
        "click",
        "long_view",
        "return_to_results",
        "add_to_cart",
        "purchase",
        "query_refinement",
        "zero_results",
    }
    assert kinds["view"] > kinds["click"] > kinds["add_to_cart"] > kinds["purchase"] > 0


def test_clicks_depend_on_position_and_only_their_correction_shows_relevance() -> None:
    views, clicks, relevance = Counter[int](), Counter[int](), defaultdict[int, float](float)
    known = {(text, result.document_id): result.relevance for text, query in CATALOGUE.items() for result in query.page}
    for kind, event in acts(first(60_000)):
        if kind == "view":
            query = event.get("query") or event["query_snapshot"]["text"]
            views[event["position"]] += 1
            relevance[event["position"]] += known[query, event["document_id"]]
        elif kind == "click":
            clicks[event["position"]] += 1

    ctr = [clicks[position] / views[position] for position in range(PAGE_RESULTS)]
    assert ctr[0] > ctr[1] > ctr[2] > 1.2 * ctr[-1]
    corrected = [ctr[position] / EXAMINED[position] for position in range(PAGE_RESULTS)]
    assert min(corrected) == corrected[0]  # the paid slot, which raw CTR puts first
    for position in range(PAGE_RESULTS):
        assert corrected[position] == pytest.approx(relevance[position] / views[position], rel=0.12)


def test_a_visitor_clicks_what_was_shown_and_buys_what_was_in_the_cart() -> None:
    done: set[tuple[str, ...]] = set()
    before = {"click": "view", "return_to_results": "click", "long_view": "click", "add_to_cart": "click"}
    before["purchase"] = "add_to_cart"
    for kind, event in acts(first(10_000)):
        what = (event["session_id"], event["document_id"]) if "document_id" in event else ()
        if kind in before:
            assert (before[kind], *what) in done
        done.add((kind, *what))


def test_some_searches_find_nothing_and_are_typed_anew() -> None:
    found_nothing = [event for kind, event in acts(first(5_000)) if kind == "search" and event["result_count"] == 0]
    assert {event["query"] for event in found_nothing} == {text for text, query in CATALOGUE.items() if not query.page}
    refined = {event["metadata"]["next_query"] for kind, event in acts(first(5_000)) if kind == "query_refinement"}
    assert "running shoes" in refined
    assert refined <= CATALOGUE.keys()
