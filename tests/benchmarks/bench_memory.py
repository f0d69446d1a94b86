"""How much memory a worker takes while many jobs wait. Not collected by pytest.

    python tests/benchmarks/bench_memory.py [normal] [delayed] [large] [slow] [--jobs N] [--seconds 20]

In:  nothing; it starts a Kafka of its own (on the disk of ``--dir``). Out: one JSON object per backlog: the
peak of the worker's resident memory, what it was before the first job, and how far it got.

``normal``: 1,000,000 jobs that do nothing, on the normal topic, while the worker drains them.
``delayed``: 1,000,000 jobs that are due in an hour, in the retry topics.
``large``: 100,000 jobs with 10 KiB of random bytes each, which nothing compresses, while they are drained.
``slow``: the same jobs, and handlers that do not end: every buffer is full.

Each backlog has topics of its own. A worker runs for ``--seconds``, or until its jobs are done. All four take
some four minutes and 2.5 GiB of disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, TopicPartition

sys.path.insert(0, str(Path(__file__).parents[2]))

from schemas import Job
from streams.clients import reader_config
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.producer import JobProducer
from streams.provision import provision
from streams.settings import Settings, load_settings
from tests.support.waiting import eventually
from tests.support.workers import WorkerUnderTest, workers
from workers.context import WorkerContext

LARGE_BYTES = 10 * 1024
LOOK_S = 0.05
MIB = 1024 * 1024


@dataclass
class SmallJob(Job):
    """Does nothing."""

    job_type = "bench_small"
    number: int = 0

    async def execute(self, context: WorkerContext) -> None:
        """Nothing."""


@dataclass
class LargeJob(Job):
    """Carries a lot, and does nothing with it."""

    job_type = "bench_large"
    content: bytes = b""

    async def execute(self, context: WorkerContext) -> None:
        """Nothing."""


@dataclass
class EndlessJob(Job):
    """Carries a lot, and does not end."""

    job_type = "bench_endless"
    content: bytes = b""

    async def execute(self, context: WorkerContext) -> None:
        await asyncio.Event().wait()


@dataclass(frozen=True)
class Backlog:
    """What waits when the worker starts."""

    jobs: int
    make: Callable[[int], Job]
    delay: timedelta | None = None


BACKLOGS = {
    "normal": Backlog(1_000_000, SmallJob),
    "delayed": Backlog(1_000_000, SmallJob, timedelta(hours=1)),
    "large": Backlog(100_000, lambda _: LargeJob(os.urandom(LARGE_BYTES))),
    "slow": Backlog(100_000, lambda _: EndlessJob(os.urandom(LARGE_BYTES))),
}


def peak_rss(process: psutil.Process) -> int:
    """The kernel's own high-water mark, in bytes."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell a process's peak")


def done(settings: Settings, observer: Consumer) -> int:
    """Records of the normal topic that the group has committed."""
    topic = "".join(name for name, priority in settings.topics.priority_of.items() if priority == "normal")
    places = [TopicPartition(topic, number) for number in range(settings.partitions)]
    return sum(max(place.offset, 0) for place in observer.committed(places, timeout=20))


def watch(
    worker: WorkerUnderTest, settings: Settings, backlog: Backlog, jobs: int, seconds: float
) -> dict[str, Any]:
    process = psutil.Process(worker.pid)
    observer = Consumer({**reader_config(settings, read_committed=False), "group.id": settings.topics.group})
    try:
        eventually(lambda: worker.said("worker started"), 60, "the worker has started")
        before = process.memory_info().rss
        samples, finished = [], 0
        began = asked = time.monotonic()
        while time.monotonic() - began < seconds and (backlog.delay is not None or finished < jobs):
            samples.append(process.memory_info().rss)
            if time.monotonic() - asked > 1:
                asked, finished = time.monotonic(), done(settings, observer)
            # A reading of its own for each moment: the kernel's peak alone would not show a trend.
            with contextlib.suppress(psutil.TimeoutExpired):
                raise SystemExit(f"the worker ended by itself (exit code {process.wait(LOOK_S)})")
        assert not worker.said("partitions lost"), "it was given up while it was measured"
        return {
            "peak_mib": round(peak_rss(process) / MIB, 1),
            "before_mib": round(before / MIB, 1),
            "last_mib": round(samples[-1] / MIB, 1),
            "done": done(settings, observer),
            "seconds": round(time.monotonic() - began, 1),
        }
    finally:
        observer.close()


def measure(name: str, directory: Path, address: str, options: argparse.Namespace) -> dict[str, Any]:
    backlog = BACKLOGS[name]
    count = options.jobs or backlog.jobs
    settings = load_settings(
        kafka_bootstrap_servers=address,
        topic_prefix=f"{name}.",
        partitions=options.partitions,
        data_dir=directory / "data",
    )
    provision(settings)

    def jobs() -> Iterator[Job]:
        return (backlog.make(number) for number in range(count))

    with JobProducer(settings) as producer:
        producer.schedule_jobs(jobs(), delay=backlog.delay)
    with workers(settings, directory) as start:
        worker = start(name, "--import", "tests.benchmarks.bench_memory")
        found = watch(worker, settings, backlog, count, options.seconds)
    return {"backlog": name, "jobs": count, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("backlogs", nargs="*", choices=[*BACKLOGS, []], help="default: all of them")
    parser.add_argument("--jobs", type=int, help="how many wait, instead of each one's own number")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-memory-", dir=options.dir) as directory:
        place = Path(directory)
        with EmbeddedBroker(BrokerConfig(place / "kafka")) as broker:
            for name in options.backlogs or BACKLOGS:
                print(json.dumps(measure(name, place, broker.bootstrap_servers, options)), flush=True)


if __name__ == "__main__":
    main()
