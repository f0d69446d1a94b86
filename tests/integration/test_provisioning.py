from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from schemas import JobPriority
from schemas.errors import KafkaUnreachable, TopicsMismatch
from schemas.offsetmap import EMPTY_MAP, parse
from streams.clients import (
    admin_config,
    aiokafka_config,
    producer_config,
    reader_config,
    worker_consumer_config,
)
from streams.committed import committed_offsets
from streams.group_setup import group_state, marker_key
from streams.provision import GroupTimes, check, group_times, provision
from streams.settings import Settings, load_settings
from streams.topic_rules import Level
from tests.support.deployments import read_all, settings_for
from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]


@pytest.fixture
def settings(kafka: Any, topic_prefix: str, tmp_path: Path) -> Settings:
    return settings_for(kafka, topic_prefix, tmp_path)


@pytest.fixture
def admin(settings: Settings) -> AdminClient:
    return AdminClient(admin_config(settings))


def test_everything_is_created_once_and_then_found(settings: Settings, admin: AdminClient) -> None:
    first = provision(settings)
    names = {spec.name for spec in settings.topics.specs(3)}
    assert set(first.created) == names
    assert first.group_initialised
    second = provision(settings)
    assert second.created == ()
    assert set(second.existing) == names
    assert not second.group_initialised
    known = admin.list_topics(timeout=10).topics
    assert len(known[settings.topics.jobs[JobPriority.LOW]].partitions) == 3
    assert [finding for finding in check(settings) if finding.level is Level.ERROR] == []


def test_two_at_once_agree(settings: Settings, admin: AdminClient) -> None:
    """Three start on an empty cluster: all succeed, one sets up the group, one marker is written."""
    reports: list[Any] = []
    gate = threading.Barrier(3)

    def run() -> None:
        gate.wait()
        reports.append(provision(settings))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(reports) == 3
    assert sum(report.group_initialised for report in reports) == 1
    created = [name for report in reports for name in report.created]
    assert sorted(created) == sorted(spec.name for spec in settings.topics.specs(3))
    markers = [
        m
        for m in read_all(settings, settings.topics.commands)
        if m.key() == marker_key(settings.topics.group)
    ]
    assert len(markers) == 1


def test_a_new_group_starts_at_the_log_start_with_an_empty_map(
    settings: Settings, admin: AdminClient
) -> None:
    report = provision(settings)
    state = group_state(settings, admin)
    assert state.missing == ()
    assert len(state.committed) == 3 * len(settings.topics.consumed)
    assert set(state.committed.values()) == {(0, EMPTY_MAP)}
    assert state.marker is not None
    assert state.marker.cluster_id == report.cluster_id
    assert parse(*state.committed[settings.topics.consumed[0], 0]).clean


def test_workers_join_such_a_group_and_find_offset_and_map_in_one_read(settings: Settings) -> None:
    provision(settings)
    found: list[TopicPartition] = []
    consumer = Consumer(worker_consumer_config(settings, settings.topics.group))

    def assigned(member: Consumer, partitions: list[TopicPartition]) -> None:
        found.extend(member.committed(partitions, timeout=20))

    consumer.subscribe(list(settings.topics.consumed), on_assign=assigned)
    deadline = time.monotonic() + 30
    try:
        while len(found) < 3 * len(settings.topics.consumed):
            assert time.monotonic() < deadline, f"{len(found)} partitions assigned"
            message = consumer.poll(0.1)
            assert message is None, message.error()
    finally:
        consumer.close()
    assert {(partition.offset, partition.metadata) for partition in found} == {(0, EMPTY_MAP)}


def test_a_pending_commit_is_waited_for_or_looked_past(settings: Settings) -> None:
    """Reading the older offset as if it were settled would run the newer transaction's jobs again."""
    provision(settings)
    group, topic = "a-group", settings.topics.consumed[0]
    nobody = Consumer({**reader_config(settings), "group.id": group})
    members = nobody.consumer_group_metadata()
    nobody.close()
    producer = Producer(producer_config(settings, transactional_id=f"{settings.topic_prefix}tx"))
    producer.init_transactions(20)
    for offset in (5, 9):
        producer.begin_transaction()
        producer.send_offsets_to_transaction([TopicPartition(topic, 0, offset, metadata="m")], members, 20)
        if offset == 5:
            producer.commit_transaction(20)
    asked = [(topic, 0), (topic, 1)]
    assert committed_offsets(settings, group, asked, timeout_s=10, stable=False) == {(topic, 0): (5, "m")}
    with pytest.raises(KafkaUnreachable):
        committed_offsets(settings, group, asked, timeout_s=0.5)
    producer.commit_transaction(20)
    assert committed_offsets(settings, group, asked, timeout_s=10) == {(topic, 0): (9, "m")}


def test_lost_offsets_are_told_and_never_made_up(settings: Settings, admin: AdminClient) -> None:
    """Offsets expire. Beginning again at the log start would run finished jobs a second time."""
    provision(settings)
    for deleted in admin.delete_consumer_groups([settings.topics.group]).values():
        deleted.result()
    assert not provision(settings).group_initialised
    assert group_state(settings, admin).committed == {}
    (problem,) = [finding for finding in check(settings) if finding.level is Level.ERROR]
    assert problem.subject == settings.topics.group
    assert "refuse to start" in problem.fact


def test_each_difference_is_listed_with_its_remedy_and_nothing_is_created(
    settings: Settings, admin: AdminClient
) -> None:
    low, dlq = settings.topics.jobs[JobPriority.LOW], settings.topics.dlq
    wrong = [
        NewTopic(low, 2, 1, config={"retention.ms": "1000"}),
        NewTopic(dlq, 3, 1, config={"cleanup.policy": "compact"}),
    ]
    for made in admin.create_topics(wrong).values():
        made.result()
    # Creation is acknowledged by the controller; the broker that is asked next learns of it a moment later.
    eventually(lambda: {low, dlq} <= set(admin.list_topics(timeout=10).topics), 10, "both topics are known")
    with pytest.raises(TopicsMismatch) as refused:
        provision(settings)
    words = str(refused.value)
    assert f"{low}: has 2 partition(s), not 3" in words
    assert f"{low}: retention.ms is 1000, not -1; kafka-configs.sh" in words
    assert f"{dlq}: cleanup.policy is compact, not delete" in words
    assert settings.topics.status not in admin.list_topics(timeout=10).topics
    levels = {(finding.subject, finding.level) for finding in check(settings)}
    assert {(low, Level.ERROR), (dlq, Level.ERROR), (settings.topics.status, Level.ERROR)} <= levels


def test_a_topic_that_changed_later_is_refused(settings: Settings, admin: AdminClient) -> None:
    provision(settings)
    entry = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(
        ResourceType.TOPIC, settings.topics.jobs[JobPriority.HIGH], incremental_configs=[entry]
    )
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result()
    with pytest.raises(TopicsMismatch, match=r"retention\.ms is 60000, not -1"):
        provision(settings)


def test_more_copies_than_brokers_is_refused_by_the_settings_name(
    kafka: Any, topic_prefix: str, tmp_path: Path
) -> None:
    settings = settings_for(kafka, topic_prefix, tmp_path, replication_factor=5)
    with pytest.raises(TopicsMismatch, match="RUSTFS_WORKERS_REPLICATION_FACTOR"):
        provision(settings)


def test_the_groups_session_and_heartbeats_are_known(settings: Settings, admin: AdminClient) -> None:
    provision(settings)
    assert group_times(settings, admin) == GroupTimes(session_ms=6_000, heartbeat_ms=500)


async def test_a_map_stands_in_kafka_with_the_zero_behind_it(settings: Settings) -> None:
    """librdkafka (2.16) copies a map without looking for its end, and reads on where none is: the wire must bring it."""
    provision(settings)
    admin = AIOKafkaAdminClient(**aiokafka_config(settings))
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets(settings.topics.group)
    finally:
        await admin.close()
    assert found
    assert {known.metadata for known in found.values()} == {EMPTY_MAP + "\0"}


def test_an_absent_broker_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.provision._KAFKA_S", 1.0)
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", data_dir=tmp_path)
    with pytest.raises(KafkaUnreachable):
        provision(settings)
