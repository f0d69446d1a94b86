"""``bench latency``: from the call of ``schedule_job`` to the first line of the handler, at a steady rate.

In:  a rate and a duration. Out: percentiles in milliseconds. The worker is another process on this machine,
so both ends read the same clock.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from schemas.errors import PipelineError
from streams.provision import provision
from streams.queue import JobQueue
from streams.settings import Settings
from workers.bench.jobs import StampJob
from workers.bench.throughput import stop_processes, worker_processes

_WARM_UP = 20
_LIMIT_S = 60.0


def latency(settings: Settings, rate: float, seconds: float) -> dict[str, Any]:
    """Blocks for ``seconds`` and a little more.

    Raises:
        PipelineError: the jobs were not run in time.
    """
    provision(settings)
    with tempfile.TemporaryDirectory(prefix="rustfs-workers-bench-") as directory:
        log = Path(directory) / "stamps"
        log.touch()
        processes = worker_processes(settings, 1, RFW_BENCH_LOG=str(log))
        try:
            called = asyncio.run(_schedule(settings, log, rate, seconds))
        finally:
            stop_processes(processes)
        waits = sorted(
            (reached - called[number]) / 1e6 for number, reached in _stamps(log).items() if number >= _WARM_UP
        )
    return {
        "rate": rate,
        "jobs": len(waits),
        "start_p50_ms": round(percentile(waits, 50), 2),
        "start_p99_ms": round(percentile(waits, 99), 2),
    }


def percentile(ordered: list[float], percent: float) -> float:
    """The nearest-rank percentile of an ordered list."""
    if not ordered:
        raise PipelineError("nothing was measured")
    return ordered[min(len(ordered) - 1, max(0, -(-int(len(ordered) * percent) // 100) - 1))]


async def _schedule(settings: Settings, log: Path, rate: float, seconds: float) -> dict[int, int]:
    called: dict[int, int] = {}
    async with JobQueue.connect(settings) as queue:
        # The first jobs warm everything up, and wait until the worker has joined; they are not counted.
        for number in range(_WARM_UP):
            called[number] = time.time_ns()
            await queue.schedule_job(StampJob(number))
        await _until(log, _WARM_UP)
        due = time.monotonic()
        total = _WARM_UP + round(rate * seconds)
        for number in range(_WARM_UP, total):
            await asyncio.sleep(max(due - time.monotonic(), 0))
            due += 1 / rate
            called[number] = time.time_ns()
            await queue.schedule_job(StampJob(number))
        await _until(log, total)
    return called


async def _until(log: Path, count: int) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while len(_stamps(log)) < count:
        if time.monotonic() > deadline:
            raise PipelineError(f"{len(_stamps(log))} of {count} jobs were run in {_LIMIT_S:.0f} s")
        await asyncio.sleep(0.1)


def _stamps(log: Path) -> dict[int, int]:
    pairs = (line.split() for line in log.read_text("utf-8").splitlines())
    return {int(number): int(reached) for number, reached in pairs}
