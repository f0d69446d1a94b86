"""What one partition's owner keeps in mind: which records are finished, and how far it may start.

In:  offsets delivered, started and finished. Out: the ``OffsetMap`` to commit next.

Pure state without I/O or clocks. A partition that is lost and regained is a new ``PartitionState``: an
outcome of the old one finds that it is not ``owned`` any more, and is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from threading import Lock
from typing import Any

from schemas.offsetmap import MAX_OWNERS, TAKE_LIMIT, UNKNOWN, OffsetMap, Suspect, named_losses
from schemas.topics import Partition

#: A partition with this many finished or held records behind its lowest unfinished one stops.
MAX_SPREAD = 10_000
#: Nothing that lies further behind it starts, or is finished, before that one is: a bit for each offset, a map always has room for
#: so many. More than ``MAX_SPREAD``, for what comes at once, and for holes in the log, which nobody can stop from coming.
MAX_REACH = 16_000
#: Losses of an owner after which a record runs alone, in a process of its own if it can be made there.
ALONE_AFTER = 2
#: One that has seen so many of them, the last ones from a process of its own, may reach beyond that: it runs alone in the worker.
SANDBOX_UNTIL = 5
#: Room for starts on a partition where nothing waits: a job that comes alone starts without waiting for a commit.
MIN_START_WINDOW = 4


class PartitionState:
    """One partition of one topic, from its assignment to its revocation.

    The poll thread delivers, the event loop starts, the commit thread plans and commits. ``start``, ``join``, ``hold``,
    ``want_soon`` and ``name_alone`` take ``lock``, which is not reentrant; for every other change the caller holds it.
    """

    __slots__ = (
        "alone",
        "barred",
        "base",
        "closed",
        "committed_alone",
        "committed_suspects",
        "dirty",
        "done",
        "fence",
        "gaps",
        "held",
        "incarnation",
        "lock",
        "losses",
        "metadata",
        "owned",
        "partition",
        "prior",
        "releasing",
        "resting",
        "runs",
        "start_limit",
        "started",
        "suspects",
        "top",
        "topic",
        "transactional_id",
        "unclean",
        "wanted",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        prior: OffsetMap,
        *,
        incarnation: str,
        transactional_id: str,
        now_ms: int = 0,
        runs: bool = True,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.lock = lock or Lock()
        self.topic = topic
        self.partition = partition
        #: False: its records wait for their time and go on to another topic; nobody can die of them.
        self.runs = runs
        self.prior = prior
        #: The last owner was lost without a word, unless that was this very process.
        self.unclean = not prior.clean and prior.incarnation != incarnation
        self.incarnation = incarnation
        self.transactional_id = transactional_id
        #: The group's, taken when this was assigned or when it was last proven ours: Kafka fences its offsets by it.
        self.metadata: Any = None
        self.fence = prior.fence + 1
        self.base = prior.offset
        self.done = set(prior.finished)
        #: Offsets at which there is no record, in order; until a committed map has all of them.
        self.gaps: list[range] = []
        #: One past the highest offset delivered to us.
        self.top = prior.offset
        #: One past the highest offset started by us.
        self.started = prior.offset
        #: Offsets from here on may not start: a successor would not know of it. Nothing may before the first commit.
        self.start_limit = prior.offset
        #: One past the highest offset that is about to start: the next commit opens the way to it, however many finished,
        #: missing or key-locked ones lie before it.
        self.wanted = prior.offset
        #: They wait for others, behind their key or for a process, and will not start before they are wanted.
        self.held: set[int] = set()
        #: A map of ours, committed or planned, says that these have not started: they may not before a later one is committed.
        self.barred: frozenset[int] = frozenset()
        #: Known before they are delivered: if we die before that as well, our successor must still know of them.
        self.suspects = _left_behind(prior, unclean=self.unclean) if runs else {}
        #: Who was lost, and when: what suspects are suspected of.
        self.losses = {**prior.losses, prior.incarnation: now_ms} if self.unclean else dict(prior.losses)
        # Whatever others thought of us, we live. Where a map of ours says "alone", it is what ran when the partition went.
        self.absolve((incarnation,))
        #: The suspect that runs beside nothing else, or is about to, if it is one of ours. See ``name_alone``.
        self.alone: int | None = None
        self.committed_alone: int | None = None
        #: As the last committed map of ours names them.
        self.committed_suspects: Mapping[int, Suspect] = {}
        #: A map says, or is about to, that nothing of this partition runs, but for one that runs alone: nothing else starts
        #: before a later one takes it back.
        self.resting = False
        self.owned = True
        #: Revocation or drain has begun: nothing more is started.
        self.releasing = False
        #: A last map with the clean flag is planned: whatever is committed after it must not take the flag away.
        self.closed = False
        self.dirty = True

    @property
    def place(self) -> Partition:
        """Topic and partition."""
        return self.topic, self.partition

    @property
    def may_run(self) -> bool:
        """Whether its jobs may start or go on here: it is ours, and is not being given up."""
        return self.owned and not self.releasing

    @property
    def losses_in_question(self) -> Mapping[str, int]:
        """The lost owners because of whom a record is to run alone, or not again; empty if there is no such record."""
        if any(suspect.alone or suspect.deaths >= ALONE_AFTER for suspect in self.suspects.values()):
            return self.losses
        return {}

    @property
    def dangerous(self) -> int:
        """How many records were unfinished at so many deaths that each is kept apart. Any thread."""
        return sum(suspect.deaths >= ALONE_AFTER for suspect in list(self.suspects.values()))

    def charge(self, offset: int) -> tuple[str, int]:
        """With whom this record was running alone, and when that owner was lost; ``("", 0)``: with nobody."""
        suspect = self.suspects.get(offset)
        owner = suspect.alone if suspect is not None else ""
        return owner, self.losses.get(owner, 0)

    def absolve(self, alive: Collection[str]) -> None:
        """Take back the deaths charged for these owners, who turned out to be alive. Under the lock, once it is ours."""
        for offset, suspect in list(self.suspects.items()):
            kept = replace(
                suspect,
                owners=tuple(owner for owner in suspect.owners if owner not in alive),
                alone="" if suspect.alone in alive else suspect.alone,
            )
            if kept.owners or kept.alone:
                self.suspects[offset] = kept
            else:
                del self.suspects[offset]
        self._name_losses()

    def doubt(self, offset: int) -> None:
        """Nobody knows whether this one ran when its owner died beside nothing else: one death more, no proof. Under the lock."""
        self.suspects[offset] = replace(self.suspects[offset], alone="")
        self.dirty = True

    def acquit_from(self, end: int) -> None:
        """Nothing at or past ``end`` was written when the partition became ours: nobody has died of it. Under the lock.

        What waits for nothing may start without a commit, so a start limit reaches a little beyond the end of the log.
        """
        for offset in [offset for offset in self.suspects if offset >= end]:
            del self.suspects[offset]
        self._name_losses()

    def _name_losses(self) -> None:
        names = named_losses(self.suspects, self.losses)
        if UNKNOWN in names.values():
            for offset, suspect in self.suspects.items():
                self.suspects[offset] = replace(
                    suspect,
                    owners=tuple(names[owner] for owner in suspect.owners),
                    alone=names.get(suspect.alone, ""),
                )
        self.losses = {name: 0 if name == UNKNOWN else self.losses[name] for name in names.values()}

    def note_delivered(self, offset: int) -> bool:
        """A record arrived. False: it is finished, or was delivered before, and needs no work.

        Offsets between the last one and this one do not exist (transaction markers, compaction): they count as finished.
        """
        if offset < self.top:
            return False
        if offset > self.top:
            self.gaps.append(range(self.top, offset))
            self.dirty = True
        self.top = offset + 1
        return offset >= self.base and offset not in self.done

    def is_beyond_reach(self, offset: int) -> bool:
        """Whether this one has to wait for earlier ones, lest a map become too long for a commit. Any thread."""
        return offset - self.base >= MAX_REACH

    def start(self, offset: int) -> bool:
        """Whether a committed map already says that this record may be running; if so, it counts as started.

        Looking and counting are one step: between them a commit could publish a lower limit. A suspect needs no more than
        this: each map of ours names all of them. But one that has to run alone is not charged with our death unless the map
        says that it runs: alone, or joined by others.
        """
        with self.lock:
            if self.releasing or self.is_beyond_reach(offset):
                return False
            if (
                offset >= self.start_limit
                or offset in self.barred
                or (self.resting and offset != self.committed_alone)
                or (offset in self.committed_suspects and self._waits_for_its_turn(offset))
            ):
                self.want(offset)
                self.dirty = True
                return False
            if offset >= self.started:
                self.started = offset + 1
            self.held.discard(offset)
            return True

    def _waits_for_its_turn(self, offset: int) -> bool:
        return offset != self.committed_alone and _cannot_run(self.committed_suspects[offset])

    def join(self, offset: int, *, joined: bool = True) -> None:
        """The next commit is to say that this one, which has to run alone, runs beside others; or does so no longer."""
        with self.lock:
            suspect = self.suspects.get(offset)
            if suspect is not None and suspect.joined is not joined:
                self.suspects[offset] = replace(suspect, joined=joined)
                self.dirty = True

    def want(self, offset: int) -> None:
        """It is about to start: the next commit opens the way to it. Under the lock."""
        if self.is_beyond_reach(offset):
            return
        self.held.discard(offset)
        if offset in self.barred:
            self.dirty = True
        if offset >= self.wanted:
            self.wanted = offset + 1
            if offset >= self.start_limit:
                self.dirty = True

    def hold(self, offset: int) -> None:
        """It waits for others, and is not about to start. If we die it is not to blame, once a commit has said so."""
        with self.lock:
            self.held.add(offset)

    def want_soon(self, offset: int) -> None:
        """It is one of the next: the next commit says that it may start."""
        with self.lock:
            self.want(offset)

    def name_alone(self, offset: int | None) -> None:
        """The next commit is to say that this one runs beside nothing else; None: that nobody does any more."""
        with self.lock:
            if offset is not None:
                self.held.discard(offset)
            self.alone = offset
            self.dirty = True

    def note_position(self, position: int) -> None:
        """The consumer has read to ``position`` and everything delivered is known: trailing markers are gaps too."""
        if position > self.top:
            self.gaps.append(range(self.top, position))
            self.top = position
            self.dirty = True

    @property
    def spread(self) -> int:
        """Distance between the lowest unfinished record and the newest delivered one."""
        return self.top - self.base

    def full(self) -> bool:
        """Whether nothing more may be taken: the map would grow beyond what a commit can carry.

        The finished part of a map takes a character for six offsets at most: up to ``MAX_REACH`` it always fits. Suspects that do
        not are left out; to stop because of them would keep out those that have to be finished for the map to become shorter.
        """
        return self.spread >= MAX_SPREAD

    def rests(self, *, resting: bool) -> bool:
        """Whether the next map has to say that nothing runs here, but for one that runs alone; ``resting`` as for ``plan``."""
        return resting or self.closed or self.alone is not None or not self.runs

    def plan(
        self,
        finished: Iterable[int],
        *,
        clean: bool = False,
        resting: bool = False,
    ) -> OffsetMap:
        """The map to commit if the records in ``finished`` are finished by the same transaction.

        What is wanted may start, and where nothing waits a few that may come; a successor suspects each of them.
        ``resting``: one runs beside nothing else, here or in another partition: nobody but that one can be to blame then.
        """
        # What changes from here on is for the next plan; if this one is not committed, its maker says so.
        self.dirty = False
        self.closed = self.closed or clean
        rests = self.rests(resting=resting)
        # At once: what starts between this plan and its commit would be unknown to a successor.
        self.resting = self.resting or rests
        base, done = self._fold(self.done.union(finished))
        limit = max(self.started, base)
        if self.alone is not None:
            limit = max(limit, self.alone + 1)
        if not rests:
            reach = max(limit, self.wanted)
            limit = min(reach + (MIN_START_WINDOW if self.top <= reach else 0), base + MAX_REACH)
            if self.suspects and max(self.suspects) >= self.top:
                # A record that we do not even have must not count our death as well as our predecessor's.
                limit = min(limit, max(reach, self.top))
        planned = self._map(base, done, limit, clean=self.closed or (rests and self.alone is None))
        # At once: what starts between this plan and its commit must lie below the limit that is committed, and not be held.
        self.start_limit = min(self.start_limit, limit)
        self.barred |= planned.held
        return planned

    def committed(self, plan: OffsetMap) -> None:
        """The transaction with ``plan`` committed."""
        self._drop_gaps(plan)
        self.base = plan.offset
        self.done = set(plan.finished)
        self.start_limit = plan.start_limit
        self._remember(plan)
        for offset in [o for o in self.suspects if plan.is_finished(o)]:
            del self.suspects[offset]

    def agrees_with(self, read: OffsetMap) -> bool:
        """Whether Kafka still shows as finished what it has acknowledged to us."""
        return read.offset >= self.base and all(read.is_finished(offset) for offset in self.done)

    def is_taken_over(self, read: OffsetMap) -> bool:
        """Whether somebody has committed who has got it after us."""
        return read.fence > self.fence or (read.fence == self.fence and read.incarnation != self.incarnation)

    def adopt(self, read: OffsetMap) -> None:
        """After an ambiguous commit: what Kafka says was committed is what was."""
        self._drop_gaps(read)
        self.base = max(self.base, read.offset)
        self.done = {offset for offset in self.done | read.finished if offset >= self.base}
        # Not one from before a lost session: that it opens the way to anything would not show that the partition is ours.
        if (read.incarnation, read.fence) == (self.incarnation, self.fence):
            self.start_limit = read.start_limit
            self._remember(read)
        self.dirty = True

    def _remember(self, committed: OffsetMap) -> None:
        self.committed_alone = committed.alone
        self.committed_suspects = committed.suspects
        self.barred = committed.held
        self.resting = committed.clean or committed.alone is not None

    def _fold(self, done: set[int]) -> tuple[int, set[int]]:
        """The lowest unfinished offset, if these are finished, and what is finished above it; ``done`` is used up.

        Of the gaps that is what a map has room for: an heir finds them by itself.
        """
        base = self.base
        gaps = iter(self.gaps)
        gap = next(gaps, None)
        while True:
            if base in done:
                done.remove(base)
                base += 1
            elif gap is None or gap.start > base:
                break
            else:
                base = max(base, gap.stop)
                gap = next(gaps, None)
        if done and min(done) < base:  # offsets of gaps that an earlier map had room for
            done = {offset for offset in done if offset >= base}
        for hole in self.gaps:
            done.update(range(max(hole.start, base), min(hole.stop, base + MAX_REACH)))
        return base, done

    def _drop_gaps(self, committed: OffsetMap) -> None:
        self.gaps = [gap for gap in self.gaps if not committed.is_finished(gap[-1])]

    def _map(self, base: int, done: set[int], limit: int, *, clean: bool = False) -> OffsetMap:
        """What fits into a commit of it."""
        suspects = {
            offset: suspect
            for offset, suspect in self.suspects.items()
            if offset >= base and offset not in done
        }
        # What runs alone when a drain ends it did not kill anybody: a clean map names only those accused before.
        if not clean and self.alone is not None and self.alone in suspects:
            suspects[self.alone] = Suspect(suspects[self.alone].owners, self.incarnation)
        whole = OffsetMap(
            offset=base,
            finished=frozenset(done),
            start_limit=limit,
            held=frozenset(o for o in self.held if base <= o < limit and o not in done),
            clean=clean,
            fence=self.fence,
            incarnation=self.incarnation,
            transactional_id=self.transactional_id,
            suspects=suspects,
            losses=self.losses if suspects else {},
        )
        if not (whole.held or whole.suspects) or len(whole.metadata()) <= TAKE_LIMIT:
            return whole
        return _bounded(replace(whole, held=frozenset()))


def _bounded(whole: OffsetMap) -> OffsetMap:
    """With as many suspects as fit: first who runs alone or in a process, then who has seen more deaths, then who comes first.

    A map that Kafka refuses would end this worker, and each of its heirs. Who is left out is charged with one death less. It does
    not go on for ever like that: when those before it are finished, it is among the first.
    """
    suspects = whole.suspects

    def rank(offset: int) -> tuple[bool, int, int]:
        suspect = suspects[offset]
        return not (suspect.alone or suspect.joined), -suspect.deaths, offset

    ranked, planned = sorted(suspects, key=rank), whole
    while ranked and len(planned.metadata()) > TAKE_LIMIT:
        del ranked[len(ranked) * 4 // 5 :]
        planned = replace(whole, suspects={offset: suspects[offset] for offset in ranked})
    return planned


def _cannot_run(suspect: Suspect) -> bool:
    """Whether a map that says this of a record says that it does not run: it has to run alone, and waits for its turn."""
    return suspect.deaths >= ALONE_AFTER and not suspect.joined


def _left_behind(prior: OffsetMap, *, unclean: bool) -> dict[int, Suspect]:
    """The suspects to begin with: those of the last owner and, if it was lost, everything that it may have been running."""
    # Whoever it was that ran beside others: nothing of ours runs.
    suspects = {offset: replace(suspect, joined=False) for offset, suspect in prior.suspects.items()}
    if unclean:
        # Beside one that ran alone nothing ran.
        ran = range(prior.offset, prior.start_limit) if prior.alone is None else (prior.alone,)
        for offset in ran:
            before = prior.suspects.get(offset, Suspect())
            if offset in prior.finished or (
                offset != prior.alone and (offset in prior.held or _cannot_run(before))
            ):
                continue
            suspects[offset] = Suspect((*before.owners, prior.incarnation)[-MAX_OWNERS:], before.alone)
    return suspects
