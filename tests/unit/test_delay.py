"""What waits for its time: never early, in order, bounded in memory, and given back when its partition goes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.headers import Attempt, Delivery, RawHeaders, build
from schemas.topics import TIERS, JobPriority, tier_for
from tests.support.messages import TOPICS, job_value, message, partition
from workers.committing.router import Router
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.delay import MAX_HELD_BYTES, MAX_HELD_RECORDS, MAX_TOTAL_BYTES, Delays, due_at

pytestmark = pytest.mark.job_processing

tiers = st.sampled_from(TIERS)
times = st.integers(0, 2 * 86_400_000)


def waiting(
    part: PartitionState, offset: int, *, at_ms: int = 0, not_before_ms: int = 0, value: bytes | None = None
) -> Message:
    delivery = Delivery(job_type="test", delivery=1, not_before_ms=not_before_ms)
    return message(part, offset, delivery=delivery, timestamp_ms=at_ms, value=value)


def hold(delays: Delays, *messages: Message) -> None:
    """The poll thread counts what it hands over, the event loop keeps it."""
    delays.arrived(messages)
    delays.hold(messages)


@given(tiers, times, times)
def test_a_record_is_looked_at_when_its_tier_ends_or_at_its_time_if_that_is_near(
    tier: object, at_ms: int, later_ms: int
) -> None:
    part = partition(TOPICS.retry[tier])  # type: ignore[index]
    one = waiting(part, 0, at_ms=at_ms, not_before_ms=at_ms + later_ms)
    assert one.tier is not None
    end = at_ms + one.tier.delay_ms
    due = due_at(one)
    assert end <= due < end + 1_000
    if end < at_ms + later_ms < end + 1_000:
        assert due == at_ms + later_ms
    else:
        assert due == end


@given(st.integers(0, 400 * 86_400_000), st.integers(0, 3))
def test_any_time_is_reached_by_hops_and_never_early(delay_ms: int, lag_ms: int) -> None:
    """A job hops from tier to tier; at the end less than a second is left, which it waits in memory."""
    router = Router(TOPICS)
    goal = 1_000 + delay_ms
    now, hops, deliveries = 1_000, 0, 0
    tier = tier_for(goal - now)
    while tier is not None:
        one = message(
            partition(TOPICS.retry[tier]),
            0,
            delivery=Delivery(job_type="test", delivery=deliveries, not_before_ms=goal),
            timestamp_ms=now,
            value=job_value("0" * 36),
        )
        now = due_at(one) + lag_ms
        (record,) = router.forward(one, now).records
        tier = TOPICS.tier_of.get(record.topic)
        deliveries += 1
        hops += 1
        assert now <= goal + 3 * hops
    assert goal - now < 1_000
    assert hops <= 400 + 40


def test_what_is_due_comes_in_order_and_no_sooner() -> None:
    delays = Delays()
    part = partition(TOPICS.retry[TIERS[0]])
    late, soon, same = (waiting(part, offset, at_ms=at) for offset, at in enumerate([500, 100, 500]))
    hold(delays, late, soon, same)
    assert delays.next_due_ms() == 1_100
    assert delays.take_due(1_099) == []
    assert delays.take_due(1_100) == [soon]
    assert delays.take_due(9_999) == [late, same]
    assert (delays.next_due_ms(), len(delays)) == (None, 0)


def test_a_job_whose_time_is_near_waits_for_just_that() -> None:
    delays = Delays()
    one = message(partition(), 0)
    delays.hold_until(one, 750)
    assert delays.take_due(749) == []
    assert delays.take_due(750) == [one]


def test_what_is_left_after_a_partition_has_gone_still_comes_in_order() -> None:
    delays = Delays()
    stays, goes = partition(), partition(number=1)
    for due in (7, 6, 3, 5, 1, 4, 2):
        delays.hold_until(message(goes if due in (1, 7) else stays, due), due)
    assert sorted(one.offset for one in delays.purge({goes})) == [1, 7]
    assert [one.offset for one in delays.take_due(9)] == [2, 3, 4, 5, 6]


def test_nothing_of_a_partition_is_kept_when_it_has_gone() -> None:
    delays = Delays()
    part = partition(TOPICS.retry[TIERS[0]])
    hold(delays, waiting(part, 0), waiting(part, 1))
    delays.purge({part})
    assert (len(delays), delays._bytes, delays._held, delays._newest_due) == (0, 0, {}, {})


def test_a_partition_with_enough_records_pauses_until_half_of_them_are_gone() -> None:
    delays = Delays()
    part, other = partition(TOPICS.retry[TIERS[0]]), partition(TOPICS.retry[TIERS[0]], 1)
    hold(delays, *(waiting(part, offset, at_ms=offset, value=b"") for offset in range(MAX_HELD_RECORDS - 1)))
    assert not delays.holds_enough(part, 0, paused=False)
    hold(delays, waiting(part, MAX_HELD_RECORDS, at_ms=MAX_HELD_RECORDS, value=b""))
    assert delays.holds_enough(part, 0, paused=False)
    assert not delays.holds_enough(other, 0, paused=False)
    now = 1_000 + MAX_HELD_RECORDS // 2 - 1
    delays.take_due(now)
    assert delays.holds_enough(part, now, paused=True)
    assert not delays.holds_enough(part, now, paused=False)
    delays.take_due(now + 1)
    assert not delays.holds_enough(part, now + 1, paused=True)


def test_what_is_on_its_way_counts() -> None:
    """Counted only when the event loop looks at it, far more would be here before the pause."""
    delays = Delays()
    part = partition(TOPICS.retry[TIERS[0]])
    delays.arrived([waiting(part, offset, value=b"") for offset in range(MAX_HELD_RECORDS)])
    assert delays.holds_enough(part, 0, paused=False)


def test_records_that_are_due_go_through_without_a_pause() -> None:
    delays = Delays()
    part = partition(TOPICS.retry[TIERS[0]])
    hold(delays, *(waiting(part, offset, value=b"") for offset in range(MAX_HELD_RECORDS)))
    assert delays.holds_enough(part, 999, paused=False)
    assert not delays.holds_enough(part, 1_000, paused=True)


def test_a_partition_with_enough_bytes_pauses_too() -> None:
    delays = Delays()
    part = partition(TOPICS.retry[TIERS[0]])
    hold(delays, waiting(part, 0, value=bytes(MAX_HELD_BYTES - 400)))
    assert delays.holds_enough(part, 0, paused=False)


def test_headers_count_among_the_bytes() -> None:
    """After ten attempts they are several KB, and may be more than the job itself."""
    delays = Delays()
    part = partition(TOPICS.retry[TIERS[0]])
    attempts = tuple(Attempt(n, "w.0", 1, 2, "E" * 60, "m" * 200) for n in range(1, 11))
    delivery = Delivery(job_type="test", attempt=11, not_before_ms=1_000, history=attempts)
    headers = sum(len(name) + len(text) for name, text in build(delivery))
    assert headers > 2_000
    hold(delays, message(part, 0, value=bytes(MAX_HELD_BYTES - headers), delivery=delivery))
    assert delays.holds_enough(part, 0, paused=False)


def test_one_large_header_that_is_not_ours_counts_as_well() -> None:
    part = partition(TOPICS.retry[TIERS[0]])
    large = Message(part, 0, None, b"", [("foreign", bytes(100_000))], 0, None, TIERS[0])
    assert large.size > 100_000
    nothing: tuple[RawHeaders | None, ...] = (None, [])
    for none in nothing:
        assert Message(part, 0, None, b"", none, 0, None, TIERS[0]).size > 0


def test_all_of_it_together_is_bounded() -> None:
    delays = Delays()
    parts = [partition(TOPICS.retry[TIERS[0]], number) for number in range(200)]
    value = bytes(MAX_HELD_BYTES - 1_000)
    for part in parts:
        if not any(delays.holds_enough(each, 0, paused=False) for each in parts):
            hold(delays, waiting(part, 0, value=value))
    assert len(delays) * len(value) <= MAX_TOTAL_BYTES + MAX_HELD_BYTES
    assert len(delays) > 100


def test_due_records_that_nobody_looks_at_are_bounded_as_well_and_starve_nobody() -> None:
    """The event loop stands still, in a handler that blocks it; what waits for its time takes all the room."""
    delays = Delays()
    due_ms = TIERS[0].delay_ms
    parts = [partition(TOPICS.retry[TIERS[0]], number) for number in range(200)]
    waits = partition(TOPICS.retry[TIERS[-1]], 300)
    value = bytes(MAX_HELD_BYTES // 2)
    counted = 0
    for part in parts * 4:
        if not delays.holds_enough(part, due_ms, paused=False):
            delays.arrived([waiting(part, 0, value=value)])
            counted += 1
    assert counted * len(value) <= MAX_TOTAL_BYTES + len(parts) * MAX_HELD_BYTES
    assert delays.holds_enough(parts[0], due_ms, paused=False)
    small = partition(TOPICS.retry[TIERS[0]], 400)
    hold(delays, waiting(small, 0))
    assert not delays.holds_enough(small, due_ms, paused=False), "it has not had its share"
    assert not delays.holds_enough(waits, due_ms, paused=False)


class Holding(RuleBasedStateMachine):
    """Whatever comes and goes: what is held is known, and nothing of it stays in the books."""

    def __init__(self) -> None:
        super().__init__()
        self.delays = Delays()
        self.now = 0
        self.parts = [partition(TOPICS.retry[tier], number) for tier in TIERS[:2] for number in (0, 1)]
        self.parts.append(partition(TOPICS.jobs[JobPriority.HIGH]))
        self.held: list[tuple[int, Message]] = []

    @rule(where=st.integers(0, 3), later=st.integers(0, 3_000), size=st.sampled_from([0, 9, 200_000]))
    def a_record_comes(self, where: int, later: int, size: int) -> None:
        one = waiting(self.parts[where], 0, at_ms=self.now, not_before_ms=self.now + later, value=bytes(size))
        hold(self.delays, one)
        self.held.append((due_at(one), one))

    @rule(later=st.integers(0, 999))
    def a_job_waits_for_its_time(self, later: int) -> None:
        one = message(self.parts[4], 0)
        self.delays.hold_until(one, self.now + later)
        self.held.append((self.now + later, one))

    @rule(later=st.integers(0, 4_000))
    def time_passes(self, later: int) -> None:
        self.now += later
        due = self.delays.take_due(self.now)
        expected = sorted((at, index) for index, (at, _) in enumerate(self.held) if at <= self.now)
        assert due == [self.held[index][1] for _, index in expected]
        self.held = [(at, one) for at, one in self.held if at > self.now]

    @rule(which=st.sets(st.integers(0, 4), max_size=3))
    def partitions_go(self, which: set[int]) -> None:
        gone = {self.parts[index] for index in which}
        dropped = self.delays.purge(gone)
        assert set(dropped) == {one for _, one in self.held if one.part in gone}
        self.held = [(at, one) for at, one in self.held if one.part not in gone]

    @invariant()
    def the_books_are_right(self) -> None:
        assert len(self.delays) == len(self.held)
        assert self.delays.next_due_ms() == min((at for at, _ in self.held), default=None)
        assert self.delays._bytes == sum(one.size for _, one in self.held)
        assert set(self.delays._held) == {one.part for _, one in self.held}


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=60, stateful_step_count=40)
