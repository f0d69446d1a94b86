"""Turn one run's result into the records that Kafka should see next.

In:  a message, what its handler returned, and the limits of its type. Out: an ``Outcome``.

Pure: no clock, no broker, no randomness (jitter is a hash), so the same run always leads to the same records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schemas.backoff import Backoff
from schemas.codec import peek_priority
from schemas.errors import WireError
from schemas.headers import (
    MAX_HISTORY,
    MAX_MESSAGE_BYTES,
    MAX_NAME_BYTES,
    MAX_STACKTRACE_BYTES,
    Attempt,
    Delivery,
    RawHeaders,
    build,
    clip,
    clip_trace,
    dead_letter,
)
from schemas.lifecycle import JobStatus, by_worker
from schemas.records import MAX_OUTPUT_BYTES, StatusChange
from schemas.topics import JobPriority, Topics, tier_for
from workers.message import Message
from workers.outcome import NOT_KEPT, NOT_WRITABLE, Outcome, OutRecord, PlainSuccess
from workers.redaction import redact
from workers.results import Failed, JobResult, Skipped, Snooze, Success

if TYPE_CHECKING:
    from workers.context import WorkerContext

#: A handler that has nothing better to say than "again, at once" is asked ten times a second at the most.
MIN_SNOOZE_MS: Final = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that apply to one job: the call's value, else the type's, else the worker's."""

    max_retries: int
    backoff: Backoff
    snooze_limit_ms: int


class Run(NamedTuple):
    """The facts of one run that has ended. Times are broker time, in milliseconds since 1970.

    One is made for each: a tuple takes a fourth of the time of a frozen dataclass.
    """

    message: Message
    job_type: str
    priority: JobPriority
    key: str | None
    created_at_ms: int
    started_at_ms: int
    finished_at_ms: int
    worker: str
    metrics: Mapping[str, float] | None = None
    children: tuple[OutRecord, ...] = ()
    progress: tuple[int, int | None] | None = None
    #: Since when nobody has known the type; 0 if this worker does.
    unknown_since_ms: int = 0

    @classmethod
    def of(
        cls,
        message: Message,
        context: WorkerContext,
        started_at_ms: int,
        finished_at_ms: int,
        *,
        children: tuple[OutRecord, ...] = (),
        progress: tuple[int, int | None] | None = None,
        unknown_since_ms: int = 0,
    ) -> Run:
        """What the handler's context knows, and the rest."""
        return cls(
            message,
            context.job_type,
            context.priority,
            context.key,
            context.created_at_ms,
            started_at_ms,
            finished_at_ms,
            context.worker_id,
            context._metrics,
            children,
            progress,
            unknown_since_ms,
        )


class Router:
    """Decides where a job goes after a run. Immutable; safe from any thread."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics

    def settle(self, run: Run, result: JobResult, limits: Limits) -> Outcome:
        """What a run's result leads to."""
        match result:
            case Success(output):
                if (
                    output is None
                    and not run.metrics
                    and not run.children
                    and run.progress is None
                    and not run.message.delivery.history
                ):
                    return _plain(run)
                return _final(run, JobStatus.SUCCEEDED, records=run.children, output=_json(output))
            case Skipped(reason):
                return _final(run, JobStatus.SKIPPED, records=run.children, error_message=_reason(reason))
            case Snooze(delay, reason):
                return self._snooze(run, delay, reason, limits)
            case Failed():
                return self._fail(run, result, limits)
            case _:
                raise AssertionError(f"not a result: {result!r}")

    def forward(self, message: Message, now_ms: int, worker: str = "") -> Outcome:
        """A record whose delay has passed goes to its job topic, or to the next retry topic of its way."""
        delivery = message.delivery
        try:
            priority = peek_priority(message.value)
        except WireError as error:
            return self.unreadable(message, error, now_ms, worker)
        topic = self._topic_for(delivery.not_before_ms - now_ms, priority)
        successor = delivery.next(
            first_seen_ms=delivery.first_seen_ms or message.timestamp_ms,
            origin=delivery.origin or message.origin,
        )
        return Outcome(message, None, (self._onward(message, topic, successor),), event="forwarded")

    def unreadable(self, message: Message, error: WireError, now_ms: int, worker: str = "") -> Outcome:
        """Bytes that cannot be understood go to the dead letters unchanged, with the reason.

        If a job id can be read from them, that job is ``failed``: without a status it would be pending for ever.
        """
        # Its counters stay: a redriven job that fails like this again must be seen as a letter of its new life.
        delivery = replace(
            message.delivery,
            error_type=type(error).__name__,
            error_message=_masked(str(error)),
        )
        return self._dead_unread(
            message, delivery, worker, now_ms, event="undecodable", original=message.raw_headers
        )

    def worker_lost(self, message: Message, worker: str, now_ms: int, last: str = "") -> Outcome:
        """A job whose owner died while nothing else was running: it kills its process, and is dead-lettered.

        ``last``: how it was found, if its last process was not the worker's.
        """
        how = last or "with nothing beside it"
        reason = f"the worker process died each time this job ran, the last time {how}"
        delivery = replace(message.delivery, error_type="worker_lost", error_message=reason)
        return self._dead_unread(message, delivery, worker, now_ms, event="worker_lost")

    def not_writable(
        self, outcome: Outcome, error: str, worker: str, now_ms: int, *, bare: bool = False
    ) -> Outcome:
        """An outcome that Kafka refuses becomes ``failed``, in a form that is small enough for it to take.

        ``bare``: the record's own bytes are too many as well; the letter says where they stand.
        """
        message = outcome.message
        assert message is not None  # noqa: S101 - news without a message is dropped instead
        delivery = replace(
            message.delivery,
            error_type="OutcomeNotWritable",
            error_message=_masked(error, 300),
            history=(),
            traceparent="",
        )
        if not bare:
            return self._dead_unread(message, delivery, worker, now_ms, event=NOT_WRITABLE)
        size = len(message.value or b"")
        delivery = replace(
            delivery,
            error_type="TooLargeToKeep",
            error_message=f"its {size:,} bytes were refused, and stand at {message.where} alone: {_masked(error, 200)}",
        )
        dead = self._dead_unread(message, delivery, worker, now_ms, event=NOT_KEPT)
        key = message.key if len(message.key or b"") <= MAX_MESSAGE_BYTES else None
        return replace(dead, records=tuple(replace(record, value=None, key=key) for record in dead.records))

    def _dead_unread(
        self,
        message: Message,
        delivery: Delivery,
        worker: str,
        now_ms: int,
        *,
        event: str,
        original: RawHeaders | None = None,
    ) -> Outcome:
        """A dead letter, and a bounded status if there is an id, made without decoding the job."""
        headers = dead_letter(
            delivery,
            at=message.origin,
            timestamp_ms=message.timestamp_ms,
            failed_at_ms=now_ms,
            stacktrace="",
            original=original,
        )
        record = OutRecord(self.topics.dlq, message.part.partition, message.key, message.value, headers)
        if not message.job_id:
            return Outcome(message, None, (record,), event=event)
        priority = _priority_of(message)
        job_id = message.job_id_text
        key = clip((message.key or b"").decode("utf-8", "replace"), MAX_MESSAGE_BYTES)
        job_type = clip(delivery.job_type, MAX_NAME_BYTES) or "unknown"
        change = StatusChange(
            job_id=job_id,
            key=None if key in ("", job_id) else key,
            at=now_ms,
            created_at=delivery.first_seen_ms or message.timestamp_ms,
            started_at=None,
            state=by_worker(JobStatus.PENDING, JobStatus.FAILED),
            type=job_type,
            priority=priority,
            attempt=delivery.attempt,
            delivery=delivery.delivery,
            redrives=delivery.redrives,
            worker=worker,
            error_type=clip(delivery.error_type, MAX_NAME_BYTES),
            error_message=delivery.error_message,
            attempts=delivery.history,
        )
        return Outcome(message, change, (record,), counts_as=(job_type, priority, "failed"), event=event)

    def _snooze(self, run: Run, delay: timedelta, reason: str, limits: Limits) -> Outcome:
        due = run.finished_at_ms + max(round(delay / timedelta(milliseconds=1)), MIN_SNOOZE_MS)
        # Not since its creation: a job that was delayed or redriven after weeks may wait like any other.
        # And not from a time that is yet to come, which anybody can write.
        since = min(run.message.delivery.snoozed_since_ms or run.started_at_ms, run.started_at_ms)
        if not run.unknown_since_ms and due > since + limits.snooze_limit_ms:
            failed = Failed(
                f"snoozed until the limit of {timedelta(milliseconds=limits.snooze_limit_ms)} was reached"
                + (f": {reason}" if reason else ""),
                error_type="SnoozeLimitReached",
            )
            return self._fail(run, failed, limits)
        following = replace(run.message.delivery, snoozed_since_ms=since)
        return self._again(run, JobStatus.SCHEDULED, due, following, error_message=_reason(reason))

    def _fail(self, run: Run, failed: Failed, limits: Limits) -> Outcome:
        delivery = run.message.delivery
        failed = replace(
            failed,
            error_type=clip(failed.error_type, MAX_NAME_BYTES),
            reason=redact(clip(failed.reason, MAX_MESSAGE_BYTES)),
            stacktrace=redact(clip_trace(failed.stacktrace, MAX_STACKTRACE_BYTES)),
        )
        message = clip(failed.reason, MAX_MESSAGE_BYTES)
        if not failed.retryable or delivery.attempt > limits.max_retries:
            return self._dead(run, failed, message)
        due = run.finished_at_ms + limits.backoff.delay_ms(run.message.job_id.decode(), delivery.attempt)
        history = (
            *delivery.history,
            Attempt(
                attempt=delivery.attempt,
                worker=run.worker,
                started_at_ms=run.started_at_ms,
                finished_at_ms=run.finished_at_ms,
                error_type=failed.error_type,
                error_message=clip(failed.reason, Attempt.MESSAGE_LIMIT),
            ),
        )[-MAX_HISTORY:]
        following = replace(
            delivery,
            attempt=delivery.attempt + 1,
            error_type=failed.error_type,
            error_message=message,
            history=history,
        )
        return self._again(
            run, JobStatus.RETRYING, due, following, error_type=failed.error_type, error_message=message
        )

    def _again(self, run: Run, state: JobStatus, due_ms: int, following: Delivery, **facts: Any) -> Outcome:
        message = run.message
        topic = self._topic_for(due_ms - run.finished_at_ms, run.priority)
        successor = following.next(
            job_type=run.job_type,
            not_before_ms=due_ms,
            unknown_since_ms=run.unknown_since_ms,
            first_seen_ms=following.first_seen_ms or message.timestamp_ms,
            origin=following.origin or message.origin,
        )
        return _final(
            run, state, records=(self._onward(message, topic, successor),), not_before=due_ms, **facts
        )

    def _dead(self, run: Run, failed: Failed, message_text: str) -> Outcome:
        message = run.message
        headers = dead_letter(
            replace(
                message.delivery,
                job_type=run.job_type,
                error_type=failed.error_type,
                error_message=message_text,
                first_seen_ms=message.delivery.first_seen_ms or message.timestamp_ms,
            ),
            at=message.origin,
            timestamp_ms=message.timestamp_ms,
            failed_at_ms=run.finished_at_ms,
            stacktrace=failed.stacktrace,
        )
        record = OutRecord(self.topics.dlq, message.part.partition, message.key, message.value, headers)
        return _final(
            run,
            JobStatus.FAILED,
            records=(record,),
            error_type=failed.error_type,
            error_message=message_text,
        )

    def _topic_for(self, remaining_ms: int, priority: JobPriority) -> str:
        tier = tier_for(remaining_ms)
        return self.topics.jobs[priority] if tier is None else self.topics.retry[tier]

    @staticmethod
    def _onward(message: Message, topic: str, delivery: Delivery) -> OutRecord:
        # The source's partition number, whatever the key would say: one key, one partition, one owner.
        return OutRecord(topic, message.part.partition, message.key, message.value, build(delivery))


def _plain(run: Run) -> Outcome:
    return Outcome(
        run.message,
        PlainSuccess(
            run.key, run.finished_at_ms, run.created_at_ms, run.started_at_ms, run.job_type, run.priority
        ),
        counts_as=(run.job_type, run.priority, "succeeded"),
    )


def _final(run: Run, state: JobStatus, *, records: tuple[OutRecord, ...] = (), **facts: Any) -> Outcome:
    return Outcome(
        run.message,
        # A run that failed has scheduled nobody, whatever it asked for.
        status_of(run, state, children=len(run.children) if records is run.children else 0, **facts),
        records,
        counts_as=(run.job_type, run.priority, state.value),
    )


def _priority_of(message: Message) -> JobPriority:
    """That of its topic; on a retry topic the job's own, as far as it can be read."""
    if message.priority is not None:
        return message.priority
    try:
        return peek_priority(message.value)
    except WireError:
        return JobPriority.NORMAL


def _reason(text: str) -> str | None:
    return _masked(text) or None


def _masked(text: str, most_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """Shortened before as well: looking for secrets in megabytes takes its time."""
    return clip(redact(clip(text, most_bytes)), most_bytes)


def status_of(run: Run, state: JobStatus, **facts: Any) -> StatusChange:
    """The state change of a run, with everything that the run has told."""
    delivery = run.message.delivery
    done, total = run.progress or (None, None)
    return StatusChange(
        job_id=run.message.job_id.decode(),
        key=run.key,
        at=run.finished_at_ms,
        created_at=run.created_at_ms,
        started_at=run.started_at_ms,
        state=by_worker(JobStatus.PENDING if state is JobStatus.RUNNING else JobStatus.RUNNING, state),
        type=run.job_type,
        priority=run.priority,
        attempt=delivery.attempt,
        delivery=delivery.delivery,
        redrives=delivery.redrives,
        worker=run.worker,
        # A copy: the handler's thread may be adding to them.
        metrics={name: _double(value) for name, value in dict(run.metrics).items()} if run.metrics else {},
        progress_done=done,
        progress_total=total,
        attempts=delivery.history,
        **facts,
    )


def _double(number: float) -> float:
    """A number of any size or kind, as Avro's double can hold it."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
    except (TypeError, ValueError):
        return math.nan


#: What most handlers return.
_DONE: Final = Success()


def as_result(value: object) -> JobResult:
    """What a handler returned, as a result: None is success, a mapping is a success with that output.

    A result that could not be written down is the handler's mistake, and fails its own job alone: found only while
    the outcome is made, it would end the worker, and the next one that runs the job.
    """
    if value is None:
        return _DONE
    if value is Success or value is Skipped:  # `return JobResult.Success`: there is nothing to add
        value = value()
    result = Success(value) if isinstance(value, Mapping) else value
    problem = _problem_with(result)
    if problem is not None:
        return Failed(clip(problem, MAX_MESSAGE_BYTES), retryable=False, error_type="BadResult")
    assert isinstance(result, JobResult)  # noqa: S101 - anything else is a problem
    return result


def _problem_with(result: Any) -> str | None:
    """Why a result cannot be written down. Handlers are not checked by a type checker, so nothing is taken for granted."""
    match result:
        case Success(output):
            try:
                _json(output)
            except (TypeError, ValueError, RecursionError) as error:
                return f"the output cannot be written as JSON: {error}"
            return None
        case Failed():
            texts = _all_text(result.reason, result.error_type, result.stacktrace)
            return None if texts else "the texts of Failed must be str: write Failed(str(error))"
        case Skipped():
            return None if _all_text(result.reason) else "the reason of Skipped must be a str"
        case Snooze():
            delay: Any = result.delay
            right = isinstance(delay, timedelta) and _all_text(result.reason)
            return None if right else "Snooze takes a timedelta, and a str as its reason"
        case _:
            return f"the handler returned {type(result).__qualname__}; return a JobResult, a mapping or None"


def _all_text(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _json(output: Any) -> str | None:
    if output is None:
        return None
    if isinstance(output, Mapping):
        output = dict(output)  # json writes a mapping of any other kind as one text
    # Python would write NaN and infinity as words that no other reader of JSON takes.
    text = json.dumps(output, separators=(",", ":"), ensure_ascii=False, default=str, allow_nan=False)
    if len(text.encode("utf-8", "replace")) > MAX_OUTPUT_BYTES:
        # Each of its characters may need a backslash, and the name around it some more.
        return json.dumps({"truncated": clip(text, MAX_OUTPUT_BYTES // 2 - 16)}, ensure_ascii=False)
    return text
