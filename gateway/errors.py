"""Errors carry their own answer: status, type, code, headers. Everything a caller can be told is here.

    GatewayError
    ├── BadRequest 400            not HTTP (Connection: close), or not what its Content-Encoding says
    ├── InvalidEvent 422          the contract's `HTTPValidationError`
    ├── Unauthorized 401          WWW-Authenticate: Bearer
    ├── Forbidden 403
    ├── NotFound 404
    ├── MethodNotAllowed 405      Allow
    ├── RequestTimeout 408        Connection: close
    ├── PayloadTooLarge 413       Connection: close
    ├── BatchTooLong 413
    ├── UnsupportedMediaType 415
    ├── TooManyRequests 429       Retry-After, RateLimit-…
    ├── HeadTooLarge 431          Connection: close
    ├── InternalError 500
    └── Unavailable 503           Retry-After

All but `InvalidEvent` are answered in the contract's envelope:
`{"success": false, "status": 404, "error": {"message", "type", "code"?, "details"?}}`.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.asgi import Header, Scope, Send, respond
from schemas.validation import Detail


class GatewayError(Exception):
    """Base: an answer in the error envelope."""

    status: int = 500
    type: str = "InternalServerError"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: dict[str, Any] | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details
        self.headers = tuple(headers)

    def payload(self) -> dict[str, Any]:
        """The envelope's `error`."""
        error: dict[str, Any] = {"message": self.message, "type": self.type}
        if self.code is not None:
            error["code"] = self.code
        if self.details is not None:
            error["details"] = self.details
        return error

    def body(self) -> bytes:
        return orjson.dumps({"success": False, "status": self.status, "error": self.payload()})

    async def respond(self, scope: Scope, send: Send) -> None:
        await respond(scope, send, self.status, self.body(), self.headers)


class InvalidEvent(GatewayError):
    """The body is not an event of this contract; the answer is the contract's `HTTPValidationError`."""

    status = 422
    type = "ValidationError"

    def __init__(self, detail: list[Detail]) -> None:
        super().__init__(detail[0]["msg"])
        self.detail = detail

    def body(self) -> bytes:
        return orjson.dumps({"detail": self.detail})


class BadRequest(GatewayError):
    """Not HTTP at all: answered by the server, before there is a request. Or not in the coding that it names."""

    status = 400
    type = "BadRequestError"


class Unauthorized(GatewayError):
    status = 401
    type = "UnauthorizedError"

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message, code=code, headers=[(b"www-authenticate", b"Bearer")])


class Forbidden(GatewayError):
    status = 403
    type = "ForbiddenError"


class NotFound(GatewayError):
    status = 404
    type = "NotFoundError"

    def __init__(self, resource: str, id_: str) -> None:
        super().__init__(f"{resource.capitalize()} not found", details={"resource": resource, "id": id_})


class MethodNotAllowed(GatewayError):
    status = 405
    type = "MethodNotAllowedError"

    def __init__(self, allow: str) -> None:
        super().__init__("Method not allowed", details={"allow": allow}, headers=[(b"allow", allow.encode("latin-1"))])


class RequestTimeout(GatewayError):
    """The caller was too slow; what had arrived is thrown away."""

    status = 408
    type = "RequestTimeoutError"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers=[(b"connection", b"close")])


class HeadTooLarge(GatewayError):
    status = 431
    type = "RequestHeaderFieldsTooLargeError"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"The request's head is larger than {bytes_max} bytes", details={"bytes_max": bytes_max})


class PayloadTooLarge(GatewayError):
    """Answered while the body still streams in, so the connection is closed behind it."""

    status = 413
    type = "PayloadTooLargeError"

    def __init__(self, bytes_max: int, message: str | None = None, *, code: str | None = None) -> None:
        super().__init__(
            message or f"The body is larger than {bytes_max} bytes",
            code=code,
            details={"bytes_max": bytes_max},
            headers=[(b"connection", b"close")],
        )


class BatchTooLong(GatewayError):
    status = 413
    type = "PayloadTooLargeError"

    def __init__(self, events_max: int) -> None:
        super().__init__(
            f"The batch has more than {events_max} events", code="too_many_events", details={"events_max": events_max}
        )


class UnsupportedMediaType(GatewayError):
    status = 415
    type = "UnsupportedMediaTypeError"


class TooManyRequests(GatewayError):
    """A quota has no room for the events; none of them was taken or counted."""

    status = 429
    type = "TooManyRequestsError"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        details: dict[str, Any],
        retry_after_s: int,
        headers: Sequence[Header] = (),
    ) -> None:
        super().__init__(
            message, code=code, details=details, headers=[(b"retry-after", b"%d" % retry_after_s), *headers]
        )


class InternalError(GatewayError):
    """Something we did not foresee. The log has the reason, the answer has none."""

    def __init__(self) -> None:
        super().__init__("Internal server error")


class Unavailable(GatewayError):
    """The event is on no disk and in no topic: the caller must try again."""

    status = 503
    type = "ServiceUnavailableError"

    def __init__(self, message: str, *, code: str, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code, headers=[(b"retry-after", str(retry_after_s).encode())])
