"""When handlers were reached: what ``StampJob`` writes down in a worker's process, and the bench reads.

In:  jobs, at a steady pace. Out: when each was handed to ``schedule_job``, and when its handler began.

Bench and worker are processes of one machine, so both read the same clock.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from schemas import JobPriority
from schemas.errors import PipelineError
from streams.queue import JobQueue
from streams.settings import Settings
from workers.bench.jobs import STAMPS_VARIABLE, StampJob
from workers.bench.processes import Check, worker_processes
from workers.progress import Progress

#: The first jobs warm everything up; they are not counted.
WARM_UP: Final = 20
#: Longer than the longest delay of a bench.
_PATIENCE_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.1


class Stamp(NamedTuple):
    """One run."""

    reached_ns: int
    #: What the job's event says.
    created_at_ms: int


def parse(text: str) -> dict[int, Stamp]:
    """Job number to its first run. The end of a line that is still being written is left out."""
    stamps: dict[int, Stamp] = {}
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            number, reached, created = line.split()
            stamps.setdefault(int(number), Stamp(int(reached), int(created)))
    return stamps


class Stamps:
    """The stamps of one worker process, which runs."""

    def __init__(self, path: Path, check: Check) -> None:
        self._path = path
        self._check = check

    def read(self) -> dict[int, Stamp]:
        """All of them."""
        return parse(self._path.read_text("utf-8"))

    def measured(self) -> dict[int, Stamp]:
        """Those of the jobs that count."""
        return {number: stamp for number, stamp in self.read().items() if number >= WARM_UP}

    async def until(self, total: int, what: str, progress: Progress) -> None:
        """Wait until ``total`` jobs have been reached.

        Raises:
            PipelineError: the worker ended, or nothing happened for a minute.
        """
        seen, at = -1, time.monotonic()
        while (count := len(self.read())) < total:
            progress(what, count, total)
            self._check()
            if count > seen:
                seen, at = count, time.monotonic()
            elif time.monotonic() > at + _PATIENCE_S:
                raise PipelineError(f"{count} of {total} jobs were run, and none for {_PATIENCE_S:.0f} s")
            await asyncio.sleep(_LOOK_EVERY_S)
        progress(what, total, total)

    async def warm_up(self, queue: JobQueue, priority: JobPriority, progress: Progress) -> None:
        """Run the first jobs, which also waits until the worker has joined.

        Raises:
            PipelineError: as ``until``.
        """
        for number in range(WARM_UP):
            await queue.schedule_job(StampJob(number), priority)
        await self.until(WARM_UP, "starting a worker", progress)


@contextmanager
def stamping_worker(settings: Settings) -> Iterator[Stamps]:
    """A worker that knows ``StampJob``; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="rustfs-workers-bench-") as directory:
        path = Path(directory) / "stamps"
        path.touch()
        with worker_processes(settings, 1, **{STAMPS_VARIABLE: str(path)}) as check:
            yield Stamps(path, check)


async def at_a_steady_pace(
    numbers: range, per_s: float, schedule: Callable[[int], Awaitable[object]], progress: Progress
) -> dict[int, int]:
    """Call ``schedule`` for each number, ``per_s`` times a second; job number to the time of its call (nanoseconds).

    A call that waits for Kafka does not hold up the next one: else a slow moment would be measured once,
    instead of by every job that came in meanwhile.
    """
    called: dict[int, int] = {}

    async def call(number: int) -> None:
        called[number] = time.time_ns()
        await schedule(number)

    due = time.monotonic()
    try:
        async with asyncio.TaskGroup() as calls:
            for number in numbers:
                await asyncio.sleep(max(due - time.monotonic(), 0))
                due += 1 / per_s
                calls.create_task(call(number))
                progress("scheduling", number - numbers.start, len(numbers))
    except ExceptionGroup as errors:  # when Kafka is gone all of them say the same
        raise errors.exceptions[0] from None
    progress("scheduling", len(numbers), len(numbers))
    return called
