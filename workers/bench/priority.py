"""``bench priority``: how fast critical jobs start while a crowd of low ones waits and is being worked on.

In:  the size of the crowd. Out: percentiles in milliseconds, from the call of ``schedule_job`` to the handler's
first line, and how much of the crowd still waited when the last critical job had started.

The low jobs do nothing, so the one worker is as busy as it can be for as long as they last.

Pace and backlog matter: on two cores the p99 was 40 to 63 ms at 100 a second behind 100,000, and 86 to 104 ms at 20 a
second behind 400,000. Compare only results of the same numbers.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from schemas import JobPriority
from schemas.errors import PipelineError
from streams.committed import committed_offsets
from streams.producer import JobProducer
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings
from workers.bench.jobs import NoopJob, StampJob
from workers.bench.percentile import percentiles_ms
from workers.bench.stamps import WARM_UP, Stamps, at_a_steady_pace, stamping_worker
from workers.progress import Progress, unseen

#: Commits tell what was done a moment ago: with less than this share left, the worker may have had no low job to run.
_LEAST_LEFT: Final = 0.05


def priority(
    settings: Settings, backlog: int, jobs: int, rate: float, progress: Progress = unseen
) -> dict[str, Any]:
    """``jobs`` critical ones, ``rate`` a second, behind ``backlog`` low ones. Blocks; its worker is gone when it returns.

    Raises:
        PipelineError: the worker ended by itself, the jobs were not run in time, or the low jobs did not last
            until the end.
    """
    provision(settings)
    progress("scheduling low jobs", 0, backlog)
    with JobProducer(settings) as producer:
        producer.schedule_jobs((NoopJob(number) for number in range(backlog)), JobPriority.LOW)
    progress("scheduling low jobs", backlog, backlog)
    with stamping_worker(settings) as stamps:
        called, left = asyncio.run(_schedule(settings, stamps, backlog, jobs, rate, progress))
        measured = stamps.measured()
    check_left(backlog, left)
    return {
        "backlog": backlog,
        "jobs": len(measured),
        "rate": rate,
        **percentiles_ms("start", (stamp.reached_ns - called[number] for number, stamp in measured.items())),
        "backlog_left": left,
    }


def check_left(backlog: int, left: int) -> None:
    """Refuse a result whose last jobs had nothing to compete with.

    Raises:
        PipelineError: too few low jobs still waited in the end.
    """
    if left < backlog * _LEAST_LEFT:
        raise PipelineError(
            f"of {backlog:,} low jobs {left:,} still waited when the last critical one had started, too few to be sure "
            f"that it had to compete; use a larger one: --backlog {2 * backlog}"
        )


async def _schedule(
    settings: Settings,
    stamps: Stamps,
    backlog: int,
    jobs: int,
    rate: float,
    progress: Progress,
) -> tuple[dict[int, int], int]:
    async with JobQueue.connect(settings) as queue:
        await stamps.warm_up(queue, JobPriority.CRITICAL, progress)
        numbers = range(WARM_UP, WARM_UP + jobs)
        called = await at_a_steady_pace(
            numbers,
            rate,
            lambda number: queue.schedule_job(StampJob(number), JobPriority.CRITICAL),
            progress,
        )
        await stamps.until(numbers.stop, "running", progress)
        left = backlog - await asyncio.to_thread(_low_jobs_done, settings)
    return called, left


def _low_jobs_done(settings: Settings) -> int:
    """As the group has committed. They were scheduled without transactions, so offsets count jobs."""
    topic = settings.topics.jobs[JobPriority.LOW]
    places = [(topic, number) for number in range(settings.partitions)]
    committed = committed_offsets(settings, settings.topics.group, places, timeout_s=10, stable=False)
    return sum(offset for offset, _ in committed.values())
