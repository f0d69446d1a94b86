"""End a transaction that Kafka itself has forgotten.

In:  the transactional id of a worker, or whatever else writes transactions for this deployment. Out: nothing of it is open any more.

A broker (4.3.1 and its neighbours, KAFKA-20734) that has decided a transaction's end and finds, before it has written
that into the partitions, that they have no leader for a moment takes them for deleted. It does so when it is started
again after kill -9, for one. Nobody ends that transaction any more: the group's offsets stay unstable for ever, and
the partition is dead. But markers are written by producer id: the next transaction of the same id that touches the
same partitions closes the forgotten one as well, in its own way. So that has to be the right way, and the
coordinator's own log says which: an abort of what was committed would run finished jobs again, a commit of what was
aborted would lose them.

Where that log may not be read, everything is aborted, for nobody could ever work on otherwise: jobs that the forgotten
transaction had finished run twice then, and what it forwarded may be gone where its offsets are not.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from schemas.errors import PipelineError
from schemas.topics import Partition
from streams.empty_transaction import EMPTY_TIMEOUT_MS, taken_over
from streams.settings import Settings
from streams.transaction_log import (
    Entry,
    Step,
    TransactionLogUnreadable,
    last_decisions,
    read_all_entries,
    read_entries,
)
from streams.transactional_ids import is_ours, of_redrive

log = structlog.get_logger("rustfs_workers.forgotten")

#: Longer than a dead worker's transaction lasts: its time-out, and how often our brokers look for such. (By Kafka's own
#: default they look every ten seconds. Then it is us who ends it, and no harm is done.)
PATIENCE_S: Final = 8.0
#: Heirs of the same worker wait for differently long on top of it: one of them is enough, and two disturb each other.
SPREAD_S: Final = 4.0
_READ_S: Final = 24.0
_ANSWER_S: Final = 10.0
#: One that began so lately is still somebody's. Later Kafka has ended a worker's, and who ends forgotten ones is gone.
_JUST_BEGUN_MS: Final = 6_000
_DECIDED: Final = frozenset(
    {Step.PREPARE_COMMIT, Step.PREPARE_ABORT, Step.COMPLETE_COMMIT, Step.COMPLETE_ABORT}
)
_COMMITTED: Final = frozenset({Step.PREPARE_COMMIT, Step.COMPLETE_COMMIT})
_OFFSETS_TOPIC: Final = "__consumer_offsets"


class ForgottenTransactions:
    """Knows all partitions that a worker's transaction may have touched. Blocks; for threads without an event loop."""

    def __init__(self, settings: Settings, partitions: Callable[[], int]) -> None:
        self._settings = settings
        self._count = partitions
        #: The poll thread and the commit thread would take one id from each other.
        self._lock = threading.Lock()

    @property
    def partitions(self) -> int:
        """How many each topic has."""
        return self._count()

    def end(self, transactional_id: str, hanging: set[Partition] | None = None) -> bool:
        """Bring each partition's last transaction of this id to the end that was decided.

        Whoever has the id is fenced, and what is open under it is aborted. ``hanging`` says which partitions this is about;
        by default it is the group's offsets, which every transaction of a worker touches. False: there is an open one that
        will end them as well.

        Raises:
            KafkaUnreachable: no end in time. KafkaRefused: the id was taken meanwhile, or is not ours to use.
        """
        with self._lock:
            return asyncio.run(self._end(transactional_id, hanging))

    def end_where(self, hanging: set[Partition]) -> bool:
        """End every transaction of ours that was decided in one of these partitions last. False: not each of them.

        Raises:
            KafkaUnreachable: the log cannot be read now. TransactionLogUnreadable: nobody here can know whose they are.
        """
        known = self._read_all()
        authors = [name for name, entries in known.items() if not hanging.isdisjoint(last_decisions(entries))]
        if not authors:
            log.warning(
                "nobody of this deployment has decided a transaction there last: whoever it is has to end it",
                partitions=sorted(f"{topic}/{number}" for topic, number in hanging),
            )
        ended = [self._try_to_end(name, hanging) for name in authors]
        return all(ended)

    def who_wrote_offsets(self) -> list[str]:
        """Every transactional id of ours whose transactions have touched offsets of groups: one of them may hold them back.

        The latest first: where each process has a name of its own, there are many that are long gone.

        Raises:
            As ``end_where``.
        """
        known = self._read_all()
        touched = [
            name
            for name, entries in known.items()
            if any(topic == _OFFSETS_TOPIC for topic, _ in last_decisions(entries))
        ]
        return sorted(touched, key=lambda name: known[name][-1].at_ms, reverse=True)

    def _read_all(self) -> dict[str, list[Entry]]:
        topics = self._settings.topics
        known = read_all_entries(self._settings, topics.prefix, timeout_s=_READ_S)
        return {name: entries for name, entries in known.items() if is_ours(topics, name)}

    def _try_to_end(self, transactional_id: str, hanging: set[Partition]) -> bool:
        """One that cannot be ended now keeps nobody from ending the others."""
        try:
            return self.end(transactional_id, hanging)
        except PipelineError as error:
            log.warning("what hangs cannot be ended now", transactional_id=transactional_id, error=str(error))
            return False

    async def _end(self, transactional_id: str, hanging: set[Partition] | None) -> bool:
        # In threads of this loop's own: the worker's may all be waiting for this very call.
        entries = await asyncio.to_thread(self._read, transactional_id)
        if entries is not None:
            if not entries:
                return True
            if _ends_them_itself(entries[-1], hanging):
                log.info("its open transaction ends them as well", transactional_id=transactional_id)
                return False
        async with taken_over(self._settings, transactional_id, timeout_s=_ANSWER_S) as ours:
            # Read again: whatever comes later than our taking it over makes the requests below fail.
            decided = await asyncio.to_thread(self._decided, transactional_id)
            for commit in (True, False):
                partitions = sorted(place for place, was_commit in decided.items() if was_commit is commit)
                touches_offsets = any(topic == _OFFSETS_TOPIC for topic, _ in partitions)
                await ours.end(
                    [place for place in partitions if place[0] != _OFFSETS_TOPIC],
                    group=self._settings.topics.group if touches_offsets else None,
                    commit=commit,
                )
        if decided:
            log.warning(
                "ended whatever Kafka may have forgotten",
                transactional_id=transactional_id,
                partitions_committed=sum(decided.values()),
                partitions_aborted=len(decided) - sum(decided.values()),
            )
        return True

    def _decided(self, transactional_id: str) -> Mapping[Partition, bool]:
        """How each partition's last transaction is to end; True is a commit."""
        entries = self._read(transactional_id)
        if entries is None:
            return dict.fromkeys(self._every(), False)
        decided = last_decisions(entries)
        writes_no_offsets = transactional_id == of_redrive(self._settings.topics)
        if any(topic == _OFFSETS_TOPIC for topic, _ in decided) or (decided and writes_no_offsets):
            return decided
        # Compaction may have left no more of the last one than its last step. Taking the id over is a step as well, of none.
        newest = [entry for entry in entries if entry.producer_id == entries[-1].producer_id]
        last = next((entry.step for entry in reversed(newest) if entry.step in _DECIDED), None)
        if last is None:
            return decided
        return {**dict.fromkeys(self._every(), last in _COMMITTED), **decided}

    def _read(self, transactional_id: str) -> Sequence[Entry] | None:
        """Its entries; None if nobody here will ever read them."""
        try:
            return read_entries(self._settings, transactional_id, timeout_s=_READ_S)
        except TransactionLogUnreadable as error:
            log.warning(
                "Kafka's log of transactions cannot be read, so a forgotten one is aborted whatever it was: "
                "jobs that it has finished run again",
                transactional_id=transactional_id,
                error=str(error),
            )
            return None

    def _every(self) -> list[Partition]:
        topics = self._settings.topics
        places = [(topic, number) for topic in topics.transactional for number in range(self.partitions)]
        return [*places, (topics.schemas, 0), (_OFFSETS_TOPIC, 0)]


def _ends_them_itself(last: Entry, hanging: set[Partition] | None) -> bool:
    """Whether a transaction is open that will leave its marker there: an heir's, or that of an author who lives.

    To take its id now would abort it, and what it was to end as well.
    """
    if last.step is not Step.ONGOING:
        return False
    # By two clocks, which may differ either way.
    if abs(time.time_ns() // 1_000_000 - last.at_ms) >= _JUST_BEGUN_MS:
        return False
    return hanging is None or last.timeout_ms == EMPTY_TIMEOUT_MS or not hanging.isdisjoint(last.partitions)
