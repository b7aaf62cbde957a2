"""The intent in a commit's metadata: what was written is read back, what is not ours is never guessed at."""

import pytest
from structlog.testing import capture_logs

from consumer.batch import Range
from consumer.ledger import (
    METADATA_BYTES_MAX,
    Entry,
    Intent,
    UnreadableIntent,
    decode,
    encode_closed,
    insistently,
    is_open,
)
from consumer.repeats import Checkpoint
from consumer.source import KafkaUnavailable

REMEMBERED = Checkpoint(3, 29_922_140)


def test_an_intent_is_read_back() -> None:
    intent = Intent((Range(5, 9), Range(9, 12)), 1_795_328_400_123)
    assert decode(5, intent.encode()) == Entry(5, intent)


def test_what_is_remembered_is_read_back_with_an_intent_and_without_one() -> None:
    intent = Intent((Range(5, 9),), 1_795_328_400_123)
    assert decode(5, intent.encode(REMEMBERED)) == Entry(5, intent, REMEMBERED)
    assert decode(5, encode_closed(REMEMBERED)) == Entry(5, None, REMEMBERED)
    assert encode_closed(None) == ""


def test_only_an_intent_is_open() -> None:
    assert is_open(5, Intent((Range(5, 9),), 1).encode(REMEMBERED))
    assert not is_open(5, encode_closed(REMEMBERED))
    assert not is_open(5, "")
    assert is_open(5, "what is this?")


def test_an_intent_that_fills_a_commit_leaves_out_what_is_remembered() -> None:
    ranges = tuple(Range(10**9 + n, 10**9 + n + 1) for n in range(169))
    intent = Intent(ranges, 1_795_328_400_123)
    metadata = intent.encode(REMEMBERED)
    assert METADATA_BYTES_MAX - 30 < len(metadata) <= METADATA_BYTES_MAX
    assert decode(10**9, metadata) == Entry(10**9, intent, None)


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
        '{"v":1,"r":[],"t":0,"w":[6,1]}',
        '{"v":1,"r":[],"t":0,"w":[1]}',
        '{"v":1,"r":[],"t":0,"w":7}',
    ],
)
def test_what_is_not_ours_is_refused(metadata: str) -> None:
    with pytest.raises(UnreadableIntent):
        decode(5, metadata)


async def test_who_insists_says_what_he_waits_for() -> None:
    left = 2

    async def offsets_of(group: str) -> str:
        nonlocal left
        if left:
            left -= 1
            raise KafkaUnavailable("the coordinator loads")
        return group

    with capture_logs() as logs:
        assert await insistently(offsets_of, "g") == "g"
    assert [(entry["log_level"], entry["attempt"], entry["error"]) for entry in logs] == [
        ("warning", 1, "the coordinator loads"),
        ("warning", 2, "the coordinator loads"),
    ]
    assert all("offsets_of" in entry["call"] for entry in logs)
