"""Which partitions are ours, and of which offsets are under way at Kafka.

The poll thread says what is ours, and asks before it takes something or lets it go; the commit thread says what it is about to
change. One lock, that of the partitions' states, makes both see the same.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

from workers.offsets import PartitionState, Place


class Holdings:
    """Any thread; where it says so, under the lock. The events that it gives are waited for without it."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        #: All that is ours. Under the lock.
        self.parts: set[PartitionState] = set()
        #: Whose offsets a transaction of ours may still change.
        self._unsettled = _UnderWay()
        #: Whose offsets have been sent, and not answered.
        self._on_the_way = _UnderWay()
        #: Of which a commit has been asked for, and not everything that follows from it is done.
        self._in_doubt = _UnderWay()

    # --- for the poll thread ---------------------------------------------------------------------------

    def own(self, parts: Iterable[PartitionState]) -> None:
        """These are ours from now on. Under the lock."""
        self.parts = set(parts)

    def settled(self, places: Collection[Place]) -> threading.Event:
        """Set as soon as no transaction of ours can still change the committed offsets of these partitions.

        Kafka takes metadata of an earlier epoch for what the member has kept since (KIP-1251), and a member that was fenced and
        joins again has kept it: our own late commit would land behind the read with which we begin anew.
        """
        with self.lock:
            return self._unsettled.over(places)

    def answered(self, places: Collection[Place]) -> threading.Event:
        """Set as soon as no offsets of these, which are ours no longer, are on their way to Kafka."""
        with self.lock:
            return self._on_the_way.over(places)

    def beyond_doubt(self, places: Collection[Place]) -> threading.Event:
        """Set as soon as no commit with offsets of these can have been kept in part by Kafka, or what was missing is written.

        Only their owner writes it. Whoever has them next would run again what has an end already.
        """
        with self.lock:
            return self._in_doubt.over(places)

    # --- for the commit thread -------------------------------------------------------------------------

    @property
    def owned(self) -> list[PartitionState]:
        """What has not been taken from us meanwhile. Under the lock."""
        return [part for part in self.parts if part.owned]

    @property
    def unsettled(self) -> frozenset[PartitionState]:
        """What the transaction that is under way has offsets of."""
        return self._unsettled.parts

    def begin(self, parts: Collection[PartitionState]) -> None:
        """A transaction will change the offsets of these. Under the lock."""
        self._unsettled.begin(parts)

    def may_send(self) -> bool:
        """Whether all that it has offsets of is still ours; if so, it stays so until they are answered."""
        with self.lock:
            if not all(part.owned for part in self._unsettled.parts):
                return False
            self._on_the_way.begin(self._unsettled.parts)
            return True

    def note_answered(self) -> None:
        """Kafka has answered the offsets that were sent."""
        with self.lock:
            self._on_the_way.end()

    def may_commit(self) -> bool:
        """The same, right before the commit is asked for; if so, they stay ours until it is beyond doubt."""
        with self.lock:
            if not all(part.owned for part in self._unsettled.parts):
                return False
            self._in_doubt.begin(self._in_doubt.parts | self._unsettled.parts)
            return True

    def end_doubt(self) -> None:
        """Everything that follows from our commits is done, or not ours to do any more. Under the lock."""
        self._in_doubt.end()

    def settle(self) -> None:
        """What was begun has ended, whichever way. Under the lock."""
        self._on_the_way.end()
        self._unsettled.end()


class _UnderWay:
    """Partitions with which something is under way, and who waits for its end."""

    def __init__(self) -> None:
        self.parts: frozenset[PartitionState] = frozenset()
        self._waiting: list[threading.Event] = []

    def begin(self, parts: Collection[PartitionState]) -> None:
        self.parts = frozenset(parts)

    def end(self) -> None:
        self.parts = frozenset()
        for done in self._waiting:
            done.set()
        self._waiting.clear()

    def over(self, places: Collection[Place]) -> threading.Event:
        """Set as soon as nothing is under way with any of these."""
        done = threading.Event()
        if any(part.place in places for part in self.parts):
            self._waiting.append(done)
        else:
            done.set()
        return done
