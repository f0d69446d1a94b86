"""Which job starts next: shares of the priorities, order within a key, and who runs beside nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.offsetmap import OffsetMap, Suspect
from schemas.topics import PRIORITIES, JobPriority
from tests.support.messages import TOPICS, commit, message, partition
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduler import DEFAULT_MAX_WAIT_MS, DEFAULT_WEIGHTS, Scheduler, turns

pytestmark = pytest.mark.worker_coordination

CRITICAL, HIGH, NORMAL, LOW = PRIORITIES
NOW_MS = 10_000_000


def open_partition(priority: JobPriority = NORMAL, number: int = 0, *, limit: int = 10_000) -> PartitionState:
    """A partition of a priority's topic whose first records may start."""
    part = partition(TOPICS.jobs[priority], number)
    part.top = limit
    commit(part, window=limit)
    return part


def arrive(scheduler: Scheduler, *messages: Message) -> None:
    """What the poll thread and then the event loop do."""
    for one in messages:
        assert one.priority is not None
        scheduler.arrived[one.priority] += 1
        scheduler.arrived_bytes[one.priority] += one.size
    scheduler.add(messages)


def backlog(scheduler: Scheduler, count: int, *priorities: JobPriority, waited_ms: int = 0) -> None:
    for priority in priorities:
        part = open_partition(priority, number=waited_ms)
        arrive(
            scheduler, *(message(part, offset, timestamp_ms=NOW_MS - waited_ms) for offset in range(count))
        )


def take(scheduler: Scheduler) -> Message:
    taken = scheduler.take(NOW_MS)
    assert taken is not None
    return taken


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
    assert (len(scheduler), scheduler.take(NOW_MS), scheduler._keys) == (0, None, {})


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


# --- alone --------------------------------------------------------------------------------------------------


def dangerous(offsets: range = range(1), number: int = 0, priority: JobPriority = NORMAL) -> PartitionState:
    """A partition whose records were unfinished at two deaths of an owner."""
    suspects = {offset: Suspect(("first",)) for offset in offsets}
    prior = OffsetMap(
        0, start_limit=offsets.stop, clean=False, incarnation="dead", suspects=suspects, losses={"first": 1}
    )
    part = partition(TOPICS.jobs[priority], number, prior=prior)
    for offset in offsets:
        part.note_delivered(offset)
    return part


def take_alone(scheduler: Scheduler, part: PartitionState) -> Message:
    """The dangerous one is named in a commit before it starts."""
    commit(part)
    part.dirty = False
    assert scheduler.take(NOW_MS) is None
    assert (part.dirty, scheduler.has_parked) == (True, True), "it asks for that commit"
    commit(part)
    return take(scheduler)


def test_who_was_unfinished_at_two_deaths_runs_beside_nothing_else() -> None:
    scheduler = Scheduler()
    part = dangerous()
    running = message(open_partition(), 0)
    arrive(scheduler, running)
    assert take(scheduler) is running
    killer, innocent = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer)
    assert not scheduler.has_ready
    arrive(scheduler, innocent)
    commit(part)
    assert scheduler.take(NOW_MS) is None, "something else still runs"
    scheduler.done(running)
    assert take_alone(scheduler, part) is killer
    assert scheduler.take(NOW_MS) is None
    scheduler.done(killer)
    commit(part, 0)
    assert take(scheduler) is innocent


def test_nobody_starts_while_a_commit_still_says_that_another_runs_alone() -> None:
    """If that one killed the process, the one that has ended would be condemned for it."""
    scheduler = Scheduler()
    part = dangerous()
    killer, other = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer, other)
    taken = take_alone(scheduler, part)
    part.dirty = False
    scheduler.done(taken)
    assert part.dirty, "a commit is due that says so no longer"
    assert scheduler.take(NOW_MS) is None
    assert not scheduler.has_ready
    commit(part, 0)
    assert take(scheduler) is other


def test_who_survives_long_enough_is_joined_by_others_once_that_is_committed() -> None:
    scheduler = Scheduler()
    part = dangerous()
    killer, other = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer, other)
    take_alone(scheduler, part)
    scheduler.survived()
    assert scheduler.take(NOW_MS) is None
    commit(part)
    assert take(scheduler) is other
    assert scheduler.running == 2


def test_one_that_was_cancelled_while_it_ran_alone_runs_alone_again() -> None:
    scheduler = Scheduler()
    part = dangerous()
    killer, other = message(part, 0), message(open_partition(HIGH), 0)
    arrive(scheduler, killer, other)
    scheduler.put_back(take_alone(scheduler, part))
    assert take(scheduler) is killer
    assert scheduler.take(NOW_MS) is None


def test_one_that_runs_alone_takes_its_key_from_one_that_has_not_started() -> None:
    scheduler = Scheduler()
    closed, part = open_partition(HIGH), dangerous()
    closed.start_limit = 0
    holder, killer = message(closed, 0, key=b"k"), message(part, 0, key=b"k")
    arrive(scheduler, holder)
    assert scheduler.take(NOW_MS) is None  # it waits for a commit, and holds its key
    arrive(scheduler, killer)
    assert take_alone(scheduler, part) is killer
    scheduler.survived()
    commit(part)
    commit(closed)
    scheduler.unpark()
    assert scheduler.take(NOW_MS) is None, "two of one key"
    scheduler.done(killer)
    assert take(scheduler) is holder
    scheduler.done(holder)
    assert scheduler.take(NOW_MS) is None, "nobody runs twice"
    assert len(scheduler) == 0


def test_whose_key_was_taken_starts_before_those_who_waited_behind_it() -> None:
    scheduler = Scheduler()
    part, beside = dangerous(), open_partition(LOW)
    running = message(open_partition(HIGH), 0, key=b"k")
    first, second = (message(beside, offset, key=b"k") for offset in range(2))
    killer = message(part, 0, key=b"k")
    arrive(scheduler, running, first, second)
    assert take(scheduler) is running
    assert scheduler.take(NOW_MS) is None
    scheduler.done(running)  # the first of them has the key, and has not started
    arrive(scheduler, killer)
    scheduler.done(take_alone(scheduler, part))
    commit(part, 0)
    for one in (first, second):
        assert take(scheduler) is one
        scheduler.done(one)


def test_a_dangerous_one_of_a_lost_partition_holds_nobody_back() -> None:
    scheduler = Scheduler()
    part = dangerous()
    arrive(scheduler, message(part, 0))
    taken = take_alone(scheduler, part)
    other = message(open_partition(HIGH), 0)
    arrive(scheduler, other)
    part.releasing = True
    scheduler.done(taken)
    assert take(scheduler) is other


# --- any order of events ------------------------------------------------------------------------------------

KEYS = st.sampled_from([None, b"a", b"b", b"c"])


class Loop(RuleBasedStateMachine):
    """The event loop's way with eight partitions: what arrives is run once, in order by key, or is given up."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_wait_ms={LOW: 5, NORMAL: 7})
        self.parts: list[PartitionState] = []
        self.waiting: list[Message] = []
        self.running: list[Message] = []
        self.finished: dict[PartitionState, list[int]] = {}
        self.last_started: dict[tuple[PartitionState, bytes], int] = {}
        self.survivors: set[Message] = set()
        for number in range(2):
            for priority in PRIORITIES:
                self.assign(priority, number, dangerous_ones=2 * number)

    def assign(self, priority: JobPriority, number: int, *, dangerous_ones: int) -> None:
        part = dangerous(range(dangerous_ones), number, priority)
        part.top = 0
        self.parts.append(part)
        self.finished[part] = []

    @rule(where=st.integers(0, 7), keys=st.lists(KEYS, min_size=1, max_size=6))
    def some_arrive(self, where: int, keys: list[bytes | None]) -> None:
        part = self.parts[where]
        messages = []
        for key in keys:
            one = message(part, part.top, key=key, timestamp_ms=NOW_MS - part.top)
            assert part.note_delivered(part.top)
            messages.append(one)
        arrive(self.scheduler, *messages)
        self.waiting += messages

    @rule(count=st.integers(1, 6))
    def some_start(self, count: int) -> None:
        for _ in range(count):
            taken = self.scheduler.take(NOW_MS)
            if taken is None:
                return
            assert taken in self.waiting, "nothing runs twice"
            self.waiting.remove(taken)
            assert taken.part.owned
            assert not taken.part.releasing
            assert taken.offset < taken.part.start_limit
            for other in self.running:
                assert taken.key is None or other.key != taken.key, "one at a time"
                assert not self.must_be_alone(other), "beside nothing else"
            assert not (self.must_be_alone(taken) and self.running), "beside nothing else"
            if taken.key is not None:
                place = (taken.part, taken.key)
                assert self.last_started.get(place, -1) < taken.offset, "in order"
                self.last_started[place] = taken.offset
            self.running.append(taken)

    def must_be_alone(self, one: Message) -> bool:
        suspect = one.part.suspects.get(one.offset)
        return suspect is not None and suspect.deaths >= 2 and one not in self.survivors

    @rule(which=st.integers(0, 5), how=st.sampled_from(["done", "done", "done", "put back", "survives"]))
    def one_ends(self, which: int, how: str) -> None:
        if which >= len(self.running):
            return
        one = self.running[which]
        if how == "survives":
            if self.scheduler.isolated is one:
                self.survivors.add(one)
                self.scheduler.survived()
            return
        self.running.remove(one)
        self.survivors.discard(one)
        if how == "put back" and one.part.owned:
            self.scheduler.put_back(one)
            self.waiting.append(one)
            if one.key is not None:
                self.last_started[one.part, one.key] = one.offset - 1
        else:
            self.finished[one.part].append(one.offset)
            self.scheduler.done(one)

    @rule(window=st.integers(1, 9))
    def a_commit(self, window: int) -> None:
        for part in self.parts:
            commit(part, *self.finished[part], window=window)
            self.finished[part] = []
        self.scheduler.unpark()

    @rule(which=st.integers(0, 7), dangerous_ones=st.sampled_from([0, 0, 3]))
    def a_partition_is_lost(self, which: int, dangerous_ones: int) -> None:
        part = self.parts.pop(which)
        part.releasing = True
        self.scheduler.purge({part})
        part.owned = False
        self.waiting = [one for one in self.waiting if one.part is not part]
        priority = TOPICS.priority_of[part.topic]
        self.assign(priority, part.partition, dangerous_ones=dangerous_ones)

    @invariant()
    def the_counters_say_what_waits(self) -> None:
        for priority in PRIORITIES:
            waiting = [one for one in self.waiting if one.priority is priority]
            assert self.scheduler.waiting(priority) == len(waiting)
            assert self.scheduler.waiting_bytes(priority) == sum(one.size for one in waiting)
            assert 0 <= self.scheduler.startable(priority) <= len(waiting)
        assert self.scheduler.running == len(self.running)

    def teardown(self) -> None:
        """Whatever has happened: if jobs end and commits succeed, all that waits gets its turn, and nothing is left."""
        for _ in range(3 * len(self.waiting) + 3):
            while self.running:
                self.one_ends(0, "done")
            self.a_commit(4)
            self.some_start(1_000)
        assert self.waiting == []
        assert self.running == []
        assert len(self.scheduler) == 0
        assert not any(map(self.scheduler.startable, PRIORITIES))
        assert not self.scheduler.has_parked
        assert not self.scheduler._keys


TestLoop = Loop.TestCase
TestLoop.settings = settings(max_examples=100, stateful_step_count=40)
