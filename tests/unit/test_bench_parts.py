"""What the benches compute, without Kafka."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from schemas.errors import KafkaUnreachable, PipelineError
from streams.settings import load_settings
from workers.bench import floor, throughput
from workers.bench.delay import lateness_ns, spread
from workers.bench.percentile import percentile, percentiles_ms
from workers.bench.priority import check_left
from workers.bench.processes import worker_processes
from workers.bench.stamps import WARM_UP, Stamp, Stamps, at_a_steady_pace, parse
from workers.progress import unseen

pytestmark = pytest.mark.job_processing


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [
        (1, 50, 1),
        (1, 99, 1),
        (2, 50, 1),
        (3, 50, 2),
        (100, 50, 50),
        (100, 99, 99),
        (101, 99, 100),
        (200, 99, 198),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(count: int, percent: int, expected: int) -> None:
    """The nearest rank: of a hundred values the 99th, not the largest, and nothing in between."""
    assert percentile(range(1, count + 1), percent) == expected


def test_percentiles_are_in_milliseconds_and_named() -> None:
    assert percentiles_ms("late", [3_456_789, 1_234_567, 2_000_000]) == {
        "late_p50_ms": 2.0,
        "late_p99_ms": 3.46,
    }


def test_percentiles_of_nothing_are_refused() -> None:
    with pytest.raises(PipelineError, match="nothing was measured"):
        percentiles_ms("start", [])


def test_stamps_tell_the_first_run_of_each_job_and_leave_out_a_line_that_is_not_all_there() -> None:
    text = "20 5000000 4\n21 6000000 5\n20 9000000 4\n22 70"
    assert parse(text) == {20: Stamp(5_000_000, 4), 21: Stamp(6_000_000, 5)}


def test_delays_reach_from_the_shortest_to_the_longest_and_are_mixed() -> None:
    delays = spread(600, 1_000, 30_000)
    assert sorted(delays) == [1_000 + 29_000 * step // 599 for step in range(600)]
    # Any stretch of the run has short ones and long ones.
    for start in range(0, 600, 30):
        stretch = delays[start : start + 30]
        assert min(stretch) < 4_000
        assert max(stretch) > 27_000


def test_one_delay_is_the_shortest() -> None:
    assert spread(1, 1_000, 30_000) == [1_000]


def test_a_job_is_late_or_early_by_its_own_time() -> None:
    stamps = {
        WARM_UP: Stamp(reached_ns=1_001_000_000, created_at_ms=1),
        WARM_UP + 1: Stamp(reached_ns=7_001_999_999, created_at_ms=2),
    }
    assert lateness_ns(stamps, [1_000, 7_000]) == [0, -1]


def test_a_backlog_that_did_not_last_is_refused_with_a_larger_one() -> None:
    check_left(100_000, 5_000)
    with pytest.raises(PipelineError, match="--backlog 200000"):
        check_left(100_000, 4_999)


async def test_a_call_that_waits_does_not_hold_up_the_next_one() -> None:
    """Else a slow moment of Kafka would be measured once, not by every job that came in meanwhile."""
    all_called = asyncio.Event()
    calls: list[int] = []

    async def schedule(number: int) -> None:
        calls.append(number)
        if len(calls) == 3:
            all_called.set()
        await all_called.wait()

    called = await asyncio.wait_for(at_a_steady_pace(range(20, 23), 1000, schedule, unseen), 60)
    assert sorted(called) == calls == [20, 21, 22]
    assert called[20] <= called[21] <= called[22]


async def test_calls_that_fail_all_at_once_are_one_error() -> None:
    """Kafka is gone: each of many calls finds that out."""
    all_called = asyncio.Barrier(10)

    async def unreachable(_: int) -> None:
        await all_called.wait()
        raise KafkaUnreachable("127.0.0.1:1", 5)

    with pytest.raises(KafkaUnreachable):
        await asyncio.wait_for(at_a_steady_pace(range(10), 1e6, unreachable, unseen), 60)


async def test_a_worker_that_ends_by_itself_ends_the_wait(tmp_path: Path) -> None:
    def ended() -> None:
        raise PipelineError("a worker process ended by itself")

    (tmp_path / "stamps").touch()
    with pytest.raises(PipelineError, match="ended by itself"):
        await asyncio.wait_for(Stamps(tmp_path / "stamps", ended).until(1, "running", unseen), 60)


def test_a_worker_that_cannot_start_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own reason is told: a module of the user's with a name of ours is none."""
    (tmp_path / "schemas.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    others = {child.pid for child in psutil.Process().children()}
    with worker_processes(settings, 1, RUSTFS_WORKERS_MAX_CONCURRENT_JOBS="none") as check:
        (worker,) = (child for child in psutil.Process().children() if child.pid not in others)
        # Not reaped here: its exit code is for ``check``.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(PipelineError, match="exit code 2"):
            check()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_workers_of_a_bench_that_is_killed_end_as_well(tmp_path: Path) -> None:
    """kill -9 gives the bench no chance to end them."""
    program = textwrap.dedent("""
        import os, signal, subprocess, sys
        from workers.bench import processes
        from streams.settings import load_settings

        # Two stand in for the workers, and begin as every command does.
        waits = "import signal; from workers.parent_death import end_with_parent; end_with_parent(); signal.pause()"
        start = subprocess.Popen
        processes.subprocess.Popen = lambda command, **options: start([sys.executable, "-c", waits], **options)
        with processes.worker_processes(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), 2):
            print(os.getpid(), flush=True)
            signal.pause()
    """)
    bench = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert bench.stdout is not None
    with bench.stdout:
        assert bench.stdout.readline().strip() == str(bench.pid)
    workers = psutil.Process(bench.pid).children()
    assert len(workers) == 2
    os.kill(bench.pid, signal.SIGKILL)
    bench.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_the_floor_stays_small_enough_to_be_one() -> None:
    """Whatever it gains would make every ratio to it look better."""
    assert len(Path(floor.__file__).read_text().splitlines()) < 80


def test_jobs_that_are_done_between_two_looks_are_too_few_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 jobs/s, and a ratio of 0, would be no figures."""
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    monkeypatch.setattr(throughput, "worker_processes", lambda *_: nullcontext(lambda: None))
    monkeypatch.setattr(throughput, "_committed", lambda *_: 1_000)
    with pytest.raises(PipelineError, match="1,000 jobs are too few to measure"):
        throughput.drained_per_s(settings, 1_000, 4, lambda *_: None)


def test_a_drain_is_what_was_committed_after_the_first_look_in_the_time_since_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Starting the workers is no part of it, nor is what they had done by the first look."""
    looks = iter([(0.0, 0), (5.0, 200), (5.5, 600), (7.0, 1_000)])
    now = 0.0

    def committed(*_: object) -> int:
        nonlocal now
        now, done = next(looks)
        return done

    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    monkeypatch.setattr(throughput, "worker_processes", lambda *_: nullcontext(lambda: None))
    monkeypatch.setattr(throughput, "_committed", committed)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now, sleep=lambda _: None))
    assert throughput.drained_per_s(settings, 1_000, 1) == pytest.approx(800 / 2.0)
