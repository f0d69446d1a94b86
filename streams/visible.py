"""Which of some records committed readers can see.

In:  records, as they were to be written, and since when they may stand there. Out: those that do stand there, for good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Final, NamedTuple

from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import AdminClient

from schemas.errors import KafkaUnreachable, ReadIncomplete
from schemas.headers import RawHeaders
from schemas.partitions import partition_of
from streams.clients import admin_config, kafka_failed
from streams.committed import passes
from streams.scan import Partition, partitions_of, scan_partitions, since
from streams.settings import Settings

#: Finding the partitions, where to begin, and where they end each may take as long as the reading.
_STEPS: Final = 4


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
    settings: Settings, records: Collection[Written], since_ms: int, *, timeout_s: float
) -> set[Written]:
    """Those of ``records`` that a committed read returns. Blocks; any thread.

    Reads the partitions where they would stand, from ``since_ms`` (by the clock that stamps them) on, to their ends of now.

    Raises:
        ReadIncomplete: more than could be read in ``timeout_s``, or somebody's open transaction hides it.
        KafkaUnreachable: no answer in time. KafkaRefused: this user may not read there. TopicsMismatch: a topic is missing.
    """
    if not records:
        return set()
    try:
        return _visible(settings, records, since_ms, timeout_s)
    except KafkaException as error:
        if passes(error):
            raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s) from error
        raise kafka_failed(settings, error, timeout_s) from error


def _visible(
    settings: Settings, records: Collection[Written], since_ms: int, timeout_s: float
) -> set[Written]:
    admin = AdminClient(admin_config(settings))
    step_s = timeout_s / _STEPS
    every = partitions_of(settings, admin, sorted({record.topic for record in records}), step_s)
    wanted: dict[tuple[str, bytes | None], list[Written]] = defaultdict(list)
    for record in records:
        wanted[record.topic, record.key].append(record)
    found: set[Written] = set()

    def look(message: Message) -> None:
        candidates = wanted.get((message.topic() or "", message.key()))
        if candidates:
            rest = (message.value(), tuple(message.headers() or ()))
            found.update(one for one in candidates if (one.value, one.headers) == rest)

    places = places_of(records, every)
    result = scan_partitions(settings, admin, places, look, timeout_s=step_s, start=since(since_ms))
    if not result.complete:
        raise ReadIncomplete(step_s)
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
