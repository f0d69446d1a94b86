"""The commit thread looks ahead while the event loop takes messages, and puts others in their place."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.messages import commit, message
from tests.support.schedule_bench import LOW, arrive, open_partition, take
from workers.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.worker_coordination

_LOOKS = 20_000


@pytest.fixture
def _threads_take_turns_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def looking(scheduler: Scheduler, change: Callable[[], None]) -> list[RuntimeError]:
    """What goes wrong in a thread that looks ahead while this one changes what waits."""
    errors: list[RuntimeError] = []

    def look() -> None:
        try:
            for _ in range(_LOOKS):
                scheduler.upcoming(64)
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
    assert looking(scheduler, change) == []
