"""Recognise a record that is there twice: a second line of defence behind Kafka's transactions.

A straggling request of an old transaction can bring a record into the log a second time (KIP-890; see
docs/guarantees.md, "Torn transactions"), and so can a producer whose answers were lost when all brokers were started again. Whoever
schedules a job again under its id, since Kafka's answer was unclear, makes one as well: without an ordering key the id alone
says which partition it goes to, so the copy comes here too. Such a copy has the same job id and the same delivery number as
the first, at another offset. A successor (retry, snooze, redrive) has a higher delivery number, so it is never mistaken.

Of two on different topics (an id that was scheduled again with another priority) none comes first by its offset. One that is finished
may be so because it was dropped, by an earlier owner who met the other one first: the other one still has to run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

from schemas.topics import Partition
from workers.message import Message

#: Remembered of each topic and partition; a straggler comes within seconds. Of each topic its own: a new owner reads thousands
#: of finished jobs again behind one that is not, and they must not push out what came to a retry topic meanwhile.
WINDOW: Final = 4_096
#: Records remembered of all partitions together, some 200 bytes each, most of it the job's id and its place in a table. Beyond that each topic of each partition keeps only its latest ``LEAST``.
MOST: Final = 131_072
LEAST: Final = 512

#: Bits of a place: whether it was finished, then the number of its topic, then its offset.
_TOPIC_BIT: Final = 1
_OFFSET_BIT: Final = 8
_MOST_TOPICS: Final = 1 << (_OFFSET_BIT - _TOPIC_BIT)


class _Seen:
    """Of one partition number."""

    __slots__ = ("orders", "places")

    def __init__(self) -> None:
        #: Job and delivery to topic, offset, and whether it was finished when it came: one number, since three in a tuple take
        #: 70 bytes more of each record.
        self.places: dict[bytes, int] = {}
        #: The same of each topic, the oldest first.
        self.orders: dict[str, deque[bytes]] = {}


class DuplicateWindow:
    """What was seen lately on the partitions that are ours. For the poll thread alone."""

    def __init__(self, window: int = WINDOW, *, most: int = MOST, least: int = LEAST) -> None:
        self._window = window
        self._most = most
        self._least = least
        self._seen: dict[int, _Seen] = {}
        self._topics: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        """Records remembered."""
        return self._count

    def is_copy(self, message: Message, *, is_finished: bool = False) -> bool:
        """Whether the same delivery of the same job was seen at another place; remembers it if not.

        ``is_finished``: it has come to its end, or was dropped as a copy, before it came to us.
        """
        if message.problem is not None:
            return False
        seen = self._seen.get(message.part.partition)
        if seen is None:
            seen = self._seen[message.part.partition] = _Seen()
        delivery = message.delivery.delivery
        name = message.job_id if delivery == 0 else b"%s/%d" % (message.job_id, delivery)
        topic = message.part.topic
        number = self._topics.setdefault(topic, len(self._topics))
        assert number < _MOST_TOPICS  # noqa: S101 - job and retry topics, a dozen
        here = message.offset << _OFFSET_BIT | number << _TOPIC_BIT | is_finished
        first = seen.places.get(name)
        if first is not None:
            if (first ^ here) >> _TOPIC_BIT & _MOST_TOPICS - 1 == 0:
                return first >> _OFFSET_BIT != message.offset
            if not first & 1 or is_finished:
                return True
            seen.places[name] = here
            return False
        order = seen.orders.get(topic)
        if order is None:
            order = seen.orders[topic] = deque()
        window = self._window if self._count < self._most else self._least
        while len(order) >= window:
            del seen.places[order.popleft()]
            self._count -= 1
        order.append(name)
        self._count += 1
        seen.places[name] = here
        return False

    def forget(self, places: Collection[Partition]) -> None:
        """These are ours no longer: another owner sees what comes next. All topics of a partition number go together."""
        for partition in {number for _, number in places}:
            seen = self._seen.pop(partition, None)
            if seen is not None:
                self._count -= len(seen.places)
