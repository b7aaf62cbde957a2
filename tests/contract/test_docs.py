"""/docs is a page of our own: it shows what /openapi.json says, loads nothing from elsewhere, and can send requests."""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hatchling.builders.wheel import WheelBuilder

from gateway.asgi import ASGIApp
from gateway.docs import CONTENT_SECURITY_POLICY
from tests.contract.browser import MISSING, Browser, browser, listening
from tests.contract.gateway_under_test import APP, PUBLIC_KEY, RETRIEVER, TOKEN, RecordingOutbox

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"""(?:src=|href=|from |fetch\()"([^"#]+)\"""")
TYPES = {"js": "text/javascript", "css": "text/css", "docs": "text/html"}


def references(path: str, text: str) -> Iterator[str]:
    """Paths of what a file refers to. Those of a page and what scripts fetch go by the page, imports by the file."""
    for reference in REFERENCE.findall(text):
        if reference != "data:,":
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), reference))


async def served(client: httpx.AsyncClient) -> dict[str, httpx.Response]:
    """Every file of the page, by path: those that it leads to."""
    found: dict[str, httpx.Response] = {}
    queue = ["/docs"]
    while queue:
        path = queue.pop()
        if path not in found and not path.endswith("openapi.json"):
            found[path] = await client.get(path)
            queue += references(path, found[path].text)
    return found


async def test_page_is_complete(client: httpx.AsyncClient) -> None:
    files = await served(client)
    of_package = {file.name for file in (ROOT / "gateway/docs_page").iterdir()}
    assert {posixpath.basename(path) for path in files} == of_package - {"index.html"} | {"docs"}
    for path, response in files.items():
        assert response.status_code == 200, path
        kind = TYPES[posixpath.basename(path).rpartition(".")[2]]
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


async def test_page_needs_no_other_origin_and_makes_no_markup_of_text(client: httpx.AsyncClient) -> None:
    for path, response in (await served(client)).items():
        assert not re.search(r"https?:|@import|\burl\(|[\"'(]//", response.text), path
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", response.text
        ), path
        assert not re.search(r"localStorage|sessionStorage|cookie|indexedDB", response.text), path
    page = (await client.get("/docs")).text
    assert not re.search(r"<style|style=|<script[^>]*>[^<]|\son\w+=", page)  # the policy would refuse them


def test_policy_allows_what_is_ours_and_nothing_else() -> None:
    policy = dict(directive.split(" ", 1) for directive in CONTENT_SECURITY_POLICY.split("; "))
    assert policy.pop("img-src") == "'self' data:"
    assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")


async def test_page_is_sent_once(client: httpx.AsyncClient) -> None:
    for path, response in (await served(client)).items():
        assert response.headers["cache-control"] == "no-cache"
        again = await client.get(path, headers={"If-None-Match": f'W/"x", {response.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == response.headers["etag"]
        assert (await client.get(path, headers={"If-None-Match": '"another"'})).status_code == 200


async def test_page_is_only_read(client: httpx.AsyncClient) -> None:
    assert (await client.post("/docs")).status_code == 405
    for path in ("/docs/", "/docs/index.html", "/docs/../app.py", "/docs/%2e%2e/app.py", "/docs/missing.js"):
        assert (await client.get(path)).status_code == 404, path


def test_page_is_in_the_wheel(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("gateway/docs_page/")}
    assert packed == {f"gateway/docs_page/{file.name}" for file in (ROOT / "gateway/docs_page").iterdir()}


@pytest.fixture
def url(app: ASGIApp) -> Iterator[str]:
    """Of the application, on a port of this machine."""
    with listening(app) as url:
        yield url


@pytest.fixture
def chromium(tmp_path: Path, url: str) -> Iterator[Browser]:
    """With the page open."""
    with browser(tmp_path / "profile") as opened:
        opened.open(f"{url}/docs")
        opened.find("section")
        yield opened


needs_chromium = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@needs_chromium
def test_page_shows_every_operation(chromium: Browser, url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    shown = chromium.run("return [...document.querySelectorAll('section .path')].map((path) => path.textContent)")
    assert sorted(shown) == sorted(document["paths"])
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        section = f"#{operation['operationId']}"
        text = chromium.run(f"return document.querySelector('{section}').textContent")
        assert operation["summary"] in text
        assert all(parameter["name"] in text for parameter in operation["parameters"])
        assert all(response["description"] in text for response in operation["responses"].values())
        assert chromium.text(f"nav a[href='{section}']").endswith(operation["summary"])
    whole = chromium.run("return document.getElementById('main').textContent")
    for schema in document["components"]["schemas"].values():
        assert all(name in whole for name in schema.get("properties", ()))
    assert not re.search("undefined|\\[object|NaN", whole)
    assert chromium.log() == []


@needs_chromium
def test_try_it_sends_what_its_curl_line_says(chromium: Browser, url: str, outbox: RecordingOutbox) -> None:
    form = "#track_public_app_interaction_v1_public_apps__slug__interactions_post .try"
    chromium.click(f"{form} > summary")
    chromium.type(f"{form} [name='path:slug']", APP)
    chromium.type(f"{form} [name=body]", '{"event_type":"it\'s","metadata":{"n":12345678901234567890}}')
    assert chromium.text(f"{form} .curl") == (
        f"curl -i -X POST {url}/v1/public/apps/{APP}/interactions \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        """  --data-binary '{"event_type":"it'\\''s","metadata":{"n":12345678901234567890}}'"""
    )
    chromium.click(f"{form} [type=submit]")
    assert chromium.text(f"{form} .answer .status") == "200 OK"
    assert "content-type: application/json" in chromium.text(f"{form} .answer .headers")
    assert '"success": true' in chromium.text(f"{form} .answer")
    assert (outbox.row["app"], outbox.row["event_type"]) == (APP, "it's")
    assert outbox.row["metadata"] == {"n": 12345678901234567890}

    chromium.type(f"{form} [name=body]", "{}")
    chromium.click(f"{form} [type=submit]")
    chromium.find(f"{form} .answer .status:not(.good)")
    assert "event_type" in chromium.text(f"{form} .answer")
    assert len(outbox.records) == 1


@needs_chromium
def test_credentials_are_typed_once_and_examples_are_accepted(chromium: Browser, outbox: RecordingOutbox) -> None:
    form = "#track_interaction_v1_public_retrievers__public_name__interactions_post .try"
    chromium.click(f"{form} > summary")
    chromium.type(f"{form} [name='path:public_name']", RETRIEVER)
    chromium.type(f"{form} [name='header:Authorization']", TOKEN)
    chromium.type(f"{form} [name='header:X-Public-API-Key']", PUBLIC_KEY)
    chromium.click(f"{form} [type=submit]")
    assert chromium.text(f"{form} .answer .status") == "200 OK"
    assert outbox.row["retriever"] == RETRIEVER

    form = "#track_interactions_pixel .try"
    chromium.click(f"{form} > summary")
    line = chromium.text(f"{form} .curl")
    assert f"/retrievers/{RETRIEVER}/interactions.gif?" in line
    assert f"Authorization: Bearer {TOKEN}" in line
    assert "interaction_type=view&interaction_type=click" in line
    assert chromium.log() == []


@needs_chromium
def test_page_fits_narrow_and_wide_screens_light_and_dark(chromium: Browser) -> None:
    chromium.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    backgrounds = set()
    for width in (320, 768, 1920):
        for dark in (False, True):
            chromium.emulate(width=width, dark=dark)
            assert chromium.run("return document.documentElement.scrollWidth") <= width
            backgrounds.add(chromium.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
