"""After an answer of Kafka that cannot be trusted: what stands, what is ours, and what is left to write.

In:  the outcomes of a transaction. Out: which of them Kafka has, and which are missing (``workers.committing.torn``).

A commit whose answer says too little is never repeated blindly. It may have succeeded, and then the same outcomes would be
written twice. A new producer ends whatever is open, the committed offsets and maps are read back, and so are the records, for
Kafka may have kept a part.

Nor is the last transaction beyond doubt when a connection is lost after it. Its coordinator may have been killed before it had
told all partitions of the end, and have forgotten that when it came back (``workers.committing.forgotten``); our next transaction
there ends it as well, in its own way, and an abort undoes what has long been acknowledged. So it is looked at again, too.

For the commit thread alone, which it keeps waiting for as long as Kafka is away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from schemas.errors import CommitVanished
from schemas.offsetmap import OffsetMap
from schemas.topics import Partition
from workers.committing.holdings import Holdings
from workers.committing.standing import Standing
from workers.committing.torn import Left, what_is_left
from workers.committing.transactions import Transactions
from workers.offsets import PartitionState
from workers.outcome import Outcome

log = structlog.get_logger("rustfs_workers.commit")


#: Longer than Kafka may be away, for nobody has looked after what hangs by then (``workers.committing.hanging``); and less than what
#: brokers let connections idle for, so that an idle worker does not read again what all others have written meanwhile.
_DOUBTFUL_FOR_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Committed:
    """A transaction that Kafka has acknowledged."""

    outcomes: list[Outcome]
    #: What was committed of each partition before it: offset, and what was finished behind that.
    before: Mapping[Partition, tuple[int, Iterable[int]]]
    #: Since when it was tried, in milliseconds since 1970.
    began_ms: int
    #: When it was acknowledged, by the steady clock; infinity: it is in doubt until it has been looked at.
    at_s: float


class Recovery:
    """Finds out where we are.

    Args:
        holdings: what is ours; what others have committed for meanwhile is given up.
        transactions: gets a new producer, and says what outcomes write.
        standing: asks Kafka.
        rejoin: lets the poll thread leave the group, and join it again.
    """

    def __init__(
        self,
        *,
        holdings: Holdings,
        transactions: Transactions,
        standing: Standing,
        rejoin: Callable[[], None],
    ) -> None:
        self._holdings = holdings
        self._transactions = transactions
        self._standing = standing
        self._rejoin = rejoin
        self._last: _Committed | None = None

    def remember(
        self,
        outcomes: list[Outcome],
        before: Mapping[Partition, tuple[int, Iterable[int]]],
        began_ms: int,
    ) -> None:
        """These were committed, as Kafka says; ``before``: offsets, and what was finished behind them, until then."""
        self._last = _Committed(outcomes, before, began_ms, time.monotonic())

    @property
    def in_question(self) -> frozenset[PartitionState]:
        """Partitions of ours whose last acknowledged commit may yet be undone. Under the lock."""
        last = self._in_doubt()
        if last is None:
            return frozenset()
        return frozenset(part for part in self._holdings.owned if part.place in last.before)

    def look_back(self, now_ms: int) -> tuple[Left, bool]:
        """With a new producer, and before another transaction: what is missing of the last one, if that is in doubt.

        The flag: as ``recover``.

        Raises:
            As ``recover``.
        """
        if self._in_doubt() is None:
            self._transactions.renew()
            return Left(), True
        return self.recover([], now_ms)

    def recover(self, outcomes: list[Outcome], began_ms: int) -> tuple[Left, bool]:
        """With a new producer: what became of outcomes that were tried since ``began_ms`` (milliseconds since 1970).

        What is missing of the last transaction comes before them; what stands of it has been counted, and is left out. The flag:
        whether what is visible is known; otherwise offsets have spoken for records.

        Raises:
            CommitVanished: Kafka shows less than it has acknowledged.
            KafkaException, PipelineError: as ``Transactions.renew`` and ``Standing.committed``.
        """
        last = self._in_doubt()
        if last is not None:
            # Until it has been looked at, however long Kafka is away: what is doubtful now is not known later.
            self._last = last = replace(last, at_s=math.inf)
        self._transactions.renew()
        with self._holdings.lock:
            self._holdings.settle()
        counted = [] if last is None else _without_counts(last.outcomes)
        outcomes = [*counted, *outcomes]
        owned, read = self._what_stands(outcomes)
        written = [self._transactions.records_of(outcome) for outcome in outcomes]
        visible = self._standing.visible(written, began_ms if last is None else last.began_ms)
        with self._holdings.lock:
            taken = _give_up_what_others_have(owned, read)
            for part in owned:
                committed = read[part.place]
                if part.owned and not (part.agrees_with(committed) or _was_undone(last, part, committed)):
                    raise _vanished(part, committed)
            for part in owned:
                if part.owned:
                    part.adopt(read[part.place])
        self._join_again_without(taken)
        self._last = None
        left = what_is_left(outcomes, written, read, visible, acknowledged=len(counted))
        known = set(map(id, counted))
        left.standing = [outcome for outcome in left.standing if id(outcome) not in known]
        return left, visible is not None

    def go_on_with(self, metadata: Any, outcomes: list[Outcome]) -> None:
        """Use these for what is ours, if nobody has committed for it meanwhile.

        A coordinator can have forgotten a partition, given it to somebody else, and given it to us again before we have heard of
        that.
        """
        with self._holdings.lock:
            refused = {part: part.metadata for part in self._holdings.owned}
        owned, read = self._what_stands(outcomes)
        with self._holdings.lock:
            taken = _give_up_what_others_have(owned, read)
            for part in owned:
                # What came while Kafka was asked has newer ones already.
                if part in refused and part.metadata is refused[part]:
                    part.metadata = metadata
        self._join_again_without(taken)

    def _in_doubt(self) -> _Committed | None:
        last = self._last
        return last if last is not None and time.monotonic() - last.at_s < _DOUBTFUL_FOR_S else None

    def _what_stands(
        self, outcomes: list[Outcome]
    ) -> tuple[list[PartitionState], dict[Partition, OffsetMap]]:
        """The partitions that are ours, and offsets and maps, as soon as no transaction is about to change them."""
        while True:
            with self._holdings.lock:
                owned = self._holdings.owned
                lost = {o.message.part.place for o in outcomes if o.message and not o.message.part.owned}
            read = self._standing.committed({part.place for part in owned}, lost)
            if read is not None:
                return owned, read

    def _join_again_without(self, taken: list[PartitionState]) -> None:
        if taken:
            log.warning(
                "others have committed for partitions of ours: joining the group again",
                partitions=sorted({part.partition for part in taken}),
            )
            self._rejoin()


def _without_counts(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """What has been counted is not counted again if a part of it is written once more. News are never missed."""
    return [
        replace(outcome, counts_as=None, event=None)
        for outcome in outcomes
        if outcome.message is not None or outcome.late
    ]


def _was_undone(last: _Committed | None, part: PartitionState, read: OffsetMap) -> bool:
    """Whether all that is missing is what the last transaction had finished: it is committed once more, with its records."""
    if last is None or part.place not in last.before:
        return False
    offset, finished = last.before[part.place]
    return read.offset >= offset and all(read.is_finished(one) for one in finished)


def _give_up_what_others_have(
    owned: Iterable[PartitionState], read: Mapping[Partition, OffsetMap]
) -> list[PartitionState]:
    """Under the lock."""
    taken = [part for part in owned if part.owned and part.is_taken_over(read[part.place])]
    for part in taken:
        part.owned = False
    return taken


def _vanished(part: PartitionState, committed: OffsetMap) -> CommitVanished:
    return CommitVanished(
        f"Kafka has acknowledged more of {part.topic}/{part.partition} (up to {part.base}) than it shows now (up to "
        f"{committed.offset}): it has lost a transaction. This worker stops; after a restart the jobs concerned run again"
    )
