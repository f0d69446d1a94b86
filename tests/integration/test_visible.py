"""Which records of a transaction stand in Kafka: what readers would get, and nothing else."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Producer

from schemas.errors import ReadIncomplete
from schemas.headers import RawHeaders
from schemas.topics import TIERS
from streams.clients import producer_config
from streams.settings import Settings
from streams.visible import Written, visible_records
from tests.support.raw_batches import produce_with_a_bad_header_name

pytestmark = [pytest.mark.distributed, pytest.mark.integration]

KEY = b"01a20bd1-1946-743e-922d-c32f1fd9b001"


@pytest.fixture
def transactional(provisioned: Settings) -> Producer:
    made = Producer(producer_config(provisioned, transactional_id=f"{provisioned.topic_prefix}visible"))
    made.init_transactions(20)
    return made


def write(producer: Producer, *records: Written) -> None:
    for topic, partition, key, value, headers in records:
        producer.produce(topic, value, key, partition, headers=list(headers))
    producer.flush(10)


def record(
    settings: Settings, value: bytes, headers: RawHeaders | None = None, partition: int = -1
) -> Written:
    return Written.of(settings.topics.status, partition, KEY, value, headers)


def look(settings: Settings, *records: Written, since_ms: int = 0) -> set[Written]:
    return visible_records(settings, records, since_ms, timeout_s=8)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_what_was_committed_is_there_as_it_was_written(
    provisioned: Settings, transactional: Producer
) -> None:
    written = [
        record(provisioned, b"plain"),
        record(provisioned, b"", [("a", b""), ("a", b"\xff"), ("ü", b"2")]),
        record(provisioned, b"elsewhere", partition=1),
        Written.of(provisioned.topics.retry[TIERS[0]], 0, KEY, b"stamped by the broker", [("x", b"1")]),
        Written.of(provisioned.topics.dlq, 0, None, None, [("no", b"key")]),
    ]
    began_ms = now_ms()
    transactional.begin_transaction()
    write(transactional, *written)
    transactional.commit_transaction(10)
    absent = [
        record(provisioned, b"plain", [("a", b"1")]),
        record(provisioned, b"Plain"),
        Written.of(provisioned.topics.status, -1, b"another key", b"plain", None),
    ]
    assert look(provisioned, *written, *absent, since_ms=began_ms) == set(written)
    assert look(provisioned, *written, since_ms=now_ms() + 60_000) == set()
    assert look(provisioned) == set()


def test_what_was_aborted_is_not(provisioned: Settings, transactional: Producer) -> None:
    transactional.begin_transaction()
    write(transactional, record(provisioned, b"one"))
    transactional.abort_transaction(10)
    assert look(provisioned, record(provisioned, b"one")) == set()


def test_what_may_still_be_committed_is_not_answered(provisioned: Settings, transactional: Producer) -> None:
    one, other = record(provisioned, b"one"), record(provisioned, b"other", partition=1)
    transactional.begin_transaction()
    write(transactional, one)
    with pytest.raises(ReadIncomplete):
        visible_records(provisioned, {one}, 0, timeout_s=4)
    assert look(provisioned, other) == set(), "nobody's transaction is open there"
    transactional.commit_transaction(10)
    assert look(provisioned, one) == {one}


async def test_a_strange_record_of_the_same_key_and_value_is_passed_by(
    provisioned: Settings, transactional: Producer
) -> None:
    """confluent-kafka fails at header names that are no UTF-8, and at none."""
    one = record(provisioned, b"one", [("a", b"1")], partition=0)
    await produce_with_a_bad_header_name(provisioned, one.topic, b"one", KEY, [])
    assert look(provisioned, one) == set()
    transactional.begin_transaction()
    write(transactional, one)
    transactional.commit_transaction(10)
    assert look(provisioned, one) == {one}
