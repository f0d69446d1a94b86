"""What goes wrong where nobody waits for an answer is said, and ends the worker or is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from workers.committing.hanging import HangingWatch
from workers.consuming.membership_watch import Held, MembershipWatch
from workers.consuming.partition_watch import PartitionWatch
from workers.unsaid import guarded

pytestmark = pytest.mark.worker_coordination


class Unforeseen(Exception):
    """Nothing that anybody expects."""


async def test_what_a_callback_of_the_loop_raises_is_handed_on() -> None:
    failures: list[BaseException] = []
    got: list[int] = []

    def callback(number: int) -> None:
        got.append(number)
        raise Unforeseen

    asyncio.get_running_loop().call_soon(guarded(callback, failures.append), 7)
    await asyncio.sleep(0)
    assert (got, [type(error) for error in failures]) == ([7], [Unforeseen])


class Looks:
    """Each ends in a way that nobody has foreseen."""

    def __init__(self) -> None:
        self._count = 0
        self._loop, self._enough = asyncio.get_running_loop(), asyncio.Event()

    def look(self, _: object = None) -> NoReturn:
        self._count += 1
        if self._count == 3:
            self._loop.call_soon_threadsafe(self._enough.set)
        raise Unforeseen

    async def ask(self, _: str) -> NoReturn:
        self.look()

    async def go_on(self, said: str, begin: Callable[[], None]) -> None:
        with capture_logs() as lines:
            begin()
            await asyncio.wait_for(self._enough.wait(), 10)
        assert said in [line["event"] for line in lines if line["log_level"] == "error"]


async def test_who_looks_after_hanging_transactions_goes_on() -> None:
    looks = Looks()
    watch = HangingWatch(looks.look, looks.look, interval_s=0.0)
    await looks.go_on("hanging transactions were not looked after", watch.start)
    await watch.stop()


async def test_who_counts_partitions_goes_on() -> None:
    looks = Looks()
    watch = PartitionWatch(looks.look, ["a"], looks.look, interval_s=0.0)
    await looks.go_on("partitions were not counted", partial(watch.start, 1))
    await watch.stop()


async def test_who_asks_the_coordinator_goes_on() -> None:
    looks = Looks()
    watch = MembershipWatch(
        held=lambda: Held("member", frozenset(), busy=False),
        ask=looks.ask,
        rejoin=lambda: None,
        loop=asyncio.get_running_loop(),
        interval_s=0.0,
    )
    await looks.go_on("the group's coordinator was not asked", watch.suspect)
    await watch.stop()
