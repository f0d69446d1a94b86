"""How long ``JobQueue.wait`` waits: at least for one look at the topics, and then for what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.codec import Codec
from schemas.lifecycle import JobStatus
from streams.jobinfo import JobState, StatusSeen
from streams.queue import JobQueue
from streams.reader import JobNotFound
from streams.settings import load_settings
from tests.support.statuses import JOB_ID, status

pytestmark = pytest.mark.job_processing

PLACE = ("t.jobs.status", 0, 5)
FINAL = StatusSeen(status(JobStatus.SUCCEEDED), PLACE)
RUNNING = StatusSeen(status(JobStatus.RETRYING), PLACE)


def queue_that_reads(state: JobState, heard: StatusSeen | None = None) -> JobQueue:
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    queue = JobQueue(
        cast("Any", SimpleNamespace(outbox=None, settings=settings, codec=Codec())), timedelta(seconds=1)
    )

    @asynccontextmanager
    async def listening(_: str, listener: Callable[[StatusSeen], None]) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        if heard is not None:
            listener(heard)
        yield

    queue._watch = cast("Any", SimpleNamespace(listening=listening))
    queue._reader = cast("Any", SimpleNamespace(state_of=lambda _: state, info=info))
    return queue


def info(job_id: str, state: JobState) -> str:
    if state.gone:
        raise JobNotFound(job_id)
    return job_id


@pytest.mark.parametrize("limit", [timedelta(0), timedelta(microseconds=1)])
async def test_a_job_that_is_final_is_returned_however_short_the_limit_is(limit: timedelta) -> None:
    assert cast("Any", await queue_that_reads(JobState(status=FINAL)).wait(JOB_ID, limit)) == JOB_ID
    heard_meanwhile = queue_that_reads(
        JobState(status=RUNNING), StatusSeen(FINAL.change, ("t.jobs.status", 0, 6))
    )
    assert cast("Any", await heard_meanwhile.wait(JOB_ID, limit)) == JOB_ID


async def test_a_job_that_is_not_final_is_waited_for_no_longer_than_the_limit() -> None:
    for limit in (timedelta(0), timedelta(milliseconds=20)):
        with pytest.raises(TimeoutError):
            await queue_that_reads(JobState(status=RUNNING)).wait(JOB_ID, limit)


async def test_a_job_of_which_there_is_nothing_is_not_waited_for() -> None:
    with pytest.raises(JobNotFound):
        await queue_that_reads(JobState()).wait(JOB_ID, timedelta(0))
