"""What is kept of a caller's address and user agent: as much as its owner's policy says, by default nothing.

- `keep`: the address in its shortest spelling; the user agent, at most 512 characters, without control characters;
- `truncate`: the address of its network, /24 or /48; the user agent as Chrome itself reduces it: a common platform,
  well-known products, major versions;
- `hmac`: 32 hex digits of a keyed SHA-256, for counting and joining. The same in all gateways, which share the key, and
  for all owners;
- `drop`: nothing. Neither is anything kept of an address that is none, nor under `hmac` without a key.
"""

import hmac
import re
import socket
from collections.abc import Mapping
from functools import lru_cache

from gateway.registry import Privacy, Registry, RegistryError

USER_AGENT_CHARS_MAX = 512
DIGEST_HEX_CHARS = 32

Columns = Mapping[str, str]

NONE: Columns = {}


def columns(
    policy: Privacy, address: str | None, user_agent: bytes | None, *, opted_out: bool, key: bytes | None
) -> tuple[Columns, bool]:
    """`client_address` and `user_agent` of a row, each if something is kept of it, and whether the event's session_id
    must go as well. `opted_out` is whether DNT: 1 or Sec-GPC: 1 was sent; `key` is that of the `hmac` policy.
    """
    if policy.honour_do_not_track and opted_out:
        return NONE, True
    of_address, of_user_agent = policy.client_address, policy.user_agent
    if of_address == "drop" and of_user_agent == "drop":
        return NONE, False
    kept: dict[str, str] = {}
    if address and of_address != "drop":
        packed = _packed(address)
        if packed is not None:
            if of_address == "truncate":
                kept["client_address"] = _unpacked(_network(packed))
            elif of_address == "keep":
                kept["client_address"] = _unpacked(packed)
            elif key is not None:
                kept["client_address"] = _digest(key, b"client_address", packed)
    if user_agent and of_user_agent != "drop":
        text = _text(user_agent)
        if text:
            if of_user_agent == "truncate":
                kept["user_agent"] = _reduced(text)
            elif of_user_agent == "keep":
                kept["user_agent"] = text
            elif key is not None:
                kept["user_agent"] = _digest(key, b"user_agent", text.encode())
    return kept, False


def check(registry: Registry, *, key_present: bool) -> None:
    """Raises RegistryError for a policy that cannot be kept to: `hmac` without a key."""
    if key_present:
        return
    for table, owners in (("apps", registry.apps), ("retrievers", registry.retrievers)):
        for name, owner in owners.items():
            for column in ("client_address", "user_agent"):
                if getattr(owner.privacy, column) == "hmac":
                    raise RegistryError(f"{table}.{name}.privacy.{column}: hmac needs GATEWAY_PRIVACY_HMAC_KEY")


def _digest(key: bytes, kind: bytes, value: bytes) -> str:
    # The kind is in the digest, so an address and a user agent never have the same; no kind has a NUL.
    return hmac.digest(key, kind + b"\0" + value, "sha256").hex()[:DIGEST_HEX_CHARS]


# Addresses: 4 or 16 bytes. An IPv4 address has one spelling, however it arrived.

_IPV4_MAPPED = bytes(10) + b"\xff\xff"
_6TO4 = b"\x20\x02"


def _packed(address: str) -> bytes | None:
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except (OSError, ValueError):  # ValueError: NUL, not ASCII
        return None
    return packed[12:] if packed.startswith(_IPV4_MAPPED) else packed


def _unpacked(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _network(packed: bytes) -> bytes:
    if len(packed) == 4:
        return packed[:3] + bytes(1)
    # The first 48 bits of a 6to4 address are 2002 and a whole IPv4 address.
    prefix = 5 if packed.startswith(_6TO4) else 6
    return packed[:prefix] + bytes(16 - prefix)


# User agents.

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def _text(user_agent: bytes) -> str:
    try:
        text = user_agent.decode()
    except UnicodeDecodeError:
        text = user_agent.decode("latin-1")
    return _CONTROL.sub(" ", text[:USER_AGENT_CHARS_MAX]).strip()


PLATFORMS = {
    "iPhone": "iPhone; CPU iPhone OS {} like Mac OS X",
    "iPad": "iPad; CPU OS {} like Mac OS X",
    "Android": "Linux; Android 10; K",
    "Windows": "Windows NT 10.0; Win64; x64",
    "CrOS": "X11; CrOS x86_64 14541.0.0",
    "Macintosh": "Macintosh; Intel Mac OS X 10_15_7",
    "Linux": "X11; Linux x86_64",
    "compatible": "compatible",
}
"""By a word of the platform, the first that is there: what Chrome says on all of its kind, see
https://www.chromium.org/updates/ua-reduction/. Safari keeps the major version of iOS."""

ENGINES = frozenset({"AppleWebKit", "Safari"})  # frozen at 537.36, 605.1, 604.1
SHORT_VERSIONS = frozenset({"Firefox", "FxiOS", "Version"})  # 131.0
LONG_VERSIONS = frozenset(
    (
        "Chrome",
        "Chromium",
        "CriOS",
        "DuckDuckGo",
        "Edg",
        "EdgA",
        "EdgiOS",
        "Edge",
        "Electron",
        "GSA",
        "HeadlessChrome",
        "HuaweiBrowser",
        "MiuiBrowser",
        "OPR",
        "OPT",
        "OPX",
        "QQBrowser",
        "SamsungBrowser",
        "Silk",
        "UCBrowser",
        "Vivaldi",
        "VivoBrowser",
        "Whale",
        "YaBrowser",
    )
)  # 131.0.0.0
PRODUCT_DIGITS_MAX = 3
OTHER = "other"

_BROWSER = re.compile(r"Mozilla/\d\.\d \(([^()]*)")
_IOS = re.compile(r"OS (\d{1,2})[_.]")
_TOKEN = re.compile(r"\b([A-Za-z]+)(?:/(\d{1,4})(?:\.(\d{1,2}))?)?")
_PRODUCT = re.compile(r"([A-Za-z][\w.+-]{0,31})(?:/v?(\d{1,4})(?!\d)|(?![\w.+-]))", re.ASCII)


@lru_cache(maxsize=1024)
def _reduced(text: str) -> str:
    """One that Chrome has reduced stays as it is. Of what is no browser's only its name and major version are left,
    and `other` of a name that is long or has many digits: it may be an id."""
    browser = _BROWSER.match(text)
    if browser is None:
        product = _PRODUCT.match(text)
        if product is None or sum(map(str.isdigit, product[1])) > PRODUCT_DIGITS_MAX:
            return OTHER
        return f"{product[1]}/{product[2]}" if product[2] else product[1]
    comment, tokens = browser[1], {}
    for name, major, minor in _TOKEN.findall(text, browser.end()):
        if name in ENGINES and major:
            tokens[name] = f"{name}/{major}.{minor}" if minor else f"{name}/{major}"
        elif name in SHORT_VERSIONS and major:
            tokens[name] = f"{name}/{major}.0"
        elif name in LONG_VERSIONS and major:
            tokens[name] = f"{name}/{major}.0.0.0"
        elif name == "Mobile":
            tokens[name] = name
        elif name == "Gecko" and major:
            tokens[name] = "Gecko/20100101"
        if name == "AppleWebKit" and major:
            tokens[""] = "(KHTML, like Gecko)"
    return " ".join((f"Mozilla/5.0 ({_platform(comment)})", *tokens.values()))


def _platform(comment: str) -> str:
    for word, platform in PLATFORMS.items():
        if word in comment:
            ios = _IOS.search(comment)
            return platform.format(f"{ios[1]}_0" if ios else "10_0")
    return OTHER
