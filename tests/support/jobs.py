"""Job types that the integration tests run in real worker processes (``worker --import tests.support.jobs``).

Each run writes a line to the file that ``RFW_TEST_LOG`` names: what was run, by whom, when. The file is
the tests' own record, independent of what the workers say.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from schemas import Backoff, Job, PermanentError
from tests.support.waiting import eventually, file_appears
from workers.context import WorkerContext
from workers.results import Failed, Skipped, Snooze, Success

QUICK = Backoff(base=timedelta(milliseconds=300), cap=timedelta(seconds=2))


def write_log(what: str, context: WorkerContext, **facts: Any) -> None:
    """One line, appended in one write: lines of several processes do not mix."""
    line = json.dumps(
        {
            "what": what,
            "id": context.job_id,
            "attempt": context.attempt,
            "worker": context.worker_id,
            "pid": os.getpid(),
            "fence": context.fence,
            "key": context.key,
            "at": time.time_ns() // 1_000_000,
            **facts,
        }
    )
    with Path(os.environ["RFW_TEST_LOG"]).open("a") as file:
        file.write(line + "\n")


@dataclass
class Note(Job):
    """Writes a line and succeeds."""

    job_type = "test_note"
    text: str = ""
    order_key: str = ""

    def ordering_key(self) -> str | None:
        return self.order_key or None

    async def execute(self, context: WorkerContext) -> None:
        write_log("run", context, text=self.text)


@dataclass
class Fails(Job):
    """Fails ``times`` times, then succeeds; -1 fails for ever."""

    job_type = "test_fails"
    backoff = QUICK
    times: int = 1
    permanent: bool = False

    async def execute(self, context: WorkerContext) -> Failed | Success:
        write_log("run", context)
        if self.permanent:
            raise PermanentError("this can never work")
        if self.times < 0 or context.attempt <= self.times:
            raise ValueError(f"run {context.attempt} fails")
        return Success({"runs": context.attempt})


@dataclass
class Snoozes(Job):
    """Snoozes in its first ``times`` runs."""

    job_type = "test_snoozes"
    times: int = 2

    async def execute(self, context: WorkerContext) -> Snooze | Success:
        write_log("run", context)
        lines = Path(os.environ["RFW_TEST_LOG"]).read_text().splitlines()
        if sum(json.loads(line)["id"] == context.job_id for line in lines) <= self.times:
            return Snooze(timedelta(milliseconds=200), "not yet")
        return Success()


@dataclass
class Waits(Job):
    """Runs until a file appears, for ``limit_s`` at most: a job whose end the test decides."""

    job_type = "test_waits"
    max_retries = 3
    backoff = QUICK
    until: str = ""
    limit_s: float = 60.0
    order_key: str = ""

    def ordering_key(self) -> str | None:
        return self.order_key or None

    async def execute(self, context: WorkerContext) -> None:
        write_log("started", context)
        try:
            if self.until:
                await file_appears(Path(self.until), self.limit_s)
            else:
                await asyncio.sleep(self.limit_s)  # work that nothing but a cancellation ends sooner
        except asyncio.CancelledError:
            write_log("cancelled", context)
            raise
        write_log("ended", context)


@dataclass
class Parent(Job):
    """Schedules children, then succeeds or fails."""

    job_type = "test_parent"
    backoff = QUICK
    children: int = 2
    fail_first: bool = False

    async def execute(self, context: WorkerContext) -> Success:
        write_log("run", context)
        ids = [await context.schedule(Note(text=f"child {n}")) for n in range(self.children)]
        if self.fail_first and context.attempt == 1:
            raise ValueError("after scheduling")
        return Success({"children": ids})


@dataclass
class Kills(Job):
    """Ends its process in its first millisecond."""

    job_type = "test_kills"
    #: As a system does that is short of memory.
    by_sigkill: bool = False

    async def execute(self, context: WorkerContext) -> None:
        write_log("run", context)
        if self.by_sigkill:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(9)


@dataclass
class InThread(Job):
    """A plain function: runs in a thread."""

    job_type = "test_thread"
    wait_s: float = 0.0

    def execute(self, context: WorkerContext) -> Success | Skipped:
        import threading

        write_log("run", context, thread=threading.current_thread().name)
        deadline = time.monotonic() + self.wait_s
        while time.monotonic() < deadline:
            if context.cancelled:
                return Skipped("asked to end")
            threading.Event().wait(0.01)  # a piece of work; between two of them it looks, as a thread must
        return Success({"thread": threading.current_thread().name})


@dataclass
class InProcess(Job):
    """CPU-bound: runs in a process of its own."""

    job_type = "test_process"
    execution = "process"
    max_retries = 0
    spin: bool = False
    until: str = ""

    def execute(self, context: WorkerContext) -> Success:
        write_log("run", context)
        while self.spin:
            pass
        if self.until:
            eventually(Path(self.until).exists, 60, f"the test has made {self.until}")
        context.update_metrics("answers", 42)
        return Success({"pid": os.getpid()})


@dataclass
class ReturnsNonsense(Job):
    """Returns a result that nobody can write down."""

    job_type = "test_nonsense"

    async def execute(self, context: WorkerContext) -> Success:
        write_log("run", context)
        return Success({("not", "json"): 1})  # type: ignore[dict-item]
