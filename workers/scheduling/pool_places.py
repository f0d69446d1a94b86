"""Jobs that need a process of the pool: who has a place there, and who waits for one. Pure state.

In:  messages whose turn it is. Out: whether they may start, and later those that may.

Without it a few dozen jobs that wait for one of two processes would hold every slot of the worker, and an urgent
coroutine would wait for the longest of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping
from typing import Final

from schemas.topics import PRIORITIES, JobPriority
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.held_back import HeldBack
from workers.scheduling.turns import Turns

#: Each so many-th has its place by its turn, however many wait for others.
_IN_TURN_EACH: Final = 4


class PoolPlaces:
    """For the event loop.

    Args:
        size: processes in the pool.
        needs: whether a message's job runs there. It looks at the bytes only: one from an older writer may be taken for
            another, and waits for its process in a slot.
        weights, strict, max_wait_ms: see ``Turns``. Those that wait here share the places as all others share the slots.
    """

    def __init__(
        self,
        size: int,
        needs: Callable[[Message], bool],
        *,
        weights: Mapping[JobPriority, int] | None = None,
        strict: bool = False,
        max_wait_ms: Mapping[JobPriority, int] | None = None,
    ) -> None:
        self._size = size
        self.needs = needs
        self._taken: set[Message] = set()
        #: Those that wait for a place.
        self.queued = HeldBack()
        self._admissions = 0
        self._waiting: dict[JobPriority, deque[Message]] = {priority: deque() for priority in PRIORITIES}
        self._turns = Turns(self._waiting, weights=weights, strict=strict, max_wait_ms=max_wait_ms)

    @property
    def can_admit(self) -> bool:
        """Whether somebody waits for a place and there is one."""
        return len(self._taken) < self._size and any(self._waiting.values())

    def queue_unless_free(self, message: Message) -> bool:
        """Give it a place, if it needs one and one is free. True: none is; it waits for one until ``admit`` gives it back."""
        if message in self._taken or not self.needs(message):
            return False
        if len(self._taken) < self._size:
            self._taken.add(message)
            return False
        assert message.priority is not None  # noqa: S101 - only jobs are run
        self._waiting[message.priority].append(message)
        self.queued.add(message)
        return True

    def seize(self, message: Message) -> None:
        """It starts beside nothing else, so whoever has a place does not run."""
        if self.needs(message):
            self._taken.add(message)

    def admit(self, now_ms: int, *, held_up_by: Callable[[Message], int] | None = None) -> list[Message]:
        """Those who have a place now, in the order of their turns.

        Args:
            now_ms: the time, for the turns.
            held_up_by: how many others wait for this one. Of four places three go to whom most wait for, while there is anybody.
        """
        admitted: list[Message] = []
        while len(self._taken) < self._size and any(self._waiting.values()):
            self._admissions += 1
            message = None
            if held_up_by is not None and self._admissions % _IN_TURN_EACH:
                everybody = (one for line in self._waiting.values() for one in line)
                message = max(everybody, key=held_up_by)  # the first of those that are equal
                if not held_up_by(message):
                    message = None
            if message is not None:
                assert message.priority is not None  # noqa: S101
                self._waiting[message.priority].remove(message)
            else:
                line = self._turns.choose(now_ms)
                assert line is not None  # noqa: S101 - somebody waits
                message = line.popleft()
            self.queued.remove(message)
            self._taken.add(message)
            admitted.append(message)
        return admitted

    def ahead(self, count: int) -> list[Message]:
        """About the next ``count`` that are admitted. Any thread."""
        return self._turns.ahead(count)

    def leave(self, message: Message) -> None:
        """It has run, or will not: its place is free, if it had one."""
        self._taken.discard(message)

    def purge(self, parts: Container[PartitionState]) -> list[Message]:
        """Those of these partitions wait no longer. Returns them."""
        gone: list[Message] = []
        for waiting in self._waiting.values():
            left = [message for message in waiting if message.part in parts]
            if left:
                gone += left
                kept = [message for message in waiting if message.part not in parts]
                waiting.clear()
                waiting.extend(kept)
        for message in gone:
            self.queued.remove(message)
        return gone
