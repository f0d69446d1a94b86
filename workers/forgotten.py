"""End a transaction that Kafka itself has forgotten.

In:  the transactional id of a worker. Out: nothing of it is open any more.

A broker (4.3.1 and its neighbours, KAFKA-20734) that has decided a transaction's end and finds, before it has written
that into the partitions, that they have no leader for a moment takes them for deleted. It does so when it is started
again after kill -9, for one. Nobody ends that transaction any more: the group's offsets stay unstable for ever, and
the partition is dead. But markers are written by producer id: the next transaction of the same id that touches the
same partitions closes the forgotten one as well, in its own way. So that has to be the right way, and the
coordinator's own log says which: an abort of what was committed would run finished jobs again, a commit of what was
aborted would lose them.

Where that log may not be read, everything is aborted: then jobs that the forgotten transaction had finished run twice,
and none is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from streams.empty_transaction import end_empty_transaction
from streams.scan import Partition
from streams.settings import Settings
from streams.transaction_log import Step, TransactionLogUnreadable, last_decisions, read_entries

log = structlog.get_logger("rustfs_workers.forgotten")

#: Longer than Kafka takes to end a dead worker's transaction (its time-out, and the interval of looking for it).
PATIENCE_S: Final = 8.0
#: Heirs of the same worker wait for differently long on top of it: one of them is enough, and two disturb each other.
SPREAD_S: Final = 4.0
_READ_S: Final = 20.0
_END_S: Final = 10.0
#: One that began so lately may be another heir's, on its way to end what was forgotten: taking its id would abort that.
_JUST_BEGUN_MS: Final = 6_000
_OFFSETS_TOPIC: Final = "__consumer_offsets"


class ForgottenTransactions:
    """Knows all partitions that a worker's transaction may have touched. Blocks; for threads without an event loop."""

    def __init__(self, settings: Settings, partitions: Callable[[], int]) -> None:
        self._settings = settings
        self._count = partitions

    @property
    def partitions(self) -> int:
        """How many each topic has."""
        return self._count()

    def end(self, transactional_id: str) -> None:
        """Bring each partition's last transaction of this id to the end that was decided. Fences the id's producer.

        Raises:
            KafkaUnreachable: no end in time. KafkaRefused: the id was taken meanwhile, or is not ours to use.
        """
        decided = self._decided(transactional_id)
        if decided is None:
            return
        group = self._settings.topics.group
        for commit in (True, False):
            partitions = {place for place, was_commit in decided.items() if was_commit is commit}
            offsets = {place for place in partitions if place[0] == _OFFSETS_TOPIC}
            if partitions:
                asyncio.run(
                    end_empty_transaction(
                        self._settings,
                        transactional_id,
                        sorted(partitions - offsets),
                        group=group if offsets else None,
                        commit=commit,
                        timeout_s=_END_S,
                    )
                )
        log.warning(
            "offsets were unstable for too long: ended what Kafka may have forgotten",
            transactional_id=transactional_id,
            committed=sum(decided.values()),
            aborted=len(decided) - sum(decided.values()),
        )

    def _decided(self, transactional_id: str) -> Mapping[Partition, bool] | None:
        """How each partition's last transaction is to end; None: somebody is about to end it."""
        try:
            entries = read_entries(self._settings, transactional_id, timeout_s=_READ_S)
        except TransactionLogUnreadable as error:
            log.warning(
                "Kafka's log of transactions cannot be read, so a forgotten one is aborted whatever it was: "
                "jobs that it has finished run again",
                transactional_id=transactional_id,
                error=str(error),
            )
            return dict.fromkeys(self._every(), False)
        if entries and entries[-1].step is Step.ONGOING:
            age_ms = time.time_ns() // 1_000_000 - entries[-1].at_ms
            if 0 <= age_ms < _JUST_BEGUN_MS:
                log.info("its transaction has just begun", transactional_id=transactional_id, age_ms=age_ms)
                return None
        decided = last_decisions(entries)
        if entries and not any(topic == _OFFSETS_TOPIC for topic, _ in decided):
            # Compaction has left no more than its last step.
            committed = entries[-1].step is Step.COMPLETE_COMMIT
            return {**dict.fromkeys(self._every(), committed), **decided}
        return decided

    def _every(self) -> list[Partition]:
        topics = self._settings.topics
        written = (*topics.consumed, topics.dlq, topics.status)
        places = [(topic, number) for topic in written for number in range(self.partitions)]
        return [*places, (_OFFSETS_TOPIC, 0)]
