"""Which nodes let copies hang, so that not every job has to find that out in a thread of its own. Pure state.

In:  the nodes that a copy waited for, and whether it came to its end or stood still. Out: one that is better left alone for now.

A mount whose server is gone keeps each call for ever, and the thread that made it. Some copies may find that out; if all did,
they would have every thread and every place of the worker, and nothing else would run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Set as AbstractSet
from typing import Final

#: Copies in a row that stood still before a node is left alone: one may have met something else.
_IN_A_ROW: Final = 4
_MOST_DOUBLINGS: Final = 3


class Standstills:
    """For any thread.

    Args:
        again_s: seconds after which one copy may try a node that hangs; each time it still does, twice as many, up to eight times.
    """

    def __init__(self, again_s: float) -> None:
        self._again_s = again_s
        self._in_a_row: Counter[str] = Counter()
        #: Of each node, who took part whenever it was there: one of these hangs, and without all of them a copy may go on.
        self._together: dict[str, AbstractSet[str]] = {}
        self._next_s: dict[str, float] = {}
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hanging(self, nodes: AbstractSet[str], now_s: float) -> AbstractSet[str]:
        """Some of these, one of which hangs; empty: go ahead, perhaps as the one that finds out whether it still does."""
        with self._lock:
            return self._hanging(nodes, now_s)

    def _hanging(self, nodes: AbstractSet[str], now_s: float) -> AbstractSet[str]:
        those = sorted(
            name for name in nodes if self._in_a_row[name] >= _IN_A_ROW and self._together[name] <= nodes
        )
        for name in those:
            if now_s < self._next_s[name]:
                return self._together[name]
        for name in those:
            # Each try may cost a thread for ever.
            self._tries[name] += 1
            self._next_s[name] = now_s + self._again_s * 2 ** min(self._tries[name], _MOST_DOUBLINGS)
        return frozenset()

    def stood_still(self, nodes: AbstractSet[str], now_s: float) -> None:
        """A copy that waited for one of these made no step for too long; any of them may be the reason."""
        with self._lock:
            for name in nodes:
                self._in_a_row[name] += 1
                self._together[name] = self._together.get(name, nodes) & nodes
                self._next_s.setdefault(name, now_s + self._again_s)

    def went_on(self, nodes: AbstractSet[str]) -> None:
        """A copy between these came to an end, whatever that was."""
        with self._lock:
            for name in nodes:
                self._in_a_row.pop(name, None)
                self._together.pop(name, None)
                self._next_s.pop(name, None)
                self._tries.pop(name, None)
