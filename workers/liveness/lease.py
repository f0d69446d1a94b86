"""Whether this process may take it for granted that its partitions are still its own.

In:  answers from Kafka, commits that counted. Out: whether jobs may start.

The group gives a member up that it has not heard of for a session. So whoever has had no answer for almost as long stops,
and so does whoever notices afterwards that there was such a silence: a process that was frozen wakes up into a world where
others may run its jobs, and the first answer of a broker does not say whether they do. What says it is a transaction with
offsets that began after the silence and was committed: the group's coordinator has looked at our epoch.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Final, NamedTuple

#: In which everything can be cancelled.
_TO_CANCEL_S: Final = 1.0

_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def lease_s(session_s: float, heartbeat_s: float | None = None) -> float:
    """How long a member may be without an answer until it must take its partitions for lost.

    Kafka counts a session from the last heartbeat, which is up to one interval older than the last answer to anything. Where it
    does not say how long that is, a third of the session, as is usual.
    """
    return max(session_s - (session_s / 3 if heartbeat_s is None else heartbeat_s) - _TO_CANCEL_S, 1.0)


def since_boot_s() -> float:
    """Seconds of a clock that nobody sets. On Linux ``time.monotonic`` stands still while the machine is suspended, and Kafka does not."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class Proof(NamedTuple):
    """A transaction that shows, once it is committed, that the group still had us when it began."""

    #: That had been noticed by then.
    silences: int
    began_s: float


class Lease:
    """Safe for any thread.

    Args:
        seconds: of silence after which others may have our partitions.
        now: a steady clock in seconds, which goes on while the machine is suspended, where there is one.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = since_boot_s) -> None:
        self.seconds = seconds
        self._now = now
        self._last = now()
        #: Silences noticed so far, and the number of them that a commit has shown to have cost nothing.
        self._silences = self._outlived = 0

    @property
    def silent_s(self) -> float:
        """Since what was answered last was asked."""
        return self._now() - self._last

    @property
    def now_s(self) -> float:
        """The lease's own clock."""
        return self._now()

    @property
    def holds(self) -> bool:
        """Whether jobs may start."""
        return self._silences == self._outlived and self.silent_s <= self.seconds

    def answered(self, asked_s: float) -> None:
        """Kafka has answered something that it was asked at ``asked_s``, by ``now_s``. After too long a silence that is not enough.

        The answer is true of a moment after that. Not of the one at which it is noticed: a process that was frozen finds what
        had come for it before, and Kafka may be gone by then.
        """
        if self.silent_s > self.seconds:
            self._silences += 1
        self._last = max(self._last, asked_s)

    def begin(self) -> Proof:
        """A transaction with offsets begins; what to give to ``committed``."""
        began_s = self._now()
        if self.silent_s > self.seconds:
            self.answered(began_s)  # the silence counts: what was sent before its end proves nothing
        return Proof(self._silences, began_s)

    def committed(self, proof: Proof) -> None:
        """That transaction was committed: the group has taken us for its member since it began."""
        self.answered(proof.began_s)
        if proof.silences == self._silences:
            self._outlived = proof.silences


class LeaseChange(enum.Enum):
    """What a look at the lease has found."""

    LOST = "nothing may run any more"
    REGAINED = "jobs may start again"


class CutOff:
    """Whether this process has cancelled everything, since its lease does not hold. For one thread."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.is_cut_off = False

    def look(self) -> LeaseChange | None:
        """Notice that the lease does not hold any more, or holds again; whoever asks acts upon it."""
        if self._lease.holds is not self.is_cut_off:
            return None
        self.is_cut_off = not self.is_cut_off
        return LeaseChange.LOST if self.is_cut_off else LeaseChange.REGAINED

    @property
    def may_start(self) -> bool:
        """Whether jobs may start: not before a look has found that they may, and no moment longer than the lease holds."""
        return self._lease.holds and not self.is_cut_off
