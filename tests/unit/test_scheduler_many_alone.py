"""Where many wait to run alone, as after many deaths under load: nearly all of them are innocent."""

from __future__ import annotations

import pytest

from schemas.offsetmap import Suspect
from tests.support.messages import commit, message, partition
from tests.support.schedule_bench import (
    NOW_MS,
    arrive,
    dangerous,
    take,
    take_alone,
)
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.time_share import (
    ALONE_MS,
    HURRIED_ABOVE,
    HURRIED_MS,
    OWED,
    TimeShare,
    alone_ms,
)

pytestmark = pytest.mark.worker_coordination

MANY = HURRIED_ABOVE + 4


def many_of_them(count: int = MANY) -> tuple[Scheduler, PartitionState, list[Message]]:
    """So many wait for their turn, and nothing else."""
    scheduler = Scheduler(others_first_ms=0)
    part = dangerous(range(count))
    waiting = [message(part, offset) for offset in range(count)]
    arrive(scheduler, *waiting)
    return scheduler, part, waiting


def survive(scheduler: Scheduler, part: PartitionState) -> None:
    scheduler.survived()
    commit(part)


def test_where_many_wait_the_next_one_starts_beside_who_has_survived() -> None:
    """After a storm of deaths hundreds of innocents wait, half a minute each: nobody would see their end."""
    scheduler, part, (first, second, third, *_) = many_of_them()
    assert take_alone(scheduler, part) is first
    survive(scheduler, part)
    assert scheduler.has_ready
    assert scheduler.take(NOW_MS) is None, "a commit has to say first that it may be running"
    assert part.alone is None, "at its worker's death it would be accused for what the survivor did"
    plan = commit(part)
    assert plan.suspects[second.offset].joined
    assert take(scheduler) is second
    assert scheduler.take(NOW_MS) is None, "the third waits until the second has survived"
    survive(scheduler, part)
    assert scheduler.take(NOW_MS) is None
    commit(part)
    assert take(scheduler) is third


def test_if_its_worker_dies_both_count_one_death_more_and_those_that_wait_none() -> None:
    scheduler, part, (first, second, third, *_) = many_of_them()
    take_alone(scheduler, part)
    survive(scheduler, part)
    scheduler.take(NOW_MS)
    plan = commit(part)
    take(scheduler)
    heir = partition(part.topic, prior=plan, incarnation="heir")
    assert [heir.suspects[one.offset].deaths for one in (first, second, third)] == [3, 3, 2]
    assert not any(heir.charge(one.offset)[0] for one in (first, second, third)), "nobody is accused"


def test_where_few_wait_each_runs_beside_nothing_at_all() -> None:
    """One that kills is found at its third death."""
    scheduler, part, (first, second, *_) = many_of_them(HURRIED_ABOVE + 1)
    assert take_alone(scheduler, part) is first
    survive(scheduler, part)
    assert not scheduler.has_ready
    assert scheduler.take(NOW_MS) is None
    scheduler.done(first)
    commit(part, 0)
    assert take_alone(scheduler, part) is second


def test_who_has_died_beside_others_since_runs_beside_nothing_whatever_waits() -> None:
    scheduler, part, (first, second, third, *_) = many_of_them()
    part.suspects[second.offset] = Suspect(("first", "second", "third"))
    part.losses |= {"second": 2, "third": 3}
    assert take_alone(scheduler, part) is first
    survive(scheduler, part)
    assert scheduler.take(NOW_MS) is None
    commit(part)
    assert take(scheduler) is third, "it keeps nobody behind it from running beside the first"
    scheduler.done(third)
    scheduler.done(first)
    commit(part, 0, 2)
    assert take_alone(scheduler, part) is second
    assert part.committed_alone == second.offset


def test_a_survivor_that_is_put_back_is_none_any_more() -> None:
    scheduler, part, (first, *_) = many_of_them()
    take_alone(scheduler, part)
    survive(scheduler, part)
    scheduler.put_back(first)
    assert scheduler.running == 0
    assert scheduler._survivors == set()
    commit(part)
    assert scheduler.take(NOW_MS) is None
    assert part.alone is not None, "nothing runs: it is alone again"


def test_two_seconds_must_do_where_many_wait_and_five_where_few_do() -> None:
    scheduler, part, _ = many_of_them()
    take_alone(scheduler, part)
    assert not scheduler.has_survived(HURRIED_MS)
    assert scheduler.has_survived(HURRIED_MS + 1)
    scheduler, part, _ = many_of_them(HURRIED_ABOVE + 1)
    assert not scheduler.has_survived(HURRIED_MS + 1), "nobody is alone"
    take_alone(scheduler, part)
    assert not scheduler.has_survived(ALONE_MS)
    assert scheduler.has_survived(ALONE_MS + 1)
    assert alone_ms(1, hurried=True) == alone_ms(1, hurried=False) == 4 * ALONE_MS


def test_a_turn_lasts_as_long_as_it_was_waited_for() -> None:
    """Others ran for twenty seconds until the first could start: to let them go on after it would waste all that."""
    share = TimeShare(others_first_ms=0)
    assert share.holds_back(0, running=0, others=True)
    share.started(2_000)
    assert share.holds_back(2_100, running=0, others=True), (
        "longer than a turn by itself, and yet it has just begun"
    )
    share.started(3_000)
    assert share.holds_back(3_999, running=0, others=True)
    assert not share.holds_back(4_000, running=0, others=True)
    assert not share.holds_back(4_000 + OWED * 4_000 - 1, running=0, others=True)
