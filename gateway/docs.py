"""/docs: /openapi.json as a page to read and to try, from files of our own.

The browser is told to load nothing from anywhere else and to take no text for markup. Files are read once, at start.
"""

import hashlib
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def routes() -> list[Route]:
    """GET /docs, and /docs/… for what it is made of."""
    directory = files("gateway") / "docs_page"
    return [_route(f.name, f.read_bytes()) for f in directory.iterdir() if PurePath(f.name).suffix in _TYPES]


def _route(name: str, body: bytes) -> Route:
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    content_type = f"{_TYPES[PurePath(name).suffix]}; charset=utf-8"
    headers = {
        "cache-control": "no-cache",  # may be kept, is to be asked about: a new version is seen at once
        "etag": tag,
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    async def file(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers={**headers, "content-type": content_type})

    return Route("/docs" if name == "index.html" else f"/docs/{name}", file)
