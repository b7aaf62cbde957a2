"""gateway.quotas: no more than the rate and a burst, for whoever asks however; times are passed in."""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.asgi import Header
from gateway.errors import TooManyRequests
from gateway.quotas import ANNOUNCED_S_MAX, ENTRIES_MAX, EXAMINED, SLACK_S, Kind, Limit, Quotas
from gateway.registry import App, Quota, Retriever

bounded = settings(max_examples=200, derandomize=True, deadline=None, database=None)

KINDS: tuple[Kind, ...] = ("app", "retriever", "key", "address")
EVENTS_MAX = 1_000
NOW = 1_000_000.0  # after 11 days of uptime
KEY, ANOTHER_KEY = "a" * 64, "b" * 64


def quota(rate: float, burst: int | None = None) -> Quota:
    return Quota.model_validate({"events_per_second": rate} | ({} if burst is None else {"burst": burst}))


def retriever(**quotas: Quota) -> Retriever:
    return Retriever.model_validate({"public_key_sha256": (KEY, ANOTHER_KEY), "token_sha256": (), **quotas})


def limits_of(quotas: Quotas, rate: float, burst: int) -> Sequence[Limit]:
    return quotas.app_limits("shop", App(quota=quota(rate, burst)), None)


def refusal(ask: Callable[..., object], *arguments: Any) -> TooManyRequests | None:
    try:
        ask(*arguments)
    except TooManyRequests as error:
        return error
    return None


def spends(quotas: Quotas, limits: Sequence[Limit], events: int, now: float) -> bool:
    return refusal(quotas.spend, limits, events, now) is None


def numbers(headers: Sequence[Header]) -> dict[str, int]:
    """All but the policy."""
    return {name.decode(): int(value) for name, value in headers if name != b"ratelimit-policy"}


rates = st.sampled_from([0.001, 0.1, 1 / 3, 1.0, 2.5, 7.0, 1000.0, 999_983.0, 1e6]) | st.floats(1e-3, 1e6)
bursts = st.sampled_from([1, 2, 3, 10, 500]) | st.integers(1, 10_000)
starts = st.sampled_from([0.0, 12.5, NOW])
# An arrival: how long after the last one, in times of what its bucket takes to fill; how many events, in bursts.
arrivals = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0, 3.0]) | st.floats(0, 2), st.floats(0, 1.5)), max_size=30
)


def played(arrivals: list[tuple[float, float]], rate: float, burst: int, now: float) -> list[tuple[float, int]]:
    """Arrivals as times and numbers of events."""
    times = []
    for gap, share in arrivals:
        now += gap * burst / rate
        times.append((now, max(1, min(EVENTS_MAX, round(share * burst)))))
    return times


@bounded
@given(rates, bursts, starts, arrivals)
def test_no_window_has_more_than_the_rate_and_a_burst(
    rate: float, burst: int, start: float, arrivals: list[tuple[float, float]]
) -> None:
    """Of several events at once that are more than a burst, the last of the window may exceed it by those."""
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, rate, burst)
    admitted = [(now, n) for now, n in played(arrivals, rate, burst, start) if spends(quotas, limits, n, now)]
    for first in range(len(admitted)):
        total = 0
        for now, events in admitted[first:]:
            total += events
            assert total <= max(burst, events) + rate * (now - admitted[first][0] + 2 * SLACK_S)


@bounded
@given(rates, bursts, starts, arrivals)
def test_it_is_a_token_bucket(rate: float, burst: int, start: float, arrivals: list[tuple[float, float]]) -> None:
    """Each decision, against one in exact numbers; only where those are a hair's breadth from equal may it differ."""
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, rate, burst)
    tokens, last = Fraction(burst), Fraction(start)
    for now, events in played(arrivals, rate, burst, start):
        tokens, last = min(Fraction(burst), tokens + Fraction(rate) * (Fraction(now) - last)), Fraction(now)
        missing_s = (min(events, burst) - tokens) / Fraction(rate)
        is_admitted = spends(quotas, limits, events, now)
        if abs(missing_s) > 2 * SLACK_S:
            assert is_admitted == (missing_s < 0)
        if is_admitted:
            tokens -= events


@bounded
@given(rates, bursts, starts, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5)), max_size=100), st.floats(0, 1))
def test_who_keeps_to_the_rate_is_never_refused(
    rate: float, burst: int, now: float, sent: list[tuple[float, float]], ahead: float
) -> None:
    """Not even once a part of the burst is gone for good."""
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, rate, burst)
    kept = max(1, round(ahead * burst))
    if burst > kept:
        quotas.spend(limits, burst - kept, now)
    for share, idle in sent:
        events = max(1, round(share * kept))
        quotas.admit(limits, now)
        quotas.spend(limits, events, now)
        now += events / rate * (1 + max(0, idle - 0.25))  # about half of the time not a moment later than it may


@pytest.mark.parametrize(("rate", "burst"), [(1.0, 1), (10.0, 1), (10.0, 10), (1000.0, 1000), (0.5, 3)])
def test_who_asks_all_the_time_gets_the_rate(rate: float, burst: int) -> None:
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, rate, burst)
    seconds, steps = 20, 4000
    admitted = sum(spends(quotas, limits, 1, NOW + seconds * step / steps) for step in range(steps + 1))
    assert admitted == min(steps + 1, burst + seconds * rate)


def test_more_than_a_burst_at_once_waits_for_a_full_bucket_and_is_paid_for() -> None:
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, 10, 20)
    assert numbers(quotas.spend(limits, 1, NOW))["ratelimit-remaining"] == 19
    assert not spends(quotas, limits, 100, NOW + 0.09)
    headers = quotas.spend(limits, 100, NOW + 0.1)
    assert numbers(headers) == {"ratelimit-limit": 20, "ratelimit-remaining": 0, "ratelimit-reset": 10}
    assert not spends(quotas, limits, 1, NOW + 0.1 + 8.09)  # 80 more than the burst
    assert spends(quotas, limits, 1, NOW + 0.1 + 8.1)


three_quotas = st.tuples(*[st.none() | st.builds(quota, st.floats(0.1, 100), st.integers(1, 50))] * 3)
requests = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from([KEY, ANOTHER_KEY]), st.integers(1, 9), st.integers(1, 60)), max_size=40
)


@bounded
@given(three_quotas, requests)
def test_what_is_refused_is_taken_from_none(
    given: tuple[Quota | None, ...], requests: list[tuple[float, str, int, int]]
) -> None:
    """As if it had not been asked: others who were spared the refused requests fare the same, to the last header."""
    owner = retriever(**dict(zip(("quota", "key_quota", "address_quota"), given, strict=True)))  # type: ignore[arg-type]
    asked, spared, now = Quotas(EVENTS_MAX), Quotas(EVENTS_MAX), NOW
    for wait_s, key, host, events in requests:
        now += wait_s
        address = f"203.0.113.{host}"
        limits = asked.retriever_limits("shop", owner, key, address)
        first = refusal(asked.admit, limits, now)
        single = refusal(asked.spend, limits, 1, now) if first else None
        assert str(first) == str(single)
        assert (first and first.headers) == (single and single.headers)
        try:
            headers = asked.spend(limits, events, now)
        except TooManyRequests:
            continue
        assert first is None
        assert spared.spend(spared.retriever_limits("shop", owner, key, address), events, now) == headers
    for kind in KINDS:
        assert asked.entries(kind) == spared.entries(kind)


def test_the_first_quota_is_not_charged_for_what_the_last_refuses() -> None:
    quotas = Quotas(EVENTS_MAX)
    owner = App(quota=quota(1, 5), address_quota=quota(1, 2))
    here, there = (quotas.app_limits("shop", owner, address) for address in ("203.0.113.1", "203.0.113.2"))
    quotas.spend(here, 2, NOW)
    for _ in range(10):
        assert not spends(quotas, here, 1, NOW)
    assert numbers(quotas.spend(there, 2, NOW))["ratelimit-remaining"] == 0
    assert numbers(quotas.spend(quotas.app_limits("shop", owner, "203.0.113.3"), 1, NOW))["ratelimit-remaining"] == 0
    assert not spends(quotas, quotas.app_limits("shop", owner, "203.0.113.4"), 1, NOW)


@bounded
@given(rates, bursts, starts, arrivals)
def test_headers_tell_the_truth(rate: float, burst: int, start: float, arrivals: list[tuple[float, float]]) -> None:
    """RateLimit-Remaining is what is admitted now, after RateLimit-Reset the bucket is full, after Retry-After the same
    request is admitted, and a second earlier it is not."""
    quotas, times = Quotas(EVENTS_MAX), played(arrivals, rate, burst, start)
    limits = limits_of(quotas, rate, burst)

    def would_spend(upto: int, events: int, now: float) -> bool:
        """On a copy: all that was played, then this."""
        copy = Quotas(EVENTS_MAX)
        copied = limits_of(copy, rate, burst)
        for at, n in times[:upto]:
            spends(copy, copied, n, at)
        return spends(copy, copied, events, now)

    for count, (now, events) in enumerate(times[:6], 1):
        try:
            said = numbers(quotas.spend(limits, events, now))
        except TooManyRequests as error:
            said = numbers(error.headers)
            retry_s = said.pop("retry-after")
            assert retry_s >= 1
            assert retry_s == ANNOUNCED_S_MAX or would_spend(count, events, now + retry_s)
            assert retry_s == 1 or not would_spend(count, events, now + retry_s - 1.001)
        assert list(said) == ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"]
        assert said["ratelimit-limit"] == burst
        remaining, reset_s = said["ratelimit-remaining"], said["ratelimit-reset"]
        assert remaining <= burst
        assert remaining == 0 or would_spend(count, remaining, now)
        assert remaining == burst or not would_spend(count, remaining + 1, now)
        assert reset_s == ANNOUNCED_S_MAX or would_spend(count, burst, now + reset_s)


@pytest.mark.parametrize(
    ("rate", "burst", "policy"),
    [
        (1000.0, None, b"1000;w=1;burst=1000"),
        (1000.0, 100, b"1000;w=1;burst=100"),
        (2.5, None, b"5;w=2;burst=3"),
        (0.1, None, b"1;w=10;burst=1"),
        (1 / 60, 5, b"1;w=60;burst=5"),
        (0.001, None, b"1;w=1000;burst=1"),
        (1e6, 10_000_000, b"1000000;w=1;burst=10000000"),
    ],
)
def test_policy(rate: float, burst: int | None, policy: bytes) -> None:
    quotas = Quotas(EVENTS_MAX)
    headers = quotas.spend(quotas.app_limits("shop", App(quota=quota(rate, burst)), None), 1, NOW)
    assert dict(headers)[b"ratelimit-policy"] == policy


def test_headers_are_those_of_the_tightest() -> None:
    quotas = Quotas(EVENTS_MAX)
    owner = retriever(quota=quota(100, 100), key_quota=quota(10, 50), address_quota=quota(1, 60))
    limits = quotas.retriever_limits("shop", owner, KEY, "203.0.113.1")
    assert quotas.spend(limits, 20, NOW) == [
        (b"ratelimit-limit", b"50"),
        (b"ratelimit-remaining", b"30"),
        (b"ratelimit-reset", b"2"),
        (b"ratelimit-policy", b"10;w=1;burst=50"),
    ]
    assert quotas.spend(limits, 1, NOW + 2)[:3] == [  # the key's is full again, of the address's 18 are gone
        (b"ratelimit-limit", b"60"),
        (b"ratelimit-remaining", b"41"),
        (b"ratelimit-reset", b"19"),
    ]


QUOTAS: dict[str, dict[str, Quota]] = {
    "quota_retriever": {"quota": quota(2, 3), "key_quota": quota(9, 90), "address_quota": quota(9, 90)},
    "quota_key": {"quota": quota(9, 90), "key_quota": quota(2, 3), "address_quota": quota(9, 90)},
    "quota_address": {"quota": quota(9, 90), "key_quota": quota(9, 90), "address_quota": quota(2, 3)},
}


@pytest.mark.parametrize("code", QUOTAS)
@pytest.mark.parametrize("is_before_the_body", [True, False], ids=["admit", "spend"])
def test_a_refusal_says_which_quota_and_nothing_of_the_caller(code: str, is_before_the_body: bool) -> None:
    quotas = Quotas(EVENTS_MAX)
    limits = quotas.retriever_limits("shop", retriever(**QUOTAS[code]), KEY, "203.0.113.1")
    quotas.spend(limits, 3, NOW)
    with pytest.raises(TooManyRequests) as caught:
        quotas.admit(limits, NOW) if is_before_the_body else quotas.spend(limits, 2, NOW)
    error = caught.value
    assert (error.status, error.type, error.code) == (429, "TooManyRequestsError", code)
    assert error.message.endswith(": at most 2 a second, 3 at once")
    assert error.details == {"events_per_second": 2.0, "burst": 3}
    assert error.headers == (
        (b"retry-after", b"1"),
        (b"ratelimit-limit", b"3"),
        (b"ratelimit-remaining", b"0"),
        (b"ratelimit-reset", b"2"),
        (b"ratelimit-policy", b"2;w=1;burst=3"),
    )
    text = json.dumps([error.message, json.loads(error.body()), str(error.headers)])
    assert KEY not in text
    assert "203.0.113" not in text


def test_a_refusal_is_of_the_quota_that_makes_one_wait_longest() -> None:
    quotas = Quotas(EVENTS_MAX)
    owner = App(quota=quota(10, 5), address_quota=quota(0.1, 5))
    limits = quotas.app_limits("shop", owner, "203.0.113.1")
    quotas.spend(limits, 5, NOW)
    error = refusal(quotas.spend, limits, 3, NOW)
    assert error is not None
    assert error.code == "quota_address"
    assert numbers(error.headers)["retry-after"] == 30


def test_a_quota_with_room_is_not_blamed() -> None:
    """However long it takes to be full."""
    quotas = Quotas(EVENTS_MAX)
    limits = quotas.app_limits("shop", App(quota=quota(0.1, 100), address_quota=quota(1, 10)), "203.0.113.1")
    quotas.spend(limits, 10, NOW)
    error = refusal(quotas.spend, limits, 2, NOW)
    assert error is not None
    assert (error.code, numbers(error.headers)["retry-after"]) == ("quota_address", 2)


def test_an_app_is_named() -> None:
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, 0.5, 1)
    quotas.spend(limits, 1, NOW)
    error = refusal(quotas.admit, limits, NOW)
    assert error is not None
    assert (error.code, error.message) == (
        "quota_app",
        "Too many events for this app: at most 0.5 a second, 1 at once",
    )


def test_without_quotas_nothing_happens() -> None:
    quotas = Quotas(EVENTS_MAX)
    for limits in (quotas.app_limits("shop", App(), "::1"), quotas.retriever_limits("shop", retriever(), KEY, None)):
        assert not limits
        quotas.admit(limits, NOW)
        assert quotas.spend(limits, EVENTS_MAX, NOW) == []


def test_everybody_has_a_bucket_of_their_own() -> None:
    """Of each kind, of each owner; apps and retrievers may have the same name."""
    quotas, one = Quotas(EVENTS_MAX), quota(1, 1)
    app, other_app = App(address_quota=one), App(quota=one)
    by_key, by_both = retriever(key_quota=one), retriever(quota=one, address_quota=one)
    everybody = [
        quotas.app_limits("shop", app, "203.0.113.1"),
        quotas.app_limits("shop", app, "203.0.113.2"),
        quotas.app_limits("shop", app, "2001:db8:0:1::1"),
        quotas.app_limits("shop", app, "2001:db8:0:2::1"),
        quotas.app_limits("shop", app, None),
        quotas.app_limits("other", app, "203.0.113.1"),
        quotas.app_limits("a", other_app, None),
        quotas.app_limits("b", other_app, None),
        quotas.retriever_limits("shop", by_key, KEY, None),
        quotas.retriever_limits("shop", by_key, ANOTHER_KEY, None),
        quotas.retriever_limits("other", by_key, KEY, None),
        quotas.retriever_limits("a", by_both, KEY, "203.0.113.1"),
        quotas.retriever_limits("b", by_both, KEY, "203.0.113.1"),
        quotas.retriever_limits("shop", retriever(address_quota=one), KEY, "203.0.113.1"),
    ]
    assert all(spends(quotas, limits, 1, NOW) for limits in everybody)
    assert not any(spends(quotas, limits, 1, NOW) for limits in everybody)


def test_ipv6_neighbours_and_those_without_an_address_share_a_bucket() -> None:
    quotas, app = Quotas(EVENTS_MAX), App(address_quota=quota(1, 1))
    for one, another in (("2001:db8:0:1::1", "2001:db8:0:1:ffff::"), (None, None)):
        quotas.spend(quotas.app_limits("shop", app, one), 1, NOW)
        assert not spends(quotas, quotas.app_limits("shop", app, another), 1, NOW)


@bounded
@given(rates, bursts, arrivals, st.floats(0, 1e6))
def test_a_clock_that_goes_back_does_no_harm(
    rate: float, burst: int, arrivals: list[tuple[float, float]], jump_s: float
) -> None:
    """Whoever was refused is admitted again when as much time has passed as after the largest of requests."""
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, rate, burst)
    now = NOW
    for now, events in played(arrivals, rate, burst, NOW):
        spends(quotas, limits, events, now)
    now -= jump_s
    admitted = sum(spends(quotas, limits, 1, now) for _ in range(20))
    assert admitted <= burst
    error = refusal(quotas.spend, limits, burst, now)
    if error is not None:
        now += max(burst, EVENTS_MAX) / rate + SLACK_S
        assert numbers(error.headers)["retry-after"] <= max(1, max(burst, EVENTS_MAX) / rate + 1)
        assert spends(quotas, limits, burst, now)


def test_a_reload_that_leaves_a_quota_leaves_what_was_spent() -> None:
    quotas = Quotas(EVENTS_MAX)
    quotas.spend(quotas.app_limits("shop", App(quota=quota(1, 5)), None), 5, NOW)
    limits = quotas.app_limits("shop", App(quota=quota(1, 5)), None)
    assert not spends(quotas, limits, 1, NOW)
    assert spends(quotas, quotas.app_limits("shop", App(), None), 1, NOW)
    assert not spends(quotas, quotas.app_limits("shop", App(quota=quota(1, 5)), None), 1, NOW)


def test_a_reload_is_noticed() -> None:
    quotas = Quotas(EVENTS_MAX)
    for burst in (5, 6):
        of_app = quotas.app_limits("shop", App(quota=quota(1, burst)), None)
        of_retriever = quotas.retriever_limits("shop", retriever(key_quota=quota(1, burst)), KEY, None)
        for limits in (of_app, of_retriever):
            assert numbers(quotas.spend(limits, 1, NOW))["ratelimit-limit"] == burst


@bounded
@given(st.tuples(rates, bursts), st.tuples(rates, bursts), st.integers(1, EVENTS_MAX))
def test_a_quota_that_changes_never_locks_anybody_out(
    before: tuple[float, int], after: tuple[float, int], events: int
) -> None:
    """For longer than the largest of requests would; and gives nobody more than a burst."""
    quotas = Quotas(EVENTS_MAX)
    old, new = limits_of(quotas, *before), limits_of(quotas, *after)
    quotas.spend(old, events, NOW)
    rate, burst = after
    owed_s_max = max(burst, EVENTS_MAX) / rate
    error = refusal(quotas.spend, new, burst, NOW)
    if error is None:
        assert not spends(quotas, new, 1, NOW)
    else:
        assert numbers(error.headers)["retry-after"] <= owed_s_max + 1
        assert spends(quotas, new, burst, NOW + owed_s_max + SLACK_S)


def flood(quotas: Quotas, app: App, addresses: int, now: float, s_each: float = 0.0) -> None:
    """An event of each; what an address looks like does not matter here."""
    for n in range(addresses):
        quotas.spend(quotas.app_limits("shop", app, str(n)), 1, now + n * s_each)


def test_a_million_addresses_are_not_remembered() -> None:
    quotas, app = Quotas(EVENTS_MAX), App(address_quota=quota(0.001, 10))
    flood(quotas, app, 1_000_000, NOW)
    assert quotas.entries("address") == ENTRIES_MAX
    assert quotas.displaced("address") == 1_000_000 - ENTRIES_MAX


def test_buckets_that_are_full_are_forgotten() -> None:
    """A thousand callers a second, each of whom has a full bucket again after one: a few thousand are remembered."""
    quotas, app = Quotas(EVENTS_MAX), App(address_quota=quota(1, 10))
    flood(quotas, app, 100_000, NOW, s_each=0.001)
    assert 1_000 <= quotas.entries("address") <= 1_000 * (EXAMINED + 2)
    assert quotas.displaced("address") == 0


def test_after_a_flood_room_is_made() -> None:
    quotas, app = Quotas(EVENTS_MAX, entries_max=10_000), App(address_quota=quota(1, 10))
    flood(quotas, app, 50_000, NOW)
    assert quotas.entries("address") == 10_000
    flood(quotas, app, 10_000, NOW + 60, s_each=0.001)
    assert quotas.entries("address") < 5_000


def test_a_flood_does_not_give_back_what_was_spent() -> None:
    """Of many more addresses than are remembered, those that have used up their quota stay remembered."""
    quotas, app = Quotas(EVENTS_MAX, entries_max=1_000), App(address_quota=quota(0.001, 10))
    hot = [quotas.app_limits("shop", app, f"203.0.113.{n}") for n in range(100)]
    for limits in hot:
        quotas.spend(limits, 10, NOW)
    flood(quotas, app, 100_000, NOW)
    assert quotas.entries("address") == 1_000
    assert not any(spends(quotas, limits, 1, NOW) for limits in hot)


def test_at_the_limit_one_gains_a_burst_at_most() -> None:
    """All that are remembered have used up their quota: some are forgotten, and the newcomers are not."""
    quotas, app = Quotas(EVENTS_MAX, entries_max=100), App(address_quota=quota(0.001, 10))
    everybody = [quotas.app_limits("shop", app, f"203.0.113.{n}") for n in range(150)]
    for limits in everybody:
        quotas.spend(limits, 10, NOW)
        assert refusal(quotas.admit, limits, NOW)
    assert quotas.entries("address") == 100
    assert quotas.displaced("address") == 50
    assert sum(refusal(quotas.admit, limits, NOW) is None for limits in everybody) == 50


def test_a_hot_address_does_not_affect_another() -> None:
    quotas, app = Quotas(EVENTS_MAX), App(address_quota=quota(1, 2))
    hot, calm = (quotas.app_limits("shop", app, address) for address in ("203.0.113.1", "203.0.113.2"))
    for second in range(20):
        admitted = sum(spends(quotas, hot, 1, NOW + second) for _ in range(1_000))
        assert admitted == (1 if second else 2)
        assert numbers(quotas.spend(calm, 1, NOW + second))["ratelimit-remaining"] == 1


def test_what_is_refused_leaves_no_entry() -> None:
    """So the quota of an app bounds what a flood of addresses can do."""
    quotas, app = Quotas(EVENTS_MAX), App(quota=quota(1, 10), address_quota=quota(1, 10))
    for n in range(1_000):
        limits = quotas.app_limits("shop", app, f"203.0.{n >> 8}.{n & 255}")
        assert spends(quotas, limits, 1, NOW) == (n < 10)
    assert quotas.entries("address") == 10


def test_names_without_end_are_not_remembered_either() -> None:
    quotas, app = Quotas(EVENTS_MAX, entries_max=50), App(quota=quota(1, 2))
    for n in range(1_000):
        limits = quotas.app_limits(f"shop-{n}", app, None)
        assert [spends(quotas, limits, 1, NOW) for _ in range(3)] == [True, True, False]
    assert quotas.entries("app") == 50
    assert len(quotas._apps) <= 50


def test_a_long_wait_is_announced_as_a_day() -> None:
    quotas = Quotas(EVENTS_MAX)
    limits = limits_of(quotas, 0.001, 1_000)
    assert numbers(quotas.spend(limits, 1_000, NOW))["ratelimit-reset"] == ANNOUNCED_S_MAX
    error: Any = refusal(quotas.spend, limits, 1_000, NOW)
    assert numbers(error.headers)["retry-after"] == ANNOUNCED_S_MAX
