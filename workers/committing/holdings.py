"""Which partitions are ours, and of which offsets are under way at Kafka.

The poll thread says what is ours, and asks before it takes something or lets it go; the commit thread says what it is about to
change. One lock, that of the partitions' states, makes both see the same.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

from schemas.topics import Partition
from workers.offsets import PartitionState


class Holdings:
    """Any thread; where it says so, under the lock. The events that it gives are waited for without it."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        #: All that is ours. Under the lock.
        self.parts: set[PartitionState] = set()
        #: Whose offsets a transaction of ours may still change.
        self._unsettled = _UnderWay()
        #: What may not be let go: offsets of it have been sent in a transaction that has not ended, or it is in doubt.
        self._kept = _UnderWay()
        self._doubtful: frozenset[PartitionState] = frozenset()
        #: To be let go as soon as it may be.
        self._wanted: frozenset[Partition] = frozenset()

    # --- for the poll thread ---------------------------------------------------------------------------

    def own(self, parts: Iterable[PartitionState]) -> None:
        """These are ours from now on. Under the lock."""
        self.parts = set(parts)
        self._wanted = frozenset()

    def settled(self, places: Collection[Partition]) -> threading.Event:
        """Set as soon as no transaction of ours can still change the committed offsets of these partitions.

        Kafka takes metadata of an earlier epoch for what the member has kept since (KIP-1251), and a member that was fenced and
        joins again has kept it: our own late commit would land behind the read with which we begin anew.
        """
        with self.lock:
            return self._unsettled.over(places)

    def free(self, places: Collection[Partition]) -> threading.Event:
        """Set as soon as no transaction with offsets of these is on its way, and nothing of them in doubt; for that moment."""
        with self.lock:
            return self._kept.over(places)

    def let_go(self, places: Collection[Partition]) -> threading.Event:
        """Give each of these away as soon as it is free. Set when all are.

        What is sent late would land behind their next owner's read. Of a commit Kafka may have kept a part, and only their owner
        writes the rest: whoever has them next would run again what has an end already.
        """
        with self.lock:
            self._wanted = frozenset(places)
            self._give_away()
            return self._kept.over(places)

    # --- for the commit thread -------------------------------------------------------------------------

    @property
    def owned(self) -> list[PartitionState]:
        """What has not been taken from us meanwhile. Under the lock."""
        return [part for part in self.parts if part.owned]

    @property
    def unsettled(self) -> frozenset[PartitionState]:
        """What the transaction that is under way has offsets of."""
        return self._unsettled.parts

    @property
    def doubtful(self) -> frozenset[PartitionState]:
        """Of which Kafka may have kept a part that we have not completed."""
        return self._doubtful

    def begin(self, parts: Collection[PartitionState]) -> None:
        """A transaction will change the offsets of these. Under the lock."""
        self._unsettled.become(parts)

    def may_send(self) -> bool:
        """Whether all that it has offsets of is still ours; if so, it stays so until the transaction has ended."""
        with self.lock:
            if not self._is_ours():
                return False
            self._kept.become(self._doubtful | self._unsettled.parts)
            return True

    def may_commit(self) -> bool:
        """The same, right before the commit is asked for: whoever was fenced has lost it all the same."""
        with self.lock:
            return self._is_ours()

    def doubt(self, parts: Iterable[PartitionState]) -> None:
        """These, and no others, are in doubt. Under the lock."""
        self._doubtful = frozenset(parts)
        self._keep(self._kept.parts | self._doubtful)

    def settle(self) -> None:
        """What was begun has ended, whichever way. Under the lock."""
        self._unsettled.become(())
        self._keep(self._doubtful)

    def end_doubt(self) -> None:
        """Everything that follows from our commits is done, or not ours to do any more. Under the lock."""
        self.doubt(())
        self.settle()

    # --- inside ----------------------------------------------------------------------------------------

    def _is_ours(self) -> bool:
        return all(part.owned for part in self._unsettled.parts)

    def _keep(self, parts: frozenset[PartitionState]) -> None:
        self._kept.become(parts)
        self._give_away()

    def _give_away(self) -> None:
        if self._wanted:
            for part in self.parts - self._kept.parts:
                if part.place in self._wanted:
                    part.owned = False


class _UnderWay:
    """Partitions with which something is under way, and who waits for its end."""

    def __init__(self) -> None:
        self.parts: frozenset[PartitionState] = frozenset()
        self._waiting: list[tuple[Collection[Partition], threading.Event]] = []

    def become(self, parts: Iterable[PartitionState]) -> None:
        self.parts = frozenset(parts)
        waiting, self._waiting = self._waiting, []
        for places, done in waiting:
            if self._is_over(places):
                done.set()
            else:
                self._waiting.append((places, done))

    def over(self, places: Collection[Partition]) -> threading.Event:
        """Set as soon as nothing is under way with any of these."""
        done = threading.Event()
        if self._is_over(places):
            done.set()
        else:
            self._waiting.append((places, done))
        return done

    def _is_over(self, places: Collection[Partition]) -> bool:
        return not any(part.place in places for part in self.parts)
