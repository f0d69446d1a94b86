"""What has come to an end and waits for its transaction, and how much of it goes into one.

In:  outcomes, from the event loop. Out: portions of them, in their order, for the commit thread.

Bounded by others: the poll thread takes no more records while ``pending_bytes`` is high.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import structlog

from workers.outcome import Outcome

log = structlog.get_logger("rustfs_workers.commit")

#: A transaction carries at most this many outcomes: bounded memory, and a short wait for whoever comes next.
MAX_BATCH: Final = 2_000
#: The same for what they forward: one that takes longer than its time-out is ended by Kafka, each time it is tried again.
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
#: Where that is too much for Kafka, or the way there, less is tried, down to this. Brokers that are short of time take longer for
#: more partitions, not for more bytes: if all workers go on with what did not get through, nothing ever gets through again.
LEAST_BATCH: Final = 16
LEAST_BATCH_BYTES: Final = 256 * 1024
#: After so many failures in a row, each doubles it, as many go through before more is tried: what is too much costs as long as
#: Kafka waits for a transaction. But a broker that was away looks the same, and what has ended meanwhile must not wait for minutes.
_MORE_AFTER_MOST: Final = 16
#: One that took no longer has room for twice as much: Kafka gives it five seconds. Else a quarter more is tried.
_EASY_S: Final = 1.0
#: Jobs that may start before the next commit, as a multiple of those that end between two: those until this one is made, those
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


class CommitQueue:
    """``put`` is for the event loop, the properties for any thread, the rest for the commit thread alone."""

    def __init__(self, least_ahead: int = _LEAST_AHEAD) -> None:
        self._waiting: deque[Outcome] = deque()
        #: Too far behind their partition's lowest unfinished record: a map has no room for their ends before that one has come to
        #: its own.
        self._beyond_reach: list[Outcome] = []
        # Each number has one writer (event loop, commit thread), so none is lost between them.
        self._bytes_in = self._bytes_out = 0
        #: Runs that have ended; not what is only forwarded, of which thousands may be due at once.
        self._runs_in = self._runs_out = 0
        #: Jobs that end between two commits lately.
        self._pace = 0
        self._least_ahead = least_ahead
        #: What a transaction may carry now, and bytes that it may forward.
        self._most = MAX_BATCH
        self._most_bytes = MAX_BATCH_BYTES
        #: Transactions, as large as may be, since that has changed; and how many there have to be before it grows.
        self._went_through = 0
        self._more_after = 1
        #: So many outcomes did not go through when they were tried last.
        self._too_much = MAX_BATCH

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def pending_bytes(self) -> int:
        """What is held in memory for the records that are yet to be written."""
        return self._bytes_in - self._bytes_out

    @property
    def ahead(self) -> int:
        """How many jobs may start before the next commit.

        None while more have ended than the next two transactions carry: who is asked for a partition gives up what it has not
        committed, and that must not become more and more.
        """
        is_behind = self._runs_in - self._runs_out > 2 * self._most
        return 0 if is_behind else max(_AHEAD * self._pace, self._least_ahead)

    @property
    def is_full(self) -> bool:
        """Whether what waits is as much as a transaction may carry."""
        return len(self._waiting) >= self._most

    @property
    def has_set_aside(self) -> bool:
        """Whether something may come into reach with the next commit."""
        return bool(self._beyond_reach)

    def put(self, outcome: Outcome) -> None:
        """Never blocks."""
        self._waiting.append(outcome)
        if outcome.counts_as is not None:
            self._runs_in += 1
        if outcome.records:
            self._bytes_in += outcome.footprint

    def take(self) -> Portion:
        """The next ones, and those that have come into reach. ``wrote`` is to follow."""
        outcomes = self._come_into_reach()
        waiting, size, footprint = len(self._waiting), 0, 0
        taken = 0
        while taken < min(waiting, self._most):
            outcome = self._waiting.popleft()
            outcomes.append(outcome)
            taken += 1
            if outcome.counts_as is not None:
                self._runs_out += 1
            if outcome.records:
                size += outcome.size
                footprint += outcome.footprint
                if size >= self._most_bytes:
                    break
        self._pace = max(len(outcomes), self._pace * 7 // 8)
        return Portion(outcomes, footprint, is_last=taken == waiting)

    def how_many(self, outcomes: Sequence[Outcome]) -> int:
        """Of these, from the first on, may go into one transaction."""
        size = 0
        for number, outcome in enumerate(islice(outcomes, self._most), 1):
            if outcome.records:
                size += outcome.size
                if size >= self._most_bytes:
                    return max(number - 1, 1)
        return min(len(outcomes), self._most)

    def wrote(self, portion: Portion) -> None:
        """Memory holds it no longer."""
        self._bytes_out += portion.footprint

    def set_aside(self, outcome: Outcome) -> None:
        """A job's, beyond reach: it is taken again when its partition has come further."""
        self._beyond_reach.append(outcome)

    def take_less_than(self, outcomes: Sequence[Outcome]) -> bool:
        """These were too much for one transaction: from now on at most half of them. False: they are as few as can be."""
        size = forwarded(outcomes)
        if len(outcomes) == 1 or (len(outcomes) <= LEAST_BATCH and size <= LEAST_BATCH_BYTES):
            return False
        if len(outcomes) > LEAST_BATCH:
            self._most, self._went_through = max(min(self._most, len(outcomes)) // 2, LEAST_BATCH), 0
            self._more_after, self._too_much = min(2 * self._more_after, _MORE_AFTER_MOST), len(outcomes)
        if size > LEAST_BATCH_BYTES:
            self._most_bytes = max(min(self._most_bytes, size) // 2, LEAST_BATCH_BYTES)
        log.warning(
            "transactions are made smaller",
            outcomes=len(outcomes),
            most=self._most,
            most_bytes=self._most_bytes,
        )
        return True

    def take_more_after(self, outcomes: Sequence[Outcome], took_s: float) -> None:
        """These went through, in so many seconds; if they were as many as may go, there is perhaps room for more."""
        if self._most < MAX_BATCH and len(outcomes) >= self._most:
            if len(outcomes) >= self._too_much:
                self._more_after = 1  # it was not that they are too many
            self._went_through += 1
            if self._went_through >= self._more_after:
                more = self._most if took_s < _EASY_S else self._most // 4
                self._most, self._went_through = min(self._most + more, MAX_BATCH), 0
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
