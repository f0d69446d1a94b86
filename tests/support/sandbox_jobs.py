"""Handlers that the tests of the sandbox run in its processes."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from typing import Any

from schemas import Job
from workers.context import WorkerContext
from workers.results import Success
from workers.worker import Worker


@dataclass
class Says(Job):
    """A coroutine; says in which process it ran."""

    job_type = "sandbox_says"
    seconds: float = 0.0

    async def execute(self, context: WorkerContext) -> Success:
        context.update_metrics("said", 1)
        await asyncio.sleep(self.seconds)  # stands for the work
        return Success({"pid": os.getpid()})


@dataclass
class LeavesAThread(Job):
    """Succeeds, and ends its process a moment later."""

    job_type = "sandbox_leaves"

    def execute(self, context: WorkerContext) -> None:
        timer = threading.Timer(0.5, os._exit, (9,))
        timer.daemon = True
        timer.start()


@dataclass
class Ends(Job):
    """A plain function that ends the process in which it runs."""

    job_type = "sandbox_ends"

    def execute(self, context: WorkerContext) -> None:
        os._exit(7)


@dataclass
class Counts(Job):
    """Has a CPU-bound handler, which has processes of its own."""

    job_type = "sandbox_counts"
    execution = "process"

    def execute(self, context: WorkerContext) -> None:
        """Nothing."""


@dataclass
class Weighed(Job):
    """For a worker."""

    job_type = "sandbox_weighed"


class Weighs(Worker):
    """Made with an argument."""

    worker_type = "sandbox_weighed"

    def __init__(self, unit: str = "") -> None:
        self.unit = unit

    def process_job(self, job: Any, context: WorkerContext) -> Success:
        return Success({"unit": self.unit})


@dataclass
class Reported(Job):
    """For a worker that a program may give more than its class does."""

    job_type = "sandbox_reported"


class Reports(Worker):
    """Holds nothing of its own."""

    worker_type = "sandbox_reported"
    client: object = None

    def process_job(self, job: Any, context: WorkerContext) -> Success:
        return Success({"client": str(self.client)})


def weighs_in_grams() -> Weighs:
    """What another process can call."""
    return Weighs("g")
