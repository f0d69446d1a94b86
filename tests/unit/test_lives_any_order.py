"""A job's whole life, through any results, waits and redrives: its states, its way through the retry topics, its numbers."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.backoff import Backoff
from schemas.headers import Delivery, build, parse
from schemas.lifecycle import JobStatus
from schemas.records import StatusChange
from schemas.topics import JobPriority, tier_for
from streams.dead_letters import DeadLetter
from streams.new_life import life_after
from tests.support.messages import TOPICS, job_value, partition
from workers.committing.router import MIN_SNOOZE_MS, Limits, Router, Run, status_of
from workers.message import Message
from workers.outcome import Outcome, OutRecord
from workers.results import Failed, JobResult, Skipped, Snooze, Success

pytestmark = pytest.mark.job_processing

ROUTER = Router(TOPICS)
LIMITS = Limits(3, Backoff(), 7 * 86_400_000)
NUMBER = 5
KEY = b"bucket/a"
HOUR_MS = 3_600_000
_ENDS = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.SKIPPED}
_WAITS = {JobStatus.RETRYING, JobStatus.SCHEDULED}
#: Written down here once more, not taken from the table that is judged: what a worker may make of a job, and an operator.
MAY_FOLLOW = {
    JobStatus.PENDING: {JobStatus.RUNNING, *_WAITS, *_ENDS},
    JobStatus.SCHEDULED: {JobStatus.RUNNING, *_WAITS, *_ENDS},
    JobStatus.RETRYING: {JobStatus.RUNNING, *_WAITS, *_ENDS},
    JobStatus.RUNNING: {JobStatus.RUNNING, *_WAITS, *_ENDS},
    JobStatus.SUCCEEDED: set(),
    JobStatus.SKIPPED: set(),
    JobStatus.FAILED: {JobStatus.PENDING},
}
RESULTS = st.one_of(
    st.builds(Success, st.sampled_from([None, {"n": 1}])),
    st.builds(Failed, st.just("no"), st.booleans()),
    st.builds(Skipped, st.just("there already")),
    st.builds(Snooze, st.timedeltas(timedelta(0), timedelta(days=9))),
)


class Life(RuleBasedStateMachine):
    """One job. Exactly one record of it is alive at any time, or it is final."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_700_000_000_000
        self.state: JobStatus | None = None
        self.record: OutRecord | None = None
        self.letter: OutRecord | None = None
        self.last: StatusChange | None = None
        self.offset = 0
        self.written_ms = self.now_ms
        self.hops = self.runs = 0
        self.due_ms = 0
        #: Runs of this life that have failed.
        self.failures = 0

    @initialize(priority=st.sampled_from(list(JobPriority)), delay_ms=st.sampled_from([0, 5_000, HOUR_MS]))
    def begins(self, priority: JobPriority, delay_ms: int) -> None:
        self.scheduled(priority)
        tier = tier_for(delay_ms)
        if tier is not None:
            self.due_ms = self.now_ms + delay_ms
            headers = build(Delivery(not_before_ms=self.due_ms))
            self._goes_to(JobStatus.SCHEDULED, made_by_producer=True)
            self._stands(OutRecord(TOPICS.retry[tier], NUMBER, KEY, self.value, headers))

    @precondition(lambda self: self.state is not None and self.record is None and self.letter is None)
    @rule(priority=st.sampled_from(list(JobPriority)))
    def another_one(self, priority: JobPriority) -> None:
        self.hops = self.runs = self.due_ms = self.failures = 0
        self.scheduled(priority)

    def scheduled(self, priority: JobPriority) -> None:
        self.priority = priority
        self.job_id = str(uuid.UUID(int=7))
        self.value = job_value(self.job_id, priority=priority)
        self.state = JobStatus.PENDING
        self._stands(OutRecord(TOPICS.jobs[priority], NUMBER, KEY, self.value, []))

    def _stands(self, record: OutRecord) -> None:
        self.record, self.written_ms, self.offset = record, self.now_ms, self.offset + 1

    def _read(self) -> Message:
        assert self.record is not None
        tier = TOPICS.tier_of.get(self.record.topic)
        priority = TOPICS.priority_of.get(self.record.topic)
        part = partition(self.record.topic, self.record.partition)
        return Message(
            part,
            self.offset,
            self.record.key,
            self.record.value,
            self.record.headers,
            self.written_ms,
            priority,
            tier,
        )

    def _goes_to(self, state: JobStatus, *, made_by_producer: bool = False) -> None:
        assert self.state is not None
        assert made_by_producer or state in MAY_FOLLOW[self.state], f"{state} after {self.state}"
        self.state = state

    @property
    def waits_in_a_tier(self) -> bool:
        return self.record is not None and self.record.topic in TOPICS.tier_of

    @property
    def may_start(self) -> bool:
        return self.record is not None and self.record.topic in TOPICS.priority_of

    def _apply(self, outcome: Outcome, before: Delivery) -> None:
        state = outcome.state
        if state is not None:
            self._goes_to(state)
        self.last = outcome.status if isinstance(outcome.status, StatusChange) else None
        (record,) = outcome.records or (None,)
        self.record = None
        if record is None:
            return
        assert (record.partition, record.key, record.value) == (NUMBER, KEY, self.value)
        if record.topic == TOPICS.dlq:
            self.letter = record
            return
        self._stands(record)
        delivery = self._read().delivery
        assert delivery.delivery == before.delivery + 1, "each record that follows is one further"
        assert delivery.redrives == before.redrives

    @precondition(lambda self: self.waits_in_a_tier)
    @rule(late_ms=st.sampled_from([0, 1, 999, 60_000, HOUR_MS]))
    def its_delay_has_passed(self, late_ms: int) -> None:
        assert self.record is not None
        tier = TOPICS.tier_of[self.record.topic]
        self.now_ms = self.written_ms + tier.delay_ms
        assert self.now_ms <= self.due_ms, "no retry topic lasts longer than what the job has to wait"
        self.now_ms += late_ms
        one = self._read()
        self._apply(ROUTER.forward(one, self.now_ms), one.delivery)
        self.hops += 1

    @precondition(lambda self: self.may_start)
    @rule(
        result=RESULTS,
        runs_ms=st.sampled_from([0, 5, 40_000]),
        deaths=st.sampled_from([0, 0, 1, 2]),
        is_told_of=st.booleans(),
    )
    def it_runs(self, result: JobResult, runs_ms: int, deaths: int, *, is_told_of: bool) -> None:
        one = self._read()
        delivery = one.delivery
        assert delivery.attempt == 1 + self.failures, "a failure is an attempt, a hop or a snooze is none"
        # What is left of a wait, less than a second, passes in memory.
        left_ms = delivery.not_before_ms - self.now_ms
        assert left_ms < 1_000
        self.now_ms = max(self.now_ms, delivery.not_before_ms)
        assert self.now_ms >= self.due_ms, "early"
        began = self.now_ms
        self.now_ms += runs_ms
        # Each owner that dies before its commit may have told that it runs; the last one may as well.
        for _ in range(deaths + 1 if is_told_of else 0):
            telling = Run(one, "test", self.priority, "bucket/a", began, began, self.now_ms, "w.0")
            self._goes_to(status_of(telling, JobStatus.RUNNING).state)
        run = Run(one, "test", self.priority, "bucket/a", began, began, self.now_ms, "w.0")
        outcome = ROUTER.settle(run, result, LIMITS)
        self._apply(outcome, delivery)
        self.runs += 1
        assert self.state is not None
        match result:
            case Success():
                assert self.state is JobStatus.SUCCEEDED
            case Skipped():
                assert self.state is JobStatus.SKIPPED
            case Failed(retryable=retryable):
                self.failures += 1
                again = retryable and self.failures <= LIMITS.max_retries
                assert self.state is (JobStatus.RETRYING if again else JobStatus.FAILED)
        if not self.state.final:
            assert self.last is not None
            assert self.last.not_before is not None
            self.due_ms = self.last.not_before
            match result:
                case Snooze(delay=delay) if self.state is JobStatus.SCHEDULED:
                    wait_ms = max(round(delay / timedelta(milliseconds=1)), MIN_SNOOZE_MS)
                case _:
                    wait_ms = LIMITS.backoff.delay_ms(self.job_id, delivery.attempt)
                    self.failures += isinstance(
                        result, Snooze
                    )  # its limit was reached: a failure like any other
            assert self.due_ms == self.now_ms + wait_ms
            assert self._read().delivery.not_before_ms == self.due_ms, "status and record say the same time"

    @precondition(lambda self: self.letter is not None)
    @rule(later_ms=st.sampled_from([1, HOUR_MS, 40 * 24 * HOUR_MS]))
    def it_is_redriven(self, later_ms: int) -> None:
        assert self.letter is not None
        self.now_ms += later_ms
        delivery = parse(self.letter.headers)
        letter = DeadLetter(
            id=self.job_id,
            type="test",
            error_type=delivery.error_type,
            error_message=delivery.error_message,
            attempt=delivery.attempt,
            failed_at=datetime.fromtimestamp(self.now_ms / 1000, UTC),
            topic=TOPICS.dlq,
            partition=NUMBER,
            offset=1,
            key=KEY,
            value=self.letter.value,
            headers=self.letter.headers,
            delivery=delivery,
            priority=self.priority,
        )
        before = letter.delivery
        life = life_after(letter, self.last, self.now_ms, TOPICS)
        self._goes_to(life.status.state)
        self.state, self.letter, self.due_ms, self.failures = life.status.state, None, 0, 0
        self._stands(OutRecord(life.topic, life.partition, life.key, life.value, life.headers))
        delivery = self._read().delivery
        assert (delivery.redrives, delivery.delivery, delivery.attempt) == (
            before.redrives + 1,
            before.delivery + 1,
            1,
        )

    @invariant()
    def a_job_is_somewhere_or_final(self) -> None:
        if self.state is not None:
            assert (self.record is None) is self.state.final
            assert (self.letter is not None) is (self.state is JobStatus.FAILED)

    @invariant()
    def it_does_not_hop_for_ever(self) -> None:
        # Nine days take nine hops of a day, and a few of each shorter topic.
        assert self.hops <= 60 * max(self.runs, 1)


TestLives = Life.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
