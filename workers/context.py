"""What a handler can see and say while it runs."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from schemas.errors import InvalidJob
from schemas.headers import MAX_NAME_BYTES, clip
from schemas.job import Job
from schemas.topics import JobPriority

if TYPE_CHECKING:
    from workers.outcome import OutRecord


class ChildPlanner(Protocol):
    """Makes the records of child jobs."""

    def __call__(self, job: Job, priority: JobPriority, **options: Any) -> tuple[str, OutRecord]:
        """The child's id, and the record to produce."""
        ...

    async def prepare(self, job: Job) -> None:
        """Wait for what the first child of a type has to wait for; without this the call above blocks for it."""
        ...


#: How many names a run's metrics may have; what comes on top would swell every status of the job.
MAX_METRICS: Final = 100
#: What one run may schedule: it is one transaction with the run's outcome, and Kafka gives a transaction five seconds.
MAX_CHILDREN: Final = 10_000
MAX_CHILD_BYTES: Final = 16 * 1024 * 1024
_LARGEST: Final = 2**63 - 1
#: Between the end of a run and a thread or task of its handler that goes on. One for all: it is held for nanoseconds.
_SCHEDULING: Final = threading.Lock()


class WorkerContext:
    """Handed to ``process_job`` and ``execute``. Usable from the handler's own thread or task.

    Attributes:
        job_id: the job's id.
        job_type: its type name.
        priority: of the topic it came from.
        attempt: number of this run, from 1.
        key: its ordering key, if it has one.
        worker_id: worker id and process number.
        fence: rises with every owner of the job's partition; give it to storage that can refuse an older one.
        created_at: when it was scheduled (UTC).
        redrives: number of earlier lives.
        traceparent: W3C trace context that the job was scheduled with; empty without one.
        cancelled: True once the run should end (timeout, drain, lost partition); thread handlers must look at it.
            A run that then fails is run again, and has used up an attempt only if it timed out.
            Never in a handler process: there the process is ended.
    """

    __slots__ = (
        "_child_bytes",
        "_children",
        "_metrics",
        "_over",
        "_planner",
        "_progress",
        "attempt",
        "cancelled",
        "created_at_ms",
        "fence",
        "job_id",
        "job_type",
        "key",
        "priority",
        "redrives",
        "traceparent",
        "worker_id",
    )

    def __init__(
        self,
        *,
        job_id: str,
        job_type: str,
        priority: JobPriority,
        attempt: int = 1,
        key: str | None = None,
        worker_id: str = "",
        fence: int = 0,
        created_at_ms: int = 0,
        redrives: int = 0,
        traceparent: str = "",
        planner: ChildPlanner | None = None,
    ) -> None:
        self.job_id = job_id
        self.job_type = job_type
        self.priority = priority
        self.attempt = attempt
        self.key = key
        self.worker_id = worker_id
        self.fence = fence
        self.created_at_ms = created_at_ms
        self.redrives = redrives
        self.traceparent = traceparent
        self.cancelled = False
        self._planner = planner
        self._metrics: dict[str, float] | None = None
        self._progress: tuple[int, int | None] | None = None
        self._children: list[OutRecord] | None = None
        self._child_bytes = 0
        self._over = False

    @property
    def created_at(self) -> datetime:
        """When the job was scheduled."""
        return datetime.fromtimestamp(self.created_at_ms / 1000, UTC)

    def update_metrics(self, name: str, value: float = 1) -> None:
        """Add to a number that goes into the job's final status and into the worker's report.

        The first 100 names of a run are kept, 256 bytes of each; a report holds the sums of the first 500 of its worker.

        Raises:
            TypeError, ValueError: the value is no number.
        """
        number = value if type(value) in (int, float) else float(value)
        if self._metrics is None:
            self._metrics = {}
        name = clip(str(name), MAX_NAME_BYTES)
        if name in self._metrics or len(self._metrics) < MAX_METRICS:
            self._metrics[name] = self._metrics.get(name, 0) + number

    def progress(self, done: int, total: int | None = None) -> None:
        """Say how far the run is; published in ``jobs.status`` at most once a second.

        Raises:
            TypeError, ValueError: not a whole number, nor one that can be cut to one.
        """
        self._progress = (_whole(done), None if total is None else _whole(total))

    async def schedule(
        self,
        job: Job,
        priority: JobPriority | None = None,
        delay: timedelta | None = None,
        **options: Any,
    ) -> str:
        """Schedule a child job, in the transaction of this run's outcome: it exists if, and only if, this run succeeds.

        ``options``: ``at``, ``key``, ``job_id``, ``max_retries``, ``timeout`` and ``traceparent``, as for
        ``JobQueue.schedule_job``.

        Returns:
            The child's id.

        Raises:
            JobRefused: as ``JobQueue.schedule_job`` does; or these are more than 10,000 children, or 16 MiB of them.
            RuntimeError: the run is over, or this context was made without a planner.
        """
        if self._planner is not None:
            await self._planner.prepare(job)
        return self.schedule_nowait(job, priority, delay, **options)

    def schedule_nowait(
        self,
        job: Job,
        priority: JobPriority | None = None,
        delay: timedelta | None = None,
        **options: Any,
    ) -> str:
        """The same for thread handlers. Nothing is sent yet: it waits for a schema registry at the most, for the first job of a type."""
        if self._planner is None:
            raise RuntimeError("this context cannot schedule jobs: it was made without a planner")
        child_id, record = self._planner(
            job, priority or self.priority, delay=delay, parent_id=self.job_id, **options
        )
        with _SCHEDULING:
            if self._over:
                raise RuntimeError(f"the run of job {self.job_id} is over: nobody would write its child jobs")
            if self._children is None:
                self._children = []
            size = self._child_bytes + len(record.value or b"")
            if len(self._children) >= MAX_CHILDREN or size > MAX_CHILD_BYTES:
                raise InvalidJob(
                    f"the run of job {self.job_id} schedules more than {MAX_CHILDREN:,} child jobs or "
                    f"{MAX_CHILD_BYTES >> 20} MiB of them; let a child schedule the rest"
                )
            self._children.append(record)
            self._child_bytes = size
        return child_id

    def end(self) -> tuple[OutRecord, ...]:
        """The run is over: its child jobs. From now on it can schedule none."""
        with _SCHEDULING:
            self._over = True
            return tuple(self._children or ())

    @property
    def metrics(self) -> dict[str, float]:
        """What ``update_metrics`` has added up so far."""
        return dict(self._metrics or {})


def _whole(number: int) -> int:
    """What a status can hold: 64 bits."""
    return max(-_LARGEST, min(int(number), _LARGEST))
