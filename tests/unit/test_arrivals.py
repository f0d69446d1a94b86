"""What becomes of a message before anything runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from schemas.headers import Delivery
from schemas.topics import JobPriority
from tests.support.messages import TOPICS, committed, message, partition
from workers.committing.counters import Counters
from workers.committing.router import Router
from workers.consuming.key_places import KeyPlaces
from workers.message import Message
from workers.outcome import Outcome
from workers.scheduling.arrivals import Arrivals
from workers.scheduling.delay import Delays
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.job_processing

NOW_MS = 1_000_000


class FakeCommitter:
    def __init__(self) -> None:
        self.counters = Counters(())
        self.outcomes: list[Outcome] = []

    def emit(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class FakeVerdicts:
    def __init__(self) -> None:
        self.expected: list[Message] = []

    def expect(self, messages: Any) -> None:
        self.expected.extend(messages)

    def purge(self, parts: Any) -> None:
        self.expected = [one for one in self.expected if one.part not in parts]


class FakeLoop:
    """Timers, called by the test."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Any]] = []

    def call_later(self, delay_s: float, callback: Any) -> Any:
        entry = (delay_s, callback)
        self.due.append(entry)

        class Handle:
            def cancel(_) -> None:  # noqa: N805 - the test's loop is in use outside
                if entry in self.due:
                    self.due.remove(entry)

        return Handle()


class Bench:
    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.wakes = 0
        self.delays, self.scheduler = Delays(), Scheduler()
        #: What may start, as soon as its partition is open.
        self.ready: list[Message] = []
        add = self.scheduler.add

        def added(messages: list[Message]) -> None:
            self.ready += messages
            add(messages)

        self.scheduler.add = added  # type: ignore[method-assign,assignment]
        self.failures: list[BaseException] = []
        self.committer, self.verdicts, self.loop = FakeCommitter(), FakeVerdicts(), FakeLoop()
        parts: Any = (self.committer, self.verdicts, self.loop)
        self.arrivals = Arrivals(
            delays=self.delays,
            scheduler=self.scheduler,
            committer=parts[0],
            router=Router(TOPICS),
            verdicts=parts[1],
            worker_name="w",
            now_ms=lambda: self.now_ms,
            loop=parts[2],
            wake=self._wake,
            on_failure=self.failures.append,
        )
        self.arrivals.key_places = KeyPlaces(3)
        self.job_part = partition()
        self.tier = next(iter(TOPICS.tier_of))
        self.tier_part = partition(self.tier, prior=committed())

    def _wake(self) -> None:
        self.wakes += 1

    def come(self, *messages: Message) -> None:
        """As the poll thread does: it counts, then the event loop looks."""
        for one in messages:
            one.part.note_delivered(one.offset)
            if one.priority is not None:
                self.scheduler.arrived[one.priority] += 1
                self.scheduler.arrived_bytes[one.priority] += one.size
        self.delays.arrived(messages)
        self.arrivals.arrive(list(messages))

    def let_time_pass(self, ms: int) -> None:
        self.now_ms += ms
        timers, self.loop.due = self.loop.due, []
        for _, callback in timers:
            callback()

    @property
    def waiting(self) -> int:
        return len(self.ready)

    @property
    def events(self) -> list[str | None]:
        return [outcome.event for outcome in self.committer.outcomes]

    def topics_of_outcomes(self) -> list[str]:
        return [record.topic for outcome in self.committer.outcomes for record in outcome.records]


def delivery(**more: Any) -> Delivery:
    return Delivery(job_type="test", **more)


def test_a_job_that_is_due_may_start_at_once() -> None:
    bench = Bench()
    bench.come(message(bench.job_part, 0), message(bench.job_part, 1))
    assert (bench.waiting, bench.wakes, bench.loop.due) == (2, 1, [])


def test_a_job_that_is_due_in_a_moment_waits_here_for_its_time() -> None:
    bench = Bench()
    bench.come(message(bench.job_part, 0, delivery=delivery(not_before_ms=NOW_MS + 700)))
    assert (bench.waiting, bench.wakes) == (0, 0)
    assert bench.loop.due[0][0] == pytest.approx(0.7)
    bench.let_time_pass(700)
    assert (bench.waiting, bench.wakes) == (1, 1)


def test_what_goes_wrong_when_a_time_has_come_is_handed_on() -> None:
    """asyncio would log it, and the partition of whoever was due would stand still behind it."""
    bench = Bench()
    bench.come(message(bench.job_part, 0, delivery=delivery(not_before_ms=NOW_MS + 700)))

    def broken(_: object) -> None:
        raise ValueError("broken")

    bench.scheduler.add = broken  # type: ignore[method-assign,assignment]
    bench.let_time_pass(700)
    assert [str(error) for error in bench.failures] == ["broken"]


def test_a_job_in_a_job_topic_that_is_due_much_later_goes_to_a_retry_topic() -> None:
    """It would hold up its partition."""
    bench = Bench()
    bench.come(message(bench.job_part, 0, delivery=delivery(not_before_ms=NOW_MS + 60_000)))
    (topic,) = bench.topics_of_outcomes()
    assert topic in TOPICS.tier_of
    assert bench.waiting == 0
    assert bench.scheduler.startable(JobPriority.NORMAL) == 0, "it is counted no more"


def test_a_job_that_waits_less_than_a_second_waits_from_when_it_came() -> None:
    bench = Bench()
    one = message(bench.job_part, 0)
    one.delivery = replace(one.delivery, delay_ms=400)
    bench.come(one)
    assert bench.loop.due[0][0] == pytest.approx(0.4)


def test_a_record_of_a_retry_topic_goes_on_at_the_end_of_its_tier() -> None:
    bench = Bench()
    waits = TOPICS.tier_of[bench.tier].delay_ms
    bench.come(
        message(bench.tier_part, 0, timestamp_ms=NOW_MS, delivery=delivery(not_before_ms=NOW_MS + waits))
    )
    bench.let_time_pass(waits - 1)
    assert bench.committer.outcomes == []
    bench.loop.due = [(0, bench.arrivals._on_due)]
    bench.let_time_pass(1)
    assert bench.topics_of_outcomes() == [TOPICS.jobs[JobPriority.NORMAL]]


@pytest.mark.parametrize("retried", [False, True])
def test_a_copy_is_told_of_and_never_starts(*, retried: bool) -> None:
    bench = Bench()
    one = message(bench.tier_part if retried else bench.job_part, 0, timestamp_ms=0)
    one.copy = True
    bench.come(one)
    bench.let_time_pass(10_000_000)
    assert bench.events == ["duplicates"]
    assert (bench.waiting, bench.topics_of_outcomes()) == (0, [])
    assert bench.scheduler.startable(JobPriority.NORMAL) == 0


def test_whose_worker_was_lost_waits_for_its_verdict_among_the_others() -> None:
    bench = Bench()
    lost = message(bench.job_part, 0)
    lost.lost_worker = True
    bench.come(lost)
    assert bench.verdicts.expected == [lost]
    assert bench.waiting == 1


def test_what_waited_for_a_partition_that_is_given_up_is_forgotten() -> None:
    bench = Bench()
    soon = message(bench.job_part, 0, delivery=delivery(not_before_ms=NOW_MS + 700))
    bench.come(soon, message(bench.job_part, 1))
    bench.arrivals.purge({bench.job_part})
    bench.let_time_pass(1_000)
    assert len(bench.ready) == 1, "only what did not have to wait"
    assert len(bench.scheduler) == 0, "and that is gone too"
    assert bench.scheduler.startable(JobPriority.NORMAL) == 0


@pytest.mark.parametrize("how", ["owned", "releasing"])
def test_what_is_due_in_a_partition_that_is_leaving_is_left_to_its_next_owner(how: str) -> None:
    bench = Bench()
    bench.come(message(bench.job_part, 0, delivery=delivery(not_before_ms=NOW_MS + 700)))
    setattr(bench.job_part, how, how == "releasing")
    bench.let_time_pass(700)
    assert (bench.waiting, bench.committer.outcomes) == (0, [])


def test_a_timer_is_set_for_the_first_one_alone_and_ends_with_the_worker() -> None:
    bench = Bench()
    for offset, after_ms in enumerate((900, 300, 600)):
        bench.come(message(bench.job_part, offset, delivery=delivery(not_before_ms=NOW_MS + after_ms)))
    assert [delay_s for delay_s, _ in bench.loop.due] == [pytest.approx(0.3)]
    bench.arrivals.stop()
    assert bench.loop.due == []


def test_keys_in_the_wrong_partition_are_counted() -> None:
    bench = Bench()
    places = [message(partition(number=number), 0, key=b"one") for number in range(3)]
    bench.come(*places)
    assert bench.committer.counters.events["misplaced_keys"] == 2


def test_an_event_loops_timer_is_what_it_takes() -> None:
    async def held() -> bool:
        bench = Bench()
        loop: Any = asyncio.get_running_loop()
        bench.arrivals._loop = loop
        bench.come(message(bench.job_part, 0, delivery=delivery(not_before_ms=NOW_MS + 10)))
        bench.now_ms += 10
        await asyncio.sleep(0.05)
        return bench.waiting == 1

    assert asyncio.run(held())
