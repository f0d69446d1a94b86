"""A transaction that Kafka has forgotten, made on a real broker.

Found in the wild after a broker's death (KAFKA-20734): the coordinator's log says how the transaction ended, and some
partitions were never told. Here an ordinary transaction over the same partitions gives the log its entry, and then the
same producer writes on without making the partitions part of anything: nobody will ever end that. The broker must have
``transaction.partition.verification.enable`` off, or it refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.clients import aiokafka_config
from streams.settings import Settings
from streams.transaction_log import Step, read_entries
from tests.support.waiting import eventually

UNVERIFIED = {"transaction.partition.verification.enable": "false"}

Record = tuple[str, int, bytes]


async def forget(
    settings: Settings,
    transactional_id: str,
    offsets: Mapping[tuple[str, int], tuple[int, str]],
    records: list[Record] = [],  # noqa: B006 - it is only read
    *,
    committed: bool,
    before: Mapping[tuple[str, int], tuple[int, str]] | None = None,
) -> None:
    """Leave these offsets and records undecided in their partitions, though the log says what was decided.

    ``before``: offsets that are committed first, and stand as long as the forgotten ones are not.
    """
    producer = AIOKafkaProducer(**aiokafka_config(settings), transactional_id=transactional_id)
    await producer.start()
    try:
        if before is not None:
            await _ordinary(producer, settings, before, [], committed=True)
        await _ordinary(producer, settings, before or offsets, records, committed=committed)
        await producer.begin_transaction()
        manager: Any = producer._txn_manager
        manager._txn_partitions |= {TopicPartition(topic, number) for topic, number, _ in records}
        manager._txn_consumer_group = settings.topics.group if offsets else None
        await _write(producer, settings, offsets, records)
    finally:
        await producer.stop()


async def _ordinary(
    producer: Any,
    settings: Settings,
    offsets: Mapping[tuple[str, int], tuple[int, str]],
    records: list[Record],
    *,
    committed: bool,
) -> None:
    await producer.begin_transaction()
    await _write(producer, settings, offsets, records)
    if committed:
        await producer.commit_transaction()
    else:
        await producer.abort_transaction()
    # Unasked, Kafka would take what follows before this one's markers, and they would end it.
    name = producer._txn_manager.transactional_id
    await asyncio.to_thread(eventually, lambda: _has_ended(settings, name), 20, "it has its markers")


def _has_ended(settings: Settings, transactional_id: str) -> bool:
    last = read_entries(settings, transactional_id, timeout_s=10)[-1]
    return last.step in (Step.COMPLETE_COMMIT, Step.COMPLETE_ABORT)


async def _write(
    producer: Any,
    settings: Settings,
    offsets: Mapping[tuple[str, int], tuple[int, str]],
    records: list[Record],
) -> None:
    for topic, number, value in records:
        await producer.send_and_wait(topic, value, b"key", number)
    if not offsets:
        return
    await producer.send_offsets_to_transaction(
        {
            # librdkafka sends the zero behind a C string as well, and reads beyond the end of one that has none.
            TopicPartition(*place): OffsetAndMetadata(offset, metadata + "\0")
            for place, (offset, metadata) in offsets.items()
        },
        settings.topics.group,
    )
