"""One partition's owners, one after another: what a successor makes of a death, and of a loss that was none."""

from __future__ import annotations

from threading import Thread

import pytest

from schemas.offsetmap import MAX_LOSSES, MAX_OWNERS, UNKNOWN, OffsetMap, Suspect
from tests.support.messages import commit, committed, partition
from tests.support.owners import deliver, died, read
from workers.offsets import ALONE_AFTER, PartitionState

pytestmark = pytest.mark.worker_coordination


# --- a death ------------------------------------------------------------------------------------------------


def test_what_may_have_been_running_at_a_death_is_suspect() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    plan = commit(part, window=2)
    successor = died(part, plan)
    deliver(successor, 0, 1, 2)
    assert {o: s.deaths for o, s in successor.suspects.items()} == {0: 1, 1: 1}


def test_those_that_are_kept_apart_are_counted_until_they_are_finished() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    once = died(part, commit(part))
    assert once.dangerous == 0
    deliver(once, 0, 1, 2)
    twice = died(once, commit(once, 2))
    assert twice.dangerous == 2
    deliver(twice, 0, 1)
    commit(twice, 0)
    assert twice.dangerous == 1


def test_what_only_waited_for_others_is_not_suspect() -> None:
    """Behind a hot key hundreds wait: each would have to run alone after two deaths."""
    part = partition()
    deliver(part, 0, 1, 2, 3)
    part.hold(1)
    part.hold(2)
    plan = commit(part, window=0)
    assert plan.held == set()
    part.want(3)
    plan = commit(part)
    assert plan.start_limit > 3
    assert plan.held == {1, 2}
    suspects = died(part, read(plan)).suspects
    assert {0, 3} <= suspects.keys()
    assert suspects.keys().isdisjoint({1, 2})


def test_who_is_held_starts_only_when_a_commit_says_so_no_longer() -> None:
    part = partition()
    deliver(part, 0, 1)
    part.hold(0)
    part.want(1)
    assert commit(part, window=0).held == {0}
    assert not part.start(0)
    assert part.dirty
    assert commit(part, window=0).held == set()
    assert part.start(0)


@pytest.mark.parametrize("answer", ["committed", "refused", "lost"])
def test_who_is_about_to_be_held_does_not_start(answer: str) -> None:
    """Whether it may be running must be known before the commit is, and whatever becomes of that."""
    part = partition()
    deliver(part, 0, 1)
    commit(part)
    part.hold(0)
    plan = part.plan(())
    assert plan.held == {0}
    assert not part.start(0)
    match answer:
        case "committed":
            part.committed(plan)
        case "refused":
            part.dirty = True
        case "lost":
            part.adopt(read(plan))
    assert not part.start(0)
    assert commit(part).held == set()
    assert part.start(0)


def test_who_is_to_run_alone_is_held_no_longer() -> None:
    part = after_two_deaths()
    deliver(part, 0)
    commit(part)
    part.hold(0)
    commit(part)
    run_alone(part, 0)


def test_who_has_started_is_held_no_longer() -> None:
    part = partition()
    deliver(part, 0, 1)
    commit(part)
    part.hold(0)
    assert part.start(0)
    assert commit(part).held == set()


def test_a_map_that_would_become_too_long_holds_nobody() -> None:
    """A successor suspects more than it must, and no commit is refused."""
    part = partition()
    deliver(part, *range(15_000))
    commit(part, *range(1, 15_000, 2), window=15_000)
    for offset in range(0, 15_000, 4):
        part.hold(offset)
    assert commit(part).held == set()


def test_a_suspect_starts_only_when_a_commit_has_named_it() -> None:
    part = partition()
    deliver(part, 0)
    successor = died(part, commit(part))
    deliver(successor, 0)
    assert not successor.start(0)
    assert commit(successor).suspects[0].deaths == 1
    assert successor.start(0)


def test_a_suspect_that_has_finished_is_one_no_longer() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    successor = died(part, commit(part, window=2))
    deliver(successor, 0, 1)
    assert list(commit(successor).suspects) == [0, 1]
    assert list(commit(successor, 0).suspects) == [1]
    assert list(successor.suspects) == [1]


def test_deaths_are_remembered_by_an_owner_that_died_before_it_read_a_record() -> None:
    part = partition()
    deliver(part, *range(50))
    second = died(part, commit(part, window=50))
    third = died(second, commit(second))
    assert all(third.suspects[offset].deaths >= 1 for offset in range(50))


def test_deaths_with_no_record_in_sight_do_not_add_up() -> None:
    """A worker killed three times while idle must not make the next jobs run alone."""
    part = partition()
    for _ in range(4):
        part = died(part, commit(part))
    deliver(part, 0, 1, 2, 3)
    assert {suspect.deaths for suspect in part.suspects.values()} == {1}


def test_a_drain_counts_as_no_death() -> None:
    part = partition()
    deliver(part, 0, 1)
    commit(part)
    assert part.start(0)
    part.releasing = True
    last = part.plan((), clean=True)
    part.committed(last)
    successor = died(part, last)
    deliver(successor, 0, 1)
    assert not successor.unclean
    assert successor.suspects == {}


def test_a_commit_after_the_clean_one_stays_clean() -> None:
    """A thread may end its job between the last commit and the moment that the partition is given back."""
    part = partition()
    deliver(part, 0, 1)
    commit(part)
    assert part.start(0)
    part.releasing = True
    part.committed(part.plan((), clean=True))
    late = part.plan([0])
    part.committed(late)
    assert (late.clean, late.offset) == (True, 1)
    assert not died(part, late).unclean


def test_a_session_lost_and_regained_counts_as_no_death() -> None:
    part = partition()
    deliver(part, 0)
    again = partition(prior=read(commit(part)))
    deliver(again, 0)
    assert not again.unclean
    assert again.suspects == {}
    assert again.fence == part.fence + 1


def test_a_map_from_before_a_lost_session_opens_nothing() -> None:
    """Read back after an unclear answer, before the first commit since then: whether the partition is ours is not known yet."""
    part = partition()
    deliver(part, 0)
    before = read(commit(part))
    again = partition(prior=before)
    deliver(again, 0)
    again.adopt(before)
    assert not again.start(0)
    commit(again)
    assert again.start(0)


def run_alone(part: PartitionState, offset: int) -> OffsetMap:
    """The commits after which a suspect of two deaths starts alone."""
    deliver(part, *range(offset + 1))
    part.name_alone(offset)
    plan = commit(part)
    assert part.committed_alone == offset
    assert part.start(offset)
    return plan


def after_two_deaths() -> PartitionState:
    part = partition()
    for _ in range(2):
        deliver(part, 0)
        part = died(part, commit(part))
    return part


def test_who_dies_alone_is_accused_and_stays_so_until_it_is_dead_lettered() -> None:
    part = after_two_deaths()
    heir = died(part, run_alone(part, 0))
    assert (heir.suspects[0].deaths, heir.suspects[0].alone) == (3, part.incarnation)
    deliver(heir, 0)
    plan = commit(heir)
    assert heir.committed_alone is None, "the verdict is no permission to run"
    assert died(heir, plan).suspects[0].alone, "the heir died before the dead letter was written"
    heir.releasing = True
    last = heir.plan((), clean=True)
    assert died(heir, last).suspects[0].alone, "the heir left before the dead letter was written"


def test_a_drain_or_a_lost_session_accuses_nobody() -> None:
    part = after_two_deaths()
    plan = run_alone(part, 0)
    regained = partition(prior=read(plan), incarnation=part.incarnation)
    assert regained.suspects[0] == part.suspects[0]
    part.releasing = True
    successor = died(part, part.plan((), clean=True))
    assert successor.suspects[0] == part.suspects[0]


def test_whether_it_runs_alone_does_not_change_while_a_commit_is_planned() -> None:
    """The commit thread holds the lock: it asks all partitions, and then writes each one's map."""
    part = partition()
    part.dirty = False
    waits = Thread(target=part.name_alone, args=(0,))
    with part.lock:
        waits.start()
        waits.join(0.1)
        assert not part.dirty
    waits.join()
    assert part.alone == 0


def test_beside_one_that_ran_alone_nobody_is_suspect() -> None:
    part = after_two_deaths()
    deliver(part, 0, 1, 2)
    commit(part)
    before = {**part.suspects}
    heir = died(part, run_alone(part, 0))
    assert heir.suspects == {**before, 0: Suspect((*before[0].owners, part.incarnation), part.incarnation)}


def test_nobody_is_suspect_while_one_of_another_partition_runs_alone() -> None:
    part = partition()
    deliver(part, 0, 1)
    commit(part)
    assert part.start(0)
    deliver(part, 2)
    part.want(2)
    commit(part)
    assert part.start(2)
    part.committed(part.plan((0, 2), resting=True))
    assert not part.start(1), "no map tells of it, though it lies below what was started"
    assert not died(part, part.plan((), resting=True)).suspects
    commit(part)
    assert part.start(1)


def test_after_an_unclear_commit_it_rests_as_kafka_says() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    commit(part)
    assert part.start(2)
    rests = part.plan((2,), resting=True)
    part.adopt(read(rests))
    assert not part.start(1)
    part.committed(part.plan((2,)))
    part.plan((), resting=True)
    part.adopt(read(part.plan(())))
    assert part.start(1), "the map that is committed does not say that it rests"


def test_records_that_only_wait_for_their_time_are_never_suspect() -> None:
    part = PartitionState("retry", 0, committed(), incarnation="a", transactional_id="t.a", runs=False)
    deliver(part, 0, 1)
    part.want(1)
    plan = commit(part)
    assert (plan.clean, plan.start_limit) == (True, 0)
    before = OffsetMap(
        0, start_limit=2, clean=False, incarnation="b", suspects={0: Suspect(("c",))}, losses={"c": 1}
    )
    heir = PartitionState("retry", 0, before, incarnation="a", transactional_id="t.a", runs=False)
    assert not heir.suspects
    assert not heir.losses, "an older release suspected them"


# --- a loss that was no death -------------------------------------------------------------------------------


def test_an_owner_that_is_heard_of_again_takes_its_death_back() -> None:
    part = partition(now_ms=1)
    deliver(part, 0, 1)
    frozen = part.incarnation
    heir = died(part, commit(part), now_ms=5)
    assert heir.losses_in_question == {}, "one loss has no consequence yet"
    deliver(heir, 0, 1)
    third = died(heir, commit(heir), now_ms=9)
    assert third.losses_in_question == {frozen: 5, heir.incarnation: 9}
    third.absolve({frozen})
    assert third.suspects[0] == Suspect((heir.incarnation,))
    assert third.losses == {heir.incarnation: 9}
    third.absolve({heir.incarnation})
    assert (third.suspects, third.losses) == ({}, {})


def test_who_ran_alone_when_its_owner_was_only_frozen_is_not_accused() -> None:
    part = after_two_deaths()
    heir = died(part, run_alone(part, 0))
    heir.absolve({part.incarnation})
    assert (heir.suspects[0].deaths, heir.suspects[0].alone) == (2, "")


def test_an_owner_that_gets_a_partition_back_knows_that_it_lives() -> None:
    """Another one had it meanwhile, and took this one for dead."""
    part = after_two_deaths()
    plan = run_alone(part, 0)
    between = died(part, plan)
    again = partition(prior=read(commit(between)), incarnation=part.incarnation)
    assert part.incarnation not in again.suspects[0].owners
    assert again.suspects[0].alone == ""
    assert part.incarnation not in again.losses


def test_the_names_of_many_lost_owners_are_forgotten_their_deaths_are_not() -> None:
    part = partition()
    lost = 0
    for delivered, times in ((10, 2), (5, 4), (1, 6)):
        for _ in range(times):
            lost += 1
            deliver(part, *range(delivered + 1))
            for offset in range(delivered):
                part.join(offset)  # else those that have to run alone would not be charged any further
            part = died(part, commit(part, window=delivered), now_ms=lost)
    assert lost > len(part.losses) == MAX_LOSSES
    assert part.losses[UNKNOWN] == 0
    assert read(commit(part)).suspects == part.suspects
    assert {offset: suspect.deaths for offset, suspect in part.suspects.items()} == {
        0: MAX_OWNERS,
        **dict.fromkeys(range(1, 5), 6),
        **dict.fromkeys(range(5, 10), 2),
    }


def twice_unfinished(count: int = 3) -> PartitionState:
    """Of its records, the first ``count`` were unfinished at two deaths and have to run alone."""
    part = partition()
    for _ in range(ALONE_AFTER):
        deliver(part, *range(10))
        part = died(part, commit(part, window=count))
    deliver(part, *range(10))
    return part


def test_who_waits_for_its_turn_alone_is_not_charged_with_the_deaths_meanwhile() -> None:
    """In a storm thousands waited, and each death doubled the time for which each of them would have to run alone."""
    part = twice_unfinished()
    for _ in range(ALONE_AFTER):
        plan = commit(part, window=8)
        assert not part.start(0), "nobody would know that it runs"
        assert part.start(5)
        part = died(part, plan)
        deliver(part, *range(10))
    assert {offset: part.suspects[offset].deaths for offset in range(3)} == dict.fromkeys(range(3), 2)
    assert part.suspects[5].deaths == 2, "the others are charged until they have to run alone as well"


def test_who_has_survived_alone_is_charged_like_those_that_have_joined_it() -> None:
    part = twice_unfinished()
    part.name_alone(0)
    commit(part)
    assert part.start(0)
    part.join(0)
    part.name_alone(None)
    plan = commit(part, window=8)
    assert plan.suspects[0].joined
    assert part.start(5)
    successor = died(part, plan)
    assert [successor.suspects[offset].deaths for offset in (0, 1, 5)] == [3, 2, 1]
    assert not any(suspect.joined for suspect in successor.suspects.values()), "nothing of the heir runs yet"


def test_who_has_to_run_again_after_it_was_joined_waits_for_its_turn_again() -> None:
    part = twice_unfinished()
    part.join(0)
    commit(part, window=8)
    assert part.start(0)
    part.join(0, joined=False)
    plan = commit(part, window=8)
    assert not part.start(0)
    assert died(part, plan).suspects[0].deaths == 2


def test_who_was_acquitted_starts_only_when_a_map_says_that_it_may_die_with_the_others() -> None:
    part = twice_unfinished()
    commit(part, window=8)
    part.absolve(part.suspects[0].owners[:1])
    assert part.suspects[0].deaths == 1
    assert not part.start(0)
    assert part.dirty
    commit(part, window=8)
    assert part.start(0)
