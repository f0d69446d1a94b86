"""After an answer of Kafka that cannot be trusted: what stands, what is ours, and what is left to write.

In:  the outcomes of a transaction. Out: which of them Kafka has, and which are missing (``workers.committing.torn``).

A commit whose answer says too little is never repeated blindly. It may have succeeded, and then the same outcomes would be
written twice. A new producer ends whatever is open, the committed offsets and maps are read back, and so are the records, for
Kafka may have kept a part.

For the commit thread alone, which it keeps waiting for as long as Kafka is away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from schemas.errors import CommitVanished
from schemas.offsetmap import OffsetMap
from workers.committing.holdings import Holdings
from workers.committing.standing import Standing
from workers.committing.torn import Left, what_is_left
from workers.committing.transactions import Transactions
from workers.offsets import PartitionState, Place
from workers.outcome import Outcome

log = structlog.get_logger("rustfs_workers.commit")


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

    def recover(self, outcomes: list[Outcome], began_ms: int) -> tuple[Left, bool]:
        """With a new producer: what became of outcomes that were tried since ``began_ms`` (milliseconds since 1970).

        The flag: whether what is visible of them is known; otherwise their offsets have spoken for them.

        Raises:
            CommitVanished: Kafka shows less than it has acknowledged.
            KafkaException, PipelineError: as ``Transactions.renew`` and ``Standing.committed``.
        """
        self._transactions.renew()
        with self._holdings.lock:
            self._holdings.settle()
        owned, read = self._what_stands(outcomes)
        written = [self._transactions.records_of(outcome) for outcome in outcomes]
        visible = self._standing.visible(written, began_ms)
        with self._holdings.lock:
            taken = _give_up_what_others_have(owned, read)
            for part in owned:
                if part.owned and not part.agrees_with(read[part.place]):
                    raise _vanished(part, read[part.place])
            for part in owned:
                if part.owned:
                    part.adopt(read[part.place])
        self._join_again_without(taken)
        return what_is_left(outcomes, written, read, visible), visible is not None

    def go_on_with(self, metadata: Any, outcomes: list[Outcome]) -> None:
        """Use these for what is ours, if nobody has committed for it meanwhile.

        A coordinator can have forgotten a partition, given it to somebody else, and given it to us again before we have heard of
        that.
        """
        owned, read = self._what_stands(outcomes)
        with self._holdings.lock:
            taken = _give_up_what_others_have(owned, read)
            for part in owned:
                part.metadata = metadata
        self._join_again_without(taken)

    def _what_stands(self, outcomes: list[Outcome]) -> tuple[list[PartitionState], dict[Place, OffsetMap]]:
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


def _give_up_what_others_have(
    owned: Iterable[PartitionState], read: Mapping[Place, OffsetMap]
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
