"""What handlers leave behind in their worker keeps it neither from leaving nor from ending. Real processes."""

from __future__ import annotations

import pytest

from schemas import Job, JobStatus
from streams.producer import JobProducer
from streams.settings import Settings
from tests.support.jobs import Note
from tests.support.leftovers import (
    ExitsInACallback,
    ExitsInATask,
    FillsAsynciosThreads,
    LeavesATask,
    LeavesAThread,
)
from tests.support.waiting import eventually
from tests.support.workers import Start, all_final

pytestmark = [pytest.mark.worker_coordination, pytest.mark.integration]

_IMPORTS = ("--import", "tests.support.leftovers")


@pytest.mark.parametrize(
    ("job", "count", "end"),
    [
        # More than asyncio has threads on any machine.
        pytest.param(FillsAsynciosThreads(), 40, JobStatus.FAILED, id="asyncio's threads"),
        pytest.param(LeavesAThread(), 1, JobStatus.SUCCEEDED, id="a thread"),
        pytest.param(LeavesATask(), 1, JobStatus.SUCCEEDED, id="a task"),
    ],
)
def test_a_worker_that_is_told_to_leaves_and_ends(
    provisioned: Settings, start: Start, producer: JobProducer, job: Job, count: int, end: JobStatus
) -> None:
    worker = start("w", *_IMPORTS)
    ids = producer.schedule_jobs([job] * count)
    assert set(all_final(provisioned, ids, 60).values()) == {end}
    assert worker.terminate() == 0
    assert worker.said("worker drained")


def test_exit_in_a_task_is_the_end_of_its_job_and_of_nothing_else(
    provisioned: Settings, start: Start, producer: JobProducer
) -> None:
    worker = start("w", *_IMPORTS)
    ids = [producer.schedule_job(ExitsInATask()), producer.schedule_job(Note())]
    all_final(provisioned, ids, 60)
    assert worker.process is not None
    assert worker.process.poll() is None
    assert any(event.get("error_type") == "TaskExited" for event in worker.events())
    assert worker.terminate() == 0


def test_exit_in_a_callback_ends_the_worker_as_an_error_that_says_where(
    start: Start, producer: JobProducer
) -> None:
    """Whoever supervises it must start it again, and what ran beside it may have been the cause."""
    worker = start("w", *_IMPORTS)
    eventually(lambda: worker.said("partitions assigned"), 40, "it works")
    producer.schedule_job(ExitsInACallback())
    assert worker.wait(60) == 1
    assert worker.said("a job has ended the worker: sys.exit in a callback of the event loop")
