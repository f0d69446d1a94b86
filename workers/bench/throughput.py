"""``bench throughput``: how many jobs that do nothing a deployment takes in and runs per second.

In:  a number of jobs and of worker processes. Out: rates, and the share of what Kafka and Avro alone would do.

The drain is seen from outside: the group's committed offsets, asked for some fifty times a second, say how many
jobs are done. That costs the workers nothing, and counts only what is committed.
"""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition

from schemas import JobPriority
from schemas.errors import PipelineError
from schemas.records import REPORT, decode_report
from streams.clients import reader_config
from streams.producer import JobProducer
from streams.provision import provision
from streams.registry import build_codec
from streams.scan import scan
from streams.settings import Settings
from workers.bench.floor import floor_per_s
from workers.bench.jobs import NoopJob
from workers.bench.processes import worker_processes
from workers.progress import Progress, unseen

_LIMIT_S = 600.0


def throughput(settings: Settings, jobs: int, workers: int, progress: Progress = unseen) -> dict[str, Any]:
    """Enqueue, drain, floor. Blocks; its worker processes are gone when it returns.

    Raises:
        PipelineError: a worker ended by itself, or the jobs were not done in ten minutes.
    """
    provision(settings)
    progress("scheduling", 0, jobs)
    with JobProducer(settings) as producer:
        began = time.perf_counter()
        producer.schedule_jobs(NoopJob(number) for number in range(jobs))
        enqueue_s = time.perf_counter() - began
    progress("scheduling", jobs, jobs)
    drain_per_s = drained_per_s(settings, jobs, workers, progress)
    # As large as the workers' own were: fewer, larger transactions are most of what makes either of them fast.
    per_transaction = _jobs_per_transaction(settings, jobs)
    progress("Kafka and Avro alone", 0, jobs)
    floor = floor_per_s(settings, jobs, per_transaction)
    progress("Kafka and Avro alone", jobs, jobs)
    return {
        "jobs": jobs,
        "workers": workers,
        "enqueue_per_s": round(jobs / enqueue_s),
        "drain_per_s": round(drain_per_s),
        "floor_per_s": round(floor),
        "ratio_to_floor": round(drain_per_s / floor, 3),
        "jobs_per_transaction": per_transaction,
    }


def drained_per_s(
    settings: Settings, jobs: int, workers: int, progress: Progress = unseen, **environment: str
) -> float:
    """Jobs a second, from the first commit to the last one, by workers that are started and ended here. Blocks.

    Args:
        settings: a deployment on whose normal topic just these jobs wait.
        jobs: how many there are.
        workers: processes to start.
        progress: told how far they are.
        environment: for the workers, beside our own.

    Raises:
        PipelineError: a worker ended by itself, or the jobs were not done in ten minutes.
    """
    # Not a member: it only asks what is committed, without waiting for the transactions that are open.
    observer = Consumer({**reader_config(settings, read_committed=False), "group.id": settings.topics.group})
    try:
        with worker_processes(settings, workers, **environment) as check:
            first: tuple[float, int] | None = None
            deadline = time.perf_counter() + _LIMIT_S
            while True:
                check()
                done = _committed(settings, observer)
                now = time.perf_counter()
                progress("draining", done, jobs)
                if done and first is None:
                    first = (now, done)
                if done >= jobs:
                    break
                if now > deadline:
                    raise PipelineError(f"{done} of {jobs} jobs were done in {_LIMIT_S:.0f} s")
                time.sleep(0.02)
            assert first is not None  # noqa: S101 - something was done
            if done <= first[1]:
                raise PipelineError(
                    f"{jobs:,} jobs are too few to measure: they were done between two looks; take more"
                )
            return (done - first[1]) / (now - first[0])
    finally:
        observer.close()


def _jobs_per_transaction(settings: Settings, jobs: int) -> int:
    """What the workers' last reports say: jobs done, by transactions committed.

    Raises:
        PipelineError: there is no report.
    """
    codec = build_codec(settings)
    codec.prefix(REPORT)  # where there is a registry, it knows what it reads from here on
    last: dict[str, int] = {}

    def take(message: Message) -> None:
        report = decode_report(codec, message.value() or b"")
        last[report.incarnation] = report.events.get("transactions", 0)

    scan(settings, [settings.topics.reports], take, timeout_s=10)
    transactions = sum(last.values())
    if not transactions:
        raise PipelineError("the workers reported no transaction")
    return max(round(jobs / transactions), 1)


def _committed(settings: Settings, observer: Consumer) -> int:
    """Jobs that the group has committed as done: the job topic has no transaction markers, so offsets count jobs."""
    topic = settings.topics.jobs[JobPriority.NORMAL]
    places = [TopicPartition(topic, number) for number in range(settings.partitions)]
    return sum(max(place.offset, 0) for place in observer.committed(places, timeout=10))
