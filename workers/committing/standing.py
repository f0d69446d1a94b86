"""Asks Kafka which of our writes it has kept, after a commit whose answer does not say that.

In:  partitions, or the records of outcomes. Out: the offsets and maps that are committed, and which of the records readers
see, as soon as no transaction is about to change them.

For the commit thread alone, which it keeps waiting: each question has its own limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Final, Protocol

import structlog

from schemas.errors import KafkaUnreachable, PipelineError
from schemas.offsetmap import OffsetMap
from schemas.topics import Partition
from streams.visible import Written, is_forbidden
from workers.committing.counters import Counters
from workers.committing.torn import WrittenOutcome
from workers.committing.transactions import NobodyWaits

log = structlog.get_logger("rustfs_workers.commit")

#: Longer than Kafka takes to end a dead worker's transaction, which may hide our records; and than we take to find one that
#: it has forgotten.
_PATIENCE_TO_SEE_S: Final = 40.0


class ReadBack(Protocol):
    """Reads what is committed, waiting for pending transactions."""

    def __call__(self, places: Iterable[Partition]) -> dict[Partition, OffsetMap]:
        """Offset and map of each partition."""
        ...


class ReadVisible(Protocol):
    """Reads which of some records were committed, waiting for pending transactions."""

    def __call__(self, records: Collection[Written], since_ms: int) -> set[Written]:
        """Those that stand in Kafka, if they were not written before then."""
        ...


class Standing:
    """Asks Kafka.

    Args:
        read_back: what is committed.
        read_visible: which records are seen.
        end_forgotten: ends transactions that Kafka has forgotten, which hide what is behind them.
        renew: makes a new producer, which ends a transaction of our own that is still open.
        given_up: whether the worker stops: then nobody waits for Kafka.
        counters: counts what could not be verified.
    """

    def __init__(
        self,
        *,
        read_back: ReadBack,
        read_visible: ReadVisible,
        end_forgotten: Callable[[], None],
        renew: Callable[[], None],
        given_up: Callable[[], bool],
        counters: Counters,
    ) -> None:
        self._read_back = read_back
        self._read_visible = read_visible
        self._end_forgotten = end_forgotten
        self._renew = renew
        self._given_up = given_up
        self._counters = counters

    def committed(
        self, ours: Collection[Partition], lost: Collection[Partition]
    ) -> dict[Partition, OffsetMap] | None:
        """Offsets and maps of ``ours``, and those of ``lost`` that can be had. One try.

        None: they cannot be had now, and what could be in the way has been ended, if it could be. Ask again, for what is ours
        then.

        Raises:
            NobodyWaits: Kafka is away, and the worker stops.
            PipelineError: Kafka refuses to say.
            KafkaException: there is no new producer.
        """
        try:
            read = self._read_back(ours)
        except KafkaUnreachable as error:
            if self._given_up():
                raise NobodyWaits(str(error)) from error
            log.warning("what is committed cannot be read yet", error=str(error))
        else:
            return self._lost(set(lost) - read.keys()) | read
        # Either Kafka is away again, and this waits for it; or our own transaction is the one that stays open.
        try:
            self._end_forgotten()
        except PipelineError as error:
            log.warning("a forgotten transaction cannot be ended now", error=str(error))
        self._renew()
        return None

    def visible(self, written: Iterable[WrittenOutcome], since_ms: int) -> set[Written] | None:
        """Which of these records stand; None if that cannot be known, or not for too long."""
        wanted = {
            record for status, records in written for record in (status, *records) if record is not None
        }
        deadline = time.monotonic() + _PATIENCE_TO_SEE_S
        while True:
            try:
                return self._read_visible(wanted, since_ms)
            except PipelineError as error:
                if is_forbidden(error) or self._given_up() or time.monotonic() > deadline:
                    self._counters.event("unverified_commits")
                    log.warning(
                        "what is visible of a transaction cannot be read: its offsets have to speak for its records",
                        error=str(error),
                    )
                    return None
                log.warning("what is visible of a transaction cannot be read yet", error=str(error))

    def _lost(self, places: set[Partition]) -> dict[Partition, OffsetMap]:
        """Of partitions that others have: what we have finished there, and nobody after us, nobody else will write."""
        try:
            return self._read_back(places) if places else {}
        except PipelineError as error:
            # An heir's map may be of a newer version, or its transaction stay open.
            log.info("what is committed of lost partitions cannot be read", error=str(error))
            return {}
