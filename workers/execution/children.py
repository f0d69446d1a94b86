"""Child jobs: planned like every other job, but produced in the transaction of their parent's outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from schemas.codec import SINGLE_OBJECT
from schemas.job import Job
from schemas.partitions import partition_of_id
from schemas.topics import JobPriority
from schemas.wire import WireSchema
from streams.outgoing import JobOptions, OutgoingJob, Rules, declared_type, is_prepared, plan, prepare
from workers.blocking import in_thread
from workers.outcome import OutRecord


class ChildJobs:
    """Turns ``context.schedule`` into records.

    Args:
        rules: of the deployment.
        introduced: schemas that readers know already.
        now_ms: broker time. A delay that began by a local clock that is behind would end too early.
        partitions: of each job topic; 0 if that is not known yet.
    """

    def __init__(
        self,
        rules: Rules,
        introduced: Iterable[WireSchema] = (),
        *,
        now_ms: Callable[[], int],
        partitions: Callable[[], int],
    ) -> None:
        self._rules = rules
        self._now_ms = now_ms
        self._partitions = partitions
        self._introduced = frozenset(schema.fingerprint for schema in introduced)

    def __call__(self, job: Job, priority: JobPriority, **options: Any) -> tuple[str, OutRecord]:
        """The child's id and record.

        Raises:
            JobRefused: as scheduling it directly would.
        """
        options_of_child = JobOptions(priority=priority, **options)
        outgoing = plan(job, options_of_child, self._now_ms(), self._rules, by_broker=False)
        schema = declared_type(job).wire
        # In a registry's frame: the codec has registered it by now.
        known = schema.fingerprint in self._introduced or outgoing.value[:1] != SINGLE_OBJECT[:1]
        return outgoing.job_id, OutRecord(
            outgoing.topic,
            self._place(outgoing),
            outgoing.key,
            outgoing.value,
            outgoing.headers,
            None if known else schema,
        )

    async def prepare(self, job: Job) -> None:
        """A registry that is slow must not hold up the event loop, and with it everything that the worker does.

        Raises:
            UnknownJobType, InvalidJob, JobTypeError, RegistryFailed: its type cannot be used.
        """
        if not is_prepared(job, self._rules):
            await in_thread(prepare, job, self._rules)

    def _place(self, outgoing: OutgoingJob) -> int:
        """Where every producer would write it: who schedules it again under its id meets the first one there."""
        count = self._partitions()
        return -1 if outgoing.ordered or not count else partition_of_id(outgoing.job_id, count)
