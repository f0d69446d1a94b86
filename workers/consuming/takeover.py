"""What a successor needs to know of its predecessor, and how it ends what the dead one left open.

In:  partitions just assigned. Out: their committed offset and map.

A worker that dies in the middle of a transaction holds back everybody who reads its partitions until
the broker gives the transaction up, seconds later. Its successor finds the transactional id in the map,
takes it for a moment, and so ends the transaction at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

import structlog
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from schemas.errors import KafkaUnreachable, PipelineError
from schemas.offsetmap import OffsetMap, parse
from schemas.topics import Partition
from streams.committed import committed_offsets, passes
from streams.producer_end import let_go
from streams.settings import Settings
from workers.committing.forgotten import PATIENCE_S, SPREAD_S, ForgottenTransactions

log = structlog.get_logger("rustfs_workers.takeover")

#: A live predecessor's last transaction takes milliseconds; one that is still open after this is a dead one's.
_PATIENCE_S = 0.3
_READ_TIMEOUT_S = 2.0
_LIMIT_S = 60.0
_PAUSE_S = 0.05
#: What a read gets while a transaction is about to commit offsets of its partitions.
_HELD_BACK = frozenset({KafkaError._TIMED_OUT, KafkaError.UNSTABLE_OFFSET_COMMIT})


class CommittedOffsets:
    """Reads offsets and maps of one group. Blocks; for threads, not for the event loop."""

    def __init__(
        self,
        settings: Settings,
        make_producer: Callable[[str], Producer],
        *,
        own_transactional_id: str,
        forgotten: ForgottenTransactions,
    ) -> None:
        self._settings = settings
        self._group = settings.topics.group
        self._make_producer = make_producer
        self._own = own_transactional_id
        self._forgotten = forgotten

    def for_assignment(self, consumer: Consumer, places: Iterable[Partition]) -> dict[Partition, OffsetMap]:
        """Offset and map of each partition, from one read, repeated until Kafka answers.

        Raises:
            GroupNotInitialised: an offset or a map is missing.
            KafkaUnreachable: no answer within a minute.
        """
        wanted = [TopicPartition(topic, partition) for topic, partition in places]
        deadline = time.monotonic() + _LIMIT_S
        #: Since when something holds back the offsets, while the coordinator itself answers.
        held_back_since: float | None = None
        enough_s, everybody = _patience_s(), False
        patience = _PATIENCE_S
        ended: set[str] = set()
        while True:
            try:
                read = consumer.committed(wanted, timeout=patience)
                for tp in read:
                    if tp.error is not None:
                        raise KafkaException(tp.error)
            except KafkaException as error:
                if error.args[0].fatal() or not passes(error):
                    raise
                if time.monotonic() > deadline:
                    raise KafkaUnreachable("the group's coordinator", _LIMIT_S) from error
                if error.args[0].code() in _HELD_BACK:
                    if not self._end_open_transactions(wanted, ended):
                        held_back_since = None
                    elif held_back_since is None:
                        held_back_since = time.monotonic()
                    elif time.monotonic() - held_back_since > enough_s:
                        self._end_forgotten_transactions(wanted, deadline, everybody=everybody)
                        held_back_since, enough_s, everybody = None, _patience_s(), True
                else:
                    time.sleep(_PAUSE_S)  # a coordinator that moves: nobody's transaction is in the way
                patience = _READ_TIMEOUT_S
            else:
                return {(tp.topic, tp.partition): _map_of(tp) for tp in read}

    def read_back(self, places: Iterable[Partition], *, stable: bool = True) -> dict[Partition, OffsetMap]:
        """The same from any thread, without the worker's consumer; waits for pending transactions if ``stable``.

        Raises:
            GroupNotInitialised, KafkaUnreachable.
        """
        wanted = list(places)
        timeout_s = PATIENCE_S if stable else _READ_TIMEOUT_S
        found = committed_offsets(self._settings, self._group, wanted, timeout_s=timeout_s, stable=stable)
        return {place: parse(*found.get(place, (-1, "")), where=f"{place[0]}/{place[1]}") for place in wanted}

    def _end_open_transactions(self, wanted: list[TopicPartition], ended: set[str]) -> bool:
        """Take the id of each predecessor once. If one was alive after all, that costs it a new producer, no more.

        False: the coordinator does not say who they were.
        """
        try:
            unstable = self.read_back(((tp.topic, tp.partition) for tp in wanted), stable=False)
        except (KafkaException, KafkaUnreachable) as error:
            log.info("maps of the predecessors not to be had yet", error=str(error))
            return False
        for transactional_id in (
            {found.transactional_id for found in unstable.values()} - ended - {"", self._own}
        ):
            ended.add(transactional_id)
            started = time.monotonic()
            taker = [self._make_producer(transactional_id)]
            try:
                taker[0].init_transactions(_READ_TIMEOUT_S)
            except KafkaException as error:
                # Two heirs take the same id at once: one is fenced, and the transaction is ended all the same.
                log.info(
                    "open transaction not ended by us", transactional_id=transactional_id, error=str(error)
                )
            else:
                log.info(
                    "ended the open transaction of a dead worker",
                    transactional_id=transactional_id,
                    seconds=round(time.monotonic() - started, 3),
                )
            finally:
                let_go(taker)
        return True

    def _end_forgotten_transactions(
        self, wanted: list[TopicPartition], deadline: float, *, everybody: bool
    ) -> None:
        """First those who owned what we are given, and ourselves; then whoever has ever written offsets for this deployment.

        One that dies in its first transaction, or provisioning, stands in no map. Who is alive and none of it is to blame loses an open transaction, and writes it again with a new producer.
        """
        topics = self._settings.topics.consumed
        places = [(tp.topic, tp.partition) for tp in wanted]
        if everybody:
            places = [(topic, number) for topic in topics for number in range(self._forgotten.partitions)]
        try:
            owners = {found.transactional_id for found in self.read_back(places, stable=False).values()}
        except (KafkaException, PipelineError) as error:
            log.warning("forgotten transactions cannot be looked for now", error=str(error))
            return
        known = sorted((owners | {self._own}) - {""})
        others = [one for one in self._all_writers() if one not in known] if everybody else []
        for transactional_id in (*known, *others):
            if time.monotonic() > deadline:
                return
            try:
                self._forgotten.end(transactional_id)
            except PipelineError as error:
                log.warning(
                    "what Kafka may have forgotten cannot be ended now",
                    transactional_id=transactional_id,
                    error=str(error),
                )

    def _all_writers(self) -> list[str]:
        try:
            return self._forgotten.who_wrote_offsets()
        except PipelineError as error:
            log.info("nobody here knows who else has written offsets", error=str(error))
            return []


def _patience_s() -> float:
    return PATIENCE_S + random.uniform(0, SPREAD_S)  # noqa: S311 - nobody's secret


def _map_of(tp: TopicPartition) -> OffsetMap:
    return parse(tp.offset, tp.metadata, where=f"{tp.topic}/{tp.partition}")
