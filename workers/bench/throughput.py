"""``bench throughput``: how many jobs that do nothing a deployment takes in and runs per second.

In:  a number of jobs and of worker processes. Out: rates, and the share of what Kafka and Avro alone would do.

The drain is seen from outside: the group's committed offsets, asked for some fifty times a second, say how many
jobs are done. That costs the workers nothing, and counts only what is committed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition

from schemas import JobPriority
from schemas.codec import Codec
from schemas.errors import PipelineError
from schemas.records import decode_report
from streams.clients import reader_config
from streams.producer import JobProducer
from streams.provision import provision
from streams.scan import scan
from streams.settings import Settings
from workers.bench.floor import floor_per_s
from workers.bench.jobs import NoopJob

_LIMIT_S = 600.0


def throughput(settings: Settings, jobs: int, workers: int) -> dict[str, Any]:
    """Enqueue, drain, floor. Blocks; its worker processes are gone when it returns.

    Raises:
        PipelineError: a worker ended by itself, or the jobs were not done in ten minutes.
    """
    provision(settings)
    with JobProducer(settings) as producer:
        began = time.perf_counter()
        producer.schedule_jobs(NoopJob(number) for number in range(jobs))
        enqueue_s = time.perf_counter() - began
    drain_per_s = _drain(settings, jobs, workers)
    # As large as the workers' own were: fewer, larger transactions are most of what makes either of them fast.
    per_transaction = _jobs_per_transaction(settings, jobs)
    floor = floor_per_s(settings, jobs, per_transaction)
    return {
        "jobs": jobs,
        "workers": workers,
        "enqueue_per_s": round(jobs / enqueue_s),
        "drain_per_s": round(drain_per_s),
        "floor_per_s": round(floor),
        "ratio_to_floor": round(drain_per_s / floor, 3),
        "jobs_per_transaction": per_transaction,
    }


def worker_processes(settings: Settings, count: int, **environment: str) -> list[subprocess.Popen[bytes]]:
    """Real workers, as an operator would start them."""
    variables = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers(),
        "RUSTFS_WORKERS_TOPIC_PREFIX": settings.topic_prefix,
        "RUSTFS_WORKERS_PARTITIONS": str(settings.partitions),
        "RUSTFS_WORKERS_LOG_LEVEL": "error",
        **environment,
    }
    command = [sys.executable, "-m", "workers", "worker", "--import", "workers.bench.jobs"]
    return [
        subprocess.Popen(
            [*command, "--worker-id", f"bench-{number}"], env=variables, stdout=subprocess.DEVNULL
        )
        for number in range(count)
    ]


def stop_processes(processes: list[subprocess.Popen[bytes]]) -> None:
    """Drain them, and wait."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _drain(settings: Settings, jobs: int, workers: int) -> float:
    # Not a member: it only asks what is committed, without waiting for the transactions that are open.
    observer = Consumer({**reader_config(settings, read_committed=False), "group.id": settings.topics.group})
    processes = worker_processes(settings, workers)
    try:
        first: tuple[float, int] | None = None
        deadline = time.perf_counter() + _LIMIT_S
        done = 0
        while True:
            if any(process.poll() is not None for process in processes):
                raise PipelineError("a worker process ended by itself")
            now = time.perf_counter()
            done = _committed(settings, observer)
            if done and first is None:
                first = (now, done)
            if done >= jobs:
                break
            if now > deadline:
                raise PipelineError(f"{done} of {jobs} jobs were done in {_LIMIT_S:.0f} s")
            time.sleep(0.02)
        assert first is not None  # noqa: S101 - something was done
        return (done - first[1]) / (time.perf_counter() - first[0])
    finally:
        stop_processes(processes)
        observer.close()


def _jobs_per_transaction(settings: Settings, jobs: int) -> int:
    """What the workers' last reports say: jobs done, by transactions committed.

    Raises:
        PipelineError: there is no report.
    """
    codec = Codec()
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
