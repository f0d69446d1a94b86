"""Notice jobs whose key lies on another partition than every client of ours would choose.

In:  messages that arrived. Out: how many of them are misplaced, and a line in the log for each kind.

Two producers that disagree on a key's partition put one object's jobs under two owners, which may run them at
the same time. Nothing can be done about it here: the job is run all the same, and the producer has to change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from schemas.partitions import partition_of
from workers.message import Message

log = structlog.get_logger("rustfs_workers.key_places")

#: A key that was not seen lately costs three microseconds. Of more keyed jobs at once than this, the first ones
#: stand for the rest: a producer that disagrees is noticed all the same, at a bounded price.
SAMPLE: Final = 64
#: Types come from messages: what is remembered of them is bounded.
_MOST_KINDS: Final = 1_000


class KeyPlaces:
    """Compares keys with partitions, of which each topic has ``count``. For one thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._told: set[tuple[int, str]] = set()

    def misplaced(self, messages: Iterable[Message]) -> int:
        """How many of these are not where their key says; every one looked at, up to 64 keyed ones."""
        found = looked_at = 0
        for message in messages:
            key = message.key
            # Without an ordering key the job's id stands there, and any partition will do.
            if key is None or key == message.job_id:
                continue
            # What was published again is where the record before it was: it was counted then.
            if message.delivery.delivery or message.problem is not None:
                continue
            looked_at += 1
            if looked_at > SAMPLE:
                break
            part = message.part
            right = partition_of(key, self._count)
            if right != part.partition:
                found += 1
                self._tell(message, right)
        return found

    def _tell(self, message: Message, expected: int) -> None:
        kind = (message.part.partition, message.delivery.job_type)
        if kind in self._told or len(self._told) >= _MOST_KINDS:
            return
        self._told.add(kind)
        log.warning(
            "key on another partition than murmur2 says: its producer uses another partitioner, so jobs of one "
            "key may run at the same time",
            at=message.where,
            expected_partition=expected,
            type=message.delivery.job_type,
            job_id=message.job_id_text,
        )
