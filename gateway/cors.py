"""What lets pages of an owner's origins read our answers (CORS).

It protects nobody's data, there are no cookies here: it decides which pages learn what became of their events.
"""

from collections.abc import Sequence

from gateway.asgi import Header
from gateway.errors import Forbidden

PREFLIGHT_AGE_S = 86_400  # what browsers honour at most, Firefox; Chromium cuts it to two hours

_ALLOWED_HEADERS = (
    b"authorization, content-encoding, content-type, idempotency-key, x-public-api-key, x-session-id, traceparent"
)
_EXPOSED_HEADERS = b"ratelimit-limit, ratelimit-policy, ratelimit-remaining, ratelimit-reset, retry-after"


def allow(allowed_origins: Sequence[str], origin: bytes) -> list[Header]:
    """Headers of an answer to a page of `origin`; none if it is not allowed.

    The origin itself is named, never `*`, and credentials are allowed: sendBeacon always sends in that mode, and its
    JSON would be held back for a preflight that says `*`.
    """
    if not _is_allowed(allowed_origins, origin):
        return [(b"vary", b"origin")]
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", _EXPOSED_HEADERS),
        (b"vary", b"origin"),
    ]


def preflight(allowed_origins: Sequence[str], origin: bytes, method: bytes) -> list[Header]:
    """Headers of the answer to a preflight. Raises Forbidden if the origin is not allowed."""
    if not _is_allowed(allowed_origins, origin):
        raise Forbidden("This origin is not among the allowed origins", code="origin_not_allowed")
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-allow-methods", method),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", b"%d" % PREFLIGHT_AGE_S),
        (b"vary", b"origin, access-control-request-method, access-control-request-headers"),
    ]


def _is_allowed(allowed_origins: Sequence[str], origin: bytes) -> bool:
    return "*" in allowed_origins or origin.decode("latin-1") in allowed_origins
