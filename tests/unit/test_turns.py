"""Who is about to have their turn, before anybody has it."""

from __future__ import annotations

from collections import deque

import pytest

from schemas.topics import PRIORITIES, JobPriority
from tests.support.messages import message
from tests.support.schedule_bench import CRITICAL, HIGH, LOW, NOW_MS, open_partition
from workers.message import Message
from workers.scheduling.turns import Turns

pytestmark = pytest.mark.worker_coordination


def lines(*, waiting: int) -> dict[JobPriority, deque[Message]]:
    return {
        priority: deque(
            message(open_partition(priority), offset, timestamp_ms=NOW_MS) for offset in range(waiting)
        )
        for priority in PRIORITIES
    }


def test_those_ahead_are_the_ones_that_get_the_next_turns() -> None:
    queues = lines(waiting=100)
    turns = Turns(queues)
    ahead = turns.ahead(30)
    for _ in range(30):
        line = turns.choose(NOW_MS)
        assert line is not None
        assert line.popleft() in ahead


def test_who_waits_alone_has_all_turns() -> None:
    queues = lines(waiting=100)
    for priority in (CRITICAL, HIGH, LOW):
        queues[priority].clear()
    assert [one.offset for one in Turns(queues).ahead(30)] == list(range(30))


def test_where_the_most_urgent_go_first_as_many_of_each_may_be_next() -> None:
    ahead = Turns(lines(waiting=100), strict=True).ahead(10)
    assert len(ahead) == 10 * len(PRIORITIES)


def test_nobody_is_ahead_where_nobody_waits() -> None:
    assert Turns(lines(waiting=0)).ahead(10) == []
