"""gateway.answers: bodies about events."""

import pytest

from gateway import answers


@pytest.mark.parametrize("durability", [b"kafka", b"spool"])
@pytest.mark.parametrize("count", [1, 2, 11, 1_000])
def test_results_of_a_whole_batch_are_those_of_its_events(count: int, durability: bytes) -> None:
    for first in (0, 7):  # the second time the batch's length is known
        ids = [b"id-%d" % (first + number) for number in range(count)]
        expected = [answers.accepted_result(index, id_, durability, ()) for index, id_ in enumerate(ids)]
        assert answers.accepted_results(ids, durability) == b",".join(expected)
