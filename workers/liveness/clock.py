"""What time it is for the broker, judged so that nothing ever starts early.

In:  the time that the broker wrote into a record, when the record is acknowledged. Out: broker time.

A delay counts from the broker's clock. A record that the broker stamped ``b`` was stamped before its
acknowledgement arrived at local time ``a``: broker time is at least ``local + (b - a)``. The best of the
last minute's bounds is used, so the estimate is late by one acknowledgement at most, and never early.

Local time is the steady clock: the clock on the wall can be set, and a bound from before that would be
wrong for a minute. The broker's clock can be set too: it stamped the record after that was sent, and where
that contradicts older bounds these are dropped.
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

    def steady_ns(self) -> int:
        """What a record is sent at, for ``sample``."""
        return self._steady_ns()

    def sample(self, broker_ms: int, sent_ns: int) -> None:
        """A record that was sent at this steady time has just been acknowledged, with this timestamp of the broker's."""
        # A stamp is a whole millisecond, the one that has begun.
        if self._ahead_ms > broker_ms + 1 - sent_ns // _NS:
            self._bounds.clear()  # the clock has been set back
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
