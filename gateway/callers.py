"""Who calls: which app or retriever the events are for, and whether this caller may send them.

Apps are public: to know the slug is enough. A retriever wants a Bearer token and a public API key, both its own.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gateway.errors import Forbidden, NotFound, Unauthorized
from gateway.quotas import Limit, Quotas
from gateway.registry import App, Owner, Registry, RegistryFile, Retriever, key_digest, matches_any
from gateway.requests import Request

ID_ECHO_CHARS_MAX = 200  # of an unknown slug or name, in the error's details


class Caller(NamedTuple):
    """`name` is the slug or public name, `key_digest` that of the public key, `session_id` what X-Session-ID says."""

    name: str
    owner: Owner
    key_digest: str | None = None
    session_id: str | None = None


class Door(Protocol):
    """`admit` lets a caller in, or raises NotFound, Unauthorized, Forbidden. `owner` asks for no credentials: browsers
    send none with a preflight. `limits` are the quotas that the caller is subject to. All of it is by what `registry`
    says now."""

    @property
    def registry(self) -> Registry: ...
    def admit(self, request: Request) -> Caller: ...
    def owner(self, request: Request) -> Owner: ...
    def limits(self, quotas: Quotas, caller: Caller, address: str | None) -> Sequence[Limit]: ...


class AppDoor:
    def __init__(self, registry: RegistryFile) -> None:
        self._file = registry

    @property
    def registry(self) -> Registry:
        return self._file.current

    def admit(self, request: Request) -> Caller:
        return Caller(request.scope["path_params"]["slug"], self.owner(request))

    def owner(self, request: Request) -> App:
        slug: str = request.scope["path_params"]["slug"]
        app = self.registry.apps.get(slug)
        if app is None:
            raise NotFound("app", slug[:ID_ECHO_CHARS_MAX])
        return app

    def limits(self, quotas: Quotas, caller: Caller, address: str | None) -> Sequence[Limit]:
        app = caller.owner
        assert isinstance(app, App), "let in by another door"
        return quotas.app_limits(caller.name, app, address)


class RetrieverDoor:
    def __init__(self, registry: RegistryFile) -> None:
        self._file = registry

    @property
    def registry(self) -> Registry:
        return self._file.current

    def admit(self, request: Request) -> Caller:
        headers = request.headers
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token:
            raise Unauthorized("Authorization must be: Bearer <token>", code="bearer_token_missing")
        public_key = headers.get(b"x-public-api-key") or (request.parameter("public_api_key") or "").encode()
        if not public_key:
            raise Unauthorized(
                "X-Public-API-Key is required, or public_api_key in the query", code="public_api_key_missing"
            )
        registry = self.registry
        token_digest, public_key_digest = key_digest(token), key_digest(public_key)
        if not registry.knows_token(token_digest):
            raise Unauthorized("The token is not known", code="bearer_token_unknown")
        if not registry.knows_public_key(public_key_digest):
            raise Unauthorized("The public API key is not known", code="public_api_key_unknown")
        retriever = self.owner(request)
        _require_access(retriever, token_digest, public_key_digest)
        session_id = headers.get(b"x-session-id")
        return Caller(
            request.scope["path_params"]["public_name"],
            retriever,
            public_key_digest,
            _header_text(session_id) if session_id else None,
        )

    def owner(self, request: Request) -> Retriever:
        name: str = request.scope["path_params"]["public_name"]
        retriever = self.registry.retrievers.get(name)
        if retriever is None:
            raise NotFound("retriever", name[:ID_ECHO_CHARS_MAX])
        return retriever

    def limits(self, quotas: Quotas, caller: Caller, address: str | None) -> Sequence[Limit]:
        retriever, digest = caller.owner, caller.key_digest
        assert isinstance(retriever, Retriever), "let in by another door"
        assert digest is not None
        return quotas.retriever_limits(caller.name, retriever, digest, address)


def _require_access(retriever: Retriever, token_digest: str, public_key_digest: str) -> None:
    if not matches_any(public_key_digest, retriever.public_key_sha256):
        raise Forbidden("The public API key belongs to another retriever", code="public_api_key_of_another")
    if not matches_any(token_digest, retriever.token_sha256):
        raise Forbidden("The token belongs to another retriever", code="bearer_token_of_another")


def _header_text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
