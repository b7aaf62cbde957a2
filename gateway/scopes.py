"""ASGI scopes: what an application is told of a request, its body aside."""

import asyncio
from typing import Any
from urllib.parse import unquote

import httptools

from gateway.asgi import Header


def of_connection(transport: asyncio.BaseTransport, extensions: dict[str, Any]) -> dict[str, Any]:
    """What all its requests have in common."""
    peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": (str(here[0]), int(here[1])) if here else None,
        "client": (str(peer[0]), int(peer[1])) if peer else None,
        "scheme": "http",
        "root_path": "",
        "extensions": extensions,
        # Of each request. That the names are there makes a copy that need not grow.
        "method": "",
        "path": "",
        "raw_path": b"",
        "query_string": b"",
        "headers": [],
    }


def of_request(
    connection: dict[str, Any], method: bytes, url: bytes, version: str, headers: list[Header]
) -> dict[str, Any]:
    """Raises httptools.HttpParserInvalidURLError."""
    path, query = url, b""
    if not path.startswith(b"/") or b"#" in path:
        parts = httptools.parse_url(path)
        path, query = parts.path or b"/", parts.query or b""
    elif b"?" in path:
        path, _, query = path.partition(b"?")
    text = path.decode("ascii")
    scope = connection.copy()
    scope["method"] = method.decode("ascii")
    scope["path"] = unquote(text) if "%" in text else text
    scope["raw_path"] = path
    scope["query_string"] = query
    scope["headers"] = headers
    if version != "1.1":
        scope["http_version"] = version
    return scope
