"""Read what a consumer group has committed, without being a member of it.

In:  a group and partitions. Out: offset and metadata of those that have a commit.

``AdminClient.list_consumer_group_offsets`` asks the same, but a broker that answers "not coordinator", as one
does on a new cluster and whenever a coordinator moves, ends the whole process with a segmentation fault
(librdkafka's issue 5040). A consumer that never joins takes that answer well, and looks for the coordinator.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.topics import Partition
from streams.clients import kafka_failed, reader_config
from streams.settings import Settings

_ONE_ANSWER_S: Final = 2.0
_PAUSE_S: Final = 0.05
#: Answers that change by themselves. (``KafkaError.retriable()`` is False for all of them.)
_PASSING: Final = frozenset(
    {
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.REQUEST_TIMED_OUT,
    }
)


def committed_offsets(
    settings: Settings, group: str, partitions: Iterable[Partition], *, timeout_s: float, stable: bool = True
) -> dict[Partition, tuple[int, str]]:
    """Offset and metadata of the partitions that have a commit. Blocks; any thread may call it.

    ``stable`` waits for transactions that are about to commit offsets; otherwise what was committed before
    them is the answer.

    Raises:
        KafkaUnreachable: no answer within ``timeout_s``, or a transaction stayed open.
        KafkaRefused: an answer that waiting does not change: not authorised, for one.
    """
    wanted = [TopicPartition(topic, number) for topic, number in partitions]
    if not wanted:
        return {}
    deadline = time.monotonic() + timeout_s
    # This option is what makes the question a stable one.
    reader = Consumer({**reader_config(settings, read_committed=stable), "group.id": group})
    try:
        while True:
            try:
                answers = reader.committed(wanted, timeout=_ONE_ANSWER_S)
                for answer in answers:
                    if answer.error is not None:
                        raise KafkaException(answer.error)
            except KafkaException as error:
                if not passes(error) or time.monotonic() > deadline:
                    raise kafka_failed(settings, error, timeout_s) from error
                time.sleep(_PAUSE_S)
            else:
                return {
                    (answer.topic, answer.partition): (answer.offset, answer.metadata or "")
                    for answer in answers
                    if answer.offset >= 0
                }
    finally:
        reader.close()


def passes(error: KafkaException) -> bool:
    """Whether the same question may get another answer soon."""
    code = error.args[0].code()
    # The library's own errors are negative: a time-out, a lost connection, no coordinator yet.
    return code < 0 or code in _PASSING
