"""One job of each key at a time: who has a key, and who waits behind it. Pure state.

In:  messages that are about to run, and those that have ended. Out: whether they have their key, and who is next.

``acquire``, ``release`` and ``purge`` are for the event loop; what counts, and ``next_behind``, may be read by any thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Final

from schemas.topics import PRIORITIES, JobPriority
from workers.message import Message
from workers.offsets import PartitionState
from workers.scheduling.held_back import HeldBack

#: So many behind a key may start, one after the other, without a commit that says so first. A successor suspects each of them.
KEY_AHEAD: Final = 4


class _Contended:
    """A key that more than one job wants: who has it, and who waits, the most urgent first, then in the order of arrival."""

    __slots__ = ("holder", "waiting")

    def __init__(self, holder: Message) -> None:
        self.holder = holder
        self.waiting: dict[JobPriority, deque[Message]] = {}

    def queue_of(self, message: Message) -> deque[Message]:
        """Where this one waits, among its equals."""
        assert message.priority is not None  # noqa: S101 - only jobs have a key to wait for
        queue = self.waiting.get(message.priority)
        if queue is None:
            queue = self.waiting[message.priority] = deque()
        return queue

    def first(self, count: int) -> list[Message]:
        """The next ``count`` of them, about. Any thread."""
        queues = [queue for priority in PRIORITIES if (queue := self.waiting.get(priority))]
        return [one for queue in queues for one in list(queue)[:count]][:count]

    def next(self) -> Message | None:
        """The next in line, who waits no longer."""
        return next((queue.popleft() for p in PRIORITIES if (queue := self.waiting.get(p))), None)


class KeyLocks:
    """The keys of one worker. False where nobody has any."""

    def __init__(self) -> None:
        #: Key to the one message that holds it, or to its queue as well: nearly all keys are wanted by one.
        self._keys: dict[bytes, Message | _Contended] = {}
        #: Those that wait behind a key.
        self.behind = HeldBack()

    def __len__(self) -> int:
        return len(self._keys)

    def acquire(self, message: Message) -> bool:
        """Whether it has its key, now or since before; if not, it waits, and ``release`` gives it back."""
        key = message.key
        if key is None:
            return True
        lock = self._keys.get(key)
        if lock is None:
            self._keys[key] = message
            return True
        if lock is message:
            return True  # handed over by the one before
        if not isinstance(lock, _Contended):
            lock = self._keys[key] = _Contended(lock)
        elif lock.holder is message:
            return True
        queue = lock.queue_of(message)
        queue.append(message)
        if len(queue) > KEY_AHEAD:
            message.part.hold(message.offset)
        self.behind.add(message)
        return False

    def release(self, message: Message) -> Message | None:
        """Its key, if it has one, is free for the next in line, who is returned and has it from now on.

        That is the most urgent one, and among equals the first to arrive.
        """
        key = message.key
        if key is None:
            return None
        lock = self._keys.get(key)
        if lock is message:
            del self._keys[key]
            return None
        if not isinstance(lock, _Contended) or lock.holder is not message:
            return None
        following = lock.next()
        if following is None:
            del self._keys[key]
            return None
        self.behind.remove(following)
        lock.holder = following
        for one in islice(lock.queue_of(following), KEY_AHEAD - 1, KEY_AHEAD):
            one.part.want_soon(one.offset)
        if not any(lock.waiting.values()):
            self._keys[key] = following
        return following

    def held_up_by(self, message: Message) -> int:
        """How many wait for the key that this one has."""
        lock = self._keys.get(message.key) if message.key is not None else None
        if not isinstance(lock, _Contended) or lock.holder is not message:
            return 0
        return sum(map(len, lock.waiting.values()))

    def next_behind(self, messages: Iterable[Message], count: int) -> list[Message]:
        """About the next ``count`` of those that wait behind the keys of these. Any thread."""
        wanted = (self._keys.get(one.key) for one in messages if one.key is not None)
        locks = dict.fromkeys(lock for lock in wanted if isinstance(lock, _Contended))
        return [one for lock in locks for one in lock.first(-(-count // len(locks)))]

    def purge(self, parts: set[PartitionState]) -> list[Message]:
        """Those of these partitions wait no longer. Keys that they have are theirs until ``release``."""
        gone: list[Message] = []
        for lock in self._keys.values():
            if isinstance(lock, _Contended):
                for priority, queue in lock.waiting.items():
                    leaving = [message for message in queue if message.part in parts]
                    if leaving:
                        staying = deque(m for m in queue if m.part not in parts)
                        lock.waiting[priority] = staying
                        for one in islice(staying, KEY_AHEAD):
                            one.part.want_soon(one.offset)
                        gone += leaving
        for message in gone:
            self.behind.remove(message)
        return gone
