"""Apps, retrievers and their keys: a TOML file, reloaded when it changes.

A broken new file is refused with a log line, and the old one stays in force. Keys are never in it, only
their SHA-256: a key is 32 random bytes, so its hash needs neither salt nor stretching.
"""

import asyncio
import hashlib
import hmac
import math
import secrets
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

log = structlog.get_logger(__name__)

RELOAD_INTERVAL_S = 1.0

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[a-z0-9.\-\[\]:]+)$")]
PrivacyPolicy = Literal["keep", "truncate", "hmac", "drop"]


class RegistryError(Exception):
    """The file cannot be read, or is no registry; the text says where."""


class Quota(BaseModel):
    """So many events a second in the long run, `burst` at once (default: those of a second). Per gateway worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events_per_second: Annotated[float, Field(ge=0.001, le=1_000_000, allow_inf_nan=False)]
    burst: Annotated[int, Field(ge=1, le=10_000_000)] = 1

    @model_validator(mode="after")
    def _burst_is_a_second(self) -> Self:
        if "burst" not in self.model_fields_set:
            object.__setattr__(self, "burst", math.ceil(self.events_per_second))
        return self


class Privacy(BaseModel):
    """What is kept of the caller's address and user agent.

    `keep` as it is, `truncate` to what names a network (or a browser's major version), `hmac` a keyed digest of it,
    `drop` nothing. With `honour_do_not_track`, of a caller that sends DNT: 1 or Sec-GPC: 1 nothing is kept of either,
    and no session_id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_address: PrivacyPolicy = "drop"
    user_agent: PrivacyPolicy = "drop"
    honour_do_not_track: bool = False


class Owner(BaseModel):
    """What apps and retrievers have in common. `allowed_origins` are those whose pages may read our answers (CORS),
    `https://shop.example` or `*`; `quota` is for all callers together, `address_quota` for each client address."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed_origins: tuple[Origin, ...] = ()
    quota: Quota | None = None
    address_quota: Quota | None = None
    privacy: Privacy = Privacy()


class App(Owner):
    """A public app: who knows its slug may send."""


class Retriever(Owner):
    """`key_quota` is for each public key."""

    public_key_sha256: tuple[Sha256, ...]
    token_sha256: tuple[Sha256, ...]
    key_quota: Quota | None = None


class RegistryDocument(BaseModel):
    """The TOML file: `[apps.SLUG]` and `[retrievers.NAME]` tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    apps: dict[str, App] = {}
    retrievers: dict[str, Retriever] = {}


@dataclass(frozen=True)
class Registry:
    """One version of the file. Looks up, compares keys, decides nothing about answers."""

    apps: dict[str, App]
    retrievers: dict[str, Retriever]
    _public_keys: frozenset[str] = field(init=False, repr=False)
    _tokens: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        retrievers = self.retrievers.values()
        object.__setattr__(self, "_public_keys", frozenset(k for r in retrievers for k in r.public_key_sha256))
        object.__setattr__(self, "_tokens", frozenset(k for r in retrievers for k in r.token_sha256))

    @classmethod
    def parse(cls, text: str) -> "Registry":
        """Raises RegistryError, whose text names the table and the field, never a value."""
        try:
            document = RegistryDocument.model_validate(tomllib.loads(text))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise RegistryError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (ValueError, RecursionError) as error:  # not TOML, an integer of 5,000 digits, brackets without end
            raise RegistryError(str(error)) from None
        return cls(document.apps, document.retrievers)

    def knows_public_key(self, digest: str) -> bool:
        """Whether any retriever has this key. It decides between two refusals, never an admission."""
        return digest in self._public_keys

    def knows_token(self, digest: str) -> bool:
        return digest in self._tokens


def key_digest(key: bytes) -> str:
    """Hex SHA-256 of a key as sent."""
    return hashlib.sha256(key).hexdigest()


def matches_any(digest: str, accepted: tuple[str, ...]) -> bool:
    """Constant time in what is compared; every accepted digest is looked at."""
    matched = False
    for candidate in accepted:
        matched |= hmac.compare_digest(digest, candidate)
    return matched


def new_key(prefix: str) -> str:
    """A fresh key: `pk_` or `tok_` and 32 random bytes."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


class RegistryFile:
    """`current` is the newest version of the file that was a registry."""

    def __init__(self, path: Path, *, check: Callable[[Registry], None] = lambda _: None) -> None:
        """Raises RegistryError if the file is no registry now: there is no older one to fall back on. `check` raises
        it for one that this process cannot keep to."""
        self._path = path
        self._check = check
        self._seen = self._fingerprint()
        self.current = self._read()

    async def watch(self) -> None:
        """Reload on every change, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_INTERVAL_S)
            await self.reload_if_changed()

    async def reload_if_changed(self) -> bool:
        """Whether a new version is in force. Parsing happens off the event loop: a large file takes a while."""
        fingerprint = self._fingerprint()
        if fingerprint == self._seen:
            return False
        self._seen = fingerprint
        try:
            self.current = await asyncio.to_thread(self._read)
        except RegistryError as error:
            log.error("registry file refused, the old one stays in force", file=str(self._path), reason=str(error))
            return False
        log.info(
            "registry reloaded",
            file=str(self._path),
            apps=len(self.current.apps),
            retrievers=len(self.current.retrievers),
        )
        return True

    def _read(self) -> Registry:
        try:
            text = self._path.read_text("utf-8")
        except OSError as error:
            raise RegistryError(f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise RegistryError("cannot be read: it is not UTF-8") from None
        registry = Registry.parse(text)
        self._check(registry)
        return registry

    def _fingerprint(self) -> Any:
        """Changes when the file does, also when it is replaced by one of the same size (a mounted config map)."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
