"""Which partition a key belongs to, as every client of Kafka decides it.

The hash is MurmurHash2 (Austin Appleby) with the seed of Kafka's Java client (`Utils.murmur2`). aiokafka has it, too,
and takes twice as long for it: 5 microseconds for a UUID, a third of what an event with an id costs in a batch.
"""

from struct import unpack_from

_SEED = 0x9747B28C
_M = 0x5BD1E995
_32_BITS = 0xFFFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """Of so many, which Kafka counts from 0, without a gap."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """32 bits."""
    size = len(data)
    in_words = size & ~3
    hash_ = _SEED ^ size
    for word in unpack_from(f"<{in_words >> 2}I", data):
        word = word * _M & _32_BITS
        hash_ = (hash_ * _M & _32_BITS) ^ ((word ^ word >> 24) * _M & _32_BITS)
    if in_words != size:
        hash_ = (hash_ ^ int.from_bytes(data[in_words:], "little")) * _M & _32_BITS
    hash_ = (hash_ ^ hash_ >> 13) * _M & _32_BITS
    return hash_ ^ hash_ >> 15
