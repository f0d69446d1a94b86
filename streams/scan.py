"""Read topics from their beginning to an end taken at the call.

In:  topic names. Out: every record in between, one call each, and whether the end was reached in time.

The end is the *high watermark*: under read_committed an open transaction of anybody hides what stands behind
it, the caller's own acknowledged write included, and the "end" that Kafka reports would lie before it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # it has no __all__

from schemas.errors import KafkaUnreachable, ReadIncomplete, TopicsMismatch
from schemas.topics import Partition
from streams.clients import admin_config, kafka_failed, reader_config
from streams.jobinfo import RecordPlace
from streams.settings import Settings

#: The two ends of a partition, as ``offsets`` takes them.
EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]

#: Whoever waits longer than that for a first answer waits for nobody; reading may take its time.
_FIRST_ANSWER_S: Final = 5.0
_BATCH: Final = 500
#: Missing topics that an error names.
_NAMED: Final = 3
_MOVING_PAUSE_S: Final = 0.05
#: For a first answer, and longer for each other one: a broker that is dead gives none, one that is slow has its time as well.
_FIRST_PATIENCE_S: Final = 1.0
_MORE_PATIENCE: Final = 1.5
#: A topic that was just created, or a broker that just went: somebody else will answer soon.
_MOVING: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError._TIMED_OUT,
    }
)
#: A record that is further on is sought, which costs a trip to the broker; what lies before a nearer one is read over.
_NEAR: Final = 100


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What became of a scan."""

    #: False: the time was up; partitions in ``behind`` have more, or an open transaction hides it.
    complete: bool
    behind: tuple[Partition, ...] = ()


def scan(
    settings: Settings,
    topics: Sequence[str],
    each: Callable[[Message], None],
    *,
    timeout_s: float,
    read_committed: bool = True,
    start: OffsetSpec = EARLIEST,
) -> ScanResult:
    """Call ``each`` for every record of ``topics``, tombstones included; order holds within a partition.

    Blocks: not for an event loop. ``timeout_s`` bounds the reading; finding the ends may take as long again, a first answer
    five seconds at most.

    Raises:
        KafkaUnreachable: no broker answered in time; KafkaRefused: one did, and refused.
        TopicsMismatch: a topic does not exist.
    """
    admin = AdminClient(admin_config(settings))
    partitions = partitions_of(settings, admin, topics, min(timeout_s, _FIRST_ANSWER_S))
    return scan_partitions(
        settings, admin, partitions, each, timeout_s=timeout_s, read_committed=read_committed, start=start
    )


def scan_partitions(
    settings: Settings,
    admin: AdminClient,
    partitions: Iterable[Partition],
    each: Callable[[Message], None],
    *,
    timeout_s: float,
    read_committed: bool = True,
    start: OffsetSpec = EARLIEST,
) -> ScanResult:
    """The same for some partitions, which exist; ``admin`` as for ``offsets``.

    Raises:
        KafkaUnreachable: no broker answered in time; KafkaRefused: one did, and refused.
    """
    places = list(partitions)
    ends = offsets(settings, admin, places, LATEST, timeout_s=timeout_s)
    starts = offsets(settings, admin, places, start, timeout_s=timeout_s)
    return _read(settings, starts, ends, each, timeout_s=timeout_s, read_committed=read_committed)


def scan_on(
    settings: Settings,
    admin: AdminClient,
    starts: Mapping[Partition, int],
    each: Callable[[Message], None],
    *,
    timeout_s: float,
) -> dict[Partition, int]:
    """Call ``each`` for what was committed from these offsets on; where to go on the next time.

    Raises:
        ReadIncomplete: not read to its end in time.
        KafkaUnreachable: no broker answered in time; KafkaRefused: one did, and refused.
    """
    ends = offsets(
        settings, admin, starts, LATEST, timeout_s=timeout_s, isolation=IsolationLevel.READ_COMMITTED
    )
    if not _read(settings, starts, ends, each, timeout_s=timeout_s, read_committed=True).complete:
        raise ReadIncomplete(timeout_s)
    return {partition: max(ends[partition], start) for partition, start in starts.items()}


def _read(
    settings: Settings,
    starts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
    each: Callable[[Message], None],
    *,
    timeout_s: float,
    read_committed: bool,
) -> ScanResult:
    # -1: there is no record since the time that was asked for
    open_ends = {partition: end for partition, end in ends.items() if 0 <= starts[partition] < end}
    if not open_ends:
        return ScanResult(complete=True)
    deadline = time.monotonic() + timeout_s
    config = reader_config(settings, read_committed=read_committed)
    consumer = Consumer({**config, "enable.partition.eof": True})
    try:
        consumer.assign([TopicPartition(topic, number, starts[topic, number]) for topic, number in open_ends])
        while open_ends and (left := deadline - time.monotonic()) > 0:
            message = consumer.poll(min(left, 0.1))
            if message is None:
                continue
            for got in (message, *consumer.consume(_BATCH, 0)):
                _take(got, each, open_ends)
    finally:
        consumer.close()
    return ScanResult(complete=not open_ends, behind=tuple(open_ends))


def records_at(
    settings: Settings, places: Iterable[RecordPlace], *, timeout_s: float
) -> tuple[dict[RecordPlace, bytes | None], bool]:
    """The values of the records at these places, and whether all were looked for in time. What is gone is left out.

    Blocks: not for an event loop.

    Raises:
        KafkaException: a broker refused.
    """
    wanted: dict[Partition, deque[int]] = {}
    for topic, number, offset in sorted(places):
        wanted.setdefault((topic, number), deque()).append(offset)
    found: dict[RecordPlace, bytes | None] = {}
    if not wanted:
        return found, True
    deadline = time.monotonic() + timeout_s
    consumer = Consumer({**reader_config(settings), "enable.partition.eof": True})
    try:
        consumer.assign([TopicPartition(*partition, offsets[0]) for partition, offsets in wanted.items()])
        while wanted and (left := deadline - time.monotonic()) > 0:
            message = consumer.poll(min(left, 0.1))
            if message is None:
                continue
            for got in (message, *consumer.consume(_BATCH, 0)):
                _pick(consumer, got, wanted, found)
    finally:
        consumer.close()
    return found, not wanted


def _pick(
    consumer: Consumer,
    message: Message,
    wanted: dict[Partition, deque[int]],
    found: dict[RecordPlace, bytes | None],
) -> None:
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    topic, number, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and number is not None and offset is not None  # noqa: S101, PT018 - it was consumed
    offsets = wanted.get((topic, number))
    # What was on its way to us already is not wanted, once the last one of its partition is there.
    if offsets is None or (error is None and offset < offsets[0]):
        return
    if error is None and offset == offsets[0]:
        found[topic, number, offset] = message.value()
    # Where a later one comes, those before it have been removed.
    while offsets and (error is not None or offsets[0] <= offset):
        offsets.popleft()
    if not offsets:
        del wanted[topic, number]
        consumer.pause([TopicPartition(topic, number)])
    elif offsets[0] - offset > _NEAR:
        consumer.seek(TopicPartition(topic, number, offsets[0]))


def since(timestamp_ms: int) -> OffsetSpec:
    """Where the first record is that is not older than this, as ``scan`` and ``offsets`` take it."""
    return OffsetSpec.for_timestamp(timestamp_ms)  # type: ignore[no-any-return]


def partitions_of(
    settings: Settings, admin: AdminClient, topics: Iterable[str], timeout_s: float
) -> list[Partition]:
    """Every partition of ``topics``.

    Raises:
        KafkaUnreachable: no broker answered in time; KafkaRefused: one did, and refused.
        TopicsMismatch: a topic does not exist.
    """
    try:
        known = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise kafka_failed(settings, error, timeout_s) from error
    missing = [topic for topic in topics if topic not in known or not known[topic].partitions]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise TopicsMismatch(
            f"these topics do not exist: {', '.join(missing[:_NAMED])}{more}; "
            "create them with `rustfs-workers topics create`"
        )
    return [(topic, number) for topic in topics for number in sorted(known[topic].partitions)]


def informed_admin(settings: Settings, timeout_s: float) -> AdminClient:
    """A client that knows the cluster and its topics.

    Raises:
        KafkaUnreachable: no broker answered in time; KafkaRefused: one did, and refused.
    """
    admin = AdminClient(admin_config(settings))
    partitions_of(settings, admin, [], timeout_s)
    return admin


def require_topics(settings: Settings, timeout_s: float = 5.0) -> None:
    """Every topic of the deployment exists. Blocks.

    Raises:
        As ``partitions_of``.
    """
    names = [spec.name for spec in settings.topics.specs(settings.partitions)]
    partitions_of(settings, AdminClient(admin_config(settings)), names, timeout_s)


def offsets(
    settings: Settings,
    admin: AdminClient,
    partitions: Iterable[Partition],
    spec: OffsetSpec,
    *,
    timeout_s: float,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> dict[Partition, int]:
    """Log starts or ends, asked for in one go, and again where a partition just changes its leader.

    ``admin`` must have seen the cluster's topics, by ``partitions_of`` or ``informed_admin``: librdkafka (2.16) loses one
    in twenty of these questions if it is the first one that a client is asked, and says that nobody answered.

    Raises:
        KafkaUnreachable: a partition's leader did not answer in time.
    """
    left = set(partitions)
    found: dict[Partition, int] = {}
    deadline = time.monotonic() + timeout_s
    patience_s = _FIRST_PATIENCE_S
    while left:
        request = {TopicPartition(topic, number): spec for topic, number in left}
        for asked, answer in admin.list_offsets(
            request, isolation_level=isolation, request_timeout=min(patience_s, _left_of(deadline))
        ).items():
            try:
                offset = answer.result().offset
            except KafkaException as error:
                if error.args[0].code() not in _MOVING or time.monotonic() > deadline:
                    raise kafka_failed(settings, error, timeout_s) from error
            else:
                # librdkafka names no error where a broker that it asked has gone: only the offset is none.
                if offset != OFFSET_INVALID:
                    found[asked.topic, asked.partition] = offset
                elif time.monotonic() > deadline:
                    raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s)
        left -= found.keys()
        if left:
            time.sleep(_MOVING_PAUSE_S)
            # librdkafka (2.16) asks the leader that it knows of, dead or deposed, for as long as it may, and again: nothing in
            # these answers makes it look for another one.
            partitions_of(settings, admin, [], _left_of(deadline))
            patience_s *= _MORE_PATIENCE
    return found


def _left_of(deadline: float) -> float:
    """Seconds; a moment where there is none, for one last answer."""
    return max(deadline - time.monotonic(), _MOVING_PAUSE_S)


def _take(message: Message, each: Callable[[Message], None], open_ends: dict[Partition, int]) -> None:
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    topic, number, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and number is not None and offset is not None  # noqa: S101, PT018 - it was consumed
    if error is None:
        each(message)
        reached = offset + 1
    else:
        # Behind the last record there may be markers of transactions, which only this event passes.
        reached = offset
    end = open_ends.get((topic, number))
    if end is not None and reached >= end:
        del open_ends[topic, number]
