"""How long runs take, to tell which of them can still end before a deadline.

In:  runs that have ended by themselves. Out: whether one that goes on may end in time.

A partition that moves waits for its running jobs, and those who are to have it wait as well. To wait three seconds for a job
that takes thirty is of no use to anybody: it is cancelled in the end, and has run three seconds longer in vain.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: Runs of a type that are looked at: enough to tell, and few enough to follow a change.
_KEPT: Final = 31


class RunTimes:
    """Of the last runs of each type. For the event loop."""

    def __init__(self) -> None:
        self._last: dict[str, deque[int]] = {}

    def note(self, job_type: str, took_ms: int) -> None:
        """One has ended by itself, well or not."""
        last = self._last.get(job_type)
        if last is None:
            last = self._last[job_type] = deque(maxlen=_KEPT)
        last.append(took_ms)

    def may_end(self, job_type: str, age_ms: int, within_ms: float) -> bool:
        """Whether a run that has lasted for ``age_ms`` may end within the time.

        If at least half of those did that lasted longer than it has so far. Where none is known, it is taken to last about as
        long again.
        """
        longer = [took for took in self._last.get(job_type, ()) if took > age_ms]
        if longer:
            return 2 * sum(took <= age_ms + within_ms for took in longer) >= len(longer)
        return age_ms <= within_ms
