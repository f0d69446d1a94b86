"""A fenced worker loses all it has and gets it back, and Kafka takes metadata from before that: its own filter is the fence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas import JobPriority
from streams.clients import producer_config, worker_consumer_config
from streams.committed import committed_offsets
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.group_members import describe_member
from streams.provision import provision
from streams.settings import Settings
from tests.support.deployments import settings_for
from tests.support.impostor import ASSIGNS_AT_ONCE, raise_epoch_twice
from tests.support.memory_directory import memory_directory
from tests.support.waiting import eventually

pytestmark = [pytest.mark.distributed, pytest.mark.integration]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with (
        memory_directory(tmp_path / "kafka") as directory,
        EmbeddedBroker(BrokerConfig(directory, heap_mb=512, extra=ASSIGNS_AT_ONCE)) as broker,
    ):
        settings = settings_for(broker, "fenced.", tmp_path)
        provision(settings)
        yield settings


def test_metadata_from_before_a_loss_commit_until_the_member_joins_again_and_after_it(
    settings: Settings,
) -> None:
    """KIP-1251: the partition counts from when it was assigned, and to Kafka it was the member's all the time."""
    topic, group = settings.topics.jobs[JobPriority.LOW], f"{settings.topic_prefix}fence"
    places = [(topic, number) for number in range(settings.partitions)]
    producer = Producer(producer_config(settings, transactional_id=f"{settings.topic_prefix}fence"))
    producer.init_transactions(20)
    consumer = Consumer(worker_consumer_config(settings, group))
    told: list[tuple[str, set[int]]] = []

    def epoch() -> int:
        member = asyncio.run(describe_member(settings, group, member_id))
        assert member is not None, "Kafka has forgotten it, and did not fence it"
        return member.epoch

    def commit(offset: int) -> None:
        producer.begin_transaction()
        producer.send_offsets_to_transaction([TopicPartition(*at, offset) for at in places], before, 10)
        producer.commit_transaction(10)
        assert committed_offsets(settings, group, places, timeout_s=10) == dict.fromkeys(places, (offset, ""))

    def gained(_: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign([TopicPartition(tp.topic, tp.partition, 0) for tp in partitions])
        told.append(("gained", {tp.partition for tp in partitions}))

    def lost(_: Consumer, partitions: list[TopicPartition]) -> None:
        told.append(("lost", {tp.partition for tp in partitions}))
        assert epoch() == raised
        commit(1)

    def heard(*news: str) -> bool:
        consumer.poll(0.05)
        return told == [(event, set(range(settings.partitions))) for event in news]

    try:
        consumer.subscribe([topic], on_assign=gained, on_lost=lost)
        eventually(lambda: heard("gained"), 30, "it has everything")
        member_id, before = consumer.memberid() or "", consumer.consumer_group_metadata()
        raised = asyncio.run(raise_epoch_twice(settings, group, member_id, epoch(), topic))
        eventually(lambda: heard("gained", "lost", "gained"), 30, "it lost everything and has it again")
        assert consumer.memberid() == member_id
        assert consumer.consumer_group_metadata() != before
        assert epoch() == raised
        commit(2)
    finally:
        consumer.close()
