"""What one partition's owner keeps in mind: which records are finished, and how far it may start.

In:  offsets delivered, started and finished. Out: the ``OffsetMap`` to commit next.

Pure state without I/O or clocks. A partition that is lost and regained is a new ``PartitionState``: an
outcome of the old one finds that it is not ``owned`` any more, and is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from threading import Lock

from schemas.offsetmap import TAKE_LIMIT, OffsetMap, Suspect

#: A partition with this many finished or held records behind its lowest unfinished one stops.
MAX_SPREAD = 10_000
#: Room for starts on a partition where nothing waits: a job that comes alone starts without waiting for a commit.
MIN_START_WINDOW = 4


class PartitionState:
    """One partition of one topic, from its assignment to its revocation.

    The poll thread delivers, the event loop starts, the commit thread plans and commits; ``lock`` is held for each step.
    """

    __slots__ = (
        "alone",
        "base",
        "committed_alone",
        "committed_suspects",
        "dirty",
        "done",
        "fence",
        "gaps",
        "incarnation",
        "lock",
        "owned",
        "partition",
        "prior",
        "releasing",
        "start_limit",
        "started",
        "suspects",
        "top",
        "topic",
        "transactional_id",
        "unclean",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        prior: OffsetMap,
        *,
        incarnation: str,
        transactional_id: str,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.lock = lock or Lock()
        self.topic = topic
        self.partition = partition
        self.prior = prior
        #: The last owner died without a word, unless that was this very process.
        self.unclean = not prior.clean and prior.incarnation != incarnation
        self.incarnation = incarnation
        self.transactional_id = transactional_id
        self.fence = prior.fence + 1
        self.base = prior.offset
        self.done = set(prior.finished)
        self.gaps: list[int] = []
        #: One past the highest offset delivered to us.
        self.top = prior.offset
        #: One past the highest offset started by us.
        self.started = prior.offset
        #: Offsets from here on may not start: a successor would not know of it. Nothing may before the first commit.
        self.start_limit = prior.offset
        self.suspects: dict[int, Suspect] = {}
        self.committed_suspects: frozenset[int] = frozenset()
        #: The suspect that runs beside nothing else, if it is one of ours.
        self.alone: int | None = None
        self.committed_alone: int | None = None
        self.owned = True
        #: Revocation or drain has begun: nothing more is started.
        self.releasing = False
        self.dirty = True

    def note_delivered(self, offset: int) -> bool:
        """A record arrived. False: it is finished, or was delivered before, and needs no work.

        Offsets between the last one and this one do not exist (transaction markers, compaction): they count as finished.
        """
        if offset < self.top:
            return False
        if offset > self.top:
            self.gaps.extend(range(self.top, offset))
            self.dirty = True
        self.top = offset + 1
        if offset >= self.start_limit:
            self.dirty = True  # the next commit opens the way for it
        if offset in self.done or offset < self.base:
            return False
        if self.unclean and offset < self.prior.start_limit:
            before = self.prior.suspects.get(offset, Suspect(0))
            self.suspects[offset] = Suspect(before.deaths + 1, alone=before.alone)
            self.dirty = True
        elif (before := self.prior.suspects.get(offset, Suspect(0))).deaths:
            # The last owner left in order: what it knew of earlier deaths still counts.
            self.suspects[offset] = Suspect(before.deaths)
            self.dirty = True
        return True

    def start(self, offset: int) -> bool:
        """Whether a committed map already says that this record may be running; if so, it counts as started.

        Looking and counting are one step: between them a commit could publish a lower limit.
        """
        with self.lock:
            if offset >= self.start_limit or (
                self.suspects and offset in self.suspects and offset not in self.committed_suspects
            ):
                return False
            if offset >= self.started:
                self.started = offset + 1
            return True

    def note_position(self, position: int) -> None:
        """The consumer has read to ``position`` and everything delivered is known: trailing markers are gaps too."""
        if position > self.top:
            self.gaps.extend(range(self.top, position))
            self.top = position
            self.dirty = True

    @property
    def spread(self) -> int:
        """Distance between the lowest unfinished record and the newest delivered one."""
        return self.top - self.base

    def full(self) -> bool:
        """Whether nothing more may be taken: the map would grow beyond what a commit can carry."""
        if self.top - self.base < 1000 and len(self.suspects) < 100:  # noqa: PLR2004 - cannot be near the limit
            return False
        return (
            self.spread >= MAX_SPREAD
            or len(self._map(self.base, self.done, self.start_limit).metadata()) > TAKE_LIMIT
        )

    def plan(
        self, finished: Iterable[int], *, window: int = MIN_START_WINDOW, clean: bool = False
    ) -> OffsetMap:
        """The map to commit if the records in ``finished`` are finished by the same transaction.

        ``window``: how many more records may start before the next commit; what a successor must suspect if we die.
        """
        # What changes from here on is for the next plan; if this one is not committed, its maker says so.
        self.dirty = False
        done = self.done.union(finished, self.gaps)
        base = self.base
        while base in done:
            done.remove(base)
            base += 1
        limit = started = max(self.started, base)
        if not clean:
            limit += min(window, max(self.top - started, 0) + MIN_START_WINDOW)
        # Lower at once: what starts between this plan and its commit must lie below the limit that is committed.
        self.start_limit = min(self.start_limit, limit)
        return self._map(base, done, limit, clean=clean)

    def committed(self, plan: OffsetMap) -> None:
        """The transaction with ``plan`` committed."""
        self.gaps = [gap for gap in self.gaps if not plan.is_finished(gap)]
        self.base = plan.offset
        self.done = set(plan.finished)
        self.start_limit = plan.start_limit
        self._remember_suspects(plan)
        for offset in [o for o in self.suspects if plan.is_finished(o)]:
            del self.suspects[offset]
        if self.gaps or self.top > self.start_limit:
            self.dirty = True

    def adopt(self, read: OffsetMap) -> None:
        """After an ambiguous commit: what Kafka says was committed is what was."""
        self.gaps = [gap for gap in self.gaps if not read.is_finished(gap)]
        self.base = max(self.base, read.offset)
        self.done = {offset for offset in self.done | read.finished if offset >= self.base}
        if read.incarnation == self.incarnation:
            self.start_limit = read.start_limit
            self._remember_suspects(read)
        self.dirty = True

    def _remember_suspects(self, committed: OffsetMap) -> None:
        self.committed_suspects = frozenset(committed.suspects)
        self.committed_alone = next((o for o, s in committed.suspects.items() if s.alone), None)

    def _map(self, base: int, done: set[int], limit: int, *, clean: bool = False) -> OffsetMap:
        return OffsetMap(
            offset=base,
            finished=frozenset(done),
            start_limit=limit,
            clean=clean,
            fence=self.fence,
            incarnation=self.incarnation,
            transactional_id=self.transactional_id,
            suspects={
                offset: Suspect(suspect.deaths, alone=offset == self.alone)
                for offset, suspect in self.suspects.items()
                if offset >= base and offset not in done
            },
        )
