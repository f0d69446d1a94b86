"""One partition and its owners: what holds whatever happens to them, in any order."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.offsetmap import MAX_CHARACTERS, MAX_OWNERS, OffsetMap, Suspect
from tests.support.messages import committed, partition, want
from tests.support.owners import read
from workers.offsets import ALONE_AFTER

pytestmark = pytest.mark.worker_coordination

MEANWHILE = st.sampled_from(
    [
        ("deliver", "start"),
        ("start", "finish"),
        ("finish",),
        ("start", "finish", "deliver"),
        ("hold", "start"),
        ("hold", "finish"),
        (),
    ]
)
GAPS = st.sampled_from([0, 0, 0, 1, 3, 90, 15_000, 40_000])
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
        #: Runs beside nothing else.
        self.lone: int | None = None

    @property
    def rests(self) -> bool:
        """Whether Kafka says that nothing of it runs, but for one that may run alone."""
        return self.stored.clean or self.stored.alone is not None

    def waits_for_its_turn(self, offset: int) -> bool:
        """Whether Kafka says that it has to run alone, and does not run."""
        suspect = self.stored.suspects.get(offset, Suspect())
        return suspect.deaths >= ALONE_AFTER and not suspect.joined and offset != self.stored.alone

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
            suspect = self.part.suspects.get(offset, Suspect())
            if suspect.alone:
                continue  # dead-lettered without a run
            if suspect.deaths >= ALONE_AFTER and offset != self.part.committed_alone:
                assert not self.part.start(offset), "a successor would not know of it"
                continue  # it waits for its turn alone
            if self.part.is_beyond_reach(offset):
                assert not self.part.start(offset), "a map would have no room for its end"
                return
            if not self.part.start(offset):
                self.refused.add(offset)
                return
            assert self.stored.incarnation == self.incarnation
            assert offset < self.stored.start_limit, "a successor must know that it may be running"
            assert offset not in self.stored.held, "a successor must know that it may be running"
            # The very one of which Kafka says so still may, after a lost session: nobody else starts beside it.
            assert not self.rests or offset == self.stored.alone, (
                "a successor must know that it may be running"
            )
            assert self.stored.suspects.get(offset, Suspect()).deaths >= self.killed_of(offset)
            assert (offset in self.part.suspects) <= (offset in self.stored.suspects), "a commit has named it"
            self.waiting.remove(offset)
            self.running.add(offset)
            self.refused.discard(offset)

    def hold(self, picks: list[int]) -> None:
        for offset in {self.waiting[pick] for pick in picks if pick < len(self.waiting)} - {self.lone}:
            self.part.hold(offset)
            self.refused.discard(offset)

    def finish(self, picks: list[int]) -> None:
        running = sorted(self.running)
        done = {running[pick] for pick in picks if pick < len(running)}
        self.running -= done
        self.ended |= done
        if self.lone in done:
            self.lone_is_alone_no_longer()

    def lone_is_alone_no_longer(self) -> None:
        self.part.name_alone(None)
        self.lone = None

    def do(self, what: Iterable[str], picks: list[int]) -> None:
        for one in what:
            match one:
                case "deliver":
                    self.deliver(len(picks))
                case "start":
                    self.start(picks)
                case "hold":
                    self.hold(picks)
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

    @rule(picks=PICKS)
    def some_wait_for_others(self, picks: list[int]) -> None:
        self.do(["deliver", "hold"], picks)

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
        refused = set(self.refused) if self.lone is None else set()
        want(self.part, window)
        plan = self.part.plan(carried)
        self.do(meanwhile, picks)
        self.land(plan, carried)
        self.part.committed(plan)
        if not self.part.releasing:
            for offset in refused & self.refused:
                assert offset < self.part.start_limit, "who was refused may start after the next commit"

    @rule(pick=st.integers(0, 30), meanwhile=MEANWHILE, picks=PICKS)
    def one_runs_beside_nothing_else(self, pick: int, meanwhile: tuple[str, ...], picks: list[int]) -> None:
        may = [o for o in self.waiting if not self.part.suspects.get(o, Suspect(alone="nobody")).alone]
        may = [o for o in may if not self.part.is_beyond_reach(o)]
        if self.running or not may or self.stored.incarnation != self.incarnation:
            return
        self.lone = may[pick % len(may)]
        self.part.name_alone(self.lone)
        self.it_commits(3, (), picks)
        assert self.stored.alone == self.lone
        assert self.part.start(self.lone)
        self.waiting.remove(self.lone)
        self.running.add(self.lone)
        self.refused.discard(self.lone)
        self.do(meanwhile, picks)

    @rule()
    def it_survives_and_is_joined_by_others(self) -> None:
        if self.lone is not None:
            self.part.join(self.lone)
            self.lone_is_alone_no_longer()

    @rule(meanwhile=MEANWHILE, picks=PICKS)
    def one_of_another_partition_runs_beside_nothing_else(
        self, meanwhile: tuple[str, ...], picks: list[int]
    ) -> None:
        if self.running:
            return
        carried, self.ended = self.ended, set()
        plan = self.part.plan(carried, resting=True)
        self.do(meanwhile, picks)
        self.land(plan, carried)
        self.part.committed(plan)
        assert self.rests
        self.do(meanwhile, picks)
        assert not self.running

    @rule(meanwhile=MEANWHILE, picks=PICKS, answer=st.sampled_from(["refused", "landed", "lost"]))
    def it_fails_to_commit(self, meanwhile: tuple[str, ...], picks: list[int], answer: str) -> None:
        carried, self.ended = self.ended, set()
        want(self.part, 3)
        plan = self.part.plan(carried)
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
        want(self.part, len(picks))
        plan = self.part.plan(carried)
        self.do(meanwhile, picks)
        if landed:
            self.land(plan, carried)
        rested, before, near = self.rests, self.stored.suspects, {self.stored.alone} - {None}
        waited = {offset for offset in before if self.waits_for_its_turn(offset)}
        held = self.stored.held
        for offset in (self.running | self.ended) - self.finished:
            if not frozen and (not rested or offset in near):
                self.killed[offset] = self.killed.get(offset, 0) + 1
        for offset in self.records:
            if offset < self.reach and offset not in self.finished and (not rested or offset in near):
                counts = self.frozen_with if frozen else self.had
                counts[offset] = counts.get(offset, 0) + 1
        drained = self.stored.clean
        if frozen:
            self.frozen.add(self.incarnation)
        self.take_over()
        assert self.part.unclean is not drained
        self.part.absolve(self.frozen)
        for offset in set(self.part.suspects) - near if rested else ():
            assert self.part.suspects[offset].deaths <= before[offset].deaths, (
                "what only waited is not to blame"
            )
        for offset in held & self.part.suspects.keys():
            assert self.part.suspects[offset].deaths <= before.get(offset, Suspect()).deaths, "it was held"
        for offset in waited & self.part.suspects.keys():
            assert self.part.suspects[offset].deaths <= before[offset].deaths, "it cannot have run"
        for offset, suspect in self.part.suspects.items():
            assert suspect.deaths <= 1 + self.had.get(offset, 0), "no more deaths than it was near to"
        for offset, deaths in self.killed.items():
            if offset not in self.finished and self.killed_of(offset):
                assert self.part.suspects[offset].deaths >= deaths, "who was running is suspect"

    @rule()
    def the_session_is_lost_and_regained(self) -> None:
        if self.stored.incarnation != self.incarnation:
            return
        before = {
            offset: Suspect(suspect.owners, "" if suspect.alone == self.incarnation else suspect.alone)
            for offset, suspect in read(self.stored).suspects.items()
        }
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
            assert not self.rests or offset == self.stored.alone, (
                "a successor must know that it may be running"
            )
            assert not self.waits_for_its_turn(offset), "a successor must know that it may be running"
            assert offset not in self.stored.held, "a successor must know that it may be running"


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=150, stateful_step_count=40)
