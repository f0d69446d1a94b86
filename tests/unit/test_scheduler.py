"""Which job starts next: shares of the priorities, and order within a key."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topics import PRIORITIES, JobPriority
from tests.support.messages import commit, message
from tests.support.schedule_bench import (
    CRITICAL,
    HIGH,
    LOW,
    NORMAL,
    NOW_MS,
    arrive,
    open_partition,
    take,
)
from workers.offsets import MAX_REACH
from workers.scheduling.key_locks import KEY_AHEAD
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.turns import DEFAULT_MAX_WAIT_MS, DEFAULT_WEIGHTS, turns

pytestmark = pytest.mark.worker_coordination


def backlog(scheduler: Scheduler, count: int, *priorities: JobPriority, waited_ms: int = 0) -> None:
    for priority in priorities:
        part = open_partition(priority, number=waited_ms)
        arrive(
            scheduler, *(message(part, offset, timestamp_ms=NOW_MS - waited_ms) for offset in range(count))
        )


def run(scheduler: Scheduler, count: int) -> Counter[JobPriority]:
    """Start and end so many jobs; how many there were of each priority."""
    ran: Counter[JobPriority] = Counter()
    for _ in range(count):
        taken = take(scheduler)
        assert taken.priority is not None
        ran[taken.priority] += 1
        scheduler.done(taken)
    return ran


# --- shares --------------------------------------------------------------------------------------------


@given(st.fixed_dictionaries({priority: st.integers(0, 20) for priority in PRIORITIES}))
def test_each_priority_gets_as_many_turns_as_its_weight_says(weights: dict[JobPriority, int]) -> None:
    assert Counter(turns(weights)) == {priority: weight for priority, weight in weights.items() if weight}


def test_turns_are_spread_evenly() -> None:
    order = turns(DEFAULT_WEIGHTS)
    at = [index for index, priority in enumerate(order + order) if priority is CRITICAL]
    assert max(after - before for before, after in pairwise(at)) <= 3


def test_with_work_everywhere_each_gets_its_share() -> None:
    scheduler = Scheduler()
    backlog(scheduler, 100, *PRIORITIES)
    assert run(scheduler, 30) == {CRITICAL: 16, HIGH: 8, NORMAL: 4, LOW: 2}


def test_a_share_that_nobody_uses_is_used_by_the_others() -> None:
    scheduler = Scheduler()
    backlog(scheduler, 100, NORMAL, LOW)
    assert run(scheduler, 30) == {NORMAL: 20, LOW: 10}


def test_strict_serves_a_priority_only_when_all_higher_ones_are_empty() -> None:
    scheduler = Scheduler(strict=True)
    backlog(scheduler, 10, *PRIORITIES)
    assert [run(scheduler, 10) for _ in PRIORITIES] == [{priority: 10} for priority in PRIORITIES]


@pytest.mark.parametrize("strict", [False, True])
def test_who_waited_too_long_takes_turns_with_the_critical_ones(strict: bool) -> None:  # noqa: FBT001
    scheduler = Scheduler(strict=strict)
    backlog(scheduler, 100, CRITICAL)
    backlog(scheduler, 100, LOW, waited_ms=DEFAULT_MAX_WAIT_MS[LOW] + 1)
    ran = run(scheduler, 60)
    assert 25 <= ran[LOW] <= 35


def test_who_waited_just_long_enough_is_not_promoted() -> None:
    scheduler = Scheduler(strict=True)
    backlog(scheduler, 10, CRITICAL)
    backlog(scheduler, 10, LOW, waited_ms=DEFAULT_MAX_WAIT_MS[LOW])
    assert run(scheduler, 10) == {CRITICAL: 10}


@pytest.mark.parametrize("strict", [False, True])
def test_a_backlog_that_waited_too_long_leaves_the_others_their_share(strict: bool) -> None:  # noqa: FBT001
    """Hours of low jobs must not hold back high ones that arrive now, whether or not there are critical ones."""
    scheduler = Scheduler(strict=strict)
    backlog(scheduler, 200, LOW, waited_ms=36_000_000)
    backlog(scheduler, 100, HIGH, NORMAL)
    ran = run(scheduler, 60)
    assert ran[HIGH] >= 15
    assert ran[LOW] >= 25


def test_of_two_that_waited_too_long_the_more_overdue_one_comes_first() -> None:
    scheduler = Scheduler(weights={CRITICAL: 1}, max_wait_ms={HIGH: 10, LOW: 10})
    backlog(scheduler, 5, HIGH, waited_ms=20)
    backlog(scheduler, 5, LOW, waited_ms=900)
    assert run(scheduler, 5) == {LOW: 5}


# --- keys ------------------------------------------------------------------------------------------------


def test_two_of_one_key_never_run_at_once_and_start_in_order() -> None:
    scheduler = Scheduler()
    part = open_partition()
    first, second, third = (message(part, offset, key=b"k") for offset in range(3))
    arrive(scheduler, first, second, third)
    assert take(scheduler) is first
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, message(part, 3))
    scheduler.done(first)
    assert take(scheduler) is second, "and not one that came after it"
    scheduler.done(second)
    assert take(scheduler) is third


def test_others_pass_those_who_wait_behind_their_key() -> None:
    scheduler = Scheduler()
    part = open_partition()
    arrive(
        scheduler, *(message(part, offset, key=key) for offset, key in enumerate([b"k", b"k", b"l", None]))
    )
    assert [take(scheduler).offset for _ in range(3)] == [0, 2, 3]


def test_those_who_wait_behind_their_key_do_not_count_as_enough_to_start() -> None:
    """Else one hot key keeps its whole priority from being fetched, and others of it from starting."""
    scheduler, part = Scheduler(), open_partition()
    arrive(scheduler, *(message(part, offset, key=b"hot") for offset in range(5)), message(part, 5))
    first, other = take(scheduler), take(scheduler)
    assert (first.offset, other.offset) == (0, 5)
    assert scheduler.take(NOW_MS) is None
    assert (scheduler.waiting(NORMAL), scheduler.startable(NORMAL)) == (4, 0)
    scheduler.done(first)
    assert (scheduler.waiting(NORMAL), scheduler.startable(NORMAL)) == (4, 1)
    assert scheduler.purge({part}) == 4
    assert (scheduler.waiting(NORMAL), scheduler.startable(NORMAL)) == (0, 0)


def test_the_most_urgent_one_behind_a_key_is_next() -> None:
    scheduler = Scheduler()
    holder = message(open_partition(LOW), 0, key=b"k")
    low = message(open_partition(LOW, 1), 0, key=b"k")
    high = message(open_partition(HIGH), 0, key=b"k")
    arrive(scheduler, holder)
    assert take(scheduler) is holder
    arrive(scheduler, low)
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, high)
    assert scheduler.take(NOW_MS) is None
    scheduler.done(holder)
    assert take(scheduler) is high


def test_who_waits_for_a_commit_keeps_its_key_and_its_place() -> None:
    scheduler = Scheduler()
    part = open_partition(limit=1)
    messages = [message(part, offset, key=key) for offset, key in enumerate([None, b"k", b"k", b"l"])]
    part.start_limit = 1
    arrive(scheduler, *messages)
    assert take(scheduler) is messages[0]
    assert scheduler.take(NOW_MS) is None
    assert scheduler.has_parked
    commit(part)
    scheduler.unpark()
    assert [take(scheduler), take(scheduler)] == [messages[1], messages[3]]


def test_those_that_wait_for_a_commit_are_the_next_to_start_each_partition_with_its_share() -> None:
    """They have left the buffers: a commit that looked there only opened the way to one of each partition, tick by tick."""
    scheduler = Scheduler()
    parts = [open_partition(number=number, limit=1) for number in range(2)]
    for part in parts:
        part.start_limit = 0
        arrive(scheduler, *(message(part, offset) for offset in range(10)))
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, *(message(open_partition(HIGH), offset) for offset in range(10)))
    assert [(one.part, one.offset) for one in scheduler.upcoming(4)] == [
        (part, offset) for part in parts for offset in range(2)
    ]
    assert len(scheduler.upcoming(25)) == 25


def test_a_cancelled_job_that_is_still_ours_starts_again_before_others_of_its_key() -> None:
    scheduler = Scheduler()
    part = open_partition()
    first, second = (message(part, offset, key=b"k") for offset in range(2))
    arrive(scheduler, first, second, message(part, 2))
    scheduler.put_back(take(scheduler))
    assert take(scheduler) is first


def test_a_key_of_a_lost_partition_is_free_again() -> None:
    scheduler = Scheduler()
    lost, kept = open_partition(), open_partition(HIGH)
    held, other = message(lost, 0, key=b"k"), message(kept, 0, key=b"k")
    lost.start_limit = 0
    arrive(scheduler, held)
    assert scheduler.take(NOW_MS) is None  # it waits for a commit, and holds its key
    arrive(scheduler, other)
    assert scheduler.take(NOW_MS) is None
    lost.releasing = True
    assert scheduler.purge({lost}) == 1
    assert take(scheduler) is other


def test_who_waits_behind_a_key_is_forgotten_with_its_partition() -> None:
    scheduler = Scheduler()
    lost = open_partition()
    holder, waiting = message(open_partition(HIGH), 0, key=b"k"), message(lost, 0, key=b"k")
    arrive(scheduler, holder, waiting)
    assert take(scheduler) is holder
    assert scheduler.take(NOW_MS) is None
    lost.releasing = True
    assert scheduler.purge({lost}) == 1
    assert len(scheduler) == 0
    scheduler.done(holder)
    assert (len(scheduler), scheduler.take(NOW_MS), len(scheduler._keys)) == (0, None, 0)


def test_a_key_is_not_handed_to_a_partition_that_is_leaving() -> None:
    scheduler = Scheduler()
    leaving = open_partition()
    holder, following = message(open_partition(HIGH), 0, key=b"k"), message(leaving, 0, key=b"k")
    arrive(scheduler, holder, following)
    assert take(scheduler) is holder
    assert scheduler.take(NOW_MS) is None
    leaving.releasing = True
    scheduler.done(holder)
    assert len(scheduler) == 0
    assert scheduler.purge({leaving}) == 0, "it is counted out already"


def test_who_is_beyond_reach_has_no_key_that_others_may_need_to_bring_it_into_reach() -> None:
    """With it, two partitions would wait for each other for ever: here the low one's first record for the key of the normal one."""
    scheduler = Scheduler()
    low, normal = open_partition(LOW, limit=2 * MAX_REACH), open_partition(NORMAL, limit=2 * MAX_REACH)
    first, far = message(low, 0, key=b"k"), message(normal, MAX_REACH, key=b"k")
    arrive(scheduler, far)
    assert scheduler.take(NOW_MS) is None
    assert scheduler.needs_commit
    arrive(scheduler, first)
    assert take(scheduler) is first
    commit(normal, *range(MAX_REACH))
    commit(normal)
    scheduler.unpark()
    assert scheduler.take(NOW_MS) is None, "it waits for its key as any other"
    scheduler.done(first)
    assert take(scheduler) is far


# --- who waits and is not to blame at a death ------------------------------------------------------------------


def test_behind_a_key_only_the_next_few_may_start_without_another_commit() -> None:
    scheduler, part = Scheduler(), open_partition()
    chain = [message(part, offset, key=b"k") for offset in range(KEY_AHEAD + 3)]
    arrive(scheduler, *chain)
    running = take(scheduler)
    assert scheduler.take(NOW_MS) is None
    assert part.held == {KEY_AHEAD + 1, KEY_AHEAD + 2}
    commit(part)
    scheduler.done(running)
    assert part.held == {KEY_AHEAD + 2}
    assert part.dirty, "one more may start soon, and a commit says so before"
    assert take(scheduler) is chain[1]


def test_who_waits_for_a_process_is_held_until_it_is_one_of_the_next() -> None:
    scheduler, part = Scheduler(pool=PoolPlaces(1, lambda _: True)), open_partition()
    arrive(scheduler, *(message(part, offset) for offset in range(3)))
    first = take(scheduler)
    assert scheduler.take(NOW_MS) is None
    assert part.held == {1, 2}
    commit(part, window=0)
    for one in scheduler.upcoming(1):
        one.part.want(one.offset)
    assert part.held == {2}
    commit(part, window=0)
    scheduler.done(first)
    assert take(scheduler).offset == 1
