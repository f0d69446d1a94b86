"""What time it is for the broker, judged so that nothing ever starts early.

In:  local times around a record's acknowledgement, and the time that the broker wrote it. Out: broker time.

A delay counts from the broker's clock. A record that the broker stamped ``b`` was stamped before its
acknowledgement arrived at local time ``a``: broker time is at least ``local + (b - a)``. The best of the
last minute's bounds is used, so the estimate is late by one acknowledgement at most, and never early.
"""

from __future__ import annotations

import time
from collections import deque

_SAMPLES = 60
WARN_OFFSET_MS = 500


class BrokerClock:
    """Safe from any thread: readers see one number, replaced as a whole."""

    def __init__(self) -> None:
        self._bounds: deque[int] = deque(maxlen=_SAMPLES)
        self._offset_ms = 0

    def sample(self, broker_ms: int, acknowledged_ms: int) -> None:
        """A record with the broker's timestamp was acknowledged at this local time."""
        self._bounds.append(broker_ms - acknowledged_ms)
        self._offset_ms = max(self._bounds)

    @property
    def offset_ms(self) -> int:
        """Broker time minus local time, at least."""
        return self._offset_ms

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch, never ahead of the broker's own."""
        return time.time_ns() // 1_000_000 + self._offset_ms
