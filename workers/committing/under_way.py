"""Partitions with which something is under way at Kafka, and who waits for its end."""

from __future__ import annotations

import threading
from collections.abc import Collection

from workers.offsets import PartitionState, Place


class UnderWay:
    """Not thread-safe: whoever calls holds the lock of the partitions. The events that it gives may be waited for without."""

    def __init__(self) -> None:
        self.parts: frozenset[PartitionState] = frozenset()
        self._waiting: list[threading.Event] = []

    def begin(self, parts: Collection[PartitionState]) -> None:
        """From now on it is these."""
        self.parts = frozenset(parts)

    def end(self) -> None:
        """None of them any more, whichever way it went."""
        self.parts = frozenset()
        for done in self._waiting:
            done.set()
        self._waiting.clear()

    def over(self, places: Collection[Place]) -> threading.Event:
        """Set as soon as nothing is under way with any of these."""
        done = threading.Event()
        if any(part.place in places for part in self.parts):
            self._waiting.append(done)
        else:
            done.set()
        return done
