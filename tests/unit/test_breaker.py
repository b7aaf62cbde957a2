"""gateway.breaker: when to try Kafka, decided from outcomes and times alone."""

import pytest

from gateway.breaker import CONSECUTIVE_MAX, COOL_DOWN_S, PROBE_S_MAX, WINDOW, Breaker

FIRST_S, LONGEST_S = COOL_DOWN_S


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(CONSECUTIVE_MAX):
        breaker.record(False, now)
    assert breaker.is_open
    return breaker


def test_closed_it_admits_everything() -> None:
    breaker = Breaker()
    assert not breaker.is_open
    assert all(breaker.admits(now) for now in (0.0, 0.0, 1e9))


def test_opens_on_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(CONSECUTIVE_MAX - 1):
        breaker.record(False, 0.0)
        assert not breaker.is_open
    breaker.record(False, 0.0)
    assert breaker.is_open
    assert not breaker.admits(0.0)


def test_a_success_begins_the_row_anew() -> None:
    breaker = Breaker()
    for _ in range(5):
        for _ in range(CONSECUTIVE_MAX - 1):
            breaker.record(False, 0.0)
        for _ in range(CONSECUTIVE_MAX - 1):
            breaker.record(True, 0.0)
    assert not breaker.is_open


def test_opens_when_most_of_the_last_outcomes_failed() -> None:
    breaker = Breaker()
    outcomes = [success for _ in range(WINDOW) for success in (False, False, True)]
    for n, success in enumerate(outcomes):
        assert breaker.is_open == (n >= WINDOW)  # 13 of the first 20 failed, and never three in a row
        breaker.record(success, 0.0)
        if breaker.is_open:
            break
    assert n == WINDOW - 1
    assert breaker.is_open


def test_half_of_the_last_outcomes_may_fail_for_ever() -> None:
    breaker = Breaker()
    for n in range(10 * WINDOW):
        breaker.record(n % 2 == 0, float(n))
    assert not breaker.is_open


def test_one_probe_after_the_cool_down() -> None:
    breaker = opened(now=100.0)
    assert not breaker.admits(100.0 + FIRST_S - 0.001)
    assert breaker.admits(100.0 + FIRST_S)
    assert not breaker.admits(100.0 + FIRST_S)
    assert not breaker.admits(100.0 + FIRST_S + PROBE_S_MAX - 0.001)
    assert breaker.is_open


def test_a_probe_that_was_never_answered_is_forgotten() -> None:
    breaker = opened()
    assert breaker.admits(FIRST_S)
    assert breaker.admits(FIRST_S + PROBE_S_MAX)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    assert breaker.admits(FIRST_S)
    breaker.record(True, 1.0)
    assert not breaker.is_open
    assert all(breaker.admits(1.0) for _ in range(10))


def test_a_success_closes_it_at_any_time() -> None:
    """What was under way when it opened counts as a probe."""
    breaker = opened()
    breaker.record(True, 0.001)
    assert not breaker.is_open
    assert breaker.admits(0.001)


def test_each_probe_that_fails_begins_a_longer_cool_down() -> None:
    breaker, now, cool_downs = opened(), 0.0, []
    for _ in range(8):
        began = now
        while not breaker.admits(now):
            now += 0.25
        cool_downs.append(now - began)
        breaker.record(False, now)
    assert cool_downs == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert (cool_downs[0], cool_downs[-1]) == (FIRST_S, LONGEST_S)


def test_once_closed_it_starts_afresh() -> None:
    breaker = opened()
    for _ in range(WINDOW):
        breaker.record(False, 0.0)
    breaker.record(True, 0.0)
    for _ in range(CONSECUTIVE_MAX - 1):  # neither the row nor the window remembers
        breaker.record(False, 50.0)
        assert not breaker.is_open
    breaker.record(False, 50.0)
    assert breaker.is_open
    assert not breaker.admits(50.0 + FIRST_S - 0.001)
    assert breaker.admits(50.0 + FIRST_S)  # the shortest cool-down again


@pytest.mark.parametrize("late", range(1, 5))
def test_failures_that_arrive_while_it_is_open_put_the_probe_off(late: int) -> None:
    """They were under way when it opened."""
    breaker = opened()
    for _ in range(late):
        breaker.record(False, 0.0)
    retry_at = min(FIRST_S * 2**late, LONGEST_S)
    assert not breaker.admits(retry_at - 0.001)
    assert breaker.admits(retry_at)
