"""What a run's result leads to: the state, the records, their headers, and when the next run may start."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.backoff import Backoff
from schemas.errors import BadRecord, IllegalTransition
from schemas.headers import LATEST_MS, MAX_HISTORY, Attempt, Delivery, Origin, parse
from schemas.lifecycle import JobStatus, by_worker
from schemas.records import MAX_OUTPUT_BYTES, StatusChange
from schemas.topics import TIERS, JobPriority, tier_for
from tests.support.messages import TOPICS, job_value, message, partition
from workers.committing.router import MIN_SNOOZE_MS, Limits, Router, Run, as_result, status_of
from workers.message import Message
from workers.outcome import Outcome, OutRecord, PlainSuccess
from workers.results import Failed, JobResult, Skipped, Snooze, Success, failed_by

pytestmark = pytest.mark.job_processing

ROUTER = Router(TOPICS)
CREATED, FINISHED = 1_700_000_000_000, 1_700_000_100_000
DAY_MS = 86_400_000
LIMITS = Limits(3, Backoff(), 7 * DAY_MS)
JOB = "01890a5d-ac96-774b-bcce-b302099a8057"
CHILD = OutRecord(TOPICS.jobs[JobPriority.LOW], 1, b"child", b"value", [])
ATTEMPTS = tuple(Attempt(number, "w.0", 1, 2, "ValueError", "bad") for number in range(1, 20))


def run_of(delivery: Delivery | None = None, **facts: Any) -> Run:
    one = message(
        partition(TOPICS.jobs[JobPriority.HIGH], 5),
        42,
        key=b"bucket/a",
        job_id=JOB,
        delivery=delivery,
        timestamp_ms=CREATED + 7,
    )
    known: dict[str, Any] = {
        "job_type": "test",
        "priority": JobPriority.HIGH,
        "key": "bucket/a",
        "created_at_ms": CREATED,
        "started_at_ms": FINISHED - 50,
        "finished_at_ms": FINISHED,
        "worker": "w.0",
    }
    return Run(one, **(known | facts))


def told(outcome: Outcome) -> StatusChange:
    assert isinstance(outcome.status, StatusChange)
    return outcome.status


def only_record(outcome: Outcome) -> OutRecord:
    (record,) = outcome.records
    return record


def header(record: OutRecord, name: str) -> bytes:
    (value,) = (value for each, value in record.headers if each == name)
    return value


# --- every result, at every attempt, in every life --------------------------------------------------------------

deliveries = st.builds(
    Delivery,
    job_type=st.just("test"),
    attempt=st.integers(1, 6),
    delivery=st.integers(0, 50),
    redrives=st.integers(0, 3),
    first_seen_ms=st.sampled_from([0, CREATED + 3]),
    origin=st.sampled_from([None, Origin("t.jobs.low", 5, 7)]),
    error_message=st.sampled_from(["", "an earlier one"]),
    history=st.integers(0, 10).map(lambda count: ATTEMPTS[:count]),
    traceparent=st.sampled_from(["", "00-abc-def-01"]),
)
results = st.one_of(
    st.builds(Success, st.sampled_from([None, {}, {"n": 1}])),
    st.builds(Failed, st.text(max_size=20), st.booleans(), st.text(max_size=20), st.text(max_size=20)),
    st.builds(Skipped, st.text(max_size=20)),
    st.builds(Snooze, st.timedeltas(-timedelta(days=1), timedelta(days=20)), st.text(max_size=20)),
)


@pytest.mark.parametrize("state", [JobStatus.PENDING, JobStatus.CANCELLED])
def test_a_worker_writes_no_state_that_is_not_its_to_make(state: JobStatus) -> None:
    with pytest.raises(IllegalTransition, match=f"from running to {state.value}"):
        status_of(run_of(), state)


@given(
    delivery=deliveries,
    result=results,
    max_retries=st.integers(0, 4),
    children=st.sampled_from([(), (CHILD,)]),
    metrics=st.booleans(),
)
def test_a_run_has_one_end_and_a_job_one_line_of_life(
    delivery: Delivery, result: JobResult, max_retries: int, children: tuple[OutRecord, ...], *, metrics: bool
) -> None:
    run = run_of(delivery, children=children, metrics={"n": 1} if metrics else None)
    outcome = ROUTER.settle(run, result, replace(LIMITS, max_retries=max_retries))
    state = outcome.state
    assert state is not None
    assert by_worker(JobStatus.PENDING, state) is by_worker(JobStatus.RUNNING, state) is state
    assert outcome.message is run.message
    assert outcome.counts_as == ("test", JobPriority.HIGH, state.value)
    ours = [record for record in outcome.records if record is not CHILD]
    # Children exist if, and only if, the run was good.
    assert (CHILD in outcome.records) is (
        bool(children) and state in (JobStatus.SUCCEEDED, JobStatus.SKIPPED)
    )
    if not isinstance(outcome.status, PlainSuccess):
        change = told(outcome)
        assert change.children == (1 if CHILD in outcome.records else 0), (
            "only children that exist are told of"
        )
        assert (change.attempt, change.delivery, change.redrives) == (
            delivery.attempt,
            delivery.delivery,
            delivery.redrives,
        )
        assert change.attempts == delivery.history
    match state:
        case JobStatus.SUCCEEDED | JobStatus.SKIPPED:
            assert ours == []
        case JobStatus.FAILED:
            (letter,) = ours
            assert letter.topic == TOPICS.dlq
            assert parse(letter.headers).attempt == delivery.attempt
            assert parse(letter.headers).delivery == delivery.delivery
        case _:
            (onward,) = ours
            following = parse(onward.headers)
            assert following.delivery == delivery.delivery + 1
            assert following.redrives == delivery.redrives
            assert following.traceparent == delivery.traceparent
            assert following.origin == (delivery.origin or run.message.origin)
            assert following.first_seen_ms == (delivery.first_seen_ms or run.message.timestamp_ms)
            assert following.attempt == delivery.attempt + (state is JobStatus.RETRYING)
            assert following.not_before_ms == told(outcome).not_before
    for record in ours:
        assert (record.partition, record.key, record.value) == (5, run.message.key, run.message.value)


@given(attempt=st.integers(1, 8), max_retries=st.integers(0, 6), retryable=st.booleans())
def test_max_retries_3_means_at_most_4_runs(attempt: int, max_retries: int, *, retryable: bool) -> None:
    outcome = ROUTER.settle(
        run_of(Delivery(job_type="test", attempt=attempt)),
        Failed("no", retryable=retryable),
        replace(LIMITS, max_retries=max_retries),
    )
    goes_on = retryable and attempt <= max_retries
    assert outcome.state is (JobStatus.RETRYING if goes_on else JobStatus.FAILED)


# --- success -----------------------------------------------------------------------------------------------------


def test_a_success_with_nothing_to_tell_is_the_plain_one() -> None:
    outcome = ROUTER.settle(run_of(), Success(), LIMITS)
    assert outcome.status == PlainSuccess(
        "bucket/a", FINISHED, CREATED, FINISHED - 50, "test", JobPriority.HIGH
    )
    assert outcome.records == ()


@pytest.mark.parametrize(
    "facts",
    [
        {"metrics": {"files": 3}},
        {"children": (CHILD,)},
        {"progress": (1, 2)},
        {"delivery": Delivery(job_type="test", history=ATTEMPTS[:1])},
    ],
    ids=str,
)
def test_a_success_with_something_to_tell_tells_it(facts: dict[str, Any]) -> None:
    change = told(ROUTER.settle(run_of(**facts), Success(), LIMITS))
    assert change.state is JobStatus.SUCCEEDED
    assert change.metrics == facts.get("metrics", {})
    assert (change.progress_done, change.progress_total) == facts.get("progress", (None, None))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_an_output_is_kept_as_json(output: dict[str, Any]) -> None:
    text = told(ROUTER.settle(run_of(), Success(output), LIMITS)).output
    assert text is not None
    assert json.loads(text) == output


@pytest.mark.parametrize("text", ["x", '"', "\\", "ä", "\n", "€", "\U0001f600", "\ud800"])
@pytest.mark.parametrize("count", [5_000, 16_400, 40_000])
def test_an_output_of_any_size_fits(text: str, count: int) -> None:
    output = told(ROUTER.settle(run_of(), Success({"text": text * count}), LIMITS)).output
    assert output is not None
    assert len(output.encode("utf-8", "replace")) <= MAX_OUTPUT_BYTES
    assert set(json.loads(output)) <= {"text", "truncated"}


def test_a_mapping_of_any_kind_is_an_object() -> None:
    result = as_result(MappingProxyType({"n": 1}))
    assert told(ROUTER.settle(run_of(), result, LIMITS)).output == '{"n":1}'


class Changing:
    """A metric whose reader is interrupted by the handler's thread, which adds another."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        self.metrics = metrics

    def __float__(self) -> float:
        self.metrics[f"more {len(self.metrics)}"] = 1
        return 1.0


def test_metrics_may_grow_while_they_are_read() -> None:
    metrics: dict[str, Any] = {}
    metrics["changing"] = Changing(metrics)
    assert status_of(run_of(metrics=metrics), JobStatus.RUNNING).metrics == {"changing": 1.0}


@pytest.mark.parametrize(("metric", "expected"), [(10**400, "inf"), (-(10**400), "-inf"), (1j, "nan")])
def test_a_metric_of_any_kind_can_be_told(metric: Any, expected: str) -> None:
    (told_as,) = status_of(run_of(metrics={"n": metric}), JobStatus.RUNNING).metrics.values()
    assert str(told_as) == expected


# --- retries ----------------------------------------------------------------------------------------------------


@given(
    attempt=st.integers(1, 40),
    base_ms=st.integers(0, 10_000),
    cap_s=st.integers(1, 10_000),
    jitter=st.booleans(),
)
def test_the_next_run_is_neither_earlier_nor_later_than_the_backoff_says(
    attempt: int, base_ms: int, cap_s: int, *, jitter: bool
) -> None:
    backoff = Backoff(
        base=timedelta(milliseconds=base_ms), cap=timedelta(seconds=cap_s), floor=timedelta(0), jitter=jitter
    )
    run = run_of(Delivery(job_type="test", attempt=attempt), started_at_ms=FINISHED - 7 * DAY_MS)
    outcome = ROUTER.settle(run, Failed("no"), Limits(99, backoff, DAY_MS))
    due = parse(only_record(outcome).headers).not_before_ms
    wait = due - FINISHED
    bound = min(base_ms * 2 ** (attempt - 1), cap_s * 1_000)
    assert (0 <= wait <= bound) if jitter else wait == bound
    tier = tier_for(wait)
    expected = TOPICS.jobs[JobPriority.HIGH] if tier is None else TOPICS.retry[tier]
    assert only_record(outcome).topic == expected


def test_an_outcome_that_is_made_twice_is_the_same() -> None:
    """After an ambiguous commit it must land in the same tier, to be recognised."""
    once, again = (ROUTER.settle(run_of(), Failed("no"), LIMITS) for _ in range(2))
    assert (once.status, once.records) == (again.status, again.records)


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**62), 2**62])
def test_the_retry_of_a_record_without_a_usable_timestamp_can_be_read(timestamp_ms: int) -> None:
    """Some clients write none (-1)."""
    bare = message(partition(), 1, job_id=JOB, timestamp_ms=timestamp_ms)
    run = run_of()._replace(message=bare)
    retry = only_record(ROUTER.settle(run, Failed("no"), LIMITS))
    assert parse(retry.headers).attempt == 2


@pytest.mark.parametrize(
    "result", [Failed("no"), Failed("no", retryable=False), Snooze(timedelta(seconds=5))]
)
def test_a_job_of_a_producer_that_names_its_type_only_in_the_bytes_is_published_again_with_its_name(
    result: JobResult,
) -> None:
    outcome = ROUTER.settle(run_of(Delivery()), result, LIMITS)
    assert parse(only_record(outcome).headers).job_type == "test"


def test_an_attempt_is_remembered_with_its_error() -> None:
    outcome = ROUTER.settle(run_of(), Failed("it broke", error_type="OSError"), LIMITS)
    following = parse(only_record(outcome).headers)
    assert following.history == (Attempt(1, "w.0", FINISHED - 50, FINISHED, "OSError", "it broke"),)
    assert (following.error_type, following.error_message) == ("OSError", "it broke")
    assert (told(outcome).error_type, told(outcome).error_message) == ("OSError", "it broke")


def test_the_oldest_attempts_are_forgotten_first() -> None:
    delivery = Delivery(job_type="test", attempt=11, history=ATTEMPTS[:10])
    outcome = ROUTER.settle(run_of(delivery), Failed("no"), replace(LIMITS, max_retries=99))
    history = parse(only_record(outcome).headers).history
    assert len(history) == MAX_HISTORY
    assert [attempt.attempt for attempt in history] == list(range(2, 12))


def test_texts_of_a_handler_are_bounded_wherever_they_go() -> None:
    long = "ü" * 100_000
    for result in (
        Failed(long, error_type=long, stacktrace=long),
        Failed(long, retryable=False, error_type=long, stacktrace=long),
        Skipped(long),
        Snooze(timedelta(seconds=5), long),
        Snooze(timedelta(days=900), long),
    ):
        outcome = ROUTER.settle(run_of(), result, LIMITS)
        change = told(outcome)
        assert len((change.error_message or "").encode()) <= 1_024
        assert len((change.error_type or "").encode()) <= 256
        assert sum(len(value) for record in outcome.records for _, value in record.headers) < 16_000


# --- dead letters -------------------------------------------------------------------------------------------------


def test_a_dead_letter_carries_both_families_of_headers() -> None:
    failed = Failed("never", retryable=False, error_type="PermanentError", stacktrace="Traceback …")
    letter = only_record(
        ROUTER.settle(run_of(Delivery(job_type="test", attempt=2, delivery=4)), failed, LIMITS)
    )
    delivery = parse(letter.headers)
    assert (delivery.error_type, delivery.error_message) == ("PermanentError", "never")
    assert (delivery.attempt, delivery.delivery) == (2, 4)
    assert header(letter, "rfw-failed-at") == str(FINISHED).encode()
    assert header(letter, "kafka_dlt-original-topic") == TOPICS.jobs[JobPriority.HIGH].encode()
    assert int.from_bytes(header(letter, "kafka_dlt-original-partition"), "big") == 5
    assert int.from_bytes(header(letter, "kafka_dlt-original-offset"), "big") == 42
    assert int.from_bytes(header(letter, "kafka_dlt-original-timestamp"), "big") == CREATED + 7
    assert header(letter, "kafka_dlt-exception-fqcn") == b"PermanentError"
    assert header(letter, "kafka_dlt-exception-message") == b"never"
    assert header(letter, "kafka_dlt-exception-stacktrace") == "Traceback …".encode()


# --- snoozing -----------------------------------------------------------------------------------------------------


@given(st.timedeltas(timedelta(milliseconds=MIN_SNOOZE_MS), timedelta(days=6)), st.integers(1, 9))
def test_snoozing_uses_up_no_attempt_and_is_never_early(delay: timedelta, attempt: int) -> None:
    run = run_of(Delivery(job_type="test", attempt=attempt, error_type="OSError"))
    outcome = ROUTER.settle(run, Snooze(delay, "not yet"), replace(LIMITS, max_retries=0))
    following = parse(only_record(outcome).headers)
    assert outcome.state is JobStatus.SCHEDULED
    assert following.attempt == attempt
    assert abs(following.not_before_ms - FINISHED - delay / timedelta(milliseconds=1)) <= 0.5
    assert told(outcome).error_message == "not yet"


@pytest.mark.parametrize("delay", [-timedelta(days=3), timedelta(0), timedelta(milliseconds=99)])
def test_a_snooze_into_the_past_is_due_soon_but_not_at_once(delay: timedelta) -> None:
    """A handler that has nothing better to say must not be asked thousands of times a second."""
    outcome = ROUTER.settle(run_of(), Snooze(delay), LIMITS)
    assert parse(only_record(outcome).headers).not_before_ms == FINISHED + MIN_SNOOZE_MS
    assert only_record(outcome).topic == TOPICS.jobs[JobPriority.HIGH]


@pytest.mark.parametrize(("over_ms", "state"), [(0, JobStatus.SCHEDULED), (1, JobStatus.RETRYING)])
def test_beyond_its_limit_a_snooze_is_a_failure_like_others(over_ms: int, state: JobStatus) -> None:
    limit = LIMITS.snooze_limit_ms
    first = FINISHED - DAY_MS
    left = timedelta(milliseconds=first + limit - FINISHED + over_ms)
    run = run_of(Delivery(job_type="test", snoozed_since_ms=first))
    outcome = ROUTER.settle(run, Snooze(left, "the target is away"), LIMITS)
    assert outcome.state is state
    if over_ms:
        assert told(outcome).error_type == "SnoozeLimitReached"
        assert "the target is away" in (told(outcome).error_message or "")
        assert parse(only_record(outcome).headers).attempt == 2


def test_a_job_that_was_made_weeks_ago_may_wait_like_any_other() -> None:
    """It was delayed, or redriven: the limit counts from its first snooze in this life."""
    run = run_of(created_at_ms=FINISHED - 30 * DAY_MS)
    outcome = ROUTER.settle(run, Snooze(timedelta(hours=1)), LIMITS)
    assert outcome.state is JobStatus.SCHEDULED
    assert parse(only_record(outcome).headers).snoozed_since_ms == run.started_at_ms


def test_the_limit_of_snoozes_does_not_begin_in_the_future() -> None:
    """A header of the year 9999 would put it off for eight thousand years."""
    run = run_of(Delivery(job_type="test", snoozed_since_ms=LATEST_MS))
    outcome = ROUTER.settle(run, Snooze(timedelta(seconds=1)), LIMITS)
    assert told(outcome).state is JobStatus.SCHEDULED
    assert parse(only_record(outcome).headers).snoozed_since_ms == run.started_at_ms


def test_a_job_of_an_unknown_type_waits_for_its_fifteen_minutes_whatever_the_limit_of_snoozes() -> None:
    run = run_of(Delivery(job_type="test", snoozed_since_ms=1), unknown_since_ms=FINISHED - 1_000)
    outcome = ROUTER.settle(run, Snooze(timedelta(seconds=10)), LIMITS)
    assert outcome.state is JobStatus.SCHEDULED


def test_the_longest_snooze_does_not_overflow() -> None:
    assert ROUTER.settle(run_of(), Snooze(timedelta.max), LIMITS).state is JobStatus.RETRYING


# --- what is moved or buried without a run ---------------------------------------------------------------------------


def retry_record(delivery: Delivery, value: bytes | None = None) -> Message:
    return message(
        partition(TOPICS.retry[TIERS[2]], 5), 9, key=b"k", job_id=JOB, delivery=delivery, value=value
    )


@given(st.integers(-DAY_MS, 3 * DAY_MS), st.sampled_from(list(JobPriority)))
def test_a_record_whose_delay_has_passed_goes_where_its_time_lies(
    left_ms: int, priority: JobPriority
) -> None:
    delivery = Delivery(job_type="test", attempt=2, delivery=3, not_before_ms=FINISHED + left_ms)
    one = retry_record(delivery, job_value(JOB, priority=priority))
    outcome = ROUTER.forward(one, FINISHED)
    record = only_record(outcome)
    tier = tier_for(left_ms)
    assert record.topic == (TOPICS.jobs[priority] if tier is None else TOPICS.retry[tier])
    assert (record.partition, record.key, record.value) == (5, b"k", one.value)
    following = parse(record.headers)
    assert (following.attempt, following.delivery) == (2, 4)
    assert following.not_before_ms == delivery.not_before_ms
    assert (outcome.status, outcome.event, outcome.counts_as) == (None, "forwarded", None)


def test_bytes_that_nobody_understands_are_buried_unchanged_with_the_reason() -> None:
    one = message(partition(number=5), 9, key=b"k", value=b"garbage")
    outcome = ROUTER.unreadable(one, BadRecord("not a job"), FINISHED)
    letter = only_record(outcome)
    assert (letter.topic, letter.key, letter.value, letter.partition) == (TOPICS.dlq, b"k", b"garbage", 5)
    assert parse(letter.headers).error_type == "BadRecord"
    assert (outcome.status, outcome.event) == (None, "undecodable"), "there is no job to speak of"


def test_what_looks_like_a_secret_in_the_reason_is_masked() -> None:
    """It may quote the record."""
    one = message(partition(), 9, value=b"garbage")
    wrong = "password=hunter2 is no priority"
    written = Outcome(one, None, (CHILD,))
    for outcome in (
        ROUTER.unreadable(one, BadRecord(wrong), FINISHED),
        ROUTER.not_writable(written, wrong, "w.0", FINISHED),
        ROUTER.not_writable(written, wrong, "w.0", FINISHED, bare=True),
    ):
        said = parse(outcome.records[0].headers).error_message or ""
        assert "hunter2" not in said
        assert "password=***" in said


def test_headers_of_others_survive_with_the_bytes() -> None:
    one = message(partition(), 9, value=b"garbage")
    one.raw_headers = [("theirs", b"kept"), ("rfw-attempt", b"nonsense")]
    letter = only_record(ROUTER.unreadable(one, BadRecord("not a job"), FINISHED))
    assert header(letter, "theirs") == b"kept"
    assert parse(letter.headers).attempt == 1


def test_a_job_that_kills_its_worker_is_buried_as_worker_lost() -> None:
    delivery = Delivery(job_type="test", attempt=2, delivery=3, redrives=1, first_seen_ms=CREATED)
    one = message(partition(TOPICS.jobs[JobPriority.LOW], 5), 9, key=b"k", job_id=JOB, delivery=delivery)
    outcome = ROUTER.worker_lost(one, "w.1", FINISHED)
    change = told(outcome)
    assert (change.state, change.error_type, change.worker) == (JobStatus.FAILED, "worker_lost", "w.1")
    assert (change.job_id, change.key, change.priority) == (JOB, "k", JobPriority.LOW)
    assert (change.attempt, change.delivery, change.redrives, change.created_at) == (2, 3, 1, CREATED)
    assert outcome.counts_as == ("test", JobPriority.LOW, "failed")
    letter = only_record(outcome)
    assert (letter.topic, letter.value) == (TOPICS.dlq, one.value)
    assert parse(letter.headers).error_type == "worker_lost"


def test_an_outcome_that_cannot_be_written_becomes_a_small_failure() -> None:
    delivery = Delivery(job_type="test", attempt=2, history=ATTEMPTS[:10], traceparent="t" * 50_000)
    one = message(partition(number=5), 9, job_id=JOB, delivery=delivery)
    huge = Outcome(one, None, tuple(CHILD for _ in range(1_000)))
    outcome = ROUTER.not_writable(huge, "MSG_SIZE_TOO_LARGE " * 500, "w.0", FINISHED)
    assert told(outcome).error_type == "OutcomeNotWritable"
    assert outcome.state is JobStatus.FAILED
    letter = only_record(outcome)
    assert sum(len(value) for _, value in letter.headers) < 2_000


def test_an_outcome_knows_the_state_that_it_leads_to() -> None:
    assert ROUTER.settle(run_of(), Success(), LIMITS).state is JobStatus.SUCCEEDED
    assert ROUTER.settle(run_of(), Skipped(), LIMITS).state is JobStatus.SKIPPED
    assert Outcome(None, None).state is None


def test_what_looks_like_a_secret_is_masked_before_it_is_published() -> None:
    """Of any handler: its libraries put the addresses that they asked into their errors."""
    try:
        raise RuntimeError("GET https://user:hunter2@host/x?X-Amz-Signature=abcdef failed")
    except RuntimeError as error:
        failed = failed_by(error)
    outcome = ROUTER.settle(run_of(), failed, replace(LIMITS, max_retries=0))
    written = repr([record.headers for record in outcome.records]) + repr(outcome.status)
    assert "RuntimeError" in written
    assert "hunter2" not in written
    assert "abcdef" not in written


@pytest.mark.parametrize(
    "result",
    [
        Skipped("asked https://user:hunter2@host/x"),
        Snooze(timedelta(seconds=5), "asked with {'password': 'hunter2'}"),
        Snooze(timedelta(days=900), "asked with {'password': 'hunter2'}"),
    ],
)
def test_a_reason_is_published_too_and_masked_like_an_error(result: JobResult) -> None:
    outcome = ROUTER.settle(run_of(), result, replace(LIMITS, max_retries=0))
    written = repr([record.headers for record in outcome.records]) + repr(outcome.status)
    assert "asked" in written
    assert "hunter2" not in written
