"""Job events and messages for tests that need no broker."""

from __future__ import annotations

from typing import Any

from schemas import Job
from schemas.codec import Codec
from schemas.jobtype import job_type

JOB_ID = "01a20bd1-1946-743e-922d-c32f1fd9b001"


def envelope(kind: str, **given: Any) -> dict[str, Any]:
    """The fields that every job has."""
    return {
        "id": JOB_ID,
        "type": kind,
        "priority": "normal",
        "key": None,
        "created_at": 1_760_000_000_000,
        "max_retries": None,
        "timeout_ms": None,
        "source": "test",
        "parent_id": None,
        **given,
    }


def job_value(job: Job, codec: Codec | None = None, **given: Any) -> bytes:
    """A job event. ``given``: envelope fields with other values."""
    kind = job_type(type(job))
    return (codec or Codec()).encode_job(kind, job, envelope(kind.name, **given))
