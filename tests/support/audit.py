"""Reads topics raw, from the first record, and counts what must not be there: independent of our own readers."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.codec import Codec, peek_id
from schemas.errors import WireError
from schemas.headers import parse
from schemas.records import StatusChange, decode_status
from streams.settings import Settings


def read_all(settings: Settings, *topics: str) -> list[Message]:
    """Every committed record of these topics."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers(),
            "group.id": "audit",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        known = consumer.list_topics(timeout=10).topics
        places = [(topic, partition) for topic in topics for partition in known[topic].partitions]
        consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in places])
        open_places = set(places)
        messages = []
        while open_places:
            for message in consumer.consume(1000, 0.5):
                error = message.error()
                if error is None:
                    messages.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_places.discard((message.topic(), message.partition()))
                else:
                    raise AssertionError(error)
        return messages
    finally:
        consumer.close()


def statuses(settings: Settings) -> dict[str, list[StatusChange]]:
    """All state changes by job id, in the order of their partition."""
    codec = Codec()
    found: dict[str, list[StatusChange]] = defaultdict(list)
    for message in read_all(settings, settings.topics.status):
        change = decode_status(codec, message.value() or b"")
        found[change.job_id].append(change)
    return found


def raw_headers(message: Message) -> list[tuple[str, bytes]]:
    """The headers as they are on the wire."""
    headers = message.headers() or []
    assert isinstance(headers, list)
    return [(name, value if isinstance(value, bytes) else b"") for name, value in headers]


@dataclass
class Audit:
    """What was found.

    ``copied``: accepted jobs whose first record stands more than once. Their producer wrote it again when all of Kafka
    was started anew; workers pass over the second one, and whether they did is seen by the final states.
    """

    lost: list[str]
    forked: list[str]
    copied: list[str]
    final: Counter[str]


def audit(settings: Settings, accepted: list[str]) -> Audit:
    """Jobs without a final state, and jobs with two lineages in one life."""
    changes = statuses(settings)
    forked = []
    for job_id, history in changes.items():
        finals = Counter(change.redrives for change in history if change.state.final)
        if any(count > 1 for count in finals.values()):
            forked.append(job_id)
    published: Counter[tuple[str, int]] = Counter()
    for message in read_all(settings, *settings.topics.consumed):
        try:
            name = peek_id(message.value()).decode()
            published[name, parse(raw_headers(message)).delivery] += 1
        except WireError:
            continue
    ours = {(job_id, 0) for job_id in accepted}
    several = {place for place, count in published.items() if count > 1}
    copied = [job_id for job_id, _ in several & ours]
    forked += [job_id for job_id, _ in several - ours]
    final = {
        job_id: history[-1].state
        for job_id, history in changes.items()
        if history and history[-1].state.final
    }
    return Audit(
        lost=[job_id for job_id in accepted if job_id not in final],
        forked=forked,
        copied=copied,
        final=Counter(state.value for state in final.values()),
    )
