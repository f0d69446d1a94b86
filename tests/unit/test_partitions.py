from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest
from aiokafka.partitioner import murmur2 as aiokafkas_murmur2
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import ids, partitions
from schemas.ids import new_job_id
from schemas.partitions import murmur2, partition_of, partition_of_id

pytestmark = pytest.mark.job_processing

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "partitions.json").read_text())


def test_a_hundred_keys_lie_where_javas_client_puts_them() -> None:
    """The file was written by Kafka's own Java client."""
    assert len(GOLDEN["keys"]) == 100
    placed = [[key, partition_of(bytes.fromhex(key), GOLDEN["partitions"])] for key, _ in GOLDEN["keys"]]
    assert placed == GOLDEN["keys"]


@given(st.binary(max_size=300))
@settings(max_examples=500)
def test_aiokafka_hashes_the_same(key: bytes) -> None:
    assert murmur2(key) == aiokafkas_murmur2(key) & 0xFFFFFFFF


@given(st.binary(max_size=600), st.integers(1, 1_000))
def test_a_key_lies_in_one_partition_always(key: bytes, count: int) -> None:
    first = partition_of(key, count)
    assert 0 <= first < count
    assert partition_of(key, count) == first == (murmur2(key) & 0x7FFFFFFF) % count


def test_keys_spread_evenly() -> None:
    counts = [0] * 12
    for number in range(12_000):
        counts[partition_of(f"bucket/object-{number}".encode(), 12)] += 1
    assert min(counts) > 850
    assert max(counts) < 1_150


@given(st.uuids(), st.integers(1, 1_000))
def test_any_uuid_lies_in_one_partition_always(job_id: UUID, count: int) -> None:
    """A user's own as well: what is scheduled again under it must lie where the first lies."""
    first = partition_of_id(str(job_id), count)
    assert 0 <= first < count
    assert partition_of_id(str(job_id), count) == first


@pytest.mark.parametrize("count", [1, 3, 12, 100])
def test_new_ids_go_to_one_partition_after_another(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(ids, "_turn", 7)  # where the turns begin anew, the counts differ by one
    placed = [partition_of_id(new_job_id(), count) for _ in range(count * 5)]
    assert Counter(placed) == dict.fromkeys(range(count), 5)


def test_long_keys_are_not_remembered() -> None:
    """Keys come from anyone; 16,384 remembered ones of a megabyte would be the end of the worker."""
    before = partitions._remembered.cache_info().currsize
    partition_of(b"x" * 1_000_000, 12)
    assert partitions._remembered.cache_info().currsize == before
