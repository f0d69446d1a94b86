"""Recognise a record that is there twice: a second line of defence behind Kafka's transactions.

A straggling request of an old transaction can bring a record into the log a second time (KIP-890; see
``commit``), and so can a producer whose answers were lost when all brokers were started again. Such a copy has the same job id and the same delivery number as the first, at another
offset. A successor (retry, snooze, redrive) has a higher delivery number, so it is never mistaken.
"""

from __future__ import annotations

from typing import Final

from workers.message import Message

#: Remembered per partition number; a straggler comes within seconds.
WINDOW: Final = 4_096


class DuplicateWindow:
    """What was seen lately on the partitions that are ours. For the poll thread alone."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._seen: dict[int, dict[bytes, tuple[str, int]]] = {}

    def is_copy(self, message: Message) -> bool:
        """Whether the same delivery of the same job was seen at another place; remembers it if not."""
        if message.problem is not None:
            return False
        seen = self._seen.get(message.part.partition)
        if seen is None:
            seen = self._seen[message.part.partition] = {}
        delivery = message.delivery.delivery
        name = message.job_id if delivery == 0 else b"%s/%d" % (message.job_id, delivery)
        first = seen.get(name)
        if first is None:
            if len(seen) >= self._window:
                del seen[next(iter(seen))]
            seen[name] = (message.part.topic, message.offset)
            return False
        return first != (message.part.topic, message.offset)

    def forget(self, partitions: set[int]) -> None:
        """These partition numbers are ours no longer: another owner sees what comes next."""
        for partition in partitions:
            self._seen.pop(partition, None)
