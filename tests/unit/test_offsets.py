"""One partition's owner: what it commits, and what it may start."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from schemas.offsetmap import MAX_CHARACTERS, TAKE_LIMIT, OffsetMap, Suspect
from tests.support.messages import commit, partition, want
from tests.support.owners import deliver, died, read
from workers.offsets import ALONE_AFTER, MAX_REACH, MAX_SPREAD, PartitionState

pytestmark = pytest.mark.worker_coordination


# --- one owner ----------------------------------------------------------------------------------------------


def test_offset_waits_for_slow_neighbour() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    assert commit(part, 1, 2).offset == 0
    assert commit(part, 0).offset == 3


def test_a_finished_record_is_never_wanted_again() -> None:
    part = partition()
    deliver(part, 0, 1, 2, 3)
    successor = died(part, commit(part, 1, 3))
    assert deliver(successor, 0, 1, 2, 3, 4) == [0, 2, 4]


def test_what_a_predecessor_finished_is_not_wanted_either_once_the_lowest_has_moved_past_it() -> None:
    part = partition()
    deliver(part, 0, 1, 2, 3)
    successor = died(part, commit(part, 1, 2))
    deliver(successor, 0)
    assert commit(successor, 0).offset == 3
    assert deliver(successor, 1, 2, 3) == [3]


def test_a_record_is_delivered_once() -> None:
    part = partition()
    assert deliver(part, 0, 1, 1, 0, 2) == [0, 1, 2]


def test_offsets_that_do_not_exist_count_as_finished() -> None:
    part = partition()
    deliver(part, 0, 5)
    assert commit(part, 0).offset == 5
    part.note_position(9)
    assert commit(part, 5).offset == 9


def test_a_hole_that_shows_while_a_commit_is_on_its_way_is_in_the_next_one() -> None:
    part = partition()
    deliver(part, 0)
    plan = part.plan([0])
    deliver(part, 5)
    part.committed(plan)
    assert part.dirty, "the next one is due"
    assert commit(part, 5).offset == 6


def test_nothing_starts_before_a_commit_has_said_so() -> None:
    part = partition()
    deliver(part, 0, 1)
    assert not part.start(0)
    plan = part.plan(())
    assert not part.start(0), "it is planned, not committed"
    part.committed(plan)
    assert part.start(0)


def test_what_starts_between_a_plan_and_its_commit_lies_below_both_limits() -> None:
    part = partition()
    deliver(part, *range(20))
    commit(part, window=10)
    assert part.start(1)
    plan = part.plan((), resting=True)
    assert not part.start(5), "the map on its way would not tell of it"
    assert not part.start(0), "nor of one below the limit"
    part.committed(plan)
    assert plan.start_limit == 2


def test_a_lone_record_starts_without_a_further_commit() -> None:
    part = partition()
    commit(part)
    deliver(part, 0)
    assert part.start(0)
    part.note_position(50)
    commit(part, 0)
    deliver(part, 50)
    assert part.start(50), "however many markers came before it"


def test_a_record_that_is_about_to_start_asks_for_a_commit() -> None:
    part = partition()
    limit = commit(part).start_limit
    deliver(part, *range(limit + 20))
    part.want(limit - 1)
    assert not asks_for_a_commit(part)
    part.want(limit)
    assert asks_for_a_commit(part)
    part.dirty = False
    assert not part.start(limit + 1)
    assert asks_for_a_commit(part), "somebody waits for it"
    part.want(limit)
    assert part.plan(()).start_limit == limit + 2, "nobody else is about to"


def asks_for_a_commit(part: PartitionState) -> bool:
    return part.dirty


def test_nothing_starts_on_a_partition_that_is_leaving() -> None:
    part = partition()
    deliver(part, 0)
    commit(part)
    part.releasing = True
    assert not part.start(0)


# --- a slow record holds nobody back ------------------------------------------------------------------------


def waits_for_one_commit(part: PartitionState, offset: int) -> bool:
    """Whether a record that is refused now may start after the next commit, however small its window."""
    if part.start(offset):
        return True
    commit(part, window=1)
    return part.start(offset)


def test_records_behind_a_long_one_and_many_finished_ones_start() -> None:
    """The predecessor finished 5,000 records past a job that its successor runs for an hour."""
    part = partition()
    deliver(part, *range(5_001))
    successor = died(part, commit(part, *range(1, 5_001)))
    assert deliver(successor, *range(5_003)) == [0, 5_001, 5_002]
    assert waits_for_one_commit(successor, 0)
    assert waits_for_one_commit(successor, 5_001)
    assert waits_for_one_commit(successor, 5_002)


def test_records_behind_a_long_one_and_a_hole_start() -> None:
    """An aborted transaction leaves a hole as long as itself."""
    part = partition()
    deliver(part, 0, 900)
    assert waits_for_one_commit(part, 0)
    assert waits_for_one_commit(part, 900)


def test_records_behind_many_that_wait_for_their_key_start() -> None:
    part = partition()
    deliver(part, *range(600))
    assert waits_for_one_commit(part, 0)
    assert waits_for_one_commit(part, 599)


# --- an ambiguous commit ------------------------------------------------------------------------------------


def test_what_kafka_says_was_committed_is_what_was() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    commit(part)
    plan = part.plan([0, 2])
    part.adopt(read(plan))
    assert (part.base, part.done) == (1, {2})
    assert part.dirty


def test_what_kafka_does_not_show_was_not_committed() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    before = commit(part)
    part.plan([0, 2])
    part.adopt(read(before))
    assert (part.base, part.done) == (0, set())


def test_a_first_commit_that_did_not_arrive_opens_nothing() -> None:
    before = partition()
    deliver(before, 0)
    plan = commit(before)
    assert plan.start_limit > 0
    part = died(before, plan)
    deliver(part, 0)
    part.plan(())
    part.adopt(read(plan))
    assert not part.start(0), "it was the predecessor that might start it"


def test_holes_that_kafka_shows_as_finished_are_not_written_again() -> None:
    part = partition()
    deliver(part, 0, 3)
    part.adopt(read(part.plan([0])))
    assert read(commit(part, 3)).offset == 4


# --- size ---------------------------------------------------------------------------------------------------


def test_a_partition_with_too_many_records_behind_its_lowest_unfinished_one_is_full() -> None:
    part = partition()
    deliver(part, *range(MAX_SPREAD - 1))
    assert not part.full()
    deliver(part, MAX_SPREAD - 1)
    assert part.full()


@pytest.mark.parametrize("hole", [0, 1, 1_000, 12_000, 16_000, 50_000, 3_000_000])
def test_a_hole_in_the_log_makes_no_map_too_long(hole: int) -> None:
    """Transactions that were aborted leave it; every second record before it waits, say behind a key. Each heir would end as well."""
    part = partition()
    deliver(part, *range(9_000))
    plan = commit(part, *range(1, 9_000, 2), window=9_000)
    behind = 9_000 + hole
    deliver(part, behind)
    if part.is_beyond_reach(behind):
        want(part, 20_000)
        assert not part.start(behind), "or its end would have to stand in a map"
    else:
        plan = commit(part, behind, window=9_000)
    assert len(plan.metadata()) <= MAX_CHARACTERS
    assert read(plan) == plan
    plan = commit(part, *range(0, 9_000, 2))
    assert plan.offset == behind + (plan.offset > behind)
    commit(part, window=20_000)
    assert part.start(behind) or plan.offset > behind


def test_nothing_beyond_reach_may_start_at_any_death() -> None:
    """It would have to run alone, cannot before those in front of it have ended, and keeps them from starting."""
    part = partition()
    deliver(part, *range(MAX_REACH + 5))
    want(part, MAX_REACH + 5)
    assert part.plan(()).start_limit == MAX_REACH


def test_a_worker_killed_under_load_leaves_a_map_that_its_successor_can_commit() -> None:
    """Thousands were allowed to start, every second one was finished."""
    part = partition()
    deliver(part, *range(6_000))
    plan = commit(part, *range(1, 4_000, 2), window=4_000)
    for _ in range(3):
        assert len(plan.metadata()) <= MAX_CHARACTERS
        part = died(part, plan)
        deliver(part, *range(6_000))
        plan = commit(part, window=1_500)
    assert part.suspects[0].deaths == ALONE_AFTER, "from then on it waits for its turn alone"


def test_who_was_left_behind_among_held_ones_fits_into_the_map_of_its_heir() -> None:
    """Held ones split the stretches of suspects: each stretch takes its characters. Every heir would end at its first commit."""
    part = partition()
    deliver(part, *range(6_000))
    dice = Random(1)
    for offset in range(6_000):
        if dice.random() < 0.3:
            part.hold(offset)
    plan = commit(part, window=4_000)
    assert len(plan.metadata()) <= MAX_CHARACTERS
    heir = died(part, plan)
    deliver(heir, *range(6_000))
    plan = commit(heir, window=0)
    everything = replace(plan, suspects=heir.suspects)
    assert len(everything.metadata()) > MAX_CHARACTERS, "or this test shows nothing"
    assert len(plan.metadata()) <= MAX_CHARACTERS
    assert not heir.full(), "only when they are finished does it become shorter"
    assert min(plan.suspects) == min(heir.suspects)
    assert set(plan.suspects) < set(heir.suspects)


def test_among_suspects_that_do_not_fit_those_with_more_deaths_and_those_that_run_apart_stay() -> None:
    suspects = {offset: Suspect(("one",)) for offset in range(0, 6_000, 2)}
    suspects[5_000] = Suspect(("one", "two"))
    suspects[5_500] = Suspect(("one", "two"), joined=True)
    prior = OffsetMap(0, suspects=suspects, losses={"one": 1, "two": 2})
    plan = partition(prior=prior).plan(())
    assert len(plan.metadata()) <= TAKE_LIMIT
    assert {0, 2, 5_000, 5_500} <= plan.suspects.keys()
    assert 5_998 not in plan.suspects


def test_one_that_kills_is_found_though_its_suspects_do_not_fit() -> None:
    """When those before it are finished it is among the first, and counts each death."""
    part, deaths = partition(), 0
    deliver(part, *range(6_000))
    for offset in range(0, 6_000, 3):
        part.hold(offset)
    plan = commit(part, window=4_000)
    while part.suspects.get(3_001, Suspect()).deaths < ALONE_AFTER:
        deaths += 1
        assert deaths < 12
        part = died(part, plan)
        deliver(part, *range(6_000))
        # It gets some hundred others done before it comes to the one that kills it.
        done = [
            o for o in range(part.base, part.base + 600) if o != 3_001 and part.note_delivered(o) is not None
        ]
        plan = commit(part, *done, window=4_000)
