"""Processes for jobs that may kill: such a job ends its own process then, and neither the worker nor anybody beside it.

In:  a job that was unfinished at two deaths of its worker. Out: its result, or that its process has died under it.

Only handlers that another process can make as well: defined in a module, and not made with arguments. What has a process
anyway (``execution = "process"``) runs in that. What cannot be run here has to run alone in the worker itself, see
``workers.scheduling.time_share``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from schemas.errors import JobTypeError
from workers.context import WorkerContext
from workers.execution.process_names import announce
from workers.execution.processes import NotStarted, ProcessPool
from workers.results import JobResult
from workers.worker import Handler

log = structlog.get_logger("rustfs_workers.sandbox")

_IDLE_S: Final = 60.0
#: So many suspects of one worker can have a new process each: that takes a second of a processor. After many deaths under load
#: there are hundreds of them, nearly all innocent: what kills is found one process later then.
MOST_FRESH_PROCESSES: Final = 32


class Sandbox:
    """For one event loop.

    Args:
        size: processes, started when they are first needed; 0: no job can be run here.
        handlers: all that the worker has.
        idle_s: so long after the last job its processes end.
    """

    def __init__(self, size: int, handlers: Iterable[Handler], *, idle_s: float = _IDLE_S) -> None:
        able = [handler for handler in handlers if size and _can_be_made_again(handler)]
        #: Types of jobs that can be run here.
        self.types = frozenset(handler.job_type.name for handler in able)
        self._pool = ProcessPool(max(size, 1), able)
        self._idle_s = idle_s
        self._running = 0
        self._ending: asyncio.TimerHandle | None = None

    async def run(
        self,
        handler: Handler,
        body: bytes,
        context: WorkerContext,
        *,
        on_start: Callable[[], None],
        fresh: bool = False,
    ) -> JobResult:
        """As ``ProcessPool.run_or_raise``.

        Raises:
            NotStarted: from now on for every job, if a process cannot import what there is to run.
            ProcessDied, asyncio.CancelledError.
        """
        if handler.job_type.name not in self.types:
            raise NotStarted(f"{handler.job_type.name} cannot be run in a process of its own")
        self._running += 1
        if self._ending is not None:
            self._ending.cancel()
        try:
            return await self._pool.run_or_raise(handler, body, context, on_start=on_start, fresh=fresh)
        except NotStarted as error:
            log.warning("no process for a job that may kill: it runs alone in the worker", error=str(error))
            if isinstance(error.__cause__, JobTypeError):
                self.types = frozenset()
            raise
        finally:
            self._running -= 1
            if not self._running:
                # Weeks may pass until the next worker dies.
                loop = asyncio.get_running_loop()
                self._ending = loop.call_later(self._idle_s, self._pool.end_idle)

    async def close(self) -> None:
        """End all processes, running jobs included."""
        if self._ending is not None:
            self._ending.cancel()
        await self._pool.close()


def _can_be_made_again(handler: Handler) -> bool:
    if handler.execution == "process":
        return False  # it runs in one already
    if handler.is_given and handler.worker is not None and handler.worker._holds_something():
        return False  # a client that the program has opened, say: there its absence would fail a job that harms nobody
    try:
        announce(handler)
    except JobTypeError:
        return False
    return True
