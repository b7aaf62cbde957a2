"""gateway.partitioner: the partition that any other client of Kafka would choose."""

from random import Random

import pytest
from aiokafka import partitioner as aiokafka_partitioner
from aiokafka.partitioner import DefaultPartitioner

from gateway.partitioner import murmur2, partition_of


@pytest.mark.parametrize("size", range(70))
def test_the_hash_is_aiokafkas(size: int) -> None:
    random = Random(size)
    for data in (bytes(size), b"\xff" * size, *(random.randbytes(size) for _ in range(50))):
        assert murmur2(data) == aiokafka_partitioner.murmur2(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_that_of_kafkas_java_client(data: bytes, expected: int) -> None:
    """Values that its own tests name (UtilsTest.testMurmur2)."""
    assert murmur2(data) == expected & 0xFFFFFFFF


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 64])
def test_the_partition_is_that_of_other_clients(partitions: int) -> None:
    choose, random = DefaultPartitioner(), Random(partitions)
    numbers = list(range(partitions))
    for _ in range(200):
        key = random.randbytes(random.randrange(1, 40))
        assert partition_of(key, partitions) == choose(key, numbers, numbers)
