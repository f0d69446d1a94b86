"""Dead letters for tests that need no broker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from schemas.headers import Attempt, Delivery, Origin
from schemas.topics import JobPriority
from streams.dead_letters import DeadLetter
from streams.jobinfo import moment
from tests.support.statuses import JOB_ID

T0 = 1_700_000_000_000
DIED = Delivery(
    job_type="t",
    attempt=4,
    delivery=9,
    first_seen_ms=T0,
    not_before_ms=T0 + 1,
    origin=Origin("p.jobs.high", 2, 77),
    error_type="ValueError",
    error_message="no",
    history=(Attempt(3, "w.0", T0, T0 + 1, "KeyError", "k"),),
    traceparent="00-a-b-01",
)


def letter(delivery: Delivery = DIED, *, offset: int = 0, job_id: str = JOB_ID, **changes: Any) -> DeadLetter:
    """The letter of a job that died. ``changes``: fields with other values."""
    return replace(
        DeadLetter(
            id=job_id,
            type=delivery.job_type,
            error_type=delivery.error_type,
            error_message=delivery.error_message,
            attempt=delivery.attempt,
            failed_at=moment(T0 + 60_000),
            topic="p.jobs.dlq",
            partition=2,
            offset=offset,
            key=b"b/k",
            value=b"bytes",
            headers=[],
            delivery=delivery,
            priority=JobPriority.HIGH,
        ),
        **changes,
    )
