"""Child jobs: planned like every other job, but produced in the transaction of their parent's outcome."""

from __future__ import annotations

import time
from typing import Any

from schemas.job import Job
from schemas.topics import JobPriority
from streams.outgoing import JobOptions, Rules, plan
from workers.outcome import OutRecord


class ChildJobs:
    """Turns ``context.schedule`` into records."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def __call__(self, job: Job, priority: JobPriority, **options: Any) -> tuple[str, OutRecord]:
        """The child's id and record.

        Raises:
            JobRefused: as scheduling it directly would.
        """
        outgoing = plan(
            job, JobOptions(priority=priority, **options), time.time_ns() // 1_000_000, self._rules
        )
        partition = -1 if outgoing.partition is None else outgoing.partition
        return outgoing.job_id, OutRecord(
            outgoing.topic, partition, outgoing.key, outgoing.value, outgoing.headers
        )
