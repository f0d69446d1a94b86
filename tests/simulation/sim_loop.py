"""The event loop of a worker in the simulation: callbacks, soon or later, by the world's clock.

In:  what the worker asks for. Out: calls, when the seed gives the loop its turn.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any


class SimLoop:
    """What the worker asks of its event loop: callbacks, soon or later."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._later: list[tuple[int, int, SimTimer]] = []
        self._order = itertools.count()

    def call_soon_threadsafe(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> SimTimer:
        timer = SimTimer(callback)
        heapq.heappush(self._later, (self._now_ms() + int(delay_s * 1000), next(self._order), timer))
        return timer

    def run(self) -> None:
        """Everything that is due."""
        while self._soon:
            callback, arguments = self._soon.popleft()
            callback(*arguments)
        while self._later and self._later[0][0] <= self._now_ms():
            _, _, timer = heapq.heappop(self._later)
            if not timer.cancelled:
                timer.callback()


class SimTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
