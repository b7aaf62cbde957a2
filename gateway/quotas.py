"""Quotas: so many events a second of an app or retriever, with each of its public keys, from each client address.

Pure: `now` is passed in (monotonic s). Per worker. The state of a quota is one number, GCRA's theoretical arrival time
(ITU-T I.371): when its bucket will be full again. At most ENTRIES_MAX are remembered of each kind of quota; what a
flood of addresses can make us forget is said at `_Buckets`.

Several events at once are admitted if every quota has room for all of them; more than a quota's burst, if its bucket is
full. They are paid for in full, also those beyond the burst, so that the rate holds whatever comes at once.
"""

import math
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, NoReturn, TypeAlias

from gateway.asgi import Header
from gateway.client_address import quota_key
from gateway.errors import TooManyRequests
from gateway.registry import App, Owner, Quota, Retriever

ENTRIES_MAX = 100_000
EXAMINED = 4
SLACK_S = 1e-7  # doubles round; whoever sends at exactly the rate must not be refused for it
ANNOUNCED_S_MAX = 86_400  # in Retry-After and RateLimit-Reset
WINDOW_S_MAX = 86_400  # in RateLimit-Policy

_ROUND_UP = 1 - SLACK_S

Kind = Literal["app", "retriever", "key", "address"]

_WHOSE = {
    "app": "for this app",
    "retriever": "for this retriever",
    "key": "with this public key",
    "address": "from this address",
}


class _Buckets:
    """`full_at` is when the bucket of a key is full again, monotonic s; one that has no entry is full.

    Entries whose time has come mean nothing, and are forgotten as new ones come in: each of these looks at the EXAMINED
    oldest, so time is constant and memory follows the number of buckets that are not full. With `entries_max` of those,
    the one of the examined that would be full soonest makes room. So a flood of addresses with an event each displaces
    itself, not those that have long to wait; and whoever is forgotten gains at most one burst. Only what is admitted
    makes entries: the quota of the app or retriever, asked first, bounds a flood too.
    """

    def __init__(self, entries_max: int) -> None:
        self.full_at: dict[str, float] = {}
        self.displaced = 0
        self._entries_max = entries_max
        self._oldest: deque[str] = deque()  # each key of `full_at` once

    def enter(self, key: str, full_at: float, now: float) -> None:
        """A key that has no entry."""
        times, oldest = self.full_at, self._oldest
        kept = []
        for _ in range(min(EXAMINED, len(oldest))):
            candidate = oldest.popleft()
            if times[candidate] <= now:
                del times[candidate]
            else:
                kept.append(candidate)
        if len(times) >= self._entries_max:
            fullest = min(kept, key=times.__getitem__)
            kept.remove(fullest)
            del times[fullest]
            self.displaced += 1
        oldest.extend(kept)
        oldest.append(key)
        times[key] = full_at


class _Allowance:
    """A quota of an owner, with all that can be computed before there is a request."""

    def __init__(self, kind: Kind, quota: Quota, buckets: _Buckets, events_max: int) -> None:
        self.kind = kind
        self.rate = quota.events_per_second
        self.burst = quota.burst
        self.interval_s = 1 / self.rate
        self.ahead_s = (self.burst - 1) * self.interval_s + SLACK_S  # at most so far from full, an event is admitted
        self.owed_s_max = max(self.burst, events_max) * self.interval_s
        self.buckets = buckets
        self.full_at = buckets.full_at
        self.limit: Header = (b"ratelimit-limit", b"%d" % self.burst)
        self.policy: Header = (b"ratelimit-policy", b"%d;w=%d;burst=%d" % (*_window(self.rate), self.burst))

    def headers(self, left: float, full_s: float) -> list[Header]:
        """The fields of draft-ietf-httpapi-ratelimit-headers-06, which are those that clients know, counting events.

        RateLimit-Reset is the time until the bucket is full, if nothing more is sent.
        """
        remaining = b"%d" % int(left) if left >= 1 else b"0"
        return [
            self.limit,
            (b"ratelimit-remaining", remaining),
            (b"ratelimit-reset", b"%d" % _seconds(full_s)),
            self.policy,
        ]


Limit: TypeAlias = tuple[_Allowance, str]
"""A quota that a request is subject to, and the key of its bucket."""


class _Plan(NamedTuple):
    """The quotas of an owner: what every request is subject to, and what depends on who sends it."""

    owner: Owner
    fixed: tuple[Limit, ...]
    key: _Allowance | None
    address: _Allowance | None
    prefix: str


class Quotas:
    """What was spent of every quota. A request takes its limits from here, and brings them back with its events.

    `events_max` is the most that a request may hold: nobody ever owes more than that, or a burst where that is more,
    whatever the quota was before the registry was reloaded and whatever the clock did.
    """

    def __init__(self, events_max: int, *, entries_max: int = ENTRIES_MAX) -> None:
        self._events_max = events_max
        self._entries_max = entries_max
        self._buckets: dict[Kind, _Buckets] = {
            "app": _Buckets(entries_max),
            "retriever": _Buckets(entries_max),
            "key": _Buckets(entries_max),
            "address": _Buckets(entries_max),
        }
        self._apps: dict[str, _Plan] = {}
        self._retrievers: dict[str, _Plan] = {}

    def entries(self, kind: Kind) -> int:
        """Buckets remembered."""
        return len(self._buckets[kind].full_at)

    def displaced(self, kind: Kind) -> int:
        """Buckets forgotten before they were full, for want of room; only ever grows."""
        return self._buckets[kind].displaced

    def app_limits(self, slug: str, app: App, address: str | None) -> Sequence[Limit]:
        """Limits of a request to an app, empty if it has no quotas. `address` as from ClientAddress, needed only if the
        app has an address quota; all without one share a bucket."""
        plan = self._apps.get(slug)
        if plan is None or plan.owner is not app:
            plan = self._plan("app", slug, app, None, self._apps)
        if plan.address is None:
            return plan.fixed
        return (*plan.fixed, (plan.address, plan.prefix + quota_key(address)))

    def retriever_limits(
        self, name: str, retriever: Retriever, key_sha256: str, address: str | None
    ) -> Sequence[Limit]:
        """Limits of a request to a retriever; `key_sha256` is one of its public keys'."""
        plan = self._retrievers.get(name)
        if plan is None or plan.owner is not retriever:
            plan = self._plan("retriever", name, retriever, retriever.key_quota, self._retrievers)
        limits = plan.fixed
        if plan.key is not None:
            limits = (*limits, (plan.key, plan.prefix + key_sha256))
        if plan.address is not None:
            limits = (*limits, (plan.address, plan.prefix + quota_key(address)))
        return limits

    def admit(self, limits: Sequence[Limit], now: float) -> None:
        """Before the body is read: raises TooManyRequests if `spend` would refuse a single event."""
        for allowance, key in limits:
            full_at = allowance.full_at.get(key)
            if full_at is not None and full_at - now > allowance.ahead_s:
                self._refuse(limits, 1, now)

    def spend(self, limits: Sequence[Limit], events: int, now: float) -> list[Header]:
        """Take the events from every quota, or from none and raise TooManyRequests. Headers about the tightest."""
        if not limits:
            return []
        tightest_left = math.inf
        spent = []
        for allowance, key in limits:
            full_at = allowance.full_at.get(key, now)
            if full_at < now:
                full_at = now
            left = allowance.burst + (now - full_at + SLACK_S) * allowance.rate
            if left < events and left < allowance.burst:
                self._refuse(limits, events, now)
            full_at += events * allowance.interval_s
            spent.append((allowance, key, full_at))
            if left < tightest_left:
                tightest, tightest_left, tightest_full_at = allowance, left, full_at
        for allowance, key, full_at in spent:
            if key in allowance.full_at:
                allowance.full_at[key] = full_at
            else:
                allowance.buckets.enter(key, full_at, now)
        return tightest.headers(tightest_left - events, tightest_full_at - now)

    def _refuse(self, limits: Sequence[Limit], events: int, now: float) -> NoReturn:
        """Raises TooManyRequests for the quota that makes the caller wait longest."""
        waits = []
        for allowance, key in limits:
            full_s = self._full_s(allowance, key, now)
            room_s = (allowance.burst - min(events, allowance.burst)) * allowance.interval_s
            waits.append((full_s - room_s, full_s, allowance))
        wait_s, full_s, allowance = max(waits, key=lambda wait: wait[0])
        raise TooManyRequests(
            f"Too many events {_WHOSE[allowance.kind]}: at most {allowance.rate:g} a second, {allowance.burst} at once",
            code=f"quota_{allowance.kind}",
            details={"events_per_second": allowance.rate, "burst": allowance.burst},
            retry_after_s=max(1, _seconds(wait_s)),
            headers=allowance.headers(allowance.burst + (SLACK_S - full_s) * allowance.rate, full_s),
        )

    def _full_s(self, allowance: _Allowance, key: str, now: float) -> float:
        """Until the bucket is full; negative if it is."""
        full_at = allowance.full_at.get(key, now)
        if full_at - now > allowance.owed_s_max:  # from before the quota changed, or the clock went back
            full_at = allowance.full_at[key] = now + allowance.owed_s_max
        return full_at - now

    def _plan(self, kind: Kind, name: str, owner: Owner, key_quota: Quota | None, plans: dict[str, _Plan]) -> _Plan:
        """For an owner that is new or was reloaded."""
        if len(plans) >= self._entries_max:  # names that the registry had once
            plans.clear()
        common = self._allowance(kind, owner.quota)
        plan = plans[name] = _Plan(
            owner,
            () if common is None else ((common, name),),
            self._allowance("key", key_quota),
            self._allowance("address", owner.address_quota),
            f"{kind} {name} ",
        )
        return plan

    def _allowance(self, kind: Kind, quota: Quota | None) -> _Allowance | None:
        return None if quota is None else _Allowance(kind, quota, self._buckets[kind], self._events_max)


def _window(rate: float) -> tuple[int, int]:
    """A rate (per s) as whole events in a window of whole seconds, for RateLimit-Policy."""
    window = Fraction(rate).limit_denominator(WINDOW_S_MAX)
    return (window.numerator, window.denominator) if window else (1, math.ceil(1 / rate))


def _seconds(duration_s: float) -> int:
    """Whole ones, rounded up; a whole number that doubles have made a little more of stays what it is."""
    return int(duration_s + _ROUND_UP) if duration_s < ANNOUNCED_S_MAX else ANNOUNCED_S_MAX
