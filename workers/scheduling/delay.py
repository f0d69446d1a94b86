"""Delay without blocking: records of retry topics wait in memory, at the end of their tier's delay.

In:  messages from retry topics. Out: those that are due, and whether a partition holds enough.

A tier has one fixed delay, so a partition's records are due in their order. A bounded number of them is
held; the rest stays in Kafka, its partition paused. What remains of an arbitrary time after a tier's
delay is less than a second (it waits here) or another hop.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterable
from typing import Final

from workers.message import Message
from workers.offsets import PartitionState

MAX_HELD_RECORDS: Final = 500
MAX_HELD_BYTES: Final = 256 * 1024
MAX_TOTAL_BYTES: Final = 32 * 1024 * 1024
_MEMORY_WAIT_MS: Final = 1_000


def due_at(message: Message) -> int:
    """When this record has to be looked at again, by broker time in milliseconds.

    The end of its tier's delay; or its very time, if that comes less than a second later.
    """
    assert message.tier is not None  # noqa: S101 - only retry records wait here
    end = message.timestamp_ms + message.tier.delay_ms
    not_before = message.delivery.not_before_ms
    return not_before if end < not_before < end + _MEMORY_WAIT_MS else end


class Delays:
    """What waits for its time. Used by the event loop, under one small lock.

    The poll thread counts what ``arrived`` before it hands it over and asks ``holds_enough``: counted only when the
    event loop looks at it, some eight thousand records of a partition were here before its pause.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heap: list[tuple[int, int, Message]] = []
        self._order = itertools.count()
        self._held: dict[PartitionState, tuple[int, int]] = {}
        #: Until when the newest record of a partition waits.
        self._newest_due: dict[PartitionState, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arrived(self, messages: Iterable[Message]) -> None:
        """Count records that are on their way to ``hold``; those of job topics are passed over. For the poll thread."""
        with self._lock:
            for message in messages:
                if message.tier is not None:
                    self._count(message)
                    self._newest_due[message.part] = message.timestamp_ms + message.tier.delay_ms

    def hold(self, messages: Iterable[Message]) -> None:
        """Records of retry topics, counted already."""
        with self._lock:
            for message in messages:
                self._push(due_at(message), message)

    def hold_until(self, message: Message, due_ms: int) -> None:
        """A job that must not start before this time, less than a second away."""
        with self._lock:
            self._count(message)
            self._push(due_ms, message)

    def take_due(self, now_ms: int) -> list[Message]:
        """Everything whose time has come, in order."""
        due: list[Message] = []
        with self._lock:
            while self._heap and self._heap[0][0] <= now_ms:
                message = heapq.heappop(self._heap)[2]
                self._release(message)
                due.append(message)
        return due

    def next_due_ms(self) -> int | None:
        """When the first one is due."""
        heap = self._heap
        return heap[0][0] if heap else None

    def holds_enough(self, part: PartitionState, now_ms: int, *, paused: bool) -> bool:
        """Whether the partition should be paused; once paused it stays so until half of it is gone.

        Records that are due go through and stay for a moment only: pausing them would fetch them twice. But if the event loop
        does not keep up with them, those that have their share of what all may hold wait as well.
        """
        held = self._held.get(part)
        if held is None:
            return False
        records, size = held
        share = 2 if paused else 1
        if self._newest_due.get(part, 0) <= now_ms:
            return size * share >= MAX_HELD_BYTES and self._bytes * share >= MAX_TOTAL_BYTES
        return (
            records * share >= MAX_HELD_RECORDS
            or size * share >= MAX_HELD_BYTES
            or self._bytes >= MAX_TOTAL_BYTES
        )

    def purge(self, parts: set[PartitionState]) -> list[Message]:
        """Give back what belongs to these partitions, to be forgotten: their next owner reads it again."""
        with self._lock:
            dropped = [entry[2] for entry in self._heap if entry[2].part in parts]
            kept = [entry for entry in self._heap if entry[2].part not in parts]
            for message in dropped:
                self._release(message)
            heapq.heapify(kept)
            self._heap = kept
            for part in parts:
                self._newest_due.pop(part, None)
            return dropped

    def _push(self, due_ms: int, message: Message) -> None:
        heapq.heappush(self._heap, (due_ms, next(self._order), message))

    def _count(self, message: Message) -> None:
        records, size = self._held.get(message.part, (0, 0))
        self._held[message.part] = (records + 1, size + message.size)
        self._bytes += message.size

    def _release(self, message: Message) -> None:
        records, size = self._held[message.part]
        if records == 1:
            del self._held[message.part]
        else:
            self._held[message.part] = (records - 1, size - message.size)
        self._bytes -= message.size
