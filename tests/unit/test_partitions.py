"""gateway.partitions: a key's partition is the one that every client of Kafka chooses for it."""

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as theirs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.partitions import murmur2, partition_of


@settings(max_examples=2_000, derandomize=True, deadline=None, database=None)
@given(key=st.binary(max_size=70))
@example(key=b"\xff" * 64)
def test_the_hash_is_that_of_aiokafka(key: bytes) -> None:
    assert murmur2(key) == theirs(key)


@pytest.mark.parametrize(
    ("key", "hash_"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_that_of_kafkas_own_tests(key: bytes, hash_: int) -> None:
    """`UtilsTest.testMurmur2` of the Java client."""
    assert murmur2(key) == hash_ % 2**32


@given(key=st.binary(max_size=70), partitions=st.integers(1, 100))
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_the_partition_is_that_of_aiokafka(key: bytes, partitions: int) -> None:
    numbers = list(range(partitions))
    assert partition_of(key, numbers) == DefaultPartitioner()(key, numbers, numbers)
