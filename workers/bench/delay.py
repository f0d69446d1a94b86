"""``bench delay``: how punctual jobs with delays from 1 s to 30 s are.

In:  a number of jobs. Out: how many began before their time, and percentiles of how late the others did.

A job's time is the one that its event carries: when it was scheduled (``created_at``), plus its delay. A worker
compares it with the broker's clock, the bench with the handler's, which is this machine's. Those are the same
clock if the broker runs here too; else the result says how far the broker's is ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from confluent_kafka import Message

from schemas import JobPriority
from schemas.errors import PipelineError
from schemas.records import REPORT, decode_report
from streams.provision import provision
from streams.queue import JobQueue
from streams.registry import build_codec
from streams.scan import scan
from streams.settings import Settings
from workers.bench.jobs import StampJob
from workers.bench.percentile import percentiles_ms
from workers.bench.stamps import WARM_UP, Stamp, Stamps, at_a_steady_pace, stamping_worker
from workers.progress import Progress, unseen

SHORTEST: Final = timedelta(seconds=1)
LONGEST: Final = timedelta(seconds=30)
#: How long jobs are scheduled for: with the longest delay, a minute in all.
SPELL: Final = timedelta(seconds=30)

_MILLISECOND: Final = timedelta(milliseconds=1)
_GOLDEN_RATIO: Final = 0.6180339887498949


def delay(
    settings: Settings,
    jobs: int,
    *,
    shortest: timedelta = SHORTEST,
    longest: timedelta = LONGEST,
    spell: timedelta = SPELL,
    progress: Progress = unseen,
) -> dict[str, Any]:
    """Blocks for ``spell`` and ``longest`` and a little more; its worker process is gone when it returns.

    Raises:
        PipelineError: the worker ended by itself, or the jobs were not run in time.
    """
    provision(settings)
    delays_ms = spread(jobs, shortest // _MILLISECOND, longest // _MILLISECOND)
    with stamping_worker(settings) as stamps:
        asyncio.run(_schedule(settings, stamps, delays_ms, spell / timedelta(seconds=1), progress))
        late_ns = lateness_ns(stamps.measured(), delays_ms)
    return {
        "jobs": len(late_ns),
        "early": sum(late < 0 for late in late_ns),
        **percentiles_ms("late", late_ns),
        "broker_clock_ahead_ms": _broker_clock_ahead_ms(settings),
    }


def spread(count: int, shortest_ms: int, longest_ms: int) -> list[int]:
    """``count`` delays evenly from the shortest to the longest, in an order that mixes long and short ones."""
    steps = max(count - 1, 1)
    order = sorted(range(count), key=lambda number: number * _GOLDEN_RATIO % 1)
    return [shortest_ms + (longest_ms - shortest_ms) * place // steps for place in order]


def lateness_ns(stamps: Mapping[int, Stamp], delays_ms: list[int]) -> list[int]:
    """How long after its time each handler began; less than zero is too early."""
    return [
        stamp.reached_ns - (stamp.created_at_ms + delays_ms[number - WARM_UP]) * 1_000_000
        for number, stamp in stamps.items()
    ]


async def _schedule(
    settings: Settings, stamps: Stamps, delays_ms: list[int], spell_s: float, progress: Progress
) -> None:
    async with JobQueue.connect(settings) as queue:
        await stamps.warm_up(queue, JobPriority.NORMAL, progress)
        numbers = range(WARM_UP, WARM_UP + len(delays_ms))
        await at_a_steady_pace(
            numbers,
            len(numbers) / spell_s,
            lambda number: queue.schedule_job(
                StampJob(number), delay=timedelta(milliseconds=delays_ms[number - WARM_UP])
            ),
            progress,
        )
        await stamps.until(numbers.stop, "running", progress)


def _broker_clock_ahead_ms(settings: Settings) -> int:
    """The broker's clock minus this machine's, by the worker's reports; the quickest report's way to it included.

    Raises:
        PipelineError: there is no report.
    """
    codec = build_codec(settings)
    codec.prefix(REPORT)  # where there is a registry, it knows what it reads from here on
    differences: list[int] = []

    def take(message: Message) -> None:
        differences.append(message.timestamp()[1] - decode_report(codec, message.value() or b"").at)

    scan(settings, [settings.topics.reports], take, timeout_s=10)
    if not differences:
        raise PipelineError("the worker has not reported")
    return min(differences)
