"""A cluster of three brokers, each of which dies once while jobs are accepted and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AdminClient,
    ConfigResource,
    ResourceType,
)

from schemas import JobStatus
from streams.clients import admin_config
from streams.embedded import EmbeddedCluster
from streams.producer import JobProducer
from streams.provision import check, provision
from streams.scan import LATEST, informed_admin, offsets
from streams.settings import Settings
from streams.topic_rules import Level
from tests.support.audit import audit
from tests.support.deployments import settings_for
from tests.support.jobs import Fails, Note, Waits
from tests.support.memory_directory import memory_directory
from tests.support.waiting import eventually
from tests.support.workers import all_final, runs, workers

pytestmark = [pytest.mark.distributed, pytest.mark.integration, pytest.mark.thorough]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    with (
        memory_directory(tmp_path_factory.mktemp("cluster")) as directory,
        EmbeddedCluster(directory) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def settings(cluster: EmbeddedCluster, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_for(cluster, "three.", tmp_path_factory.mktemp("data"))
    provision(settings)
    return settings


def test_topics_are_held_three_times_and_two_copies_acknowledge(settings: Settings) -> None:
    assert [finding for finding in check(settings) if finding.level is not Level.OK] == []
    admin = AdminClient(admin_config(settings))
    known = admin.list_topics(timeout=10).topics
    ours = [name for name in known if name.startswith("three.")]
    internal = ["__consumer_offsets", "__transaction_state"]
    assert len(ours) == len(settings.topics.specs(settings.partitions))
    for name in (*ours, *internal):
        assert {len(partition.replicas) for partition in known[name].partitions.values()} == {3}, name
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in (*ours, *internal)]
    for resource, answer in admin.describe_configs(asked).items():
        assert answer.result(10)["min.insync.replicas"].value == "2", resource.name


def test_a_client_whose_broker_dies_is_told_log_ends_by_the_new_leaders(
    cluster: EmbeddedCluster, settings: Settings
) -> None:
    """It asked the dead one again and again: `dlq redrive` stood still for five minutes, with Kafka there all the time."""
    admin = informed_admin(settings, 30)
    partitions = [(settings.topics.status, number) for number in range(settings.partitions)]
    leaders = admin.list_topics(timeout=10).topics[settings.topics.status].partitions
    known = offsets(settings, admin, partitions, LATEST, timeout_s=30)
    broker = cluster[leaders[0].leader]
    broker.kill()
    try:
        assert offsets(settings, admin, partitions, LATEST, timeout_s=60) == known
    finally:
        broker.start()


def test_what_runs_goes_on_when_a_broker_dies_that_does_not_coordinate_the_group(
    cluster: EmbeddedCluster, settings: Settings, tmp_path: Path
) -> None:
    """Until the controller gives it up, nothing is acknowledged and nothing new can be read: a worker without a backlog hears
    nothing for longer than its lease, and would cancel what may be hours of work."""
    go = tmp_path / "go"
    with JobProducer(settings) as producer, workers(settings, tmp_path) as start:
        worker = start("calm")
        (long,) = producer.schedule_jobs([Waits(until=str(go), limit_s=200)])
        eventually(lambda: runs(tmp_path), 60, "it has begun")
        coordinator = _coordinator(settings)
        victim = next(node_id for node_id in cluster.node_ids if node_id != coordinator)
        cluster[victim].kill()
        (short,) = producer.schedule_jobs([Note(text="accepted when the dead one is missed")])
        all_final(settings, [short], 60)
        assert [run["what"] for run in runs(tmp_path) if run["id"] == long] == ["started"]
        assert worker.said("still a member, though nothing else is heard of Kafka")
        go.touch()
        assert all_final(settings, [long], 60)[long] is JobStatus.SUCCEEDED
        cluster[victim].start()
    assert [run["what"] for run in runs(tmp_path) if run["id"] == long] == ["started", "ended"]


def _coordinator(settings: Settings) -> int:
    group = settings.topics.group
    admin = AdminClient(admin_config(settings))  # without a name it would be gone before the answer
    found = admin.describe_consumer_groups([group])[group].result(10).coordinator.id
    assert isinstance(found, int)
    return found


@pytest.mark.timeout(300)  # each of the three waits has a limit of its own
def test_each_broker_may_die_while_jobs_are_accepted_and_run(
    cluster: EmbeddedCluster, settings: Settings, tmp_path: Path
) -> None:
    """Whichever of them leads the transactions, the group or the jobs: it is among the three."""
    with JobProducer(settings) as producer, workers(settings, tmp_path) as start:
        start("one")
        start("two")
        ids: list[str] = []
        for node_id in cluster.node_ids:
            ids += producer.schedule_jobs(Note(text=str(number)) for number in range(300))
            cluster[node_id].kill()
            ids += producer.schedule_jobs(Note(text=str(number)) for number in range(300))
            ids += producer.schedule_jobs(Fails(times=1) for _ in range(20))
            assert set(all_final(settings, ids, 90).values()) == {JobStatus.SUCCEEDED}
            cluster[node_id].start()
    found = audit(settings, ids)
    assert (found.lost, found.forked) == ([], [])
