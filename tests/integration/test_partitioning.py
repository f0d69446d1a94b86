"""One key, one partition, whoever produces: checked with a hundred keys on both clients and a real broker."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer

from schemas.partitions import partition_of
from streams.clients import aiokafka_config, producer_config
from streams.provision import provision
from tests.support.deployments import read_all, settings_for

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]

#: Java's ``Utils.toPositive(Utils.murmur2(key)) % 12`` for ``KEYS``, in their order.
GOLDEN = (
    "0 2 1 3 7 11 8 2 4 9 5 1 8 4 8 8 5 6 2 8 9 11 0 10 3 "
    "7 8 4 3 2 11 4 2 6 10 2 0 2 0 10 11 7 5 7 0 6 10 10 3 9 "
    "2 1 10 9 0 7 2 10 1 11 1 5 7 2 4 1 10 5 2 7 11 7 10 3 7 "
    "8 6 1 1 3 11 10 8 10 3 11 1 0 6 11 0 9 3 8 5 5 2 0 11 8 "
)


def key(number: int) -> bytes:
    """Keys of many shapes and lengths, text and bytes that are none."""
    name = f"bucket-{number % 7}/{'ordner/' * (number % 5)}öbjekt-{number}".encode()
    return (name, hashlib.sha256(name).digest()[: number % 33 or 1])[number % 2]


KEYS = [key(number) for number in range(100)]


def test_golden_partitions() -> None:
    assert [partition_of(key, 12) for key in KEYS] == [int(number) for number in GOLDEN.split()]


async def test_both_clients_put_each_key_where_java_puts_it(
    kafka: Any, topic_prefix: str, tmp_path: Path
) -> None:
    settings = settings_for(kafka, topic_prefix, tmp_path, partitions=12)
    provision(settings)
    topic = settings.topics.dlq
    producer = Producer(producer_config(settings))
    for key in KEYS:
        producer.produce(topic, b"librdkafka", key)
    assert producer.flush(20) == 0
    async with AIOKafkaProducer(**aiokafka_config(settings), acks="all") as other:
        for key in KEYS:
            await other.send_and_wait(topic, b"aiokafka", key)
    placed = {(message.value(), message.key()): message.partition() for message in read_all(settings, topic)}
    golden = [int(number) for number in GOLDEN.split()]
    for client in (b"librdkafka", b"aiokafka"):
        assert [placed[client, key] for key in KEYS] == golden, client
