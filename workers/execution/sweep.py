"""Once a tick: a look at what is still running.

In:  handler calls on their way, the steady clock. Out: ``running`` and progress to publish, cancellations of what takes too
long, and others' leave to run beside one that has survived.

A job that ends within a tick costs nothing of this. For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import structlog

from schemas.lifecycle import JobStatus
from schemas.records import StatusChange
from workers.committing.router import Run, status_of
from workers.execution.active import TIMEOUT, Active
from workers.outcome import COMMIT_REQUEST, Outcome

if TYPE_CHECKING:
    from workers.scheduling.scheduler import Scheduler

log = structlog.get_logger("rustfs_workers.executor")

#: A thread handler that ignores its timeout is left to itself after this; its thread cannot be ended. A coroutine that
#: swallows its cancellation is cancelled again, each time.
ABANDON_AFTER_MS: Final = 10_000
_PROGRESS_INTERVAL_MS: Final = 1_000
#: Finished jobs among the deadlines that are not worth a look at all of them.
_MOST_FINISHED: Final = 64


class Sweep:
    """Armed while anything runs.

    Args:
        active: what runs; kept by whoever runs it.
        wake: something may be startable.
        steady_ms: a clock that nobody sets; for limits.
        now_ms: broker time; for people.
        on_failure: called with an error of our own.
    """

    def __init__(
        self,
        *,
        active: Mapping[Active, None],
        scheduler: Scheduler,
        emit: Callable[[Outcome], None],
        wake: Callable[[], None],
        steady_ms: Callable[[], int],
        now_ms: Callable[[], int],
        worker_name: str,
        tick_ms: int,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._active = active
        self._scheduler = scheduler
        self._emit = emit
        self._wake = wake
        self._steady_ms = steady_ms
        self._now_ms = now_ms
        self._worker = worker_name
        self._tick_s = tick_ms / 1000
        self._on_failure = on_failure
        #: Started since the last look; and in the tick before that.
        self._fresh: list[Active] = []
        self._aging: list[Active] = []
        self._deadlines: list[tuple[int, int, Active]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, active: Active) -> None:
        """Its time begins."""
        self._fresh.append(active)
        if self._timer is None:
            self.arm()

    def arm(self) -> None:
        """Something runs, though its time may not have begun."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._run)

    def stop(self) -> None:
        """No look any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        try:
            self.look_around()
        except Exception as error:  # noqa: BLE001 - without sweeps nothing would ever time out: rather no worker
            self._on_failure(error)

    def look_around(self) -> None:
        """Look at what is still running, once a tick."""
        now = self._steady_ms()
        for active in self._aging:
            if not active.done:
                self._announce(active)
                heapq.heappush(
                    self._deadlines, (active.since_steady_ms + active.timeout_ms, next(self._order), active)
                )
        self._aging, self._fresh = self._fresh, []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].done):
            _, _, active = heapq.heappop(self._deadlines)
            if not active.done:
                self._time_out(active, now)
        if len(self._deadlines) > 2 * len(self._active) + _MOST_FINISHED:
            # Behind one that has long to go, they would keep their messages in memory until its time is up.
            self._deadlines = [entry for entry in self._deadlines if not entry[2].done]
            heapq.heapify(self._deadlines)
        isolated = self._scheduler.isolated
        if isolated is not None and any(
            a.message is isolated and self._scheduler.has_survived(now - a.since_steady_ms)
            for a in self._active
        ):
            self._scheduler.survived()
            self._emit(COMMIT_REQUEST)  # its commit says that it runs alone no longer
            self._wake()
        if self._scheduler.turn_is_due(time.time_ns() // 1_000_000):
            self._wake()
        self._publish_progress(now)
        if self._active:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._run)
        else:
            self._timer = None
            self._deadlines.clear()

    def _time_out(self, active: Active, now: int) -> None:
        if active.cancel_reason is None:
            log.warning(
                "job timed out",
                job_id=active.context.job_id,
                type=active.context.job_type,
                timeout_ms=active.timeout_ms,
            )
            active.cancel(TIMEOUT)
            active.overdue = True
            if active.execution != "process":
                heapq.heappush(self._deadlines, (now + ABANDON_AFTER_MS, next(self._order), active))
        elif not active.overdue and active.execution != "process":
            # It was told to end for another reason, a moment ago perhaps.
            active.overdue = True
            heapq.heappush(self._deadlines, (now + ABANDON_AFTER_MS, next(self._order), active))
        elif active.execution == "async":
            log.error(
                "handler ignores its cancellation", job_id=active.context.job_id, type=active.context.job_type
            )
            active.cancel(TIMEOUT)
            heapq.heappush(self._deadlines, (now + ABANDON_AFTER_MS, next(self._order), active))
        elif active.abandoned is not None and not active.abandoned.done():
            log.error("thread abandoned", job_id=active.context.job_id, type=active.context.job_type)
            active.abandoned.set_result(None)

    def _announce(self, active: Active, progress: tuple[int, int | None] | None = None) -> None:
        active.announced_progress = progress
        active.progress_at_steady_ms = self._steady_ms()
        change = self._status_of_running(active, progress)
        self._emit(Outcome(None, change, owner=active.message))

    def _status_of_running(self, active: Active, progress: tuple[int, int | None] | None) -> StatusChange:
        run = Run.of(active.message, active.context, active.started_ms, self._now_ms(), progress=progress)
        return status_of(run, JobStatus.RUNNING)

    def _publish_progress(self, now: int) -> None:
        for active in self._active:
            progress = active.context._progress
            if (
                progress is not None
                and progress != active.announced_progress
                and now - active.progress_at_steady_ms >= _PROGRESS_INTERVAL_MS
            ):
                self._announce(active, progress)
