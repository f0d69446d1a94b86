"""``bench latency``: from the call of ``schedule_job`` to the first line of the handler, at a steady rate.

In:  a rate and a duration. Out: percentiles in milliseconds.
"""

from __future__ import annotations

import asyncio
from typing import Any

from schemas import JobPriority
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings
from workers.bench.jobs import StampJob
from workers.bench.percentile import percentiles_ms
from workers.bench.stamps import WARM_UP, Stamps, at_a_steady_pace, stamping_worker
from workers.progress import Progress, unseen


def latency(settings: Settings, rate: float, seconds: float, progress: Progress = unseen) -> dict[str, Any]:
    """Blocks for ``seconds`` and a little more; its worker process is gone when it returns.

    Raises:
        PipelineError: the worker ended by itself, or the jobs were not run in time.
    """
    provision(settings)
    with stamping_worker(settings) as stamps:
        called = asyncio.run(_schedule(settings, stamps, rate, seconds, progress))
        measured = stamps.measured()
    return {
        "rate": rate,
        "jobs": len(measured),
        **percentiles_ms("start", (stamp.reached_ns - called[number] for number, stamp in measured.items())),
    }


async def _schedule(
    settings: Settings, stamps: Stamps, rate: float, seconds: float, progress: Progress
) -> dict[int, int]:
    async with JobQueue.connect(settings) as queue:
        await stamps.warm_up(queue, JobPriority.NORMAL, progress)
        numbers = range(WARM_UP, WARM_UP + round(rate * seconds))
        called = await at_a_steady_pace(
            numbers, rate, lambda number: queue.schedule_job(StampJob(number)), progress
        )
        await stamps.until(numbers.stop, "running", progress)
    return called
