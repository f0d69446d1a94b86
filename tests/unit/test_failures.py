"""What a worker that fails leaves to its successor."""

from __future__ import annotations

import asyncio

import pytest

from schemas.codec import Codec
from streams.settings import Settings
from workers.config import WorkerConfig
from workers.process import WorkerProcess
from workers.worker import Handlers

pytestmark = pytest.mark.worker_coordination


async def test_only_a_failure_where_handlers_are_called_is_a_death_for_the_successor() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    kafka_failed, job_failed = (
        WorkerProcess(WorkerConfig(worker_id="w"), Handlers(), settings, Codec()) for _ in range(2)
    )
    kafka_failed._committer._on_failure(ZeroDivisionError())
    job_failed._executor._failure(ZeroDivisionError())
    for process, unclean in ((kafka_failed, False), (job_failed, True)):
        assert process.poller.leaves_unclean is unclean
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(process.failure, 10)


def test_a_thread_that_outlives_the_event_loop_ends_without_a_word() -> None:
    """The commit thread of a worker whose Kafka died may still wait for it when everything else has ended."""
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")

    async def made() -> WorkerProcess:
        return WorkerProcess(WorkerConfig(worker_id="w"), Handlers(), settings, Codec())

    process = asyncio.run(made())
    process._committer._on_failure(ZeroDivisionError())
    process._deliver([])
    process._committed_one()
