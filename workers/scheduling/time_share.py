"""Who must run alone and everybody else take turns. Pure state, told the time.

In:  whether a job that must run alone waits, whether others do, and how many run. Out: whose turn it is.

A job that was unfinished at two deaths runs beside nothing else, for five seconds at the most, and after each further death
for four times as long: nobody else works meanwhile, and nearly all of them are innocent. With sixty of them a worker would
do nothing else for five minutes; and while one that has survived goes on for an hour, the next could not start, nor anybody
else. So whoever was held back is owed three times as much time as
it lasted. Where more wait than a few, as after many deaths under load, nearly all are innocent: two seconds must do, and
who has survived them keeps the next one from nothing. What kills all the same is found one death later: it has been beside others then, and runs alone
after that, whatever waits. And others have the first turn: where workers die every minute, each would spend its life on what
the one before has left behind, and nobody else would ever start.
"""

from __future__ import annotations

from typing import Final

#: How long a job must survive alone before others may run beside it, and by how much longer after each further death: one that
#: kills within the first of these times is found at its third death, and one that needs twenty minutes for it at its seventh.
ALONE_MS: Final = 5_000
LONGER: Final = 4
#: The same where more than a few wait, for those without a further death.
HURRIED_MS: Final = 2_000
HURRIED_ABOVE: Final = 8
#: So long they may go on one after another before others have their turn; or as long as it took until the first could start.
TURN_MS: Final = 1_000
#: So long others are held back, at first, until what runs has come to an end; doubled each time that it was not enough.
FIRST_PATIENCE_MS: Final = 5_000
#: So many times as long as others were held back they have their turn.
OWED: Final = 3
#: No turn counts for more, whatever a clock says that was set, or a machine that has slept.
_MOST_HELD_MS: Final = 60_000
#: The first turn, in a worker's life: long enough for half-minute jobs to come to their end.
OTHERS_FIRST_MS: Final = 30_000


def alone_ms(further_deaths: int, *, hurried: bool) -> int:
    """How long one has to survive: so many deaths it has lived through beside others since it had to run alone."""
    return HURRIED_MS if hurried and not further_deaths else ALONE_MS * LONGER**further_deaths


class TimeShare:
    """For the event loop. Times are wall clock in ms; a clock that is set moves the end of a turn, within bounds.

    Args:
        others_first_ms: how long others may go on when the first one waits that must run alone.
    """

    def __init__(self, others_first_ms: int = OTHERS_FIRST_MS) -> None:
        #: Whether it is the turn of those that must run alone. Somebody has to close it when none of them is left.
        self.is_open = False
        self._had_turn = False
        self._waited_ms = 0
        self._patience_ms = FIRST_PATIENCE_MS
        #: How long others were held back in this turn: only while there were any.
        self._held_ms = 0
        self._counted_at = 0
        self._others = False
        #: When the others' turn began. None: nobody has had to run alone yet.
        self._closed_at: int | None = None
        self._owed_ms = others_first_ms

    def holds_back(self, now_ms: int, *, running: int, others: bool) -> bool:
        """Whether everybody else waits for one that must run alone. Asked only while there is one."""
        if not self.is_open:
            if self._closed_at is None:
                self._closed_at = now_ms
            # While one of them runs, the next may be waiting for it: behind its key, or for its commit.
            if (others or running) and self._closed_at <= now_ms < self._closed_at + self._owed_ms:
                return False
            self.is_open, self._had_turn, self._waited_ms = True, False, 0
            self._held_ms, self._others = 0, False
        self._count(now_ms, others=others)
        if not others:
            return True
        if self._had_turn:
            enough = self._held_ms >= self._turn_ms
        else:
            # Nothing runs: its turn comes with the next commit, and nobody else may start before.
            enough = running > 0 and self._held_ms >= self._patience_ms
            if enough:
                self._patience_ms *= 2
        if enough:
            self.close(now_ms)
        return not enough

    def close(self, now_ms: int) -> None:
        """The turn is over, or none is left of those that must run alone: others are owed what they have waited for."""
        self._count(now_ms, others=False)
        self.is_open, self._closed_at = False, now_ms
        self._owed_ms = OWED * min(self._held_ms, _MOST_HELD_MS)

    def is_due(self, now_ms: int) -> bool:
        """Whether the turn may end now, so that it is worth while to ask."""
        if not self.is_open:
            closed_at = self._closed_at
            return closed_at is None or not closed_at <= now_ms < closed_at + self._owed_ms
        since_ms = max(now_ms - self._counted_at, 0) if self._others else 0
        return self._held_ms + since_ms >= (self._turn_ms if self._had_turn else self._patience_ms)

    def started(self, now_ms: int) -> None:
        """One that must run alone has started."""
        self._count(now_ms, others=self._others)
        if not self._had_turn:
            self._waited_ms = self._held_ms
        self._had_turn = True
        self._patience_ms = FIRST_PATIENCE_MS

    @property
    def _turn_ms(self) -> int:
        return max(TURN_MS, 2 * self._waited_ms)

    def _count(self, now_ms: int, *, others: bool) -> None:
        if self._others:
            self._held_ms += max(now_ms - self._counted_at, 0)
        self._counted_at, self._others = now_ms, others
