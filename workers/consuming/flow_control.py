"""What is paused, so that Kafka keeps what the worker cannot hold: whole priorities, single partitions, full retry topics.

In:  how much waits, of each priority and each partition. Out: pauses and resumptions of the consumer.

Polling goes on whatever is paused: the longest job costs no membership.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

import structlog
from confluent_kafka import Consumer, TopicPartition

from schemas.topics import PRIORITIES, JobPriority, Partition, Topics
from streams.clients import RepeatFilter
from workers.offsets import PartitionState
from workers.scheduling.delay import MAX_TOTAL_BYTES

if TYPE_CHECKING:
    from workers.committing.commit import Committer
    from workers.scheduling.delay import Delays
    from workers.scheduling.scheduler import Scheduler

log = structlog.get_logger("rustfs_workers.flow_control")

_MAX_BUFFERED_BYTES: Final = 8 * 1024 * 1024
#: Of each partition, beside those: who waits behind a key, or for a process, must not keep others from being fetched.
MAX_HELD_BACK_BYTES: Final = 4 * 1024 * 1024


class FlowControl:
    """For the poll thread.

    Args:
        high: jobs of one priority that could start; with so many it is paused.
        low: with so few it is resumed.
        now_ms: broker time, in milliseconds since 1970.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        committer: Committer,
        scheduler: Scheduler,
        delays: Delays,
        high: int,
        low: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._topics = topics
        self._committer = committer
        self._scheduler = scheduler
        self._delays = delays
        self._high = high
        self._low = low
        self._now_ms = now_ms
        self._news = RepeatFilter()
        self._paused: set[Partition] = set()
        self._paused_priorities: set[JobPriority] = set()

    @property
    def is_holding_back(self) -> bool:
        """Whether a whole priority is paused: it is to go on as soon as there is room."""
        return bool(self._paused_priorities)

    def apply(self, consumer: Consumer, parts: Mapping[Partition, PartitionState], *, drains: bool) -> None:
        """Look at all partitions of ours, and pause or resume what has changed. ``drains``: nothing more is taken."""
        self._look_at_priorities()
        now_ms = self._now_ms()
        wanted = {place for place, part in parts.items() if drains or self._must_wait(place, part, now_ms)}
        if wanted == self._paused:
            return
        pause, resume = wanted - self._paused, self._paused - wanted
        if pause:
            consumer.pause([TopicPartition(*place) for place in pause])
        if resume:
            consumer.resume([TopicPartition(*place) for place in resume])
        self._paused = wanted

    def forget(self, places: Collection[Partition]) -> None:
        """These are ours no longer; who gets them back begins without a pause."""
        self._paused -= set(places)

    def _look_at_priorities(self) -> None:
        for priority in PRIORITIES:
            buffered, size = self._scheduler.startable(priority), self._scheduler.startable_bytes(priority)
            if buffered >= self._high or size >= _MAX_BUFFERED_BYTES:
                self._paused_priorities.add(priority)
            elif buffered <= self._low and size <= _MAX_BUFFERED_BYTES // 2:
                self._paused_priorities.discard(priority)

    def _must_wait(self, place: Partition, part: PartitionState, now_ms: int) -> bool:
        paused = place in self._paused
        if self._is_full(part):
            return True
        priority = self._topics.priority_of.get(place[0])
        if priority is not None:
            return priority in self._paused_priorities or self._has_enough_held_back(part, paused=paused)
        return self._is_overdue_enough(paused=paused) or self._delays.holds_enough(
            part, now_ms, paused=paused
        )

    def _is_overdue_enough(self, *, paused: bool) -> bool:
        """Whether forwarding does not keep up with what is due: the rest of it stays in Kafka."""
        return self._committer.pending_bytes * (2 if paused else 1) >= MAX_TOTAL_BYTES

    def _has_enough_held_back(self, part: PartitionState, *, paused: bool) -> bool:
        """Once paused it stays so until half of it is gone."""
        return self._scheduler.held_back_bytes(part) * (2 if paused else 1) >= MAX_HELD_BACK_BYTES

    def _is_full(self, part: PartitionState) -> bool:
        if not part.full():
            return False
        # A retry topic that is overdue is full for a moment, while it is forwarded.
        if part.topic in self._topics.priority_of and self._news.is_news(f"full: {part.topic}"):
            log.warning(
                "partition stops: too many records wait or are finished behind its lowest unfinished one",
                at=f"{part.topic}/{part.partition}/{part.base}",
                behind=part.spread,
            )
        return True
