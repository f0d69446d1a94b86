"""Who must run alone and everybody else take turns. Pure state, told the time.

In:  whether a job that must run alone waits, whether others do, and how many run. Out: whose turn it is.

A job that was unfinished at two deaths runs beside nothing else, for five seconds at the most, and after each further death
for four times as long: nobody else works meanwhile, and nearly all of them are innocent. With sixty of them a worker would
do nothing else for five minutes; and while one that has survived goes on for an hour, the next could not start, nor anybody
else. So whoever was held back is owed three times as much time as
it lasted. Where more wait than a few, as after many deaths under load, nearly all are innocent: two seconds must do, and
who has survived them keeps the next one from nothing. Where few wait, one that has survived and goes on for two seconds more
does so no longer either. What kills all the same is found one death later: it has been beside others then, and runs alone
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
FEW: Final = 8
#: So long the next one waits for those to end that have survived.
OUTSTAYED_MS: Final = 2_000
#: So long they may go on one after another before others have their turn; or as long as it took until the first could start.
TURN_MS: Final = 1_000
#: So long others are held back, at first, until what runs has come to an end; doubled each time that it was not enough.
FIRST_PATIENCE_MS: Final = 5_000
#: So many times as long as others were held back they have their turn.
OWED: Final = 3
#: The first turn, in a worker's life: long enough for half-minute jobs to come to their end.
OTHERS_FIRST_MS: Final = 30_000


def alone_ms(further_deaths: int, *, hurried: bool) -> int:
    """How long one has to survive: so many deaths it has lived through beside others since it had to run alone."""
    return HURRIED_MS if hurried and not further_deaths else ALONE_MS * LONGER**further_deaths


class TimeShare:
    """For the event loop. Times are wall clock in ms; a clock that is set back ends a turn, no more.

    Args:
        others_first_ms: how long others may go on when the first one waits that must run alone.
    """

    def __init__(self, others_first_ms: int = OTHERS_FIRST_MS) -> None:
        self._held_since: int | None = None
        self._had_turn = False
        self._waited_ms = 0
        self._patience_ms = FIRST_PATIENCE_MS
        #: None: nobody has had to run alone yet.
        self._opened: int | None = None
        self._owed_ms = others_first_ms

    def holds_back(self, now_ms: int, *, running: int, others: bool) -> bool:
        """Whether everybody else waits for one that must run alone. Asked only while there is one."""
        if self._held_since is None:
            if self._opened is None:
                self._opened = now_ms
            # While one of them runs, the next may be waiting for it: behind its key, or for its commit.
            if (others or running) and self._opened <= now_ms < self._opened + self._owed_ms:
                return False
            self._held_since, self._had_turn, self._waited_ms = now_ms, False, 0
        held_ms = now_ms - self._held_since
        if held_ms < 0:
            self._held_since, held_ms = now_ms, 0
        if not others:
            return True
        if self._had_turn:
            enough = held_ms >= self._turn_ms
        else:
            # Nothing runs: its turn comes with the next commit, and nobody else may start before.
            enough = running > 0 and held_ms >= self._patience_ms
            if enough:
                self._patience_ms *= 2
        if enough:
            self._held_since, self._opened, self._owed_ms = None, now_ms, OWED * held_ms
        return not enough

    def is_due(self, now_ms: int) -> bool:
        """Whether the turn may end now, so that it is worth while to ask."""
        if self._held_since is None:
            return self._opened is None or now_ms >= self._opened + self._owed_ms
        return now_ms >= self._held_since + (self._turn_ms if self._had_turn else self._patience_ms)

    @property
    def _turn_ms(self) -> int:
        return max(TURN_MS, 2 * self._waited_ms)

    def started(self, now_ms: int) -> None:
        """One that must run alone has started."""
        if not self._had_turn and self._held_since is not None:
            self._waited_ms = max(now_ms - self._held_since, 0)
        self._had_turn = True
        self._patience_ms = FIRST_PATIENCE_MS
