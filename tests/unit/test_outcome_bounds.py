"""What a handler says is bounded before it is written, and what cannot be read still ends as a failed job."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from schemas import JobPriority, JobStatus
from schemas.backoff import DEFAULT_BACKOFF
from schemas.codec import Codec
from schemas.errors import BadRecord
from schemas.headers import Delivery, RawHeaders, build, parse
from schemas.offsetmap import OffsetMap
from schemas.records import StatusChange, StatusWriter, decode_status
from schemas.topics import TIERS, Topics
from tests.support.deployments import Sample
from tests.support.events import JOB_ID, job_value
from workers.committing.router import Limits, Router, Run
from workers.context import MAX_METRICS, WorkerContext
from workers.message import Message
from workers.offsets import PartitionState
from workers.outcome import Outcome
from workers.results import Failed, JobResult, Skipped, Snooze, Success

pytestmark = pytest.mark.job_processing

TOPICS = Topics("p.")
ROUTER = Router(TOPICS)
LIMITS = Limits(3, DEFAULT_BACKOFF, 86_400_000)
NOW = 1_760_000_000_000
HUGE = "\0ü😀" * 100_000


def message_of(
    value: bytes, headers: RawHeaders, *, tier: bool = False, key: bytes | None = b"bucket/a"
) -> Message:
    topic = TOPICS.retry[TIERS[0]] if tier else TOPICS.jobs[JobPriority.HIGH]
    part = PartitionState(
        topic, 2, OffsetMap(7), incarnation="i", transactional_id="t", lock=threading.Lock()
    )
    return Message(
        part, 7, key, value, headers, NOW, None if tier else JobPriority.HIGH, TIERS[0] if tier else None
    )


def run_of(delivery: Delivery, **facts: Any) -> Run:
    message = message_of(job_value(Sample()), build(delivery))
    return Run(message, "test_sample", JobPriority.HIGH, None, NOW, NOW, NOW + 5, "w.0", **facts)


def written(outcome: Outcome) -> StatusChange:
    """The status, as it comes back from its bytes."""
    assert isinstance(outcome.status, StatusChange)
    codec = Codec()
    raw = StatusWriter(codec).encode(outcome.status)
    assert len(raw) < 64 * 1024
    return decode_status(codec, raw)


# What handlers say


@pytest.mark.parametrize(
    "result",
    [
        Skipped(HUGE),
        Snooze(timedelta(seconds=1), HUGE),
        Failed(HUGE, error_type=HUGE, stacktrace=HUGE),
        Failed(HUGE, retryable=False, error_type=HUGE, stacktrace=HUGE),
    ],
    ids=["skipped", "snooze", "retried", "dead"],
)
def test_the_texts_of_every_result_are_bounded(result: JobResult) -> None:
    outcome = ROUTER.settle(run_of(Delivery("test_sample")), result, LIMITS)
    change = written(outcome)
    assert 1_000 < len((change.error_message or "").encode()) <= 1024
    assert len((change.error_type or "").encode()) <= 256
    assert sum(len(value) for record in outcome.records for _, value in record.headers) < 16 * 1024


def test_no_reason_is_no_message() -> None:
    assert written(ROUTER.settle(run_of(Delivery("t")), Skipped(), LIMITS)).error_message is None


def test_metrics_and_progress_are_bounded_whatever_a_handler_says() -> None:
    context = WorkerContext(job_id=JOB_ID, job_type="t", priority=JobPriority.LOW)
    for number in range(10_000):
        context.update_metrics(f"{number}{HUGE}", number)
    context.update_metrics("0" + HUGE, 10**400)
    context.progress(10**30, -(10**30))
    run = run_of(Delivery("t"), metrics=context.metrics, progress=context._progress)
    change = written(ROUTER.settle(run, Success(), LIMITS))
    assert len(change.metrics) == MAX_METRICS
    assert max(len(name.encode()) for name in change.metrics) <= 256
    assert max(change.metrics.values()) == float("inf")
    assert (change.progress_done, change.progress_total) == (2**63 - 1, -(2**63 - 1))


def test_what_is_no_number_is_the_handlers_own_failure() -> None:
    """Raised where it was said: later it would end the worker."""
    context = WorkerContext(job_id=JOB_ID, job_type="t", priority=JobPriority.LOW)
    nonsense: Any = "many"
    with pytest.raises(ValueError, match="many"):
        context.update_metrics("n", nonsense)
    with pytest.raises(ValueError, match="many"):
        context.progress(nonsense)
    assert (context.metrics, context._progress) == ({}, None)


# Jobs that cannot be read


@pytest.mark.parametrize("tier", [False, True])
def test_a_job_that_cannot_be_read_but_has_an_id_is_failed(*, tier: bool) -> None:
    """Without a status of its own it would be shown as pending for ever."""
    delivery = Delivery("test_sample", attempt=2, delivery=4, redrives=1, first_seen_ms=NOW - 9)
    message = message_of(job_value(Sample()), build(delivery), tier=tier)
    outcome = ROUTER.unreadable(message, BadRecord("colour: 7"), NOW + 1, "w.0")
    change = written(outcome)
    assert (change.job_id, change.state, change.key) == (JOB_ID, JobStatus.FAILED, "bucket/a")
    assert (change.attempt, change.delivery, change.redrives, change.created_at) == (2, 4, 1, NOW - 9)
    assert (change.error_type, change.error_message, change.worker) == ("BadRecord", "colour: 7", "w.0")
    assert (change.type, change.priority) == ("test_sample", JobPriority.NORMAL if tier else JobPriority.HIGH)
    assert outcome.counts_as == ("test_sample", change.priority, "failed")
    (letter,) = outcome.records
    assert (letter.topic, letter.value) == (TOPICS.dlq, message.value)


def test_damaged_headers_do_not_take_the_status_into_another_life() -> None:
    delivery = Delivery("test_sample", attempt=2, delivery=4, redrives=1)
    headers = [(name, b"x" if name == "rfw-attempt" else value) for name, value in build(delivery)]
    message = message_of(job_value(Sample()), headers)
    assert message.problem is not None
    outcome = ROUTER.unreadable(message, message.problem, NOW)
    change = written(outcome)
    assert (change.job_id, change.error_type) == (JOB_ID, "BadHeaders")
    assert (change.delivery, change.redrives) == (4, 1)
    assert parse(outcome.records[0].headers).redrives == 1


def test_bytes_without_an_id_are_a_dead_letter_alone() -> None:
    message = message_of(b"\x17garbage", build(Delivery("t", not_before_ms=NOW + 10**12)))
    assert message.problem is not None
    outcome = ROUTER.unreadable(message, message.problem, NOW)
    assert (outcome.status, outcome.event, len(outcome.records)) == (None, "undecodable", 1)
    assert message.delivery.not_before_ms == 0, "nothing is gained by waiting for it"


def test_a_delayed_job_was_first_read_where_it_waited() -> None:
    message = message_of(job_value(Sample()), build(Delivery("t", not_before_ms=NOW)), tier=True)
    (onward,) = ROUTER.forward(message, NOW).records
    delivery = parse(onward.headers)
    assert (delivery.origin, delivery.first_seen_ms) == (message.origin, NOW)
    again = replace(message.delivery, origin=delivery.origin, delivery=1)
    later = message_of(job_value(Sample()), build(again))
    (letter,) = ROUTER.unreadable(later, BadRecord("no"), NOW).records
    assert parse(letter.headers).origin == message.origin
