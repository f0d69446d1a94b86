"""What an overload is made of: jobs that take a moment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from schemas import Job
from workers.context import WorkerContext

#: With 64 at a time one worker drains 3,200 a second, whatever the machine: the producers can really send twice as many.
WORK_S: Final = 0.02


@dataclass
class Work(Job):
    """Waits, as most of the work on an object store does."""

    job_type = "o_work"
    number: int = 0
    content: bytes = b""

    async def execute(self, context: WorkerContext) -> None:
        await asyncio.sleep(WORK_S)  # stands for the work
