"""What a reading of the topics keeps in memory: a few of a million jobs are shown, and their payloads do not fit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from schemas import JobPriority, JobStatus
from schemas.codec import Codec
from schemas.records import StatusChange, StatusWriter
from streams import reader as reader_module
from streams import scan as scan_module
from streams.jobinfo import JobInfo, JobState
from streams.outgoing import JobOptions, Rules, plan
from streams.reader import JobFilter, JobReader, KeptRecords
from streams.scan import records_at
from streams.settings import Settings, load_settings
from tests.support.deployments import Sample

pytestmark = pytest.mark.job_processing

NOW = 1_700_000_000_000
PARTITIONS = 4


class Broker:
    """librdkafka's own, which lives in a client: it stores records and gives them back."""

    def __init__(self) -> None:
        self._producer = Producer({"test.mock.num.brokers": 1, "log_level": 3})
        brokers = self._producer.list_topics(timeout=10).brokers.values()
        (address,) = {f"{broker.host}:{broker.port}" for broker in brokers}
        self.settings = load_settings(kafka_bootstrap_servers=address, topic_prefix="p.")
        topics = self.settings.topics
        for topic in (*topics.consumed, topics.status, topics.schemas):
            self._producer.list_topics(topic, timeout=10)  # makes it

    def add(
        self, topic: str, number: int, key: bytes, value: bytes, headers: Any = None, at: int = NOW
    ) -> None:
        self._producer.produce(topic, value, key, number, headers=headers or [], timestamp=at)

    def flush(self) -> None:
        assert self._producer.flush(30) == 0


@pytest.fixture(scope="module")
def broker() -> Broker:
    """With 300 jobs, most of them finished."""
    broker = Broker()
    codec = Codec()
    rules, statuses = Rules(codec, broker.settings.topics), StatusWriter(codec)
    for number in range(300):
        path = f"{number}".rjust(2_000, "x")
        made = plan(Sample(path=path), JobOptions(JobPriority.LOW), NOW + number, rules)
        broker.add(made.topic, number % PARTITIONS, made.key, made.value, made.headers, NOW + number)
        if number % 3:
            size = 600 if number % 2 else 1
            change = StatusChange(
                made.job_id,
                None,
                NOW + number + 5,
                NOW + number,
                NOW + number + 1,
                JobStatus.SUCCEEDED if number % 3 == 1 else JobStatus.FAILED,
                Sample.job_type,
                JobPriority.LOW,
                1,
                0,
                output=f'{{"n": "{number:0{size}}"}}' if number % 3 == 1 else None,
                error_message="no" * size if number % 3 == 2 else None,
                metrics={"n": number},
            )
            broker.add(broker.settings.topics.status, number % PARTITIONS, made.key, statuses.encode(change))
    broker.flush()
    return broker


@pytest.fixture
def reader(broker: Broker) -> Iterator[JobReader]:
    reader = JobReader(broker.settings, Codec())
    yield reader
    reader.close()


def listed(reader: JobReader, which: JobFilter) -> list[JobInfo]:
    listing = reader.list_jobs(which, timeout_s=30)
    assert not listing.stale
    return list(listing)


@pytest.mark.parametrize("kept_bytes", [0, 20_000, 1 << 30])
@pytest.mark.parametrize(
    "which",
    [JobFilter(limit=7), JobFilter(JobStatus.FAILED, limit=120), JobFilter(limit=400), JobFilter(limit=0)],
    ids=str,
)
def test_a_listing_tells_the_same_whatever_it_kept(
    reader: JobReader, monkeypatch: pytest.MonkeyPatch, which: JobFilter, kept_bytes: int
) -> None:
    """Without a limit everything is kept, and nothing read twice."""
    everything = listed(reader, JobFilter(which.status, limit=None))
    assert len(everything) == (300 if which.status is None else 100)
    monkeypatch.setattr(reader_module, "_KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(scan_module, "_NEAR", 10)
    assert listed(reader, which) == everything[: which.limit]


def test_a_listing_whose_time_is_up_says_so_and_tells_the_rest(
    reader: JobReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_KEPT_BYTES", 0)
    monkeypatch.setattr(reader_module, "records_at", lambda *_, **__: ({}, False))
    listing = reader.list_jobs(JobFilter(limit=3), timeout_s=30)
    assert listing.stale
    assert [info.status for info in listing] == [JobStatus.FAILED, JobStatus.SUCCEEDED, JobStatus.PENDING]
    assert [info.fields for info in listing] == [None] * 3


def test_statistics_keep_no_payload(reader: JobReader, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[JobState] = []
    living = reader_module.Seen.living

    def look(seen: reader_module.Seen) -> Any:
        states.extend(state for _, state in living(seen))
        return living(seen)

    monkeypatch.setattr(reader_module.Seen, "living", look)
    statistics = reader.statistics()
    assert statistics.by_status == dict.fromkeys(
        (JobStatus.PENDING, JobStatus.SUCCEEDED, JobStatus.FAILED), 100
    )
    assert len(states) == 300
    assert {state.event.value for state in states if state.event is not None} == {b""}
    changes = [state.status.change for state in states if state.status is not None]
    assert max(len(change.output or "") + len(change.error_message or "") for change in changes) < 20


def test_records_are_found_wherever_they_stand_and_what_is_gone_is_left_out(broker: Broker) -> None:
    topic = "elsewhere"
    broker._producer.list_topics(topic, timeout=10)
    for number in range(3_000):
        broker.add(topic, number % 2, b"k", b"%d" % number)
    broker.flush()
    random.seed(7)
    offsets = {*random.sample(range(1_500), 20), 0, 1, 2, 1_498, 1_499}
    places = [(topic, number, offset) for number in (0, 1) for offset in offsets]
    gone = (topic, 1, 9_000)
    found, in_time = records_at(broker.settings, [*places, gone], timeout_s=30)
    assert in_time
    assert found == {place: b"%d" % (2 * place[2] + place[1]) for place in places}
    assert records_at(broker.settings, [], timeout_s=30) == ({}, True)


def test_records_that_nobody_gives_in_time_are_missing() -> None:
    nobody = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    assert records_at(nobody, [("t", 0, 0)], timeout_s=0.3) == ({}, False)


def test_what_is_kept_is_what_was_read_last_up_to_a_limit() -> None:
    kept = KeptRecords(10_000)
    for offset in range(100):
        kept.keep(("t", 0, offset), b"x" * 700)
    assert [offset for offset in range(100) if kept.get(("t", 0, offset)) is not None] == list(range(90, 100))
    kept.keep(("t", 0, 100), b"x" * 20_000)
    assert kept.get(("t", 0, 100)) is None, "too large"
    kept.keep(("t", 0, 101), b"x")
    assert kept.get(("t", 0, 101)) == b"x"
