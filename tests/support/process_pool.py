"""A pool of real handler processes, and the worker's side of a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from schemas.job import Job
from schemas.topics import JobPriority
from workers.context import WorkerContext
from workers.execution.processes import ProcessPool
from workers.results import JobResult
from workers.worker import Handler, Handlers

JOB_ID: Final = "0190a5a0-7777-7000-8000-000000000001"
_OPENED_WITHIN_S: Final = 60.0


class Told(WorkerContext):
    """The worker's side of a run: an event says when the handler has spoken."""

    def __init__(self, job: Job, **more: Any) -> None:
        super().__init__(
            job_id=JOB_ID, job_type=job.job_type, **{"priority": JobPriority.HIGH, "attempt": 2, **more}
        )
        self.spoken = asyncio.Event()

    def progress(self, done: int, total: int | None = None) -> None:
        super().progress(done, total)
        self.spoken.set()

    @property
    def pid(self) -> int:
        """Handlers of these tests report their process as progress."""
        assert self._progress is not None
        return self._progress[0]


class Running:
    """A pool, and how to run jobs in it."""

    def __init__(self, pool: ProcessPool, handlers: Handlers) -> None:
        self.pool = pool
        self.handlers = handlers
        self.started: list[Job] = []

    async def run(self, job: Job, context: WorkerContext | None = None) -> JobResult:
        handler = self.handler(job)
        envelope = {
            "id": JOB_ID,
            "type": job.job_type,
            "priority": "high",
            "created_at": 0,
            "source": "",
        }
        body = handler.job_type.wire.encode(handler.job_type.to_record(job, envelope))
        return await self.pool.run(
            handler, body, context or Told(job), on_start=lambda: self.started.append(job)
        )

    def begin(self, job: Job) -> tuple[asyncio.Task[JobResult], Told]:
        context = Told(job)
        return asyncio.create_task(self.run(job, context)), context

    def handler(self, job: Job) -> Handler:
        handler = self.handlers.get(job.job_type)
        assert handler is not None
        return handler


@asynccontextmanager
async def pool_of(*what: Any, size: int = 1) -> AsyncIterator[Running]:
    """A pool; when it is closed, none of its processes is left."""
    handlers = Handlers()
    for one in what:
        handlers.register(one)
    pool = ProcessPool(size, handlers)
    try:
        yield Running(pool, handlers)
    finally:
        started = [child.pid for child in pool._all]
        await pool.close()
    assert not [pid for pid in started if psutil.pid_exists(pid)]


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def open_fifo(fifo: Path, mode: str) -> None:
    """Returns when the handler has opened the other side.

    If nobody does, the thread that waits for it must not keep the whole run from ending.
    """
    waiting = threading.Thread(target=lambda: fifo.open(mode).close(), daemon=True)
    waiting.start()
    waiting.join(_OPENED_WITHIN_S)
    assert not waiting.is_alive(), f"nobody has opened the other side of {fifo}"
