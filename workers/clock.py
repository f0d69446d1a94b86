"""What time it is for the broker, judged so that nothing ever starts early.

In:  the time that the broker wrote into a record, when the record is acknowledged. Out: broker time.

A delay counts from the broker's clock. A record that the broker stamped ``b`` was stamped before its
acknowledgement arrived at local time ``a``: broker time is at least ``local + (b - a)``. The best of the
last minute's bounds is used, so the estimate is late by one acknowledgement at most, and never early.

Local time is the steady clock: the clock on the wall can be set, and a bound from before that would be
wrong for a minute.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_SAMPLES = 60
_NS = 1_000_000
WARN_OFFSET_MS = 500


class BrokerClock:
    """Safe from any thread: readers see one number, replaced as a whole."""

    def __init__(
        self, *, steady_ns: Callable[[], int] = time.monotonic_ns, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._steady_ns = steady_ns
        self._wall_ns = wall_ns
        self._bounds: deque[int] = deque(maxlen=_SAMPLES)
        #: Broker time minus the steady clock, at least. Before the first sample there is only the local clock to go by.
        self._ahead_ms = wall_ns() // _NS - steady_ns() // _NS

    def sample(self, broker_ms: int) -> None:
        """A record with this timestamp of the broker's has just been acknowledged."""
        # Rounded up: a bound must not be too good by a part of a millisecond.
        self._bounds.append(broker_ms - -(-self._steady_ns() // _NS))
        self._ahead_ms = max(self._bounds)

    @property
    def offset_ms(self) -> int:
        """Broker time minus what the local clock shows, at least."""
        return self.now_ms() - self._wall_ns() // _NS

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch, never ahead of the broker's own."""
        return self._steady_ns() // _NS + self._ahead_ms
