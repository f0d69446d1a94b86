"""Statuses for tests that look at something else."""

from __future__ import annotations

from typing import Any

from schemas.lifecycle import JobStatus
from schemas.records import StatusChange
from schemas.topics import JobPriority

JOB_ID = "01a20bd1-1946-743e-922d-c32f1fd9b001"


def status(state: JobStatus = JobStatus.SUCCEEDED, **given: Any) -> StatusChange:
    """A job's change into ``state``. ``given``: fields with other values."""
    return StatusChange(
        **{
            "job_id": JOB_ID,
            "key": None,
            "at": 2_000,
            "created_at": 1_000,
            "started_at": 1_500,
            "state": state,
            "type": "test",
            "priority": JobPriority.NORMAL,
            "attempt": 1,
            "delivery": 0,
            **given,
        }
    )
