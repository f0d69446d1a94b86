"""Threads look at what waits and what runs while the event loop changes it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.messages import commit, message
from tests.support.schedule_bench import LOW, arrive, open_partition, take
from workers.execution.slots import Slots
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination

_LOOKS = 20_000


@pytest.fixture
def _threads_take_turns_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def looking(at: Callable[[], object], change: Callable[[], None]) -> list[RuntimeError]:
    """What goes wrong in a thread that looks at something while this one changes it."""
    errors: list[RuntimeError] = []

    def look() -> None:
        try:
            for _ in range(_LOOKS):
                at()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    while thread.is_alive():
        change()
    thread.join()
    return errors


@pytest.mark.usefixtures("_threads_take_turns_all_the_time")
@pytest.mark.parametrize("key", [None, b"k"], ids=["in turn", "behind a key"])
def test_looking_ahead_while_messages_come_and_go_fails_nowhere(key: bytes | None) -> None:
    """A worker ended by that, after four minutes of an overload: "deque mutated during iteration"."""
    scheduler, part = Scheduler(), open_partition(LOW)
    offset = 0

    def change() -> None:
        nonlocal offset
        taken = take(scheduler)
        scheduler.done(taken)
        commit(part, taken.offset)
        arrive(scheduler, message(part, offset, key=key))
        offset += 1

    arrive(scheduler, *(message(part, number, key=key) for number in range(100)))
    offset = 100
    assert looking(lambda: scheduler.upcoming(64), change) == []


class Slot:
    """A task that has not ended."""

    def done(self) -> bool:
        return False


@pytest.mark.usefixtures("_threads_take_turns_all_the_time")
def test_counting_handlers_that_go_on_while_others_end_fails_nowhere() -> None:
    """The report thread would end by that in the middle of a shutdown, and nobody be told that the worker has left."""
    nothing: Any = None
    slots = Slots(
        scheduler=Scheduler(),
        most=64,
        run=nothing,
        may_start=nothing,
        ask_for_commit=nothing,
        on_failure=nothing,
    )
    tasks: set[Any] = slots.tasks

    newest = Slot()

    def change() -> None:
        if newest in tasks:
            tasks.discard(newest)
        else:
            tasks.add(newest)

    tasks.update(Slot() for _ in range(8))
    assert looking(lambda: slots.left_behind, change) == []
