"""What a successor needs to know of its predecessor, and how it ends what the dead one left open.

In:  partitions just assigned. Out: their committed offset and map.

A worker that dies in the middle of a transaction holds back everybody who reads its partitions until
the broker gives the transaction up, seconds later. Its successor finds the transactional id in the map,
takes it for a moment, and so ends the transaction at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeout

import structlog
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from schemas.errors import KafkaUnreachable
from schemas.offsetmap import OffsetMap, parse

log = structlog.get_logger("rustfs_workers.takeover")

#: A live predecessor's last transaction takes milliseconds; one that is still open after this is a dead one's.
_PATIENCE_S = 0.3
_READ_TIMEOUT_S = 2.0
_LIMIT_S = 60.0

Place = tuple[str, int]


class CommittedOffsets:
    """Reads offsets and maps of one group. Blocks; for threads, not for the event loop."""

    def __init__(
        self, group: str, admin: AdminClient, make_producer: Callable[[str], Producer], *, own_transactional_id: str
    ) -> None:
        self._group = group
        self._admin = admin
        self._make_producer = make_producer
        self._own = own_transactional_id

    def for_assignment(self, consumer: Consumer, places: Iterable[Place]) -> dict[Place, OffsetMap]:
        """Offset and map of each partition, from one read, repeated until Kafka answers.

        Raises:
            GroupNotInitialised: an offset or a map is missing.
            KafkaUnreachable: no answer within a minute.
        """
        wanted = [TopicPartition(topic, partition) for topic, partition in places]
        deadline = time.monotonic() + _LIMIT_S
        patience = _PATIENCE_S
        ended: set[str] = set()
        while True:
            try:
                read = consumer.committed(wanted, timeout=patience)
            except KafkaException as error:
                kafka_error = error.args[0]
                if time.monotonic() > deadline:
                    raise KafkaUnreachable("the group's coordinator", _LIMIT_S) from error
                if not (kafka_error.retriable() or kafka_error.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT)):  # noqa: SLF001
                    raise
                self._end_open_transactions(wanted, ended)
                patience = _READ_TIMEOUT_S
            else:
                return {(tp.topic, tp.partition): _map_of(tp) for tp in read}

    def read_back(self, places: Iterable[Place], *, stable: bool = True) -> dict[Place, OffsetMap]:
        """The same from any thread, through the admin client; waits for pending transactions if ``stable``.

        Raises:
            GroupNotInitialised, KafkaUnreachable.
        """
        wanted = [TopicPartition(topic, partition) for topic, partition in places]
        deadline = time.monotonic() + _LIMIT_S
        while wanted:
            try:
                read = self._list(wanted, stable=stable)
            except (KafkaException, FutureTimeout) as error:
                if time.monotonic() > deadline:
                    raise KafkaUnreachable("the group's coordinator", _LIMIT_S) from error
                log.info("committed offsets not to be had yet", error=str(error))
                time.sleep(0.1)
            else:
                return {(tp.topic, tp.partition): _map_of(tp) for tp in read}
        return {}

    def _list(self, wanted: list[TopicPartition], *, stable: bool) -> list[TopicPartition]:
        request = [ConsumerGroupTopicPartitions(self._group, wanted)]
        futures = self._admin.list_consumer_group_offsets(
            request, require_stable=stable, request_timeout=_READ_TIMEOUT_S
        )
        answer = futures[self._group].result(_READ_TIMEOUT_S + 1)
        for tp in answer.topic_partitions:
            if tp.error is not None:
                raise KafkaException(tp.error)
        return list(answer.topic_partitions)

    def _end_open_transactions(self, wanted: list[TopicPartition], ended: set[str]) -> None:
        """Take the id of each predecessor once. If one was alive after all, that costs it a new producer, no more."""
        try:
            unstable = self._list(wanted, stable=False)
        except (KafkaException, FutureTimeout) as error:
            log.info("maps of the predecessors not to be had yet", error=str(error))
            return
        for transactional_id in {_map_of(tp).transactional_id for tp in unstable} - ended - {"", self._own}:
            ended.add(transactional_id)
            started = time.monotonic()
            try:
                self._make_producer(transactional_id).init_transactions(_READ_TIMEOUT_S)
            except KafkaException as error:
                # Two heirs take the same id at once: one is fenced, and the transaction is ended all the same.
                log.info("open transaction not ended by us", transactional_id=transactional_id, error=str(error))
            else:
                log.info(
                    "ended the open transaction of a dead worker",
                    transactional_id=transactional_id,
                    seconds=round(time.monotonic() - started, 3),
                )


def _map_of(tp: TopicPartition) -> OffsetMap:
    return parse(tp.offset, tp.metadata, where=f"{tp.topic}/{tp.partition}")

