"""Keys on another partition than murmur2 says are counted, at a price that keyless jobs do not pay."""

from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from schemas import JobPriority
from schemas import partitions as partitions_module
from schemas.headers import Delivery, build
from schemas.offsetmap import OffsetMap
from schemas.partitions import partition_of
from schemas.topics import Topics
from tests.support.deployments import Sample
from tests.support.events import JOB_ID, job_value
from workers.consuming.key_places import SAMPLE, KeyPlaces
from workers.message import Message
from workers.offsets import PartitionState

pytestmark = pytest.mark.job_processing

TOPIC = Topics("p.").jobs[JobPriority.LOW]
COUNT = 3
KEY = b"bucket/key-5"
HOME = partition_of(KEY, COUNT)
ELSEWHERE = (HOME + 1) % COUNT
VALUE = job_value(Sample())


def message_at(partition: int, key: bytes | None = KEY, delivery: Delivery | None = None) -> Message:
    part = PartitionState(
        TOPIC, partition, OffsetMap(0), incarnation="i", transactional_id="t", lock=threading.Lock()
    )
    raw = build(delivery or Delivery("test_sample"))
    return Message(part, 0, key, VALUE, raw, 1_760_000_000_000, JobPriority.LOW, None)


def test_only_keys_that_lie_elsewhere_are_counted() -> None:
    places = KeyPlaces(COUNT)
    assert places.misplaced([message_at(HOME), message_at(ELSEWHERE), message_at(ELSEWHERE)]) == 2
    anywhere = [message_at(partition, JOB_ID.encode()) for partition in range(3)]
    assert places.misplaced([*anywhere, message_at(ELSEWHERE, None)]) == 0


def test_what_was_published_again_follows_its_record_and_is_not_counted_twice() -> None:
    places = KeyPlaces(COUNT)
    assert places.misplaced([message_at(ELSEWHERE, delivery=Delivery("t", attempt=2, delivery=1))]) == 0


def test_each_partition_and_type_is_told_once() -> None:
    places = KeyPlaces(COUNT)
    third = (HOME + 2) % 3
    with capture_logs() as logs:
        for _ in range(3):
            places.misplaced([message_at(ELSEWHERE), message_at(third)])
            places.misplaced([message_at(ELSEWHERE, delivery=Delivery("other"))])
    told = [(line["at"].split("/")[1], line["expected_partition"], line["type"]) for line in logs]
    assert told == [
        (str(ELSEWHERE), HOME, "test_sample"),
        (str(third), HOME, "test_sample"),
        (str(ELSEWHERE), HOME, "other"),
    ]


def test_a_flood_of_keys_costs_no_more_than_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    original = partitions_module.murmur2

    def counted(key: bytes) -> int:
        hashed.append(key)
        return original(key)

    monkeypatch.setattr(partitions_module, "murmur2", counted)
    keyless = [message_at(0, JOB_ID.encode())] * 1_000
    keyed = [message_at(0, b"bucket/flood-%d" % number) for number in range(4_000)]
    found = KeyPlaces(COUNT).misplaced([*keyless, *keyed])
    assert 0 < found < SAMPLE
    assert SAMPLE <= len(hashed) <= 2 * SAMPLE
    assert KeyPlaces(COUNT).misplaced(keyless) == 0
