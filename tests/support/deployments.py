"""A deployment for one test: settings with its prefix and few partitions, and records as others write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Message, Producer

from schemas import Job
from schemas.codec import Codec
from schemas.headers import Delivery, Origin, dead_letter
from schemas.lifecycle import JobStatus
from schemas.records import StatusChange, StatusWriter
from schemas.topics import JobPriority
from streams.clients import producer_config
from streams.scan import scan
from streams.settings import Settings, load_settings
from tests.support.events import job_value

PARTITIONS = 3


@dataclass
class Sample(Job):
    """A job with a little of everything, and an ordering key if told so."""

    job_type = "test_sample"
    path: str = "bucket/a"
    size: int = 0
    tags: list[str] | None = None
    order_key: str | None = None

    def ordering_key(self) -> str | None:
        return self.order_key


def settings_for(kafka: Any, prefix: str, directory: Path, **given: Any) -> Settings:
    """Settings that point at the test's broker and prefix."""
    address = kafka if isinstance(kafka, str) else kafka.bootstrap_servers
    return load_settings(
        **{
            "kafka_bootstrap_servers": address,
            "topic_prefix": prefix,
            "partitions": PARTITIONS,
            "data_dir": directory,
            **given,
        }
    )


def read_all(settings: Settings, *topics: str, read_committed: bool = True) -> list[Message]:
    """Every record of these topics, in order within each partition."""
    messages: list[Message] = []
    result = scan(settings, topics, messages.append, timeout_s=20, read_committed=read_committed)
    assert result.complete, f"an open transaction hides the end of {result.behind}"
    return messages


def count_all(settings: Settings) -> int:
    """How many records the job and retry topics hold."""
    return len(read_all(settings, *settings.topics.consumed))


class Writer:
    """Writes what a worker would: dead letters and statuses."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.codec = Codec()
        self._statuses = StatusWriter(self.codec)
        self._producer = Producer(producer_config(settings, linger_ms=0))

    def job_bytes(self, job_id: str, job: Job, priority: JobPriority = JobPriority.NORMAL) -> bytes:
        """A job event."""
        return job_value(
            job,
            self.codec,
            id=job_id,
            priority=priority.value,
            key=job.ordering_key(),
            created_at=1_700_000_000_000,
        )

    def job(self, job_id: str, job: Job, delivery: Delivery, *, topic: str, partition: int = 0) -> None:
        """A job's record."""
        from schemas.headers import build

        self._put(topic, self.job_bytes(job_id, job), job_id.encode(), partition, build(delivery))

    def dead(
        self,
        job_id: str,
        job: Job,
        delivery: Delivery,
        *,
        priority: JobPriority = JobPriority.NORMAL,
        partition: int = 0,
        failed_at_ms: int = 1_700_000_060_000,
        with_status: bool = True,
    ) -> None:
        """A job that came to its end: dead letter and ``failed`` status."""
        key = (job.ordering_key() or job_id).encode()
        self.dead_bytes(
            self.job_bytes(job_id, job, priority),
            delivery,
            key=key,
            partition=partition,
            failed_at_ms=failed_at_ms,
        )
        if with_status:
            self.status(
                job_id,
                JobStatus.FAILED,
                delivery,
                priority=priority,
                key=job.ordering_key(),
                at=failed_at_ms,
                error_type=delivery.error_type,
                error_message=delivery.error_message,
            )

    def dead_bytes(
        self,
        value: bytes,
        delivery: Delivery,
        *,
        key: bytes,
        partition: int = 0,
        failed_at_ms: int = 1_700_000_060_000,
    ) -> None:
        """A dead letter with any bytes."""
        raw = dead_letter(
            delivery,
            at=Origin(self.settings.topics.jobs[JobPriority.NORMAL], partition, 7),
            timestamp_ms=1_700_000_000_000,
            failed_at_ms=failed_at_ms,
            stacktrace="",
        )
        self._put(self.settings.topics.dlq, value, key, partition, raw)

    def status(
        self,
        job_id: str,
        state: JobStatus,
        delivery: Delivery,
        *,
        priority: JobPriority = JobPriority.NORMAL,
        key: str | None = None,
        at: int = 1_700_000_060_000,
        **facts: Any,
    ) -> None:
        """A state change."""
        change = StatusChange(
            job_id=job_id,
            key=key,
            at=at,
            created_at=1_700_000_000_000,
            started_at=1_700_000_050_000,
            state=state,
            type=delivery.job_type,
            priority=priority,
            attempt=delivery.attempt,
            delivery=delivery.delivery,
            redrives=delivery.redrives,
            worker="w.0",
            attempts=delivery.history,
            **facts,
        )
        self._put(self.settings.topics.status, self._statuses.encode(change), job_id.encode(), -1, [])

    def flush(self) -> None:
        """Wait for the acknowledgements."""
        assert self._producer.flush(20) == 0

    def _put(
        self, topic: str, value: bytes, key: bytes, partition: int, headers: list[tuple[str, bytes]]
    ) -> None:
        self._producer.produce(topic, value, key, partition, headers=headers)  # type: ignore[arg-type]
