"""A commit for a partition that was given away meanwhile. Kafka looks at the member's epoch, not at who owns the partition.

So it takes such a commit with metadata from after the revocation. A worker's order (metadata of the last assignment first,
then the filter, then exactly those metadata) never sends one.
"""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas import JobPriority, JobStatus
from streams.clients import producer_config, worker_consumer_config
from streams.committed import committed_offsets
from streams.producer import JobProducer
from streams.settings import Settings
from tests.support.audit import statuses
from tests.support.exactly_once import assert_exactly_once
from tests.support.jobs import Fails
from tests.support.waiting import eventually
from tests.support.workers import Start, all_final
from workers import WorkerConfig, WorkerManager
from workers.outcome import Outcome
from workers.transactions import Transactions

pytestmark = [pytest.mark.distributed, pytest.mark.integration]


class Member:
    """Of a group of its own; remembers what it has."""

    def __init__(self, settings: Settings, group: str) -> None:
        self.partitions: set[int] = set()
        self.consumer = Consumer(worker_consumer_config(settings, group))
        self.consumer.subscribe(
            [settings.topics.jobs[JobPriority.LOW]], on_assign=self._gained, on_revoke=self._gave
        )

    def _gained(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign([TopicPartition(tp.topic, tp.partition, 0) for tp in partitions])
        self.partitions |= {tp.partition for tp in partitions}

    def _gave(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_unassign(partitions)
        self.partitions -= {tp.partition for tp in partitions}


def test_kafka_takes_a_commit_for_another_members_partition_if_only_the_metadata_is_new(
    provisioned: Settings,
) -> None:
    """What the order of a worker's steps is for. If this fails one day, Kafka has become stricter."""
    topic, group = provisioned.topics.jobs[JobPriority.LOW], f"{provisioned.topic_prefix}fence"
    producer = Producer(producer_config(provisioned, transactional_id=f"{provisioned.topic_prefix}fence"))
    producer.init_transactions(20)
    one = Member(provisioned, group)
    members = [one]

    def shared() -> bool:
        """Everybody polls; whether all partitions are somebody's, and everybody has some."""
        for member in members:
            member.consumer.poll(0.05)
        numbers = [member.partitions for member in members]
        return all(numbers) and set().union(*numbers) == {0, 1, 2}

    try:
        eventually(shared, 30, "the first member has everything")
        had, before = set(one.partitions), one.consumer.consumer_group_metadata()
        members.append(Member(provisioned, group))
        eventually(shared, 30, "the second member has some")
        (given, *_) = had - one.partitions
        offset = [TopicPartition(topic, given, 7)]

        producer.begin_transaction()
        with pytest.raises(KafkaException) as refused:
            producer.send_offsets_to_transaction(offset, before, 10)
        assert refused.value.args[0].code() == KafkaError.ILLEGAL_GENERATION
        producer.abort_transaction(10)

        producer.begin_transaction()
        producer.send_offsets_to_transaction(offset, one.consumer.consumer_group_metadata(), 10)
        producer.commit_transaction(10)
        assert committed_offsets(provisioned, group, [(topic, given)], timeout_s=10) == {
            (topic, given): (7, "")
        }
    finally:
        for member in members:
            member.consumer.close()


async def test_a_worker_that_gave_partitions_away_between_two_steps_of_a_commit_writes_nothing_of_them(
    provisioned: Settings,
    start: Start,
    producer: JobProducer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its commit thread stands still for so long that another worker has run the jobs and told of them."""
    stands, goes_on = threading.Event(), threading.Event()
    held: set[str] = set()
    produce = Transactions._produce

    def slowly(self: Transactions, to: Producer, outcomes: list[Outcome]) -> None:
        """Metadata and filter lie behind us, the offsets before us."""
        retried = [outcome.message for outcome in outcomes if outcome.message and outcome.records]
        if len({message.part.partition for message in retried}) == 3 and not stands.is_set():
            held.update(message.job_id.decode() for message in retried)
            stands.set()
            assert goes_on.wait(60)
        produce(self, to, outcomes)

    monkeypatch.setattr(Transactions, "_produce", slowly)
    monkeypatch.setenv("RFW_TEST_LOG", str(tmp_path / "runs.jsonl"))
    config = WorkerConfig(worker_id="one", tick_ms=200, revoke_timeout=timedelta(milliseconds=500))
    async with WorkerManager(config, provisioned).register(Fails) as one:
        await asyncio.to_thread(
            eventually, lambda: len(one.process.poller.partitions) == 3, 30, "one has all"
        )
        ids = await asyncio.to_thread(producer.schedule_jobs, [Fails(times=1) for _ in range(30)])
        try:
            assert await asyncio.to_thread(stands.wait, 30)
            start("two")
            await asyncio.to_thread(
                eventually, lambda: held & told_by(provisioned, "two.0"), 40, "two has told of such a job"
            )
        finally:
            goes_on.set()
        final = await asyncio.to_thread(all_final, provisioned, ids, 60)
        assert set(final.values()) == {JobStatus.SUCCEEDED}
        events = one.process.events
    assert len(assert_exactly_once(provisioned, ids)) == 30
    assert events["stale_metadata"] >= 1
    assert events["fenced_outcomes"] >= 1


def told_by(settings: Settings, worker: str) -> set[str]:
    """Jobs that this worker has told of."""
    return {
        job_id for job_id, history in statuses(settings).items() if any(c.worker == worker for c in history)
    }
