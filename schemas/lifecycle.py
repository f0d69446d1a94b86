"""The states of a job and the one table of legal changes, with who makes each.

The job event itself is ``pending``: scheduling a job costs one record. Everything else is a
``StatusChange`` on ``jobs.status``, written in the same transaction as the change itself.
"""

from __future__ import annotations

import enum
from typing import Final

from schemas.errors import IllegalTransition


class JobStatus(enum.StrEnum):
    """Where a job stands; the final ones are in ``FINAL``."""

    #: A record on a job topic that nobody has started; a worker moves it next.
    PENDING = "pending"
    #: Waiting for a time (delayed or snoozed) on a retry topic; a worker forwards it when due.
    SCHEDULED = "scheduled"
    #: A handler is at work on it; published only for jobs that outlive a tick.
    RUNNING = "running"
    #: The last run failed; the next one waits on a retry topic; a worker forwards it when due.
    RETRYING = "retrying"
    #: The handler returned ``Success``.
    SUCCEEDED = "succeeded"
    #: Dead-lettered; an operator may start a new life with a redrive.
    FAILED = "failed"
    #: An operator cancelled it before it finished; nothing does so yet.
    CANCELLED = "cancelled"
    #: The handler returned ``Skipped``.
    SKIPPED = "skipped"

    @property
    def final(self) -> bool:
        """No worker will touch it again in this life."""
        return self in FINAL

    @classmethod
    def _missing_(cls, value: object) -> JobStatus | None:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


FINAL: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.SKIPPED})


class Actor(enum.StrEnum):
    """Who makes a change of state."""

    PRODUCER = "producer"
    WORKER = "worker"
    OPERATOR = "operator"


_S = JobStatus

#: (from, to) -> who. ``None`` stands for "not there yet".
TRANSITIONS: Final[dict[tuple[JobStatus | None, JobStatus], Actor]] = {
    (None, _S.PENDING): Actor.PRODUCER,
    (None, _S.SCHEDULED): Actor.PRODUCER,
    # A delay or a backoff has passed: the record is forwarded to its job topic.
    (_S.SCHEDULED, _S.PENDING): Actor.WORKER,
    (_S.RETRYING, _S.PENDING): Actor.WORKER,
    # A short job goes straight from waiting to its end: one status record.
    **{
        (waiting, to): Actor.WORKER
        for waiting in (_S.PENDING, _S.SCHEDULED, _S.RETRYING)
        for to in (_S.RUNNING, _S.SUCCEEDED, _S.FAILED, _S.SKIPPED)
    },
    (_S.PENDING, _S.RETRYING): Actor.WORKER,
    (_S.PENDING, _S.SCHEDULED): Actor.WORKER,
    (_S.RETRYING, _S.RETRYING): Actor.WORKER,
    (_S.RETRYING, _S.SCHEDULED): Actor.WORKER,
    (_S.SCHEDULED, _S.SCHEDULED): Actor.WORKER,
    (_S.SCHEDULED, _S.RETRYING): Actor.WORKER,
    **{
        (_S.RUNNING, to): Actor.WORKER
        for to in (_S.SUCCEEDED, _S.FAILED, _S.SKIPPED, _S.RETRYING, _S.SCHEDULED)
    },
    # The owner died or drained and another one runs it again: effects are at least once.
    (_S.RUNNING, _S.RUNNING): Actor.WORKER,
    **{
        (alive, _S.CANCELLED): Actor.OPERATOR for alive in (_S.PENDING, _S.SCHEDULED, _S.RETRYING, _S.RUNNING)
    },
    # A new life: redrive or retry_job, with ``redrives`` one higher.
    **{(state, _S.PENDING): Actor.OPERATOR for state in _S if state.final},
}


def actor_of(before: JobStatus | None, after: JobStatus) -> Actor:
    """Who makes this change.

    Raises:
        IllegalTransition: the table does not have it.
    """
    try:
        return TRANSITIONS[before, after]
    except KeyError:
        was = before.value if before else "nothing"
        raise IllegalTransition(f"a job cannot go from {was} to {after.value}") from None


def by_worker(before: JobStatus, after: JobStatus) -> JobStatus:
    """``after``, if a worker may make this change.

    Asked for each state that a worker writes, with what it knows of the one before: the record that it has read waits
    (pending), or its run has ended (running). What a job went through in all is for whoever reads its statuses.

    Raises:
        IllegalTransition: the table does not have it, or it is not a worker's.
    """
    if actor_of(before, after) is not Actor.WORKER:
        raise IllegalTransition(f"no worker may turn a job from {before.value} to {after.value}")
    return after
