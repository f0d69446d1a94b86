"""Each bench with small numbers: what it says, and that its workers are gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from schemas import JobPriority, JobStatus
from schemas.errors import PipelineError
from streams.committed import committed_offsets
from streams.settings import Settings
from tests.support.audit import statuses
from tests.support.waiting import eventually
from tests.support.workers import ROOT
from workers.bench.delay import delay
from workers.bench.latency import latency
from workers.bench.priority import priority
from workers.bench.throughput import throughput

pytestmark = [pytest.mark.job_processing, pytest.mark.integration]


def bench_workers(parent: psutil.Process) -> list[psutil.Process]:
    return [child for child in parent.children(recursive=True) if "workers.bench.jobs" in child.cmdline()]


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert bench_workers(psutil.Process()) == []


class Stages:
    """A progress that remembers the stages and how far they came."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        self.seen[what] = (done, total)

    def assert_complete(self, *names: str) -> None:
        assert tuple(self.seen) == names
        assert all(done == total for done, total in self.seen.values()), self.seen


def test_throughput_of_two_workers(settings: Settings) -> None:
    stages = Stages()
    result = throughput(settings, 2_000, 2, stages)
    assert list(result) == [
        "jobs",
        "workers",
        "enqueue_per_s",
        "drain_per_s",
        "floor_per_s",
        "ratio_to_floor",
        "jobs_per_transaction",
    ]
    assert (result["jobs"], result["workers"]) == (2_000, 2)
    assert result["enqueue_per_s"] > 0
    assert result["drain_per_s"] > 0
    assert result["ratio_to_floor"] == pytest.approx(result["drain_per_s"] / result["floor_per_s"], abs=0.01)
    assert 1 <= result["jobs_per_transaction"] <= 2_000
    stages.assert_complete("scheduling", "draining", "Kafka and Avro alone")
    # A rate of something else would look as good.
    ends = [change for changes in statuses(settings).values() for change in changes]
    assert Counter((change.worker == "floor", change.state) for change in ends) == {
        (True, JobStatus.SUCCEEDED): 2_000,
        (False, JobStatus.SUCCEEDED): 2_000,
    }
    places = [(settings.topics.jobs[JobPriority.NORMAL], number) for number in range(settings.partitions)]
    for group in (settings.topics.group, f"{settings.topic_prefix}floor"):
        committed = committed_offsets(settings, group, places, timeout_s=10)
        assert sum(offset for offset, _ in committed.values()) == 2_000, group


def test_latency_of_a_steady_stream(settings: Settings) -> None:
    stages = Stages()
    result = latency(settings, 50, 1, stages)
    assert list(result) == ["rate", "jobs", "start_p50_ms", "start_p99_ms"]
    assert (result["rate"], result["jobs"]) == (50, 50)
    assert 0 < result["start_p50_ms"] <= result["start_p99_ms"]
    stages.assert_complete("starting a worker", "scheduling", "running")


def test_delays_are_kept(settings: Settings) -> None:
    """Through the tiers of 1 s and 5 s: nothing early, and nothing late by as much as a delay is long."""
    stages = Stages()
    result = delay(
        settings,
        12,
        shortest=timedelta(seconds=1),
        longest=timedelta(seconds=6),
        spell=timedelta(seconds=1),
        progress=stages,
    )
    assert list(result) == ["jobs", "early", "late_p50_ms", "late_p99_ms", "broker_clock_ahead_ms"]
    assert (result["jobs"], result["early"]) == (12, 0)
    assert 0 <= result["late_p50_ms"] <= result["late_p99_ms"]
    # The same clock; what is left is the way of the quickest report to the broker.
    assert result["broker_clock_ahead_ms"] >= 0
    stages.assert_complete("starting a worker", "scheduling", "running")


def test_critical_jobs_overtake_low_ones(settings: Settings) -> None:
    """And a backlog that is gone before the last of them starts gives no result."""
    stages = Stages()
    result = priority(settings, 60_000, 10, 1_000, stages)
    assert list(result) == ["backlog", "jobs", "rate", "start_p50_ms", "start_p99_ms", "backlog_left"]
    assert (result["backlog"], result["jobs"], result["rate"]) == (60_000, 10, 1_000)
    assert 0 < result["start_p50_ms"] <= result["start_p99_ms"]
    assert 3_000 <= result["backlog_left"] < 60_000
    stages.assert_complete("scheduling low jobs", "starting a worker", "scheduling", "running")


def test_a_backlog_that_is_too_small_is_refused(settings: Settings) -> None:
    with pytest.raises(PipelineError, match=r"--backlog 200$"):
        priority(settings, 100, 10, 10)


@pytest.fixture
def environment(kafka: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "RUSTFS_WORKERS_PARTITIONS": "3",
        "RUSTFS_WORKERS_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(ROOT),
    }


def bench_topics(kafka: str) -> set[str]:
    admin = AdminClient({"bootstrap.servers": kafka})
    return {name for name in admin.list_topics(timeout=10).topics if name.startswith("bench-")}


def bench_groups(kafka: str) -> set[str]:
    listed = AdminClient({"bootstrap.servers": kafka}).list_consumer_groups().result(10).valid
    return {group.group_id for group in listed if group.group_id.startswith("bench-")}


def test_the_command_prints_one_object_and_leaves_nothing_on_a_given_kafka(
    kafka: str, environment: dict[str, str]
) -> None:
    command = [
        sys.executable,
        "-m",
        "workers",
        "bench",
        "latency",
        "--rate",
        "20",
        "--seconds",
        "1",
        "--json",
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["jobs"] == 20
    assert "running …" in done.stderr.decode()
    assert bench_topics(kafka) == set()
    assert bench_groups(kafka) == set()


def test_ctrl_c_ends_the_workers_and_leaves_nothing(kafka: str, environment: dict[str, str]) -> None:
    """As a terminal sends it: to the whole foreground process group."""
    command = [sys.executable, "-m", "workers", "bench", "latency", "--seconds", "600"]
    bench = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert bench.stdout is not None
    assert bench.stderr is not None
    with bench, bench.stdout, bench.stderr:
        try:
            # Only now are jobs scheduled, so the worker has joined.
            assert any(b"scheduling" in line for line in bench.stderr)
            workers = bench_workers(psutil.Process(bench.pid))
            assert len(workers) == 1
            os.killpg(bench.pid, signal.SIGINT)
            assert bench.wait(80) == 130
            assert bench.stdout.read() == b""
        finally:
            if bench.poll() is None:  # it would go on for ten minutes, beside all other tests
                os.killpg(bench.pid, signal.SIGKILL)
    assert not any(worker.is_running() for worker in workers)
    eventually(
        lambda: not bench_topics(kafka) and not bench_groups(kafka), 10, "nothing of the bench is left"
    )
