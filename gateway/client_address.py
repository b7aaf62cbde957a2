"""Who sent a request: the peer, or what trusted proxies say in X-Forwarded-For.

A proxy appends the address that it was called from, so the list is read from its end, for as long as trusted proxies
wrote it, and over HOPS_MAX of them at most; what stands further left is anybody's word.

An address is text in one form: IPv4 dotted, also if it came mapped into IPv6; IPv6 compressed; no port, no zone.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TypeAlias

from gateway.asgi import Scope

HOPS_MAX = 16
ENTRY_CHARS_MAX = 100
CACHED_MAX = 8192  # entries whose meaning is remembered, per worker

Network: TypeAlias = IPv4Network | IPv6Network

# [IPv6%zone]:port, IPv4:port, IPv6%zone; the port and the zone may be absent.
_ENTRY = re.compile(r"\[([^]%]+)(?:%[^]]+)?](?::\d{1,5})?|([\d.]+)(?::\d{1,5})?|([^]%[]+)(?:%[^]]+)?", re.ASCII)
_MAPPED = bytes(10) + b"\xff\xff"


class ClientAddress:
    """Finds the address that a request came from. `trusted_proxies` are those whose X-Forwarded-For is believed."""

    def __init__(self, trusted_proxies: Sequence[Network]) -> None:
        self._proxies = _Ranges(trusted_proxies)
        self._resolve = lru_cache(CACHED_MAX)(self._resolve_anew)

    def of(self, scope: Scope) -> str | None:
        """None for a peer without an IP address (a Unix socket); it is no trusted proxy either."""
        peer = scope.get("client")
        if peer is None:
            return None
        address, is_proxy = self._resolve(peer[0])
        if not is_proxy:
            return address
        value = b",".join([value for name, value in scope["headers"] if name == b"x-forwarded-for"])
        for entry in reversed(value.rsplit(b",", HOPS_MAX)[-HOPS_MAX:]):
            text = entry.strip()
            if len(text) > ENTRY_CHARS_MAX:
                return address
            hop, is_proxy = self._resolve(text.decode("latin-1"))
            if hop is None:  # not an address ("unknown"): all we know is which proxy wrote it
                return address
            if not is_proxy:
                return hop
            address = hop
        return address

    def _resolve_anew(self, entry: str) -> tuple[str | None, bool]:
        """The address, and whether it is a trusted proxy's."""
        packed = _parse(entry)
        if packed is None:
            return None, False
        return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed), packed in self._proxies


def quota_key(address: str | None) -> str:
    """What shares an address's quota: IPv4 stands for itself, IPv6 for its /64, which is what one subscriber has at
    least. Those without an address share one."""
    if address is None:
        return "unknown"
    return inet_pton(AF_INET6, address)[:8].hex() if ":" in address else address


class _Ranges:
    """Networks without overlap, as their first and last addresses (packed), in order, by the length of an address."""

    def __init__(self, networks: Sequence[Network]) -> None:
        four = list(collapse_addresses(n for n in networks if isinstance(n, IPv4Network)))
        six = list(collapse_addresses(n for n in networks if isinstance(n, IPv6Network)))
        self._first = {4: [n[0].packed for n in four], 16: [n[0].packed for n in six]}
        self._last = {4: [n[-1].packed for n in four], 16: [n[-1].packed for n in six]}

    def __contains__(self, packed: bytes) -> bool:
        below = bisect_right(self._first[len(packed)], packed)
        return below > 0 and packed <= self._last[len(packed)][below - 1]


def _parse(entry: str) -> bytes | None:
    """Packed, 4 or 16 bytes."""
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    host = match[1] or match[2] or match[3]
    try:
        packed = inet_pton(AF_INET6 if ":" in host else AF_INET, host)
    except (OSError, ValueError):  # not an address, or with a NUL in it
        return None
    return packed[12:] if packed.startswith(_MAPPED) and len(packed) == 16 else packed
