"""What Kafka and Avro alone cost: consume the same jobs, decode them, write one status each, in transactions.

In:  full job topics. Out: records a second. No retries, priorities, order, limits, maps; the library's encoder, not our quicker one.
"""

from __future__ import annotations

import time

from confluent_kafka import Consumer, Producer, TopicPartition

from schemas import JobPriority, JobStatus
from schemas.errors import PipelineError
from schemas.jobtype import job_type
from schemas.records import STATUS
from streams.clients import producer_config, reader_config
from streams.registry import build_codec
from streams.settings import Settings
from workers.bench.jobs import NoopJob

_SILENCE_S = 30.0


def floor_per_s(settings: Settings, jobs: int, per_transaction: int) -> float:
    """Records a second, from the first record to the last commit. Blocks.

    Raises:
        PipelineError: no record comes any more.
    """
    group = f"{settings.topic_prefix}floor"
    consumer = Consumer({**reader_config(settings), "group.id": group})
    topic = settings.topics.jobs[JobPriority.NORMAL]
    consumer.assign([TopicPartition(topic, number, 0) for number in range(settings.partitions)])
    producer = Producer(
        {
            **producer_config(settings, transactional_id=group, linger_ms=1),
            "delivery.report.only.error": True,
        }
    )
    producer.init_transactions(30)
    codec, kind = build_codec(settings), job_type(NoopJob)
    codec.prefix(kind.wire)  # where there is a registry, it knows what it reads from here on
    done, began, heard = 0, 0.0, time.monotonic()
    while done < jobs:
        batch = consumer.consume(per_transaction, 0.02)
        records = [message for message in batch if message.error() is None]
        if not records:
            if time.monotonic() - heard > _SILENCE_S:
                raise PipelineError(f"Kafka gave no record for {_SILENCE_S:g} s; look whether it runs")
            continue
        heard = time.monotonic()
        began = began or time.perf_counter()
        now = time.time_ns() // 1_000_000
        ends: dict[int, int] = {}
        producer.begin_transaction()
        for message in records:
            job = codec.decode(kind.wire, message.value())
            status = {
                "job_id": job["id"],
                "key": job["key"],
                "at": now,
                "created_at": job["created_at"],
                "started_at": now,
                "state": JobStatus.SUCCEEDED.value,
                "type": job["type"],
                "priority": job["priority"],
                "attempt": 1,
                "delivery": 0,
                "worker": "floor",
            }
            producer.produce(settings.topics.status, codec.encode(STATUS, status), job["id"])
            ends[message.partition() or 0] = (message.offset() or 0) + 1
        offsets = [TopicPartition(topic, number, offset) for number, offset in ends.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)
        done += len(records)
    seconds = time.perf_counter() - began
    consumer.close()
    return done / seconds
