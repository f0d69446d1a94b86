"""The scheduler under any order of arrivals, starts, ends, commits, losses and time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.offsetmap import Suspect
from schemas.topics import PRIORITIES, JobPriority
from tests.support.messages import TOPICS, commit, message
from tests.support.schedule_bench import (
    LOW,
    NORMAL,
    NOW_MS,
    arrive,
    dangerous,
)
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.pool_places import PoolPlaces
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.time_share import FIRST_PATIENCE_MS, TURN_MS

pytestmark = pytest.mark.worker_coordination


KEYS = st.sampled_from([None, b"a", b"b", b"c"])
PROCESSES = 2


def needs_a_process(one: Message) -> bool:
    return one.offset % 3 == 1


def fits_into_the_sandbox(one: Message) -> bool:
    return one.offset % 2 == 0


class Loop(RuleBasedStateMachine):
    """The event loop's way with eight partitions: what arrives is run once, in order by key, or is given up."""

    has_sandbox = False

    def __init__(self) -> None:
        super().__init__()
        self.pool = PoolPlaces(PROCESSES, needs_a_process)
        self.sandbox = PoolPlaces(1, fits_into_the_sandbox) if self.has_sandbox else None
        self.scheduler = Scheduler(
            max_wait_ms={LOW: 5, NORMAL: 7},
            pool=self.pool,
            sandbox=self.sandbox,
            pool_keeps_apart=self.has_sandbox,
        )
        self.now_ms = NOW_MS
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
        accused = dangerous_ones - 1 if priority is LOW else 0
        for offset in part.suspects:
            part.suspects[offset] = Suspect(("first", "second", "dead"), "dead" if offset == accused else "")
        if accused > 0:
            del part.suspects[0]  # nobody suspects it, and it may have the key of the accused one
        part.losses["second"] = 2
        part.top = 0
        self.parts.append(part)
        self.finished[part] = []

    @rule(where=st.integers(0, 7), keys=st.lists(KEYS, min_size=1, max_size=6))
    def some_arrive(self, where: int, keys: list[bytes | None]) -> None:
        part = self.parts[where]
        messages = []
        for key in keys:
            one = message(part, part.top, key=key, timestamp_ms=NOW_MS - part.top)
            one.lost_worker = one.offset in part.suspects and bool(part.suspects[one.offset].alone)
            assert part.note_delivered(part.top)
            messages.append(one)
        arrive(self.scheduler, *messages)
        self.waiting += messages

    @rule(count=st.integers(1, 6))
    def some_start(self, count: int) -> None:
        for _ in range(count):
            taken = self.scheduler.take(self.now_ms)
            if taken is None:
                return
            assert taken in self.waiting, "nothing runs twice"
            self.waiting.remove(taken)
            assert taken.part.owned
            assert not taken.part.releasing
            assert taken.offset < taken.part.start_limit
            assert not taken.lost_worker, "it waits for its verdict"
            for other in self.running:
                assert taken.key is None or other.key != taken.key, "one at a time"
                assert not self.must_be_alone(other), "beside nothing else"
            assert not (self.must_be_alone(taken) and self.running), "beside nothing else"
            if taken.key is not None:
                place = (taken.part, taken.key)
                assert self.last_started.get(place, -1) < taken.offset, "in order"
                self.last_started[place] = taken.offset
            self.running.append(taken)
            assert sum(map(needs_a_process, self.running)) <= PROCESSES, "nobody waits in a slot"
            assert not taken.sandboxed or self.has_sandbox
            assert sum(one.sandboxed and not needs_a_process(one) for one in self.running) <= 1

    def must_be_alone(self, one: Message) -> bool:
        suspect = one.part.suspects.get(one.offset)
        dangerous = suspect is not None and suspect.deaths >= 2 and one not in self.survivors
        return dangerous and not one.sandboxed

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

    @rule(is_alive=st.booleans())
    def a_verdict(self, *, is_alive: bool) -> None:
        one = next(iter(self.scheduler.accused), None)
        if one is None:
            return
        if is_alive:
            one.part.absolve(("dead",))
            self.scheduler.acquit(one)
        else:
            self.scheduler.bury(one)
            self.waiting.remove(one)
            self.finished[one.part].append(one.offset)

    @rule(where=st.integers(0, 7), owner=st.sampled_from(["first", "second"]))
    def an_owner_is_heard_of(self, where: int, owner: str) -> None:
        """What it was suspected of, waiting or running, has one death less; in the end none is left."""
        self.parts[where].absolve((owner,))

    @rule(ms=st.sampled_from([1, 100, TURN_MS, FIRST_PATIENCE_MS, 60_000, -10_000]))
    def time_goes_by(self, ms: int) -> None:
        self.now_ms += ms

    @rule(count=st.integers(0, 1))
    def a_thread_is_left_behind_or_ends(self, count: int) -> None:
        self.scheduler.strays = count

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
            assert 0 <= self.scheduler.startable_bytes(priority) <= sum(one.size for one in waiting)
        startable = sum(map(self.scheduler.startable_bytes, PRIORITIES))
        behind = sum(map(self.scheduler.held_back_bytes, self.parts))
        assert startable + behind == sum(one.size for one in self.waiting)
        assert self.scheduler.running == len(self.running)

    def teardown(self) -> None:
        """Whatever has happened: if jobs end and commits succeed, all that waits gets its turn, and nothing is left."""
        for _ in range(4 * len(self.waiting) + 4):
            while self.running:
                self.one_ends(0, "done")
            self.a_verdict(is_alive=True)
            self.a_commit(4)
            self.some_start(1_000)
        assert self.waiting == []
        assert self.running == []
        assert len(self.scheduler) == 0
        assert not any(map(self.scheduler.startable, PRIORITIES))
        assert not any(self.scheduler._held_back)
        assert not self.scheduler.has_parked
        assert not self.scheduler._keys
        assert not self.pool._taken
        assert not any(self.pool._waiting.values())
        assert self.sandbox is None or not (self.sandbox._taken or any(self.sandbox._waiting.values()))


class LoopWithSandbox(Loop):
    """The same where who was unfinished at two deaths may run beside others, in a process of its own."""

    has_sandbox = True


TestLoop = Loop.TestCase
TestLoop.settings = settings(max_examples=100, stateful_step_count=40)
TestLoopWithSandbox = LoopWithSandbox.TestCase
TestLoopWithSandbox.settings = settings(max_examples=100, stateful_step_count=40)
