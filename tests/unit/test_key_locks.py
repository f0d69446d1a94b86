"""One job of each key at a time, in any order of arrivals, ends and lost partitions."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.topics import PRIORITIES
from tests.support.messages import message
from tests.support.schedule_bench import open_partition
from workers.message import Message
from workers.scheduling.key_locks import KEY_AHEAD, KeyLocks

pytestmark = pytest.mark.worker_coordination

KEYS = (b"a", b"b")


class Keys(RuleBasedStateMachine):
    """Beside the locks a list for each key: who has it stands first, then all that wait, as they are to have it."""

    def __init__(self) -> None:
        super().__init__()
        self.locks = KeyLocks()
        self.parts = [open_partition(priority, number) for priority in PRIORITIES for number in range(2)]
        self.offset = 0
        self.lines: dict[bytes, list[Message]] = {key: [] for key in KEYS}

    def waiting(self) -> list[Message]:
        return [one for line in self.lines.values() for one in line[1:]]

    @rule(key=st.sampled_from((None, *KEYS)), part=st.integers(0, 7), many=st.integers(1, 3 * KEY_AHEAD))
    def arrive(self, key: bytes | None, part: int, many: int) -> None:
        for _ in range(many):
            one = message(self.parts[part], self.offset, key=key)
            self.offset += 1
            if key is None:
                assert self.locks.acquire(one), "it waits for nobody"
                assert self.locks.release(one) is None
                continue
            line = self.lines[key]
            assert self.locks.acquire(one) is (not line)
            line.append(one)
            line[1:] = sorted(line[1:], key=lambda m: PRIORITIES.index(m.priority or PRIORITIES[0]))

    @rule(key=st.sampled_from(KEYS))
    def end(self, key: bytes) -> None:
        line = self.lines[key]
        if line:
            following = self.locks.release(line.pop(0))
            assert following is (line[0] if line else None)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def release_what_is_not_its_own(self, data: st.DataObject) -> None:
        """Who waits has nothing to give back."""
        assert self.locks.release(data.draw(st.sampled_from(self.waiting()))) is None

    @rule(key=st.sampled_from(KEYS))
    def ask_again(self, key: bytes) -> None:
        if self.lines[key]:
            assert self.locks.acquire(self.lines[key][0]), "it has its key"

    @rule(lost=st.sets(st.integers(0, 7), min_size=1, max_size=3))
    def lose(self, lost: set[int]) -> None:
        parts = {self.parts[number] for number in lost}
        gone = self.locks.purge(parts)
        assert sorted(map(id, gone)) == sorted(id(one) for one in self.waiting() if one.part in parts)
        for line in self.lines.values():
            line[1:] = [one for one in line[1:] if one.part not in parts]

    @invariant()
    def whoever_waits_is_counted(self) -> None:
        waiting = self.waiting()
        for priority in PRIORITIES:
            of_it = [one.size for one in waiting if one.priority is priority]
            assert (self.locks.behind.count[priority], self.locks.behind.bytes[priority]) == (
                len(of_it),
                sum(of_it),
            )
        for part in self.parts:
            assert self.locks.behind.bytes_of(part) == sum(one.size for one in waiting if one.part is part)
        assert len(self.locks) == sum(map(bool, self.lines.values()))

    @invariant()
    def the_next_few_and_nobody_else_may_start_without_another_commit(self) -> None:
        for line in self.lines.values():
            for priority in PRIORITIES:
                queue = [one for one in line[1:] if one.priority is priority]
                held = [one.offset in one.part.held for one in queue]
                assert held == [place >= KEY_AHEAD for place in range(len(queue))]

    @invariant()
    def the_next_are_told(self) -> None:
        holders = [line[0] for line in self.lines.values() if line]
        told = self.locks.next_behind(holders, 2 * KEY_AHEAD)
        assert len(told) <= 2 * KEY_AHEAD
        for line in self.lines.values():
            assert all(one in told for one in line[1:2])
            mine = [one for one in line[1:] if one in told]
            assert mine == line[1 : 1 + len(mine)], "nobody is left out between"


TestKeys = Keys.TestCase
TestKeys.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
