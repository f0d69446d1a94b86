"""End a transaction that Kafka itself has forgotten.

In:  the producer that a transactional id now belongs to. Out: nothing of that id is open any more.

A broker (4.3.1 and its neighbours, KAFKA-20734) that has decided a transaction's end and finds, before it has written
that into the partitions, that they have no leader for a moment takes them for deleted. It does so when it is started
again after kill -9, for one. Nobody ends that transaction any more: the group's offsets stay unstable for ever, and
the partition is dead. But markers are written by producer id: the next transaction of the same id that touches the
same partitions closes the forgotten one as well.

It is aborted, whatever it was meant to be: then its jobs run again, where a commit could have lost them. Where it was a
commit, and its statuses stand already, they stand twice then: a known hole, until the coordinator's own log decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException, Producer, TopicPartition

from schemas.topics import Topics
from streams.offset_sender import send_offsets

log = structlog.get_logger("rustfs_workers.forgotten")

#: Longer than Kafka takes to end a dead worker's transaction (its time-out, and the interval of looking for it).
PATIENCE_S: Final = 8.0
_ANSWER_S: Final = 5.0


class ForgottenTransactions:
    """Knows all partitions that a worker's transaction may have touched. Blocks; any thread."""

    def __init__(self, topics: Topics, partitions: Callable[[], int]) -> None:
        self._topics = topics
        self._count = partitions

    @property
    def partitions(self) -> int:
        """How many each topic has."""
        return self._count()

    def end(self, producer: Producer, group_metadata: Any) -> None:
        """Touch every partition in one transaction, and abort it. The metadata may be old: it is only asked for.

        Raises:
            KafkaException: the transaction could not be aborted.
        """
        written = (*self._topics.consumed, self._topics.dlq, self._topics.status)
        producer.begin_transaction()
        try:
            for topic in written:
                for number in range(self.partitions):
                    producer.produce(topic, b"", b"forgotten", number)
            producer.flush(_ANSWER_S)
            # What counts is that the group's partition of the offsets topic becomes part of the transaction.
            nothing = TopicPartition(self._topics.consumed[0], 0, 0)
            send_offsets(producer, [nothing], group_metadata, _ANSWER_S)
        except (KafkaException, BufferError) as error:
            log.info("not every partition could be touched", error=str(error))
        finally:
            producer.abort_transaction(_ANSWER_S)
        log.warning("offsets were unstable for too long: ended what Kafka may have forgotten")
