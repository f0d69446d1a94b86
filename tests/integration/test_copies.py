"""A job's record that stands twice, as after a full restart of Kafka: a later owner must know that it has been run."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas import JobPriority, JobStatus
from streams.clients import admin_config, producer_config
from streams.producer import JobProducer
from streams.scan import scan
from streams.settings import Settings
from tests.support.audit import audit
from tests.support.jobs import Note
from tests.support.waiting import eventually
from tests.support.workers import Start, all_final, runs

pytestmark = [pytest.mark.distributed, pytest.mark.integration]


def write_again(settings: Settings) -> int:
    """Every record of the job topics gets a copy behind all others."""
    found: list[Message] = []
    scan(settings, list(settings.topics.jobs.values()), found.append, timeout_s=20)
    producer = Producer(producer_config(settings))
    for message in found:
        producer.produce(
            message.topic() or "",
            message.value(),
            message.key(),
            message.partition() or 0,
            headers=message.headers(),
        )
    assert producer.flush(20) == 0
    return len(found)


def run_by_a_predecessor(start: Start, producer: JobProducer, settings: Settings) -> list[str]:
    """Jobs that a worker has run to their end; it is gone."""
    ids = producer.schedule_jobs(Note(text=str(number)) for number in range(30))
    first = start("first")
    all_final(settings, ids, 60)
    assert first.terminate() == 0
    return ids


def test_what_a_predecessor_has_run_does_not_run_again_because_it_stands_twice(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    ids = run_by_a_predecessor(start, producer, provisioned)
    assert write_again(provisioned) == len(ids)
    more = producer.schedule_jobs(Note(text=str(number)) for number in range(20))
    heir = start("heir")
    assert set(all_final(provisioned, more, 60).values()) == {JobStatus.SUCCEEDED}
    eventually(
        lambda: sum(event["event"] == "copy of a record skipped" for event in heir.events()) == len(ids),
        30,
        "each copy is passed over",
    )
    assert sorted(run["id"] for run in runs(tmp_path)) == sorted([*ids, *more])
    found = audit(provisioned, [*ids, *more])
    assert (found.lost, found.forked, sorted(found.copied)) == ([], [], sorted(ids))


def test_a_log_whose_finished_records_are_removed_is_read_from_the_committed_offset(
    start: Start, producer: JobProducer, provisioned: Settings, tmp_path: Path
) -> None:
    ids = run_by_a_predecessor(start, producer, provisioned)
    topic = provisioned.topics.jobs[JobPriority.NORMAL]
    everything = [TopicPartition(topic, number, -1) for number in range(provisioned.partitions)]
    admin = AdminClient(admin_config(provisioned))
    for removed in admin.delete_records(everything).values():
        assert removed.result(20).low_watermark >= 0
    more = producer.schedule_jobs(Note(text=str(number)) for number in range(30))
    start("heir")
    assert set(all_final(provisioned, more, 60).values()) == {JobStatus.SUCCEEDED}
    assert len(runs(tmp_path)) == len(ids) + len(more)
