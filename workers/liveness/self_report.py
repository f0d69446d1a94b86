"""What a worker says of itself, each second: who it is, what it does, what it has done, and in which state it is.

In:  the worker's parts. Out: a `WorkerReport`, encoded.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from schemas.records import JobCounter, JobMetric, WorkerReport, encode_report
from schemas.topics import JobPriority
from workers.liveness.survivors import CUT_OFF, LEFT

if TYPE_CHECKING:
    from schemas.codec import Codec
    from workers.committing.counters import Counters
    from workers.scheduling.scheduler import Scheduler


def state_of(
    *, asked: str, cut_off: bool, draining: bool, stopping: bool, failed: bool, left_in_order: bool
) -> str:
    """The state that a report tells of.

    Args:
        asked: where the worker is in its life: "starting", "running" or "stopped".
        cut_off: Kafka has not answered for so long that nothing may run.
        draining: it takes nothing any more.
        stopping: its threads are ending.
        failed: they will, for an error of its own.
        left_in_order: a drain has come to its end, and no job can be the cause of this end.
    """
    # A successor must not take the last words of one that has failed for a sign of life.
    if asked == "stopped" and left_in_order:
        return LEFT
    if cut_off:
        return CUT_OFF
    if stopping or failed:
        return "stopped"
    return "draining" if draining and asked == "running" else asked


class SelfReport:
    """Makes the reports of one incarnation. For one thread at a time."""

    def __init__(
        self,
        *,
        codec: Codec,
        worker_name: str,
        incarnation: str,
        job_types: tuple[str, ...],
        partitions: Callable[[], tuple[int, ...]],
        scheduler: Scheduler,
        counters: Counters,
    ) -> None:
        self._codec = codec
        self._worker_name = worker_name
        self._incarnation = incarnation
        self._job_types = job_types
        self._partitions = partitions
        self._scheduler = scheduler
        self._counters = counters
        #: Milliseconds since 1970.
        self.started_ms = time.time_ns() // 1_000_000
        self._sequence = 0

    def encoded(self, state: str) -> bytes:
        """The next one."""
        self._sequence += 1
        report = WorkerReport(
            worker_id=self._worker_name,
            incarnation=self._incarnation,
            sequence=self._sequence,
            started_at=self.started_ms,
            at=time.time_ns() // 1_000_000,
            host=socket.gethostname(),
            state=state,
            job_types=self._job_types,
            partitions=self._partitions(),
            running=self._scheduler.running,
            buffered=len(self._scheduler),
            counters=tuple(
                JobCounter(job_type, JobPriority(priority), job_state, count)
                for (job_type, priority, job_state), count in sorted(self._counters.jobs.copy().items())
            ),
            events=dict(self._counters.events),
            metrics=tuple(
                JobMetric(job_type, name, value)
                for (job_type, name), value in sorted(self._counters.metrics.copy().items())
            ),
        )
        return encode_report(self._codec, report)
