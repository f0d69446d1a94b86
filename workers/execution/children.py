"""Child jobs: planned like every other job, but produced in the transaction of their parent's outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from schemas.codec import SINGLE_OBJECT
from schemas.job import Job
from schemas.topics import JobPriority
from schemas.wire import WireSchema
from streams.outgoing import JobOptions, Rules, declared_type, plan
from workers.outcome import OutRecord


class ChildJobs:
    """Turns ``context.schedule`` into records.

    Args:
        rules: of the deployment.
        introduced: schemas that readers know already.
        now_ms: broker time. A delay that began by a local clock that is behind would end too early.
    """

    def __init__(
        self, rules: Rules, introduced: Iterable[WireSchema] = (), *, now_ms: Callable[[], int]
    ) -> None:
        self._rules = rules
        self._now_ms = now_ms
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
            -1,
            outgoing.key,
            outgoing.value,
            outgoing.headers,
            None if known else schema,
        )
