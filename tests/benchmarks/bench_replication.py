"""How fast objects are replicated: through Kafka, and by the handler alone. Not collected by pytest.

    python tests/benchmarks/bench_replication.py whole [--objects 2000] [--bytes 4096] [--durable]
    python tests/benchmarks/bench_replication.py small [--objects 2000] [--bytes 4096] [--durable]
    python tests/benchmarks/bench_replication.py large [--bytes 2147483648] [--durable]

In:  a directory to work in (``--dir``, on the disk to be measured). Out: one JSON object per line.

All copy from one file node to two, and compare with a loop that reads, hashes and writes to the same number
of files (and, with ``--durable``, flushes them), without temporary names, verification or anything else.

``whole`` schedules one job per object on a Kafka that it starts, and lets one worker process replicate them;
objects a second, from the worker's first commit to its last.

``small`` copies many objects through ``process_job``, as a worker calls it, at ``--concurrency`` a time.
Directories are new in each round and removed at the very end: some file systems (ext4 without a journal) take
several times as long to make a file for a minute after many were deleted.

``large`` copies one object. Each copy runs in a process of its own, in turns; memory is the process's peak
above its size before the copy.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from schemas import JobPriority
from streams.producer import JobProducer
from streams.provision import provision
from streams.settings import load_settings
from workers.bench.throughput import drained_per_s
from workers.context import WorkerContext
from workers.handlers.replication import ReplicationJob, ReplicationWorker
from workers.progress import unseen
from workers.results import Success
from workers.storage import NodeRegistry
from workers.temporary import temporary_kafka

TARGETS = ["n2", "n3"]
CHUNK_BYTES = 1 << 20


def registry(base: Path, *, durable: bool) -> NodeRegistry:
    return NodeRegistry({name: f"file://{base / name}" for name in ("n1", *TARGETS)}, durable=durable)


def context(job_id: str) -> WorkerContext:
    return WorkerContext(job_id=job_id, job_type="replication", priority=JobPriority.NORMAL)


@contextmanager
def fresh(parent: Path | None) -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="bench-replication-", dir=parent))
    try:
        yield base
    finally:
        shutil.rmtree(base)


def make_nodes(base: Path) -> None:
    for name in ("n1", *TARGETS):
        (base / name / "bench").mkdir(parents=True)


async def copy_many(worker: ReplicationWorker, keys: list[str], concurrency: int) -> None:
    waiting = iter(enumerate(keys))

    async def one_after_another() -> None:
        for number, key in waiting:
            job = ReplicationJob(source_path=f"bench/{key}", target_nodes=TARGETS)
            result = await worker.process_job(job, context(f"job-{number}"))
            assert isinstance(result, Success), result

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(one_after_another())


def plain_copies(base: Path, keys: list[str], *, durable: bool) -> float:
    """Objects per second of the loop that this is compared with."""
    for name in TARGETS:
        for key in keys:
            (base / f"plain-{name}" / key).parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for key in keys:
        content = (base / "n1/bench" / key).read_bytes()
        hashlib.sha256(content).hexdigest()
        for name in TARGETS:
            with (base / f"plain-{name}" / key).open("wb", buffering=0) as target:
                target.write(content)
                if durable:
                    os.fsync(target.fileno())
    return len(keys) / (time.perf_counter() - started)


def make_objects(base: Path, options: argparse.Namespace) -> list[str]:
    make_nodes(base)
    keys = [f"d{number % 20}/o{number}" for number in range(options.objects)]
    for key in keys:
        path = base / "n1/bench" / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(options.bytes))
    return keys


def check_copies(base: Path, keys: list[str]) -> None:
    for key in keys:
        want = (base / "n1/bench" / key).read_bytes()
        assert all((base / name / "bench" / key).read_bytes() == want for name in TARGETS)


def whole(base: Path, options: argparse.Namespace, bootstrap: str) -> dict[str, Any]:
    keys = make_objects(base, options)
    plain = plain_copies(base, keys, durable=options.durable)
    settings = load_settings(
        kafka_bootstrap_servers=bootstrap, topic_prefix=f"bench-{base.name}.", data_dir=base / "data"
    )
    provision(settings)
    with JobProducer(settings) as producer:
        producer.schedule_jobs(
            ReplicationJob(source_path=f"bench/{key}", source_node="n1", target_nodes=TARGETS) for key in keys
        )
    how = "?durable=true" if options.durable else ""
    nodes = {f"RUSTFS_WORKERS_NODES__{name}": f"file://{base / name}{how}" for name in ("n1", *TARGETS)}
    per_s = drained_per_s(settings, len(keys), 1, unseen, **nodes)
    check_copies(base, keys)
    return {
        "objects": len(keys),
        "bytes": options.bytes,
        "durable": options.durable,
        "objects_per_s": round(per_s),
        "plain_loop_per_s": round(plain),
    }


def small(base: Path, options: argparse.Namespace) -> dict[str, Any]:
    keys = make_objects(base, options)
    plain = plain_copies(base, keys, durable=options.durable)
    worker = ReplicationWorker(registry(base, durable=options.durable), threads=options.threads)
    cpu, started = time.process_time(), time.perf_counter()
    asyncio.run(copy_many(worker, keys, options.concurrency))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    started = time.perf_counter()
    asyncio.run(copy_many(worker, keys, options.concurrency))
    again = time.perf_counter() - started
    worker.close()
    check_copies(base, keys)
    return {
        "objects": len(keys),
        "bytes": options.bytes,
        "durable": options.durable,
        "concurrency": options.concurrency,
        "threads": options.threads,
        "objects_per_s": round(len(keys) / seconds),
        "cpu_us_per_object": round(cpu / len(keys) * 1e6),
        "already_equal_per_s": round(len(keys) / again),
        "plain_loop_per_s": round(plain),
    }


def plain_loop(base: Path, *, durable: bool) -> None:
    digest = hashlib.sha256()
    with (base / "n1/bench/large").open("rb", buffering=0) as source:
        targets = [(base / name / "bench/large").open("wb", buffering=0) for name in TARGETS]
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            for target in targets:
                target.write(chunk)
        for target in targets:
            if durable:
                os.fsync(target.fileno())
            target.close()


def handler(base: Path, *, durable: bool) -> None:
    worker = ReplicationWorker(registry(base, durable=durable))
    job = ReplicationJob(source_path="bench/large", target_nodes=TARGETS)
    result = asyncio.run(worker.process_job(job, context("large")))
    assert isinstance(result, Success), result


def peak_kib(*, reset: bool) -> int:
    """This process's peak of resident memory. Linux only: elsewhere it would be the parent's as well."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def measure(copy: Callable[..., None], base: Path, durable: bool, report: Any) -> None:  # noqa: FBT001
    before = peak_kib(reset=True)
    started, cpu = time.perf_counter(), time.process_time()
    copy(base, durable=durable)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    grown = peak_kib(reset=False) - before
    report.send((seconds, cpu, grown / 1024))


def in_own_process(copy: Callable[..., None], base: Path, *, durable: bool) -> tuple[float, float, float]:
    for name in TARGETS:
        (base / name / "bench/large").unlink(missing_ok=True)
    os.sync()  # what was written before must not be paid for now
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=measure, args=(copy, base, durable, send))
    process.start()
    send.close()
    try:
        seconds, cpu, grown = receive.recv()
    finally:
        process.join()
    return seconds, cpu, grown


def large(options: argparse.Namespace) -> dict[str, Any]:
    with fresh(options.dir) as base:
        make_nodes(base)
        with (base / "n1/bench/large").open("wb") as source:
            block = os.urandom(16 << 20)
            for position in range(0, options.bytes, len(block)):
                source.write(block[: options.bytes - position])
        loops, copies = [], []
        for _ in range(options.rounds):
            loops.append(in_own_process(plain_loop, base, durable=options.durable))
            copies.append(in_own_process(handler, base, durable=options.durable))
    loop_s = statistics.median(seconds for seconds, _, _ in loops)
    copy_s = statistics.median(seconds for seconds, _, _ in copies)
    return {
        "bytes": options.bytes,
        "durable": options.durable,
        "loop_s": round(loop_s, 2),
        "handler_s": round(copy_s, 2),
        "speed_to_loop": round(loop_s / copy_s, 2),
        "loops_s": [round(seconds, 2) for seconds, _, _ in loops],
        "handlers_s": [round(seconds, 2) for seconds, _, _ in copies],
        "handler_cpu_s": round(statistics.median(cpu for _, cpu, _ in copies), 2),
        "handler_memory_mib": round(max(grown for _, _, grown in copies), 1),
        "loop_memory_mib": round(max(grown for _, _, grown in loops), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["whole", "small", "large"])
    parser.add_argument("--dir", type=Path, help="where to work; default: the system's temporary directory")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--bytes", type=int)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--durable", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "large":
        options.bytes = options.bytes or 2 << 30
        report(large(options))
        return
    options.bytes = options.bytes or 4096
    with fresh(options.dir) as base:
        if options.what == "small":
            for number in range(options.rounds):
                report(small(base / str(number), options))
        else:
            with temporary_kafka(base / "kafka", unseen) as broker:
                for number in range(options.rounds):
                    report(whole(base / str(number), options, broker.bootstrap_servers))


def report(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
