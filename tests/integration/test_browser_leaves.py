"""A real browser leaves its page in the middle of sending: what sendBeacon accepted becomes one row each, and what it
refused does once the next page has sent it. The pages are of another origin than the gateway, as pages are.

Limits: Chromium. Of a browser that ends as a whole, not even its own promise holds: it drops beacons it has accepted.
"""

import hashlib
import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from deploy.local.process import HOST, free_ports
from tests.contract.browser import MISSING, Browser, browser
from tests.integration.pipelines import Pipeline

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

PAGE = Path(__file__).with_name("pages") / "shop.html"
TURNS_BEFORE_LEAVING, TURNS_MAX = 33, 100_000  # of the page's loop
WAIT_S_MAX = 60
SETTLING_EVENTS = 100  # so that each of four partitions gets one, but for once in 10^11

REGISTRY = """
[apps.shop]
allowed_origins = ["{origin}"]

[apps.small]
allowed_origins = ["{origin}"]
quota = {{ events_per_second = 0.001, burst = 1 }}

[retrievers.shop]
allowed_origins = ["{origin}"]
public_key_sha256 = ["{public_key}"]
token_sha256 = ["{token}"]
"""


@dataclass(frozen=True)
class Shop:
    """Pages of `origin` may read what the gateway answers, those of `strange_origin` may not."""

    pipeline: Pipeline
    gateway_url: str
    origin: str
    strange_origin: str


@pytest.fixture(scope="module")
def shop(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with serve_page() as origin, serve_page() as strange_origin:
        registry = tmp_path_factory.mktemp("shop") / "registry.toml"
        digests = {
            "public_key": hashlib.sha256(b"pk_shop").hexdigest(),
            "token": hashlib.sha256(b"tok_shop").hexdigest(),
        }
        registry.write_text(REGISTRY.format(origin=origin, **digests))
        [port] = free_ports(1)
        gateway = pipeline.stack.new_gateway("gateway-shop", port, env={"GATEWAY_REGISTRY_FILE": str(registry)})
        gateway.start()
        try:
            yield Shop(pipeline, f"http://{HOST}:{port}", origin, strange_origin)
        finally:
            gateway.stop()


@contextmanager
def serve_page() -> Iterator[str]:
    """Under every path of an origin: which that is."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.read_bytes())

        def log_message(self, *_: object) -> None:
            """Not worth a line."""

    with ThreadingHTTPServer((HOST, 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Sent:
    """Events of one request as the page wrote them down. `outcome` is whether sendBeacon accepted them, or how they
    were answered; None where the page was left before it could tell. `again` is the status of their repeat."""

    way: str
    form: str
    documents: set[str]
    outcome: bool | None
    again: int | None


@dataclass(frozen=True)
class Visit:
    """One visitor's pages. All its documents are named for it."""

    shop: Shop
    id: str = field(default_factory=lambda: f"visit{uuid.uuid4().hex[:12]}")

    @property
    def events_url(self) -> str:
        return f"{self.shop.gateway_url}/v1/public/apps/shop/interactions"

    def page(self, name: str, *, origin: str | None = None) -> str:
        """On a page #shop, handlers see it come and go."""
        path, hash_, fragment = name.partition("#")
        parameters = urlencode({"gateway": self.events_url, "visit": self.id})
        return f"{origin or self.shop.origin}/{path}?{parameters}{hash_}{fragment}"

    def ledger(self, chromium: Browser) -> dict[str, Sent]:
        """All that the pages have sent, by name."""
        notes = chromium.run("return ledger()")
        return {n["name"]: Sent(n["way"], n["form"], set(n["documents"]), n["outcome"], n.get("again")) for n in notes}

    def rows(self) -> Counter[str]:
        """How many each document has. Each must have its own event's id."""
        rows = self.shop.pipeline.query(
            "SELECT document_id, event_id FROM app_interactions "
            "WHERE event_type = 'browsed' AND startsWith(document_id, {visit:String})",
            visit=f"{self.id}/",
        )
        for row in rows:
            request, _, index = row["document_id"].replace("/", ":").rpartition(".")
            assert re.fullmatch(rf"{request}(\.{index}|:[0-9a-f]{{12}})", row["event_id"]), row
        return Counter(row["document_id"] for row in rows)

    def retriever_sessions(self) -> list[str]:
        rows = self.shop.pipeline.query(
            "SELECT session_id FROM retriever_interactions WHERE startsWith(document_id, {visit:String})",
            visit=f"{self.id}/",
        )
        return [row["session_id"] for row in rows]

    def await_rows(self, documents: set[str]) -> None:
        def lost() -> set[str]:
            return documents - self.rows().keys()

        wait_until(lambda: not lost(), lambda: f"{len(lost())} of {len(documents)} lost: {sorted(lost())[:10]}")

    def settled(self) -> set[str]:
        """All documents that have a row, once everything that the gateway has answered is one or never will be: in
        each partition comes an event behind it. No document may have two."""
        id_ = uuid.uuid4().hex
        events = [{"event_type": "settled", "event_id": f"{id_}:{n}"} for n in range(SETTLING_EVENTS)]
        assert httpx.post(f"{self.events_url}/batch", json=events).status_code == 200
        count = f"SELECT count() AS n FROM app_interactions WHERE startsWith(event_id, '{id_}')"
        wait_until(lambda: self.shop.pipeline.query(count) == [{"n": len(events)}], lambda: "the consumer stands still")
        rows = self.rows()
        assert not {document: count for document, count in rows.items() if count > 1}
        return set(rows)


def wait_until(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.05)


def await_page(chromium: Browser, name: str) -> None:
    path = "return location.pathname"
    wait_until(lambda: chromium.run(path) == f"/{name}", lambda: f"still on {chromium.run(path)}")


def documents(sent: Iterable[Sent]) -> set[str]:
    return {document for each in sent for document in each.documents}


def accepted(ledger: Mapping[str, Sent]) -> set[str]:
    return documents(sent for sent in ledger.values() if sent.outcome)


def require_nothing_lost(visit: Visit, chromium: Browser, ledger: Mapping[str, Sent]) -> None:
    """On the next page: what was accepted is there already, and sending the rest makes one row of each."""
    visit.await_rows(accepted(ledger))
    assert visit.settled() >= accepted(ledger)
    chromium.run("return sendAgain({ all: false })")
    after = visit.ledger(chromium)
    assert after.keys() == ledger.keys()
    assert {name for name, sent in after.items() if sent.again == 200} == {
        name for name, sent in ledger.items() if not sent.outcome
    }
    assert visit.settled() >= documents(ledger.values())


def test_page_is_left_for_another(shop: Shop, tmp_path: Path) -> None:
    visit = Visit(shop)
    with browser(tmp_path) as chromium:
        chromium.open(visit.page("first#shop"))
        chromium.run(f"sendTooMuch(); browse({json.dumps(visit.page('second'))})")
        await_page(chromium, "second")
        ledger = visit.ledger(chromium)
        turns = sum(name.startswith("turn") for name in ledger)
        assert TURNS_BEFORE_LEAVING < turns < TURNS_MAX  # it was in the middle
        assert ledger["too-much"].outcome is False
        assert ledger["pagehide"].outcome
        assert ledger["hidden"].outcome
        require_nothing_lost(visit, chromium, ledger)
        assert chromium.log() == []


def test_tab_is_closed(shop: Shop, tmp_path: Path) -> None:
    """With as much under way as the browser takes."""
    visit = Visit(shop)
    with browser(tmp_path) as chromium:
        chromium.open(visit.page("start"))
        chromium.open_tab()
        chromium.open(visit.page("shop#shop"))
        chromium.run("sendTooMuchAtOnce(); sendEachWay(); browse()")
        chromium.close_tab()
        ledger = visit.ledger(chromium)
        assert 0 < sum(name.startswith("turn") for name in ledger) < TURNS_MAX
        assert [ledger[f"large-{n}"].outcome for n in range(3)] == [True, True, False]
        assert {"pagehide", "hidden"} <= ledger.keys()
        require_nothing_lost(visit, chromium, ledger)


def test_page_that_comes_back_sends_everything_again(shop: Shop, tmp_path: Path) -> None:
    visit = Visit(shop)
    with browser(tmp_path) as chromium:
        chromium.open(visit.page("first#shop"))
        chromium.run(f"browse({json.dumps(visit.page('second'))}, {TURNS_BEFORE_LEAVING + 1})")
        await_page(chromium, "second")
        sent = visit.ledger(chromium)
        visit.await_rows(accepted(sent))
        chromium.run("history.back()")
        await_page(chromium, "first")
        wait_until(
            lambda: all(each.again == 200 for each in visit.ledger(chromium).values()),
            lambda: f"not all again: {visit.ledger(chromium)}",
        )
        assert visit.settled() == documents(sent.values())


def test_browser_that_comes_back_sends_everything_again(shop: Shop, tmp_path: Path) -> None:
    """What a browser drops as it ends, and what it does not, become one row each."""
    visit = Visit(shop)
    with browser(tmp_path) as chromium:
        chromium.open(visit.page("shop#shop"))
        chromium.run("sendTooMuchAtOnce(); sendEachWay(); browse()")
    with browser(tmp_path) as chromium:
        chromium.open(visit.page("shop"))
        sent = visit.ledger(chromium)
        assert sent["large-0"].outcome
        chromium.run("return sendAgain({ all: true })")
        assert {each.again for each in visit.ledger(chromium).values()} == {200}
        assert visit.settled() >= documents(sent.values())  # more, if the browser forgot what it did at the very last


def test_page_of_an_allowed_origin_reads_the_answers(shop: Shop, tmp_path: Path) -> None:
    visit = Visit(shop)
    with browser(tmp_path) as chromium:
        chromium.open(visit.page("shop"))
        learned = chromium.run("return ask()")
    for name in ("text", "json", "gzip"):
        body = {"success": True, "event_id": f"{visit.id}:{name}.0", "durability": "kafka"}
        assert learned[name] == {"status": 200, "body": body, "retryAfter": None}
    assert learned["batch"]["status"] == learned["retriever"]["status"] == 200
    assert [result["status"] for result in learned["batch"]["body"]["results"]] == ["accepted", "rejected"]
    assert learned["invalid"]["status"] == 422
    [detail] = learned["invalid"]["body"]["detail"]
    assert detail["loc"] == ["body", "event_type"]
    assert (learned["form"]["status"], error_code(learned["form"])) == (415, "content_type_unsupported")
    assert (learned["unauthorized"]["status"], error_code(learned["unauthorized"])) == (401, "bearer_token_unknown")
    assert learned["overQuota"]["status"] == 429
    assert int(learned["overQuota"]["retryAfter"]) > 0
    assert visit.settled() == {f"{visit.id}/{name}.0" for name in ("text", "batch", "json", "gzip")}
    wait_until(lambda: visit.retriever_sessions() == ["s1"], lambda: str(visit.retriever_sessions()))


def test_page_of_another_origin_learns_nothing_but_its_beacons_land(shop: Shop, tmp_path: Path) -> None:
    """But for those that need a preflight: sendBeacon accepts them, and the browser drops them when it is refused."""
    visit = Visit(shop)
    with browser(tmp_path) as chromium:
        chromium.open(visit.page("shop", origin=shop.strange_origin))
        learned = chromium.run("return ask()")
        assert all(answer == {"error": "TypeError"} for answer in learned.values())
        chromium.run("sendEachWay()")
        sent = visit.ledger(chromium)
        assert all(each.outcome for each in sent.values() if each.way == "beacon")
        simple = {f"{visit.id}/{name}.0" for name in ("text", "batch")}
        simple |= documents(each for each in sent.values() if each.form not in ("json", "ndjson"))
        visit.await_rows(simple)
        assert visit.settled() == simple
        assert visit.retriever_sessions() == []


def error_code(learned: dict[str, Any]) -> str:
    return str(learned["body"]["error"]["code"])
