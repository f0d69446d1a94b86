"""Whose turn it is among the priorities: a guaranteed share for each, or strictly the most urgent one. Pure state.

In:  a line of messages for each priority, the time. Out: the line to take from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from schemas.topics import PRIORITIES, JobPriority
from workers.message import Message

DEFAULT_WEIGHTS: Final[Mapping[JobPriority, int]] = {
    JobPriority.CRITICAL: 8,
    JobPriority.HIGH: 4,
    JobPriority.NORMAL: 2,
    JobPriority.LOW: 1,
}
#: A job that waited longer than this (since its record was written) takes turns with the critical ones, no more:
#: hours of backlog must leave the others their share.
DEFAULT_MAX_WAIT_MS: Final[Mapping[JobPriority, int]] = {
    JobPriority.HIGH: 30_000,
    JobPriority.NORMAL: 120_000,
    JobPriority.LOW: 600_000,
}


def turns(weights: Mapping[JobPriority, int]) -> tuple[JobPriority, ...]:
    """The order in which priorities get their turns: each as often as its weight says, spread evenly."""
    total = sum(weights.values())
    credit = dict.fromkeys(PRIORITIES, 0)
    order = []
    for _ in range(total):  # smooth weighted round robin, as in nginx
        for priority in PRIORITIES:
            credit[priority] += weights.get(priority, 0)
        chosen = max(PRIORITIES, key=lambda p: credit[p])
        credit[chosen] -= total
        order.append(chosen)
    return tuple(order)


class Turns:
    """Looks at lines that others fill and empty; the deques themselves must stay the same.

    Args:
        lines: one for each priority, the most urgent first.
        weights: turns of each while all have somebody waiting.
        strict: the most urgent one, always; but for who waited too long.
        max_wait_ms: after it the first of a line takes turns with the critical ones.
    """

    def __init__(
        self,
        lines: Mapping[JobPriority, deque[Message]],
        *,
        weights: Mapping[JobPriority, int] | None = None,
        strict: bool = False,
        max_wait_ms: Mapping[JobPriority, int] | None = None,
    ) -> None:
        self._lines = lines
        self._in_order = tuple(lines.values())
        weights = weights or DEFAULT_WEIGHTS
        self._order = turns(weights)
        self._weight_of = [(lines[priority], weights.get(priority, 0)) for priority in lines]
        self._turn = 0
        self._strict = strict
        self._max_wait_ms = dict(DEFAULT_MAX_WAIT_MS if max_wait_ms is None else max_wait_ms)
        self._promote_next = False

    def choose(self, now_ms: int) -> deque[Message] | None:
        """The line whose turn it is; None: nobody waits."""
        first = None
        for line in self._in_order:
            if line:
                if first is not None:
                    break
                first = line
        else:
            return first  # none, or only one priority has work
        overdue = self._overdue(now_ms)
        if self._strict:
            self._promote_next = overdue is not None and not self._promote_next
            return first if self._promote_next or overdue is None else overdue
        while True:
            priority = self._order[self._turn]
            self._turn = (self._turn + 1) % len(self._order)
            line = self._lines[priority]
            if priority is JobPriority.CRITICAL and overdue is not None and (self._promote_next or not line):
                self._promote_next = False
                return overdue
            if line:
                if priority is JobPriority.CRITICAL:
                    self._promote_next = True
                return line

    def ahead(self, count: int) -> list[Message]:
        """About the next ``count``, in no particular order. Any thread: the front of a deque is copied in one step of CPython's."""
        waiting = [(line, weight) for line, weight in self._weight_of if line]
        total = sum(weight for _, weight in waiting)
        found: list[Message] = []
        for line, weight in waiting:
            # Strictly: the first ones of each, since nobody knows how many more urgent ones will come.
            share = count if self._strict else -(-count * weight // max(total, 1))
            # Whole: between an iterator's start and its first step the event loop may have its turn, and the copy would fail.
            found += list(line)[:share]
        return found

    def _overdue(self, now_ms: int) -> deque[Message] | None:
        """The line whose head has waited beyond its priority's limit, the one waiting longest first."""
        worst, found = 0, None
        for priority, limit in self._max_wait_ms.items():
            line = self._lines[priority]
            if line:
                over = now_ms - line[0].timestamp_ms - limit
                if over > worst:
                    worst, found = over, line
        return found
