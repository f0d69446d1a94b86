"""Give a new workers' group its starting point, once.

In:  a deployment. Out: for every partition that workers consume a committed offset (the log start) with an
empty map, and a marker ``group/<name>`` on ``jobs.commands``, both in one transaction: after a crash there is
all of it or nothing.

From then on a partition without a commit is one that lost it. Starting such a one at either end would run
finished jobs again or lose waiting ones: workers refuse it by name, and nothing here repairs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.errors import GroupNotInitialised, KafkaUnreachable
from schemas.offsetmap import EMPTY_MAP
from schemas.topics import Partition
from streams import transactional_ids
from streams.clients import FENCED, kafka_failed, producer_config, reader_config
from streams.committed import committed_offsets
from streams.offset_sender import send_offsets
from streams.producer_end import see_out
from streams.scan import EARLIEST, offsets, partitions_of, scan
from streams.settings import Settings

log = structlog.get_logger("rustfs_workers.group_setup")

_KAFKA_S: Final = 30.0
_STABLE_PAUSE_S: Final = 0.02
_RIVAL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Marker:
    """What the marker says."""

    created_at: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class GroupState:
    """What there is of a group. ``committed``: offset and metadata of the partitions that have one."""

    marker: Marker | None
    partitions: tuple[Partition, ...]
    committed: Mapping[Partition, tuple[int, str]]

    @property
    def missing(self) -> tuple[Partition, ...]:
        """Partitions without a commit."""
        return tuple(partition for partition in self.partitions if partition not in self.committed)


def partitions_to_start(state: GroupState, group: str) -> tuple[Partition, ...]:
    """Which partitions get a starting point. Pure.

    Raises:
        GroupNotInitialised: some have none though the group has worked: they lost it; no start is right.
    """
    if state.marker is not None or not state.missing:
        return ()
    if any(metadata != EMPTY_MAP for _, metadata in state.committed.values()):
        names = ", ".join(f"{topic}/{number}" for topic, number in state.missing[:10])
        raise GroupNotInitialised(
            f"group {group} has worked, but {len(state.missing)} partition(s) have no committed offset "
            f"({names}), and nothing says that they are new; use another RUSTFS_WORKERS_TOPIC_PREFIX"
        )
    return state.missing


def set_up_group(settings: Settings, admin: AdminClient, cluster_id: str) -> bool:
    """Initialise the workers' group if nobody has; whether this call did. Safe beside others. Blocks.

    Raises:
        GroupNotInitialised: the group has worked, but lost offsets (see ``partitions_to_start``).
        KafkaUnreachable: no answer in time.
        TopicsMismatch: a topic does not exist.
    """
    deadline = time.monotonic() + _KAFKA_S
    while True:
        state = group_state(settings, admin)
        if state.marker is not None:
            return False
        partitions_to_start(state, settings.topics.group)
        producer = Producer(
            producer_config(
                settings, transactional_id=transactional_ids.of_provisioning(settings.topics), linger_ms=0
            )
        )
        try:
            # One at a time: whoever comes later fences the earlier one, and then sees what it did.
            producer.init_transactions(_KAFKA_S)
            state = group_state(settings, admin)
            if state.marker is not None:
                return False
            _write(settings, admin, producer, state, cluster_id)
        except KafkaException as error:
            see_out(producer)
            if error.args[0].code() not in FENCED or time.monotonic() > deadline:
                raise kafka_failed(settings, error, _KAFKA_S) from error
            log.info("another one sets up the group", group=settings.topics.group)
            _wait_for_marker(settings)
        else:
            return True


def group_state(settings: Settings, admin: AdminClient) -> GroupState:
    """Marker and commits of the workers' group as they are now. Blocks.

    Raises:
        KafkaUnreachable: no answer in time.
        TopicsMismatch: a topic does not exist.
    """
    partitions = partitions_of(settings, admin, settings.topics.consumed, _KAFKA_S)
    committed = committed_offsets(settings, settings.topics.group, partitions, timeout_s=_KAFKA_S)
    return GroupState(_read_marker(settings), tuple(partitions), committed)


def marker_key(group: str) -> bytes:
    """Key of the marker on ``jobs.commands``."""
    return f"group/{group}".encode()


def _write(
    settings: Settings, admin: AdminClient, producer: Producer, state: GroupState, cluster_id: str
) -> None:
    group = settings.topics.group
    to_start = partitions_to_start(state, group)
    starts = offsets(settings, admin, to_start, EARLIEST, timeout_s=_KAFKA_S)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    value = json.dumps({"created_at": now, "cluster_id": cluster_id}).encode()
    # A consumer that never joins: its metadata name the group and nothing else.
    nobody = Consumer({**reader_config(settings), "group.id": group})
    try:
        metadata = nobody.consumer_group_metadata()
    finally:
        nobody.close()
    producer.begin_transaction()
    producer.produce(settings.topics.commands, value, marker_key(group), 0)
    if starts:
        send_offsets(
            producer,
            [
                TopicPartition(topic, number, offset, metadata=EMPTY_MAP)
                for (topic, number), offset in starts.items()
            ],
            metadata,
            _KAFKA_S,
        )
    producer.commit_transaction(_KAFKA_S)


def _wait_for_marker(settings: Settings) -> None:
    """Give the one that fenced us a little time; whether it succeeded is seen by the caller."""
    deadline = time.monotonic() + _RIVAL_S
    while _read_marker(settings) is None and time.monotonic() < deadline:
        time.sleep(_STABLE_PAUSE_S)


def _read_marker(settings: Settings) -> Marker | None:
    key = marker_key(settings.topics.group)
    found: list[Any] = []

    def take(message: Message) -> None:
        if message.key() == key:
            found.append(message.value())

    if not scan(settings, [settings.topics.commands], take, timeout_s=_KAFKA_S).complete:
        raise KafkaUnreachable(settings.bootstrap_servers(), _KAFKA_S)
    if not found or found[-1] is None:
        return None
    try:
        content = json.loads(found[-1])
        return Marker(str(content["created_at"]), str(content["cluster_id"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GroupNotInitialised(
            f"its marker on {settings.topics.commands} cannot be read, so somebody else wrote it: {error!r}; "
            f"remove it with a tombstone (key {key.decode()}, no value), and run `rustfs-workers topics create`"
        ) from error
