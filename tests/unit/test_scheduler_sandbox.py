"""Who was unfinished at two deaths, and can be run in a process of its own."""

from __future__ import annotations

import pytest

from schemas.offsetmap import Suspect
from tests.support.messages import commit, message, partition
from tests.support.schedule_bench import (
    CRITICAL,
    LOW,
    NOW_MS,
    arrive,
    dangerous,
    open_partition,
    take,
    take_alone,
)
from workers.message import Message
from workers.offsets import SANDBOX_UNTIL, PartitionState
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination


def with_sandbox(size: int = 2) -> Scheduler:
    return Scheduler(sandbox=PoolPlaces(size, lambda _: True))


def take_joined(scheduler: Scheduler, one: Message) -> None:
    """It starts when a commit has said that it may die with the others."""
    assert scheduler.take(NOW_MS) is None
    assert commit(one.part).suspects[one.offset].joined
    scheduler.unpark()
    assert take(scheduler) is one
    assert one.sandboxed


def test_it_runs_there_beside_others_and_holds_nobody_back() -> None:
    scheduler = with_sandbox()
    part, others = dangerous(), open_partition(number=1)
    before, behind = message(others, 0), message(others, 1)
    arrive(scheduler, before)
    assert take(scheduler) is before
    suspect = message(part, 0)
    arrive(scheduler, suspect, behind)
    commit(part)
    assert take(scheduler) is behind, "the suspect waits for its commit, nobody for the suspect"
    take_joined(scheduler, suspect)
    assert not behind.sandboxed
    assert scheduler.isolated is None
    assert scheduler.running == 3


def test_it_is_charged_with_a_death_of_its_worker_and_with_none_while_it_waits() -> None:
    scheduler = with_sandbox(1)
    part = dangerous(range(2))
    first, second = message(part, 0), message(part, 1)
    arrive(scheduler, first, second)
    commit(part)
    take_joined(scheduler, first)
    assert scheduler.take(NOW_MS) is None, "there is one place"
    plan = commit(part)
    heir = partition(part.topic, prior=plan, incarnation="heir")
    assert [heir.suspects[offset].deaths for offset in (0, 1)] == [3, 2]
    assert heir.charge(0) == ("", 0), "it ran beside others: nobody is accused"
    scheduler.done(first)
    take_joined(scheduler, second)


def test_one_that_is_put_back_may_start_again_when_a_commit_says_so() -> None:
    scheduler = with_sandbox()
    part = dangerous()
    suspect = message(part, 0)
    arrive(scheduler, suspect)
    commit(part)
    take_joined(scheduler, suspect)
    scheduler.put_back(suspect)
    assert not suspect.sandboxed
    assert not commit(part).suspects[0].joined, "it does not run: a death now is not its"
    take_joined(scheduler, suspect)


@pytest.mark.parametrize("kept_out", [True, False])
def test_who_cannot_be_run_there_or_has_seen_too_many_deaths_runs_alone(*, kept_out: bool) -> None:
    scheduler = Scheduler(sandbox=PoolPlaces(2, lambda _: True), others_first_ms=0)
    part = dangerous()
    if not kept_out:
        owners = tuple(f"dead-{number}" for number in range(SANDBOX_UNTIL))
        part.suspects[0], part.losses = Suspect(owners), dict.fromkeys(owners, 1)
    one = message(part, 0)
    one.kept_out = kept_out
    arrive(scheduler, one)
    assert take_alone(scheduler, part) is one
    assert scheduler.isolated is one
    assert not one.sandboxed
    assert scheduler.has_survived(5_001), "the time alone is counted from here on"


def test_who_is_absolved_while_it_waits_for_its_commit_runs_as_any_other() -> None:
    """The end of its process would be taken for its third death."""
    scheduler = with_sandbox(1)
    part = dangerous(range(2))
    first, second = message(part, 0), message(part, 1)
    arrive(scheduler, first, second)
    commit(part)
    assert scheduler.take(NOW_MS) is None
    part.absolve(("first",))
    commit(part)
    scheduler.unpark()
    assert take(scheduler) is first
    assert take(scheduler) is second, "no place is taken"
    assert (first.sandboxed, second.sandboxed) == (False, False)


def test_who_is_absolved_while_it_waits_for_a_place_does_not_get_one() -> None:
    """It would keep that for as long as it runs, which may be an hour, and those that need one would wait."""
    scheduler = with_sandbox(1)
    absolved, others = dangerous(range(1)), dangerous(range(2), number=1)
    runs, waits = message(others, 0), message(others, 1)
    innocent = message(absolved, 0)
    arrive(scheduler, runs)
    commit(others)
    take_joined(scheduler, runs)
    arrive(scheduler, innocent, waits)
    commit(absolved)
    commit(others)
    assert scheduler.take(NOW_MS) is None, "there is one place"
    absolved.absolve(("first",))
    commit(absolved)
    scheduler.done(runs)
    started: list[Message] = []
    for _ in range(4):
        while (one := scheduler.take(NOW_MS)) is not None:
            started.append(one)
        commit(absolved)
        commit(others)
        scheduler.unpark()
    assert started == [innocent, waits]
    assert (innocent.sandboxed, waits.sandboxed) == (False, True)


def test_those_of_a_lost_partition_wait_for_no_place() -> None:
    scheduler = with_sandbox(1)
    part, kept = dangerous(range(2)), dangerous(range(1), number=1)
    first, second, other = message(part, 0), message(part, 1), message(kept, 0)
    arrive(scheduler, first, second, other)
    commit(part)
    commit(kept)
    take_joined(scheduler, first)
    part.releasing = True
    scheduler.purge({part})
    scheduler.done(first)
    take_joined(scheduler, other)


def needs_a_process(one: Message) -> bool:
    return one.offset % 2 == 1


def test_who_runs_in_a_process_of_the_pool_anyway_has_its_own_there() -> None:
    scheduler = Scheduler(
        pool=PoolPlaces(1, needs_a_process),
        sandbox=PoolPlaces(2, lambda one: not needs_a_process(one)),
        pool_keeps_apart=True,
    )
    part, others = dangerous(range(4)), open_partition(number=1)
    quick, first, second, waits = (message(part, offset) for offset in (0, 1, 2, 3))
    beside = message(others, 0)
    arrive(scheduler, quick, first, second, waits, beside)
    commit(part)
    assert take(scheduler) is beside
    for one in (quick, first, second):
        take_joined(scheduler, one)
    assert scheduler.isolated is None
    assert scheduler.take(NOW_MS) is None, "the pool has one process"
    scheduler.done(first)
    take_joined(scheduler, waits)


def test_without_a_sandbox_it_runs_alone_as_before() -> None:
    scheduler = Scheduler(pool=PoolPlaces(1, needs_a_process), others_first_ms=0)
    part = dangerous(range(2))
    one = message(part, 1)
    arrive(scheduler, one)
    assert take_alone(scheduler, part) is one
    assert scheduler.isolated is one


def started_one_by_one(scheduler: Scheduler, count: int, *parts: PartitionState) -> list[Message]:
    """The first ``count`` that start in the sandbox, each of which ends before the next one starts."""
    began: list[Message] = []
    while len(began) < count:
        running: list[Message] = []
        while (taken := scheduler.take(NOW_MS)) is not None:
            running.append(taken)
        for taken in running:
            scheduler.done(taken)
        began += [one for one in running if one.sandboxed]
        for part in parts:
            commit(part)
        scheduler.unpark()
    return began


def test_those_whose_key_others_wait_for_have_their_places_first_but_for_one_of_four() -> None:
    """Half-minute jobs that nobody waits for had all the places, and a thousand waited behind the key of a quick one."""
    scheduler, part = with_sandbox(1), dangerous(range(12))
    unwanted = [message(part, offset, key=f"long-{offset}".encode()) for offset in range(6)]
    wanted = [message(part, offset, key=f"k{offset}".encode()) for offset in range(6, 12)]
    behind = [message(part, 6 + one.offset, key=one.key) for one in wanted]
    for one in behind:
        part.note_delivered(one.offset)
    arrive(scheduler, *unwanted, *wanted, *behind)
    commit(part)
    began = started_one_by_one(scheduler, 8, part)
    assert [one in wanted for one in began] == [False, True, True, True, False, True, True, True], (
        "the first had its place at once, before anybody waited"
    )
    assert began[4] is unwanted[1]


def test_whom_most_wait_for_has_its_place_first_whatever_its_priority() -> None:
    """Half-minute jobs that one or two others waited for had the places for minutes: thousands waited behind a quick one."""
    scheduler = with_sandbox(1)
    urgent, low = dangerous(range(5), priority=CRITICAL), dangerous(range(1), number=1, priority=LOW)
    few = [message(urgent, offset, key=f"long-{offset}".encode()) for offset in range(5)]
    many = message(low, 0, key=b"hot")
    behind = [message(urgent, 5 + offset, key=one.key) for offset, one in enumerate(few)]
    behind += [message(low, 1 + offset, key=b"hot") for offset in range(3)]
    for one in behind:
        one.part.note_delivered(one.offset)
    arrive(scheduler, *few, many, *behind)
    commit(urgent)
    commit(low)
    first, second = started_one_by_one(scheduler, 2, urgent, low)[:2]
    assert first is few[0], "it had its place at once, before anybody waited"
    assert second is many
