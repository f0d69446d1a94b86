"""Which of some records committed readers can see.

In:  records, as they were to be written, and since when they may stand there. Out: those that do stand there, for good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka.admin import AdminClient

from schemas.errors import KafkaUnreachable, PipelineError, ReadIncomplete
from schemas.headers import RawHeaders
from schemas.partitions import partition_of
from schemas.topics import Partition
from streams.clients import admin_config, kafka_failed
from streams.committed import passes
from streams.raw_headers import raw_headers
from streams.scan import partitions_of, scan_partitions, since
from streams.settings import Settings

#: Of the time: to find the partitions, and for each of where they end, where to begin, and reading them. Nearly always all of
#: it together takes less than half; if each takes its longest, it is nearly twice the time.
_TO_FIND: Final = 1 / 4
_TO_READ: Final = 1 / 2
_FORBIDDEN: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)


class Written(NamedTuple):
    """A record as a producer was given it. ``partition`` -1: where its key belongs."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(
        cls, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: RawHeaders | None
    ) -> Written:
        """One with headers as clients have them."""
        return cls(topic, partition, key, value, tuple(headers or ()))


def visible_records(
    settings: Settings,
    records: Collection[Written],
    since_ms: int,
    *,
    timeout_s: float,
    each: Callable[[Message], None] = lambda _: None,
) -> set[Written]:
    """Those of ``records`` that a committed read returns. Blocks; any thread.

    Reads the partitions where they would stand, from ``since_ms`` (by the clock that stamps them) on, to their ends of now.
    ``each`` is called for whatever stands there with the topic and key of one of them.

    Raises:
        ReadIncomplete: more than could be read in ``timeout_s``, or somebody's open transaction hides it.
        KafkaUnreachable: no answer in time. KafkaRefused: this user may not read there. TopicsMismatch: a topic is missing.
    """
    if not records:
        return set()
    try:
        return _visible(settings, records, since_ms, timeout_s, each)
    except KafkaException as error:
        if passes(error):
            raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s) from error
        raise kafka_failed(settings, error, timeout_s) from error


def is_forbidden(error: PipelineError) -> bool:
    """Whether Kafka has said that this user may not do it: to ask again changes nothing."""
    cause = error.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() in _FORBIDDEN


def _visible(
    settings: Settings,
    records: Collection[Written],
    since_ms: int,
    timeout_s: float,
    each: Callable[[Message], None],
) -> set[Written]:
    admin = AdminClient(admin_config(settings))
    topics = sorted({record.topic for record in records})
    every = partitions_of(settings, admin, topics, timeout_s * _TO_FIND)
    wanted: dict[tuple[str, bytes | None], list[Written]] = defaultdict(list)
    for record in records:
        wanted[record.topic, record.key].append(record)
    found: set[Written] = set()

    def look(message: Message) -> None:
        candidates = wanted.get((message.topic() or "", message.key()))
        if candidates:
            each(message)
            value = message.value()
            if candidates := [one for one in candidates if one.value == value]:
                # Not of anybody's record: confluent-kafka fails at names that are no UTF-8.
                headers = tuple(raw_headers(message) or ())
                found.update(one for one in candidates if one.headers == headers)

    places = places_of(records, every)
    limit_s = timeout_s * _TO_READ
    result = scan_partitions(settings, admin, places, look, timeout_s=limit_s, start=since(since_ms))
    if not result.complete:
        raise ReadIncomplete(limit_s)
    return found


def places_of(records: Collection[Written], every: Collection[Partition]) -> set[Partition]:
    """Where they would stand, of ``every`` partition of their topics."""
    counts: dict[str, int] = defaultdict(int)
    for topic, _ in every:
        counts[topic] += 1
    places: set[Partition] = set()
    for topic, partition, key, _, _ in records:
        if partition >= 0:
            places.add((topic, partition))
        elif key is not None:
            places.add((topic, partition_of(key, counts[topic])))
        else:
            places.update((topic, number) for number in range(counts[topic]))
    return places
