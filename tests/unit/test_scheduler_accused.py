"""Who waits for a verdict on a lost worker, with its key, and who waits behind it."""

from __future__ import annotations

import pytest

from tests.support.messages import commit, message
from tests.support.schedule_bench import (
    HIGH,
    NOW_MS,
    arrive,
    assert_they_run_alone,
    dangerous,
    open_partition,
    take,
    take_alone,
)
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination


def arrive_and_wait(scheduler: Scheduler, part: PartitionState) -> tuple[Message, Message]:
    """An accused one and the next of its key: neither starts, whatever is committed."""
    accused, following = (message(part, offset, key=b"k") for offset in range(2))
    accused.lost_worker = True
    arrive(scheduler, accused, following)
    for _ in range(3):
        commit(part)
        assert scheduler.take(NOW_MS) is None
    return accused, following


def test_who_must_run_alone_waits_behind_an_accused_one_of_its_key_in_order_and_holds_nobody_back() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(4))
    accused, *others = (message(part, offset, key=b"k") for offset in range(4))
    accused.lost_worker = True
    beside = message(open_partition(HIGH), 0)
    arrive(scheduler, accused)
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, *others, beside)
    commit(part)
    assert take(scheduler) is beside
    scheduler.done(beside)
    assert list(scheduler.accused) == [accused]
    scheduler.bury(accused)
    commit(part, 0)
    assert_they_run_alone(scheduler, part, *others)
    assert len(scheduler) == 0


def test_an_acquitted_one_runs_alone_before_those_of_its_key_that_must_as_well() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part, beside = dangerous(range(2)), message(open_partition(HIGH), 0)
    accused, following = (message(part, offset, key=b"k") for offset in range(2))
    accused.lost_worker = True
    arrive(scheduler, accused, beside)
    assert take(scheduler) is beside
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, following)
    assert scheduler.take(NOW_MS) is None, "something else still runs"
    scheduler.acquit(accused)
    scheduler.done(beside)
    commit(part)
    assert_they_run_alone(scheduler, part, accused, following)


def test_one_that_waited_for_a_verdict_keeps_its_place_before_a_later_one_of_its_key() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part, other = dangerous(range(3)), dangerous(number=1)
    accused, second, third = (message(part, offset, key=b"k") for offset in range(3))
    accused.lost_worker = True
    between = message(other, 0)
    arrive(scheduler, accused)
    assert scheduler.take(NOW_MS) is None
    arrive(scheduler, second, between, third)
    commit(part)
    assert take_alone(scheduler, other) is between, "the second waits behind its key"
    scheduler.bury(accused)
    commit(part, 0)
    scheduler.done(between)
    commit(other, 0)
    assert_they_run_alone(scheduler, part, second, third)


def test_an_accused_one_and_one_of_its_key_that_arrive_together_keep_their_order() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(2))
    accused, following = arrive_and_wait(scheduler, part)
    assert part.alone is None, "a death of anybody would accuse the second one"
    assert list(scheduler.accused) == [accused]
    scheduler.acquit(accused)
    assert_they_run_alone(scheduler, part, accused, following)


@pytest.mark.parametrize("is_parked", [False, True])
def test_an_accused_one_does_not_run_before_those_of_its_key_that_nobody_suspects(*, is_parked: bool) -> None:
    """They had ended when it ran, and the worker died before their outcome was committed."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(4))
    first, second, third, accused = (message(part, offset, key=b"k") for offset in range(4))
    for innocent in (first, second, third):
        del part.suspects[innocent.offset]
    accused.lost_worker = True
    if is_parked:
        arrive(scheduler, first, second)
        assert scheduler.take(NOW_MS) is None, "it waits for a commit"
        arrive(scheduler, third, accused)
    else:
        arrive(scheduler, first, second, third, accused)
    assert not scheduler.accused
    commit(part)
    scheduler.unpark()
    for one in (first, second, third):
        assert take(scheduler) is one
        assert scheduler.take(NOW_MS) is None
        assert not scheduler.accused
        scheduler.done(one)
        commit(part, one.offset)
    assert list(scheduler.accused) == [accused]
    scheduler.acquit(accused)
    assert take_alone(scheduler, part) is accused
    scheduler.done(accused)
    assert (len(scheduler), len(scheduler._keys), scheduler._parked) == (0, 0, {})


@pytest.mark.parametrize("has_started", [True, False])
def test_one_that_waited_behind_its_key_waits_for_its_verdict_before_a_later_one_starts(
    *,
    has_started: bool,
) -> None:
    scheduler = Scheduler(others_first_ms=0)
    before, part = open_partition(HIGH), dangerous(range(2))
    if not has_started:
        before.start_limit = 0
    holder = message(before, 0, key=b"k")
    arrive(scheduler, holder)
    assert scheduler.take(NOW_MS) is (holder if has_started else None), "at least it has its key"
    accused, following = arrive_and_wait(scheduler, part)
    if not has_started:
        commit(before)
        scheduler.unpark()
        assert take(scheduler) is holder
    scheduler.done(holder)
    commit(part)
    assert scheduler.take(NOW_MS) is None
    assert list(scheduler.accused) == [accused]
    scheduler.bury(accused)
    commit(part, 0)
    assert take_alone(scheduler, part) is following


def test_an_accused_one_of_a_partition_that_goes_is_forgotten() -> None:
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous()
    accused = message(part, 0, key=b"k")
    accused.lost_worker = True
    part.releasing = True
    arrive(scheduler, accused)
    assert (len(scheduler), len(scheduler.accused), len(scheduler._keys)) == (0, 0, 0)


def test_an_accused_one_behind_one_that_runs_alone_waits_for_its_key_and_then_for_its_verdict() -> None:
    scheduler = Scheduler(others_first_ms=0)
    named_part, part = dangerous(), dangerous(number=1)
    named, accused = message(named_part, 0, key=b"k"), message(part, 0, key=b"k")
    accused.lost_worker = True
    arrive(scheduler, named)
    commit(named_part)
    commit(part)
    assert scheduler.take(NOW_MS) is None, "it asks for a commit"
    arrive(scheduler, accused)
    assert accused not in scheduler.accused
    commit(named_part)
    assert take(scheduler) is named
    scheduler.done(named)
    commit(named_part, 0)
    assert list(scheduler.accused) == [accused]
    scheduler.acquit(accused)
    assert take_alone(scheduler, part) is accused
    scheduler.done(accused)
    commit(part, 0)
    assert scheduler.take(NOW_MS) is None
    assert len(scheduler) == 0
