"""Inserts of batches that are not full stay under their rate, and nobody waits while there is room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.pace import BURST_S, Pace

NOW = 1_000.0


def test_a_burst_goes_at_once_and_the_others_in_turn() -> None:
    pace = Pace(8)
    assert [pace.next_at(NOW) - NOW for _ in range(11)] == pytest.approx([0] * 8 + [0.125, 0.25, 0.375])


def test_who_comes_seldom_never_waits() -> None:
    pace = Pace(0.5)
    assert [pace.next_at(NOW + 2 * n) for n in range(5)] == [NOW + 2 * n for n in range(5)]
    assert pace.next_at(NOW + 8) == NOW + 10


@given(per_second=st.floats(0.1, 100), steps=st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_the_rate_holds_over_any_time(per_second: float, steps: list[float]) -> None:
    pace, now, times = Pace(per_second), NOW, []
    for step in steps:
        now += step
        times.append(pace.next_at(now))
        assert times[-1] >= now
    assert times == sorted(times)
    most_at_once = max(1.0, BURST_S * per_second)
    for first, begin in enumerate(times):
        for count, end in enumerate(times[first:], 1):
            assert count <= most_at_once + (end - begin) * per_second + 1e-6


def test_a_time_that_is_not_used_goes_to_who_comes_next() -> None:
    pace = Pace(8)
    for _ in range(80):
        pace.next_at(NOW)
    last = pace.next_at(NOW)
    pace.give_back()
    assert pace.next_at(NOW) == pytest.approx(last)
    pace.forget()
    assert [pace.next_at(NOW) - NOW for _ in range(9)] == pytest.approx([0] * 8 + [0.125])


def test_giving_back_allows_no_more_at_once() -> None:
    pace = Pace(8)
    for _ in range(80):
        pace.next_at(NOW)
        pace.give_back()
    assert [pace.next_at(NOW + 60) - NOW - 60 for _ in range(9)] == pytest.approx([0] * 8 + [0.125])
