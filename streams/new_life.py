"""What is written for a job that gets a new life: the same bytes again, with one redrive more, and that it is pending.

In:  a dead letter, or what is known of a finished job. Out: a ``NewLife``.

Pure: no clock, no broker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from schemas import headers as h
from schemas.headers import MAX_HISTORY, Attempt, Delivery, RawHeaders, clip
from schemas.lifecycle import JobStatus
from schemas.records import StatusChange
from schemas.topics import JobPriority, Topics
from streams.clients import MAX_FORWARDED_BYTES
from streams.dead_letters import DeadLetter
from streams.jobinfo import JobState
from streams.reader import JobNotFound

#: Of one letter. What follows it has fewer headers, and one more attempt to tell of.
_MOST_BYTES: Final = MAX_FORWARDED_BYTES - 4096


@dataclass(frozen=True, slots=True)
class NewLife:
    """What is written for one job."""

    job_id: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: RawHeaders
    status: StatusChange


def can_live(letter: DeadLetter) -> bool:
    """Whether it can be given a new life: not a second one, perhaps, nor one that Kafka refuses, which would hold up all others."""
    size = len(letter.value or b"") + len(letter.key or b"")
    size += sum(len(name) + len(text) for name, text in letter.headers)
    return letter.can_run and not letter.unclear and size <= _MOST_BYTES


def life_after(letter: DeadLetter, last: StatusChange | None, now_ms: int, topics: Topics) -> NewLife:
    """The new life of a dead letter. ``last``: the newest status of its job, if there is one."""
    assert letter.priority is not None and letter.value is not None  # noqa: S101, PT018 - it can run
    delivery = letter.delivery
    if last is not None and (last.redrives, last.delivery) != (delivery.redrives, delivery.delivery):
        last = None  # it tells of something else
    failed_at = now_ms if letter.failed_at is None else round(letter.failed_at.timestamp() * 1000)
    ended = Attempt(
        attempt=delivery.attempt,
        worker=last.worker if last is not None else "",
        started_at_ms=last.started_at if last is not None and last.started_at else failed_at,
        finished_at_ms=failed_at,
        error_type=delivery.error_type,
        error_message=clip(delivery.error_message, Attempt.MESSAGE_LIMIT),
    )
    return _new_life(
        letter.id,
        letter.priority,
        delivery,
        letter.partition,
        letter.key,
        letter.value,
        now_ms,
        topics,
        created_at=last.created_at if last is not None else delivery.first_seen_ms or failed_at,
        history=(*delivery.history, ended),
    )


def life_again(job_id: str, state: JobState, now_ms: int, topics: Topics) -> NewLife:
    """The new life of a job that is finished and whose record is still there.

    Raises:
        JobNotFound: the record is gone.
    """
    event, seen = state.event, state.last_status
    if event is None:
        raise JobNotFound(job_id)
    delivery = event.delivery
    history = delivery.history
    created_at = delivery.first_seen_ms or event.timestamp_ms
    if seen is not None:
        # The newest of everything: the copy that follows must be newer than all of it.
        redrives, number = max(
            (seen.change.redrives, seen.change.delivery), (delivery.redrives, delivery.delivery)
        )
        delivery = replace(delivery, redrives=redrives, delivery=number)
        history = seen.change.attempts or history
        created_at = seen.change.created_at
    return _new_life(
        job_id,
        event.priority,
        delivery,
        event.place[1],
        job_id.encode() if event.key is None else event.key,
        event.value,
        now_ms,
        topics,
        created_at=created_at,
        history=history,
    )


def _new_life(
    job_id: str,
    priority: JobPriority,
    delivery: Delivery,
    partition: int,
    key: bytes | None,
    value: bytes,
    now_ms: int,
    topics: Topics,
    *,
    created_at: int,
    history: Sequence[Attempt],
) -> NewLife:
    again = delivery.next(
        attempt=1,
        redrives=delivery.redrives + 1,
        not_before_ms=0,
        unknown_since_ms=0,
        snoozed_since_ms=0,
        error_type="",
        error_message="",
        history=tuple(history)[-MAX_HISTORY:],
    )
    text_key = (key or b"").decode("utf-8", "replace")
    return NewLife(
        job_id=job_id,
        topic=topics.jobs[priority],
        partition=partition,
        key=key,
        value=value,
        headers=h.build(again),
        status=StatusChange(
            job_id=job_id,
            key=None if text_key in ("", job_id) else text_key,
            at=now_ms,
            created_at=created_at,
            started_at=None,
            state=JobStatus.PENDING,
            type=delivery.job_type,
            priority=priority,
            attempt=1,
            delivery=again.delivery,
            redrives=again.redrives,
            attempts=again.history,
        ),
    )


def life_of(state: JobState) -> int:
    """The number of redrives so far."""
    event, seen = state.event, state.last_status
    return max(event.delivery.redrives if event else 0, seen.change.redrives if seen else 0)
