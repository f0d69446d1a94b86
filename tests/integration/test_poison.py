"""Outcomes that Kafka refuses, beside others in the same transaction: they fail alone."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from schemas import Job, JobPriority, JobStatus
from streams.clients import admin_config
from streams.queue import JobQueue
from streams.settings import Settings
from tests.support.exactly_once import assert_exactly_once
from tests.support.jobs import QUICK, Fails, Note, Parent
from tests.support.workers import runs
from workers import WorkerConfig, WorkerContext, WorkerManager

pytestmark = [pytest.mark.worker_coordination, pytest.mark.integration]

LIMIT = timedelta(seconds=40)


@dataclass
class Bulky(Job):
    """Fails, and its retry takes as much room as itself."""

    job_type = "test_bulky"
    backoff = QUICK
    text: str = ""

    async def execute(self, context: WorkerContext) -> None:
        raise ValueError("again, please")


def limit_records(settings: Settings, size: int) -> None:
    """From now on the job topic takes no larger ones: somebody has changed it."""
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    topic = settings.topics.jobs[JobPriority.NORMAL]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(admin_config(settings))
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result(20)


async def test_an_outcome_that_kafka_refuses_becomes_a_dead_letter_and_holds_up_nobody(
    provisioned: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFW_TEST_LOG", str(tmp_path / "runs.jsonl"))
    async with JobQueue.connect(provisioned) as queue:
        good = [await queue.schedule_job(Fails(times=1)) for _ in range(10)]
        poison = [await queue.schedule_job(Bulky(text=os.urandom(30_000).hex())) for _ in range(2)]
        good += [await queue.schedule_job(Fails(times=1)) for _ in range(10)]
        good += [await queue.schedule_job(Parent(children=1)) for _ in range(5)]
        await asyncio.to_thread(limit_records, provisioned, 20_000)
        # A tick that is long enough for all of them to be in one transaction.
        manager = WorkerManager(WorkerConfig(worker_id="w", tick_ms=300), provisioned)
        async with manager.register(Fails, Bulky, Parent, Note):
            for job_id in good:
                assert (await queue.wait(job_id, LIMIT)).status is JobStatus.SUCCEEDED
            for job_id in poison:
                failed = await queue.wait(job_id, LIMIT)
                assert (failed.status, failed.error_type) == (JobStatus.FAILED, "OutcomeNotWritable")
            assert manager.process.events["not_writable"] == 2
    final = assert_exactly_once(provisioned, [*good, *poison])
    assert len(final) == 20 + 2 + 5 + 5
    assert len(runs(tmp_path)) == 2 * 20 + 5 + 5
