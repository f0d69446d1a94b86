"""The jobs that the benches run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from schemas import Job
from workers.context import WorkerContext

#: Names the file that ``StampJob`` writes to.
STAMPS_VARIABLE: Final = "RFW_BENCH_LOG"


@dataclass
class NoopJob(Job):
    """Does nothing: what remains is the way there and back."""

    job_type = "bench_noop"
    number: int = 0

    async def execute(self, context: WorkerContext) -> None:
        """Nothing."""


@dataclass
class StampJob(Job):
    """Writes down when its first line was reached (nanoseconds) and when it was scheduled (milliseconds)."""

    job_type = "bench_stamp"
    number: int = 0

    async def execute(self, context: WorkerContext) -> None:
        """One line, in one write: lines of several processes do not mix."""
        now = time.time_ns()
        fd = os.open(os.environ[STAMPS_VARIABLE], os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, f"{self.number} {now} {context.created_at_ms}\n".encode())
        finally:
            os.close(fd)
