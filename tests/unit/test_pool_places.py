"""Jobs that wait for a process of the pool, and those that need none."""

from __future__ import annotations

import pytest

from tests.support.messages import commit, message
from tests.support.schedule_bench import CRITICAL, LOW, NOW_MS, arrive, dangerous, open_partition, take
from workers.message import Message
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination


def needs_a_process(one: Message) -> bool:
    return one.timestamp_ms == NOW_MS


def with_pool(size: int) -> Scheduler:
    return Scheduler(pool=PoolPlaces(size, needs_a_process))


def test_jobs_that_wait_for_a_process_leave_the_slots_to_others() -> None:
    scheduler, low, critical = with_pool(2), open_partition(LOW), open_partition(CRITICAL)
    arrive(scheduler, *(message(low, offset, timestamp_ms=NOW_MS) for offset in range(10)))
    running = [take(scheduler), take(scheduler)]
    assert scheduler.take(NOW_MS) is None
    assert scheduler.running == 2
    assert scheduler.waiting(LOW) == 8

    urgent = message(critical, 0, timestamp_ms=NOW_MS - 1)
    arrive(scheduler, urgent)
    assert take(scheduler) is urgent
    assert not scheduler.has_ready

    scheduler.done(running[0])
    assert take(scheduler).offset == 2
    assert scheduler.take(NOW_MS) is None


def test_a_job_that_waits_for_a_process_has_not_started() -> None:
    """At a death it would be suspected of it."""
    scheduler, part = with_pool(1), open_partition(LOW)
    arrive(scheduler, *(message(part, offset, timestamp_ms=NOW_MS) for offset in range(3)))
    take(scheduler)
    assert scheduler.take(NOW_MS) is None
    assert part.started == 1


def test_who_waits_for_a_process_keeps_its_key() -> None:
    scheduler, part = with_pool(1), open_partition(LOW)
    first = message(part, 0, timestamp_ms=NOW_MS)
    waits = message(part, 1, key=b"k", timestamp_ms=NOW_MS)
    after_it = message(part, 2, key=b"k", timestamp_ms=NOW_MS - 1)
    arrive(scheduler, first, waits, after_it)
    assert take(scheduler) is first
    assert scheduler.take(NOW_MS) is None

    scheduler.done(first)
    assert take(scheduler) is waits
    scheduler.done(waits)
    assert take(scheduler) is after_it


def test_several_places_are_taken_in_the_order_of_arrival_the_urgent_ones_first() -> None:
    scheduler, low, critical = with_pool(2), open_partition(LOW), open_partition(CRITICAL)
    arrive(scheduler, *(message(low, offset, timestamp_ms=NOW_MS) for offset in range(6)))
    running = [take(scheduler), take(scheduler)]
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, message(critical, 0, timestamp_ms=NOW_MS))
    assert scheduler.take(NOW_MS) is None

    for one in running:
        scheduler.done(one)
    assert {(one.priority, one.offset) for one in (take(scheduler), take(scheduler))} == {
        (CRITICAL, 0),
        (LOW, 2),
    }


def test_a_cancelled_job_gives_its_place_back_and_is_first_in_line() -> None:
    scheduler, part = with_pool(1), open_partition(LOW)
    arrive(scheduler, *(message(part, offset, timestamp_ms=NOW_MS) for offset in range(3)))
    first = take(scheduler)
    scheduler.put_back(first)
    again = take(scheduler)
    scheduler.done(again)
    others = []
    while (one := scheduler.take(NOW_MS)) is not None:
        others.append(one.offset)
        scheduler.done(one)
    assert sorted([again.offset, *others]) == [0, 1, 2]
    assert len(scheduler) == 0


def test_a_lost_partition_leaves_its_places_and_its_line() -> None:
    scheduler, lost, kept = with_pool(1), open_partition(LOW), open_partition(LOW, number=1)
    arrive(scheduler, *(message(lost, offset, timestamp_ms=NOW_MS) for offset in range(3)))
    running = take(scheduler)
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, message(kept, 0, timestamp_ms=NOW_MS))
    assert scheduler.take(NOW_MS) is None

    scheduler.done(running)  # the second of the lost ones is given the place
    lost.releasing = True
    scheduler.purge({lost})
    assert take(scheduler).part is kept
    assert len(scheduler) == 0


def test_one_that_must_run_alone_waits_for_no_place() -> None:
    """What has one beside it is parked, and does not run."""
    scheduler, closed, part = with_pool(1), open_partition(LOW, number=1), dangerous()
    closed.start_limit = 0
    arrive(scheduler, message(closed, 0, timestamp_ms=NOW_MS))
    assert scheduler.take(NOW_MS) is None, "it has the place, and waits for its commit"
    assert scheduler.has_parked
    arrive(scheduler, message(part, 0, timestamp_ms=NOW_MS))
    assert scheduler.take(NOW_MS) is None
    commit(part)
    assert take(scheduler).part is part


@pytest.mark.parametrize("strict", [False, True])
def test_low_jobs_have_their_share_of_the_processes_however_many_urgent_ones_wait(strict: bool) -> None:  # noqa: FBT001
    """By weight, or once they have waited too long."""
    scheduler = Scheduler(strict=strict, pool=PoolPlaces(1, needs_a_process, strict=strict))
    low, critical = open_partition(LOW), open_partition(CRITICAL)
    arrive(scheduler, *(message(low, offset, timestamp_ms=NOW_MS) for offset in range(10)))
    arrive(scheduler, *(message(critical, offset, timestamp_ms=NOW_MS) for offset in range(90)))
    ran = []
    for _ in range(60):
        taken = scheduler.take(NOW_MS + 600_001 if strict else NOW_MS)
        assert taken is not None
        ran.append(taken.priority)
        assert scheduler.take(NOW_MS) is None, "another slot looks, and finds no process"
        scheduler.done(taken)
    assert ran.count(LOW) >= 5
    assert ran.count(CRITICAL) >= 25
