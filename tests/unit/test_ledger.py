"""The intent in a commit's metadata: what was written is read back, what is not ours is never guessed at."""

import pytest

from consumer.batch import Range
from consumer.ledger import METADATA_BYTES_MAX, Entry, Intent, UnreadableIntent, decode


def test_an_intent_is_read_back() -> None:
    intent = Intent((Range(5, 9), Range(9, 12)), 1_795_328_400_123)
    assert decode(5, intent.encode()) == Entry(5, intent)


def test_no_metadata_means_nothing_is_open() -> None:
    assert decode(5, "") == Entry(5, None)


def test_a_hundred_ranges_of_huge_offsets_fit() -> None:
    first = 2**62
    ranges = tuple(Range(first + i, first + i + 1) for i in range(90))
    assert len(Intent(ranges, 1_795_328_400_123).encode()) <= METADATA_BYTES_MAX


@pytest.mark.parametrize(
    "metadata",
    [
        "x",
        "{}",
        "[]",
        '{"v":2,"r":[[5,9]],"t":1}',
        '{"v":1,"r":[[6,9]],"t":1}',
        '{"v":1,"r":[[5,5]],"t":1}',
        '{"v":1,"r":[[5,9],[10,12]],"t":1}',
        '{"v":1,"r":[[5]],"t":1}',
        '{"v":1,"r":5,"t":1}',
        '{"v":1,"r":[[5,9]]}',
    ],
)
def test_what_is_not_ours_is_refused(metadata: str) -> None:
    with pytest.raises(UnreadableIntent):
        decode(5, metadata)
