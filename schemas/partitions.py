"""Which partition a job belongs to: with a key by Java's murmur2, for every client and every language; without one by its id.

librdkafka's default (CRC32) puts most keys elsewhere than Java and aiokafka do; two producers that
disagree would put one object's jobs on two partitions, and they could run at the same time.
"""

from __future__ import annotations

from functools import lru_cache
from struct import unpack_from

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF
_LONGEST_REMEMBERED = 256

#: The name that librdkafka gives to this placement.
LIBRDKAFKA_PARTITIONER = "murmur2_random"


def murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bits, with the seed of Kafka's Java client (``o.a.kafka.common.utils.Utils``)."""
    length = len(data)
    h = _SEED ^ length
    words = length >> 2
    for k in unpack_from(f"<{words}I", data):
        k = k * _M & _MASK  # noqa: PLW2901 - the algorithm's own variable
        k ^= k >> 24  # noqa: PLW2901
        h = (h * _M & _MASK) ^ (k * _M & _MASK)
    rest = data[words << 2 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h ^= h >> 13
    h = h * _M & _MASK
    return h ^ (h >> 15)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of ``key`` among ``partitions``, as Kafka's Java client places it."""
    # Keys come from anyone: 16,384 remembered ones of the largest size would fill the memory.
    if len(key) > _LONGEST_REMEMBERED:
        return (murmur2(key) & 0x7FFFFFFF) % partitions
    return _remembered(key, partitions)


def partition_of_id(job_id: str, partitions: int) -> int:
    """The partition of a job that has no ordering key: its id's last 16 bits (``schemas.ids``), modulo ``partitions``.

    By the id alone: one that is scheduled again under the same id, since it may have been written, goes where the first went,
    and the worker there knows the second for a copy.
    """
    return int(job_id[-4:], 16) % partitions


@lru_cache(maxsize=16_384)
def _remembered(key: bytes, partitions: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % partitions
