"""The mix of jobs. Each run writes down, by itself, when it began and how it ended.

A process has a file of its own below ``RFW_GUARANTEES_LOG``, a line is one write, so a kill loses at most what had not
happened yet. Times are the machine's monotonic clock, which all processes share, and broker time is not asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final

from schemas import Backoff, Job
from workers.context import WorkerContext
from workers.execution.process_child import ChannelContext
from workers.results import Failed, Snooze, Success

QUICK: Final = Backoff(base=timedelta(milliseconds=300), cap=timedelta(seconds=3))


class _Log:
    """The file of this process, opened when it is first needed: handler processes have one each."""

    def __init__(self) -> None:
        self._pid = 0
        self._file = -1

    def write(self, **facts: object) -> None:
        pid = os.getpid()
        if pid != self._pid:
            directory = Path(os.environ["RFW_GUARANTEES_LOG"])
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file, self._pid = os.open(directory / f"runs-{pid}-{time.monotonic_ns()}.jsonl", flags), pid
        os.write(self._file, (json.dumps(facts, separators=(",", ":")) + "\n").encode())


_log: Final = _Log()


@contextmanager
def written_down(context: WorkerContext) -> Iterator[dict[str, object]]:
    """One run: a line at its first moment and one at its last, with what the handler adds to it."""
    run = f"{os.getpid()}-{time.monotonic_ns()}-{threading.get_ident()}"
    _log.write(
        say="start",
        run=run,
        ns=time.monotonic_ns(),
        wall_ms=time.time_ns() // 1_000_000,
        # The worker's: what happens to that is what happens to a run in a process of its own.
        pid=os.getppid() if isinstance(context, ChannelContext) else os.getpid(),
        worker=context.worker_id,
        id=context.job_id,
        type=context.job_type,
        priority=context.priority.value,
        key=context.key,
        attempt=context.attempt,
        redrives=context.redrives,
        fence=context.fence,
    )
    how = "cancelled"
    more: dict[str, object] = {}
    try:
        yield more
        how = "ended"
    except Exception:
        how = "ended"
        raise
    finally:
        _log.write(say="end", run=run, ns=time.monotonic_ns(), how=how, **more)


class CampaignJob(Job):
    """A job, and the end that it is made for."""

    expected: ClassVar[str] = "succeeded"

    @property
    def attempts(self) -> int:
        """How many it is made to take."""
        return 1


@dataclass
class KeyedJob(CampaignJob):
    """Has a key, or none."""

    order_key: str = ""

    def ordering_key(self) -> str | None:
        return self.order_key or None


@dataclass
class Quick(KeyedJob):
    """Succeeds at once."""

    job_type = "g_quick"

    async def execute(self, context: WorkerContext) -> None:
        with written_down(context):
            await asyncio.sleep(0)  # others have their turn, so that two runs of one key could meet


@dataclass
class InOrder(KeyedJob):
    """One of a sequence with the same key; takes a moment, so that an overlap can be seen."""

    job_type = "g_in_order"
    max_retries = 5
    backoff = QUICK
    number: int = 0

    async def execute(self, context: WorkerContext) -> None:
        with written_down(context):
            await asyncio.sleep(0.02)  # stands for the work


@dataclass
class InThread(KeyedJob):
    """A plain function: runs in a thread, which nobody can end."""

    job_type = "g_thread"

    def execute(self, context: WorkerContext) -> None:
        with written_down(context):
            threading.Event().wait(0.01)  # stands for work that no cancellation ends


@dataclass
class InProcess(KeyedJob):
    """Runs in a process of its own; takes a moment, so that an overlap can be seen, or longer than a drain."""

    job_type = "g_process"
    execution = "process"
    max_retries = 5
    backoff = QUICK
    seconds: float = 0.02

    def execute(self, context: WorkerContext) -> None:
        with written_down(context):
            threading.Event().wait(self.seconds)  # stands for the work


@dataclass
class Long(KeyedJob):
    """Works for half a minute, as the copy of a large object does."""

    job_type = "g_long"
    max_retries = 5
    seconds: float = 30.0

    async def execute(self, context: WorkerContext) -> None:
        with written_down(context):
            await asyncio.sleep(self.seconds)  # stands for the work


@dataclass
class FailsThenSucceeds(KeyedJob):
    """Fails in its first ``times`` attempts."""

    job_type = "g_flaky"
    max_retries = 5
    backoff = QUICK
    times: int = 1

    @property
    def attempts(self) -> int:
        return self.times + 1

    async def execute(self, context: WorkerContext) -> Success:
        with written_down(context):
            if context.attempt <= self.times:
                raise ConnectionError(f"attempt {context.attempt} fails")
            return Success({"attempts": context.attempt})


@dataclass
class AlwaysFails(KeyedJob):
    """Becomes a dead letter."""

    job_type = "g_hopeless"
    max_retries = 2
    backoff = QUICK
    expected = "failed"

    @property
    def attempts(self) -> int:
        return 3

    async def execute(self, context: WorkerContext) -> Failed:
        with written_down(context):
            return Failed("there is no hope")


@dataclass
class Snoozes(KeyedJob):
    """Asks to be run again later, until ``until_ms`` after it was scheduled has passed."""

    job_type = "g_snoozes"
    until_ms: int = 2_000

    async def execute(self, context: WorkerContext) -> Snooze | Success:
        with written_down(context) as told:
            now_ms = time.time_ns() // 1_000_000
            delay_ms = min(context.created_at_ms + self.until_ms - now_ms, 1_500)
            if delay_ms <= 0:
                return Success()
            told["asked_ms"] = now_ms + delay_ms
            return Snooze(timedelta(milliseconds=delay_ms))


@dataclass
class Parent(CampaignJob):
    """Schedules children in the transaction of its outcome."""

    job_type = "g_parent"
    max_retries = 5
    backoff = QUICK
    children: int = 2

    async def execute(self, context: WorkerContext) -> Success:
        with written_down(context):
            ids = [await context.schedule(Quick()) for _ in range(self.children)]
            return Success({"children": ids})
