"""What Kafka forgets with time: offsets of a group without members, and producers that were idle for a week."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from schemas import JobPriority, JobStatus
from schemas.errors import GroupNotInitialised
from schemas.topics import Partition
from streams.committed import committed_offsets
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings
from streams.transaction_log import TOPIC, key_of
from tests.support.deployments import read_all, settings_for
from tests.support.exactly_once import assert_exactly_once
from tests.support.expiry import commit_for
from tests.support.jobs import Fails, Note
from tests.support.memory_directory import memory_directory
from tests.support.waiting import eventually
from tests.support.workers import runs
from workers import WorkerConfig, WorkerManager

pytestmark = [pytest.mark.distributed, pytest.mark.integration, pytest.mark.thorough]

LIMIT = timedelta(seconds=40)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One that looks often for what has expired, and forgets producers soon."""
    forgetful = {
        "offsets.retention.check.interval.ms": "200",
        "transactional.id.expiration.ms": "2000",
        "transaction.remove.expired.transaction.cleanup.interval.ms": "200",
    }
    with (
        memory_directory(tmp_path_factory.mktemp("expiry")) as directory,
        EmbeddedBroker(BrokerConfig(directory, heap_mb=512, extra=forgetful)) as broker,
    ):
        yield broker


@pytest.fixture
def settings(broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("RFW_TEST_LOG", str(tmp_path / "runs.jsonl"))
    settings = settings_for(broker, f"e-{uuid4().hex[:8]}.", tmp_path)
    provision(settings)
    return settings


def manager(settings: Settings) -> WorkerManager:
    return WorkerManager(WorkerConfig(worker_id="w"), settings).register(Note, Fails)


def committed(settings: Settings) -> dict[Partition, tuple[int, str]]:
    places = [(topic, number) for topic in settings.topics.consumed for number in range(settings.partitions)]
    return committed_offsets(settings, settings.topics.group, places, timeout_s=10)


def expire(settings: Settings, lost: Mapping[Partition, tuple[int, str]]) -> None:
    commit_for(settings, lost, lasting_ms=1)
    eventually(lambda: not set(lost) & set(committed(settings)), 20, "the offsets have expired")


async def refuses(settings: Settings, reason: str) -> None:
    async with manager(settings) as worker:
        with pytest.raises(GroupNotInitialised, match=reason):
            await asyncio.wait_for(worker.wait(), 30)


async def test_without_its_offset_or_map_a_partition_is_not_started_and_nothing_runs_twice(
    settings: Settings,
) -> None:
    """From the first record on a week's jobs would run again, from the last one on those that wait would be lost."""
    async with JobQueue.connect(settings) as queue:
        ids = [await queue.schedule_job(Note()) for _ in range(9)]
        async with manager(settings):
            for job_id in ids:
                await queue.wait(job_id, LIMIT)
        ids += [await queue.schedule_job(Note()) for _ in range(9)]
    left = await asyncio.to_thread(committed, settings)
    place = (settings.topics.jobs[JobPriority.NORMAL], 1)
    offset, map_of_today = left[place]
    assert offset > 0

    await asyncio.to_thread(commit_for, settings, {place: (offset, "")})
    await refuses(settings, "without a map of version 3")
    await asyncio.to_thread(commit_for, settings, {place: (offset, f"9{map_of_today[1:]}")})
    await refuses(settings, "without a map of version 3")

    for lost, named in (({place}, f"{place[0]}/1"), (set(left), settings.topic_prefix)):
        await asyncio.to_thread(expire, settings, {place: left[place] for place in lost})
        assert not (await asyncio.to_thread(provision, settings)).group_initialised
        await refuses(settings, f"no committed offset for {named}")
    assert len(runs(settings.data_dir)) == 9

    # Whoever knows better sets them again.
    await asyncio.to_thread(commit_for, settings, left)
    async with JobQueue.connect(settings) as queue, manager(settings):
        for job_id in ids:
            await queue.wait(job_id, LIMIT)
    assert sorted(run["id"] for run in runs(settings.data_dir)) == sorted(ids)
    assert len(assert_exactly_once(settings, ids)) == 18


async def test_a_worker_that_kafka_has_forgotten_as_a_producer_goes_on_with_a_new_one(
    settings: Settings,
) -> None:
    def forgotten() -> bool:
        key = key_of(f"{settings.topic_prefix}worker.w.0")
        said = [
            entry.value() for entry in read_all(settings, TOPIC, read_committed=False) if entry.key() == key
        ]
        return bool(said) and said[-1] is None

    async with JobQueue.connect(settings) as queue, manager(settings) as worker:
        first = await queue.schedule_job(Fails(times=1))
        await queue.wait(first, LIMIT)
        await asyncio.to_thread(
            eventually, forgotten, 30, "Kafka has forgotten the worker's transactional id"
        )
        ids = [first, *[await queue.schedule_job(Fails(times=1)) for _ in range(9)]]
        for job_id in ids:
            assert (await queue.wait(job_id, LIMIT)).status is JobStatus.SUCCEEDED
        assert worker.process.events["ambiguous_commits"] >= 1
    assert len(assert_exactly_once(settings, ids)) == 10
    assert len(runs(settings.data_dir)) == 20
