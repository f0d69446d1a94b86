"""How many messages wait for something other than their turn, and what they hold in memory.

In:  messages that begin and end to wait behind their key, or for a process. Out: counts, by priority and by partition.

Such a crowd must not keep others of its priority from being fetched; it is bounded for each partition by itself.
"""

from __future__ import annotations

from schemas.topics import PRIORITIES
from workers.message import Message
from workers.offsets import PartitionState


class HeldBack:
    """Counted in the event loop; any thread may read."""

    def __init__(self) -> None:
        self.count = dict.fromkeys(PRIORITIES, 0)
        self.bytes = dict.fromkeys(PRIORITIES, 0)
        self._bytes_of: dict[PartitionState, int] = {}

    def __bool__(self) -> bool:
        return bool(self._bytes_of)

    def bytes_of(self, part: PartitionState) -> int:
        """What those of one partition hold."""
        return self._bytes_of.get(part, 0)

    def add(self, message: Message) -> None:
        """It begins to wait."""
        self._change(message, 1)

    def remove(self, message: Message) -> None:
        """It waits no longer."""
        self._change(message, -1)

    def _change(self, message: Message, by: int) -> None:
        assert message.priority is not None  # noqa: S101 - only jobs wait for a key or a process
        size = by * message.size
        self.count[message.priority] += by
        self.bytes[message.priority] += size
        held = self._bytes_of.get(message.part, 0) + size
        if held:
            self._bytes_of[message.part] = held
        else:
            del self._bytes_of[message.part]
