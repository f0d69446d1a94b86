"""What has come to an end and waits for its transaction, and how much of it goes into one.

In:  outcomes, from the event loop. Out: portions of them, in their order, for the commit thread.

Bounded by others: the poll thread takes no more records while ``pending_bytes`` is high.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from workers.outcome import Outcome

#: A transaction carries at most this many outcomes: bounded memory, and a short wait for whoever comes next.
MAX_BATCH: Final = 2_000
#: The same for what they forward: one that takes longer than its time-out is ended by Kafka, each time it is tried again.
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
#: Where that is too much for the way to Kafka, less is tried, down to this.
LEAST_BATCH_BYTES: Final = 256 * 1024
#: So many times as many jobs as end between two commits may start before the next one: those until this one is made, those
#: until the next one is, and as many again, since no two take the same time. A successor suspects each of them.
_AHEAD: Final = 3
_LEAST_AHEAD: Final = 64


@dataclass(frozen=True, slots=True)
class Portion:
    """For one transaction."""

    outcomes: list[Outcome]
    #: Bytes in memory of those that have just been taken.
    footprint: int
    #: Nothing waits behind it.
    is_last: bool


class Outbox:
    """``put`` is for the event loop, the properties for any thread, the rest for the commit thread alone."""

    def __init__(self, least_ahead: int = _LEAST_AHEAD) -> None:
        self._waiting: deque[Outcome] = deque()
        #: Too far behind their partition's lowest unfinished record: a map has no room for their ends before that one has come to
        #: its own.
        self._beyond_reach: list[Outcome] = []
        # Each number has one writer (event loop, commit thread), so none is lost between them.
        self._bytes_in = self._bytes_out = 0
        #: Jobs that end between two commits lately.
        self._pace = 0
        self._least_ahead = least_ahead
        #: Bytes that a transaction may forward now.
        self._most_bytes = MAX_BATCH_BYTES

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def pending_bytes(self) -> int:
        """What is held in memory for the records that are yet to be written."""
        return self._bytes_in - self._bytes_out

    @property
    def ahead(self) -> int:
        """How many jobs may start before the next commit."""
        return max(_AHEAD * self._pace, self._least_ahead)

    @property
    def has_set_aside(self) -> bool:
        """Whether something may come into reach with the next commit."""
        return bool(self._beyond_reach)

    def put(self, outcome: Outcome) -> None:
        """Never blocks."""
        self._waiting.append(outcome)
        if outcome.records:
            self._bytes_in += outcome.footprint

    def take(self) -> Portion:
        """The next ones, and those that have come into reach. ``wrote`` is to follow."""
        outcomes = self._come_into_reach()
        waiting, size, footprint = len(self._waiting), 0, 0
        taken = 0
        while taken < min(waiting, MAX_BATCH):
            outcome = self._waiting.popleft()
            outcomes.append(outcome)
            taken += 1
            if outcome.records:
                size += outcome.size
                footprint += outcome.footprint
                if size >= self._most_bytes:
                    break
        self._pace = max(len(outcomes), self._pace * 7 // 8)
        return Portion(outcomes, footprint, is_last=taken == waiting)

    def wrote(self, portion: Portion) -> None:
        """Memory holds it no longer."""
        self._bytes_out += portion.footprint

    def set_aside(self, outcome: Outcome) -> None:
        """A job's, beyond reach: it is taken again when its partition has come further."""
        self._beyond_reach.append(outcome)

    def take_less(self) -> int:
        """Transactions are too large for the way to Kafka: half as much from now on, in bytes."""
        self._most_bytes = max(self._most_bytes // 2, LEAST_BATCH_BYTES)
        return self._most_bytes

    def take_more_after(self, outcomes: Iterable[Outcome]) -> None:
        """These went through; if they were as many as may go, there is perhaps room for more."""
        if self._most_bytes < MAX_BATCH_BYTES and forwarded(outcomes) >= self._most_bytes:
            self._most_bytes += self._most_bytes // 16

    def _come_into_reach(self) -> list[Outcome]:
        """Or belong to nobody any more: whoever has the partition now does it again."""
        taken: list[Outcome] = []
        waiting: list[Outcome] = []
        for outcome in self._beyond_reach:
            message = outcome.message
            assert message is not None  # noqa: S101
            waits = message.part.owned and message.part.is_beyond_reach(message.offset)
            (waiting if waits else taken).append(outcome)
        self._beyond_reach = waiting
        return taken


def forwarded(outcomes: Iterable[Outcome]) -> int:
    """Bytes of the records that they write."""
    return sum(outcome.size for outcome in outcomes if outcome.records)
