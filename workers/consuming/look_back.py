"""Records before the committed offset that a new owner reads: a copy of one of them may follow.

In:  where partitions of ours begin. Out: where reading them begins, a little before that.

The memory for copies (``duplicates``) is each owner's own: what its predecessor ran must not run again because it stands twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import structlog
from confluent_kafka import KafkaException, TopicPartition

from schemas.errors import PipelineError
from schemas.topics import Partition

log = structlog.get_logger("rustfs_workers.look_back")

#: Of each partition.
_RECORDS: Final = 128


class LookBack:
    """For the poll thread.

    Args:
        log_starts: the lowest offset that is left of each partition. Raises KafkaException or PipelineError.
    """

    def __init__(self, log_starts: Callable[[Iterable[Partition]], Mapping[Partition, int]]) -> None:
        self._log_starts = log_starts
        #: Partitions that are read from before their committed offset, until that is reached.
        self._under_way: set[Partition] = set()
        #: Not at the next assignment, after what was asked for had gone.
        self._may = True

    def starts(self, bases: Mapping[Partition, int]) -> list[TopicPartition]:
        """Where reading begins, for these committed offsets: as far back as there is something."""
        starts = dict(bases)
        behind = [place for place, base in bases.items() if base > 0] if self._may else []
        try:
            lowest = self._log_starts(behind) if behind else {}
        except (KafkaException, PipelineError) as error:
            # Its leader is away, when producers write again what they have written already. What lies too far back says so.
            log.info("where partitions begin is not to be had: looked back all the same", error=str(error))
            lowest = dict.fromkeys(behind, 0)
        for place, low in lowest.items():
            starts[place] = min(max(bases[place] - _RECORDS, low), bases[place])
        self._may = True
        self._under_way |= {place for place, start in starts.items() if start < bases[place]}
        return [TopicPartition(*place, start) for place, start in starts.items()]

    def arrived(self, place: Partition, offset: int, base: int) -> None:
        """A record has come. From the committed offset on it is somebody's work."""
        if self._under_way and offset >= base:
            self._under_way.discard(place)

    def give_up(self, place: Partition) -> bool:
        """What was asked for is gone. True: it went in this very moment and is nobody's work; the next assignment does without."""
        if place not in self._under_way:
            return False
        self._may = False
        return True

    def forget(self, places: Collection[Partition]) -> None:
        """These are ours no longer."""
        self._under_way -= set(places)
