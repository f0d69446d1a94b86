"""One partition's owner: what it commits, what it may start, and what its successor knows of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.offsetmap import MAX_CHARACTERS, MAX_LOSSES, MAX_OWNERS, UNKNOWN, OffsetMap, Suspect, parse
from tests.support.messages import commit, committed, partition
from workers.offsets import MAX_SPREAD, PartitionState

pytestmark = pytest.mark.worker_coordination


def died(part: PartitionState, plan: OffsetMap, *, now_ms: int = 0) -> PartitionState:
    """The successor of an owner whose last commit was ``plan``."""
    return partition(prior=read(plan), incarnation=f"after-{part.incarnation}", now_ms=now_ms)


def read(plan: OffsetMap) -> OffsetMap:
    """A map as the next one reads it."""
    return parse(plan.offset, plan.metadata())


def deliver(part: PartitionState, *offsets: int) -> list[int]:
    """Those of these records that need work."""
    return [offset for offset in offsets if part.note_delivered(offset)]


# --- one owner ---------------------------------------------------------------------------------------


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
    plan = part.plan((), window=2)
    assert part.start(1)
    assert not part.start(5), "the map on its way would not tell of it"
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


def test_a_record_that_may_not_start_yet_asks_for_a_commit() -> None:
    part = partition()
    limit = commit(part).start_limit
    deliver(part, *range(limit))
    assert not asks_for_a_commit(part)
    deliver(part, limit)
    assert asks_for_a_commit(part), "it arrived"
    part.dirty = False
    assert not part.start(limit)
    assert asks_for_a_commit(part), "somebody waits for it"
    deliver(part, *range(20))
    assert commit(part, window=5).start_limit < 20
    assert asks_for_a_commit(part), "there is more than the last one opened"


def asks_for_a_commit(part: PartitionState) -> bool:
    return part.dirty


def test_nothing_starts_on_a_partition_that_is_leaving() -> None:
    part = partition()
    deliver(part, 0)
    commit(part)
    part.releasing = True
    assert not part.start(0)


# --- a slow record holds nobody back -------------------------------------------------------------------


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


# --- a death -------------------------------------------------------------------------------------------


def test_what_may_have_been_running_at_a_death_is_suspect() -> None:
    part = partition()
    deliver(part, 0, 1, 2)
    plan = commit(part, window=2)
    successor = died(part, plan)
    deliver(successor, 0, 1, 2)
    assert {o: s.deaths for o, s in successor.suspects.items()} == {0: 1, 1: 1}


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
    deliver(part, 0, 1)
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


def run_alone(part: PartitionState, offset: int) -> OffsetMap:
    """The commits after which a suspect of two deaths starts alone."""
    deliver(part, *range(offset + 1))
    part.alone = offset
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


def test_who_dies_alone_is_condemned_and_stays_so_until_it_is_dead_lettered() -> None:
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


def test_a_drain_or_a_lost_session_condemns_nobody() -> None:
    part = after_two_deaths()
    plan = run_alone(part, 0)
    regained = partition(prior=read(plan), incarnation=part.incarnation)
    assert regained.suspects[0] == part.suspects[0]
    part.releasing = True
    successor = died(part, part.plan((), clean=True))
    assert successor.suspects[0] == part.suspects[0]


# --- a loss that was no death -----------------------------------------------------------------------------


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


def test_who_ran_alone_when_its_owner_was_only_frozen_is_not_condemned() -> None:
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
            deliver(part, *range(delivered))
            part = died(part, commit(part, window=10), now_ms=lost)
    assert lost > len(part.losses) == MAX_LOSSES
    assert part.losses[UNKNOWN] == 0
    assert read(commit(part)).suspects == part.suspects
    assert {offset: suspect.deaths for offset, suspect in part.suspects.items()} == {
        0: MAX_OWNERS,
        **dict.fromkeys(range(1, 5), 6),
        **dict.fromkeys(range(5, 10), 2),
    }


# --- an ambiguous commit ---------------------------------------------------------------------------------


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


# --- size --------------------------------------------------------------------------------------------------


def test_a_partition_with_too_many_records_behind_its_lowest_unfinished_one_is_full() -> None:
    part = partition()
    deliver(part, *range(MAX_SPREAD - 1))
    assert not part.full()
    deliver(part, MAX_SPREAD - 1)
    assert part.full()


def test_a_partition_whose_map_takes_more_than_three_quarters_of_the_room_is_full() -> None:
    """The rest is for what is running: how it ends must still fit in."""
    for suspects, full in ((450, False), (520, True)):
        part = partition()
        deliver(part, *range(1_000))
        part.suspects = {offset: Suspect(("dead",) * (1 + offset % 2)) for offset in range(suspects)}
        part.losses = {"dead": 1}
        assert part.full() is full
        assert len(commit(part).metadata()) <= MAX_CHARACTERS


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
    assert part.suspects[0].deaths == 3


def test_whether_it_is_full_can_be_asked_while_suspects_are_struck_off() -> None:
    """The poll thread asks, the commit thread strikes off: the lock stands between them."""
    part = partition()
    deliver(part, *range(2_000))
    successor = died(part, commit(part, window=2_000))
    deliver(successor, *range(2_000))
    asked: list[bool] = []

    class Watch(dict[int, Suspect]):
        def items(self) -> Any:
            asked.append(successor.lock.locked())  # type: ignore[attr-defined]
            return super().items()

    successor.suspects = Watch(successor.suspects)
    successor.full()
    assert asked == [True]


# --- any order of events -------------------------------------------------------------------------------------


MEANWHILE = st.sampled_from(
    [("deliver", "start"), ("start", "finish"), ("finish",), ("start", "finish", "deliver"), ()]
)
GAPS = st.sampled_from([0, 0, 0, 1, 3, 90])
PICKS = st.builds(
    lambda first, step, count: [first + step * n for n in range(count)],
    st.sampled_from([0, 0, 0, 1, 5, 30]),
    st.integers(1, 4),
    st.integers(3, 30),
)


class Owners(RuleBasedStateMachine):
    """One partition and its owners, one after another. What Kafka holds is the map and what was finished with it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[int] = []
        self.end = 0
        self.stored = committed()
        self.finished: set[int] = set()
        #: Unclean deaths: of an owner that ran the record, and of one that had received it.
        self.killed: dict[int, int] = {}
        self.had: dict[int, int] = {}
        #: The same for owners that were only frozen.
        self.frozen: set[str] = set()
        self.frozen_with: dict[int, int] = {}
        self.owners = 0
        self.take_over()

    def take_over(self, *, regained: bool = False) -> None:
        self.stored = read(self.stored)  # what Kafka hands over is text
        if not regained:
            self.owners += 1
            #: One past the last record that this process has ever received.
            self.reach = 0
        self.incarnation = f"owner-{self.owners}"
        self.part = partition(prior=self.stored, incarnation=self.incarnation, now_ms=self.owners)
        self.position = self.stored.offset
        self.waiting: list[int] = []
        self.running: set[int] = set()
        self.ended: set[int] = set()
        self.refused: set[int] = set()

    def killed_of(self, offset: int) -> int:
        """Deaths that must be known. More losses than a map has room for may be forgotten."""
        known = self.killed.get(offset, 0)
        return known if known + self.frozen_with.get(offset, 0) <= MAX_OWNERS else 0

    # What happens inside an owner.

    def deliver(self, count: int) -> None:
        for offset in [o for o in self.records if o >= self.position][:count]:
            if self.part.full():
                return
            needs_work = self.part.note_delivered(offset)
            assert needs_work is (offset not in self.finished), "nothing lost, nothing finished run again"
            self.position = offset + 1
            self.reach = max(self.reach, self.position)
            if needs_work:
                self.waiting.append(offset)

    def start(self, picks: list[int]) -> None:
        for offset in [self.waiting[pick] for pick in sorted(set(picks)) if pick < len(self.waiting)]:
            if self.part.suspects.get(offset, Suspect()).alone:
                continue  # dead-lettered without a run
            if not self.part.start(offset):
                self.refused.add(offset)
                return
            assert self.stored.incarnation == self.incarnation
            assert offset < self.stored.start_limit, "a successor must know that it may be running"
            assert self.stored.suspects.get(offset, Suspect()).deaths >= self.killed_of(offset)
            assert (offset in self.part.suspects) <= (offset in self.stored.suspects), "a commit has named it"
            self.waiting.remove(offset)
            self.running.add(offset)
            self.refused.discard(offset)

    def finish(self, picks: list[int]) -> None:
        running = sorted(self.running)
        done = {running[pick] for pick in picks if pick < len(running)}
        self.running -= done
        self.ended |= done

    def do(self, what: Iterable[str], picks: list[int]) -> None:
        for one in what:
            match one:
                case "deliver":
                    self.deliver(len(picks))
                case "start":
                    self.start(picks)
                case "finish":
                    self.finish(picks)

    def land(self, plan: OffsetMap, carried: set[int]) -> None:
        assert len(plan.metadata()) <= MAX_CHARACTERS
        self.stored = read(plan)
        assert self.stored == plan, "what is read is what was written"
        self.finished |= carried

    # What can happen, in any order.

    @initialize(start=st.integers(0, 1_000))
    def begin(self, start: int) -> None:
        self.end = start
        self.stored = committed(start)
        self.take_over()

    @rule(count=st.integers(1, 40), gap=GAPS)
    def records_arrive(self, count: int, gap: int) -> None:
        self.records += range(self.end, self.end + count)
        self.end += count + gap
        self.deliver(count)

    @rule(picks=PICKS, then=MEANWHILE)
    def jobs_run(self, picks: list[int], then: tuple[str, ...]) -> None:
        self.do(["deliver", "start", *then], picks)

    @rule()
    def the_end_is_reached(self) -> None:
        if not any(o >= self.position for o in self.records) and self.part.base == self.part.top:
            self.part.note_position(self.end)
            self.position = max(self.position, self.end)

    @rule(window=st.integers(1, 60), meanwhile=MEANWHILE, picks=PICKS)
    def it_commits_and_goes_on(self, window: int, meanwhile: tuple[str, ...], picks: list[int]) -> None:
        self.it_commits(window, meanwhile, picks)
        self.do(("deliver", "start", "finish"), picks)

    @rule(window=st.integers(1, 60), meanwhile=MEANWHILE, picks=PICKS)
    def it_commits(self, window: int, meanwhile: tuple[str, ...], picks: list[int]) -> None:
        carried, self.ended = self.ended, set()
        refused = set(self.refused)
        plan = self.part.plan(carried, window=window)
        self.do(meanwhile, picks)
        self.land(plan, carried)
        self.part.committed(plan)
        if not self.part.releasing:
            for offset in refused & self.refused:
                assert offset < self.part.start_limit, "who was refused may start after the next commit"

    @rule(meanwhile=MEANWHILE, picks=PICKS, answer=st.sampled_from(["refused", "landed", "lost"]))
    def it_fails_to_commit(self, meanwhile: tuple[str, ...], picks: list[int], answer: str) -> None:
        carried, self.ended = self.ended, set()
        plan = self.part.plan(carried, window=3)
        self.do(meanwhile, picks)
        if answer == "refused":
            self.part.dirty = True
            self.ended |= carried
            return
        if answer == "landed":
            self.land(plan, carried)
        self.part.adopt(read(self.stored))
        assert self.part.dirty
        self.ended |= {offset for offset in carried if not self.stored.is_finished(offset)}

    @rule(late=PICKS)
    def it_leaves_in_order(self, late: list[int]) -> None:
        """Threads that nobody can end finish after the last commit."""
        self.part.releasing = True
        plan = self.part.plan(self.ended, clean=True)
        self.land(plan, self.ended)
        self.part.committed(plan)
        self.ended = set()
        before = dict(self.stored.suspects)
        self.finish(late)
        if self.ended:
            plan = self.part.plan(self.ended)
            self.land(plan, self.ended)
            self.part.committed(plan)
        self.take_over()
        assert not self.part.unclean
        for offset, suspect in self.part.suspects.items():
            assert suspect.deaths == before[offset].deaths, "leaving is no death"

    @rule(picks=PICKS, meanwhile=MEANWHILE, landed=st.booleans(), frozen=st.booleans())
    def it_dies(self, picks: list[int], meanwhile: tuple[str, ...], *, landed: bool, frozen: bool) -> None:
        """Or is only frozen, and is heard of as soon as its successor asks."""
        carried = set(self.ended)
        plan = self.part.plan(carried, window=len(picks))
        self.do(meanwhile, picks)
        if landed:
            self.land(plan, carried)
        for offset in (self.running | self.ended) - self.finished:
            if not frozen:
                self.killed[offset] = self.killed.get(offset, 0) + 1
        for offset in self.records:
            if offset < self.reach and offset not in self.finished:
                counts = self.frozen_with if frozen else self.had
                counts[offset] = counts.get(offset, 0) + 1
        drained = self.stored.clean
        if frozen:
            self.frozen.add(self.stored.incarnation)
        self.take_over()
        assert self.part.unclean is not drained
        self.part.absolve(self.frozen)
        for offset, suspect in self.part.suspects.items():
            assert suspect.deaths <= 1 + self.had.get(offset, 0), "no more deaths than it was near to"
        for offset, deaths in self.killed.items():
            if offset not in self.finished and self.killed_of(offset):
                assert self.part.suspects[offset].deaths >= deaths, "who was running is suspect"

    @rule()
    def the_session_is_lost_and_regained(self) -> None:
        if self.stored.incarnation != self.incarnation:
            return
        before = read(self.stored).suspects
        self.take_over(regained=True)
        assert self.part.suspects == before, "a lost session is no death"

    @invariant()
    def what_kafka_calls_finished_is_finished(self) -> None:
        for offset in self.records:
            assert self.stored.is_finished(offset) is (offset in self.finished)

    @invariant()
    def what_runs_is_known(self) -> None:
        for offset in self.running:
            assert offset < self.stored.start_limit, "a successor must know that it may be running"


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=150, stateful_step_count=40)
