"""Handlers in processes of their own, with real processes: what they get, say and return."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas.errors import InvalidJob, PayloadTooLarge, UnknownJobType
from schemas.job import Job, _declared
from schemas.jobtype import job_type
from schemas.topics import JobPriority
from tests.support import process_jobs as jobs
from tests.support.process_pool import JOB_ID, Told, open_fifo, pool_of
from workers.execution import frames, process_wire, processes
from workers.execution.process_child import ChannelContext
from workers.outcome import OutRecord
from workers.results import Failed, JobResult, Skipped, Snooze, Success

pytestmark = pytest.mark.job_processing


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


# --- results ---------------------------------------------------------------------------------------


async def test_results_are_what_the_handler_said() -> None:
    """A plain function and a coroutine give the same results."""
    expected: dict[str, JobResult] = {
        "none": Success(),
        "mapping": Success({"pages": 3}),
        "skipped": Skipped("nothing to do"),
        "snooze": Snooze(timedelta(milliseconds=1500, microseconds=1), "busy"),
        "failed": Failed("no room", retryable=False, error_type="NoRoom", stacktrace="here"),
    }
    async with pool_of(jobs.Answers, jobs.AnswersLater) as running:
        for how, result in expected.items():
            assert await running.run(jobs.Answers(how)) == result
            assert await running.run(jobs.AnswersLater(how)) == result


async def test_it_runs_in_another_process_and_the_same_one_serves_on() -> None:
    async with pool_of(jobs.Answers) as running:
        outputs = []
        for _ in range(3):
            result = await running.run(jobs.Answers("success"))
            assert isinstance(result, Success)
            assert result.output is not None
            outputs.append(result.output)
        assert outputs[0]["pid"] != os.getpid()
        assert {output["pid"] for output in outputs} == {outputs[0]["pid"]}
        assert outputs[0]["when"] == "0:00:01"


async def test_a_run_inherits_nothing_that_the_one_before_left_in_its_context() -> None:
    async with pool_of(jobs.Answers) as running:
        for _ in range(2):
            assert await running.run(jobs.Answers("paints")) == Success({"colour": "none"})


async def test_exceptions_are_failures_with_type_and_trace() -> None:
    kinds: tuple[Callable[[str], Job], ...] = (jobs.Answers, jobs.AnswersLater)
    async with pool_of(*kinds) as running:
        for kind in kinds:
            failed = await running.run(kind("value error"))
            assert isinstance(failed, Failed)
            assert (failed.reason, failed.retryable, failed.error_type) == (
                "wrong number",
                True,
                "ValueError",
            )
            assert "in answer" in failed.stacktrace
            assert "ValueError: wrong number" in failed.stacktrace
            failed = await running.run(kind("permanent"))
            assert isinstance(failed, Failed)
            assert (failed.reason, failed.retryable, failed.error_type) == ("never", False, "PermanentError")
            failed = await running.run(kind("exit"))
            assert isinstance(failed, Failed)
            assert (failed.retryable, failed.error_type) == (True, "SystemExit")
            assert await running.run(kind("none")) == Success()
        assert len(running.pool._all) == 1


async def test_a_result_that_cannot_be_written_is_a_failure_that_says_so() -> None:
    async with pool_of(jobs.Answers) as running:
        for how, words in (
            ("not a result", "returned int"),
            ("bad output", "keys must be str"),
            ("no number", "JSON compliant"),
            ("unprintable", "no words for it"),
            ("exception as reason", "must be str"),
        ):
            failed = await running.run(jobs.Answers(how))
            assert isinstance(failed, Failed)
            assert (failed.retryable, failed.error_type) == (False, "BadResult")
            assert words in failed.reason
        assert len(running.pool._all) == 1


async def test_a_huge_output_is_cut_before_it_travels() -> None:
    async with pool_of(jobs.Answers) as running:
        result = await running.run(jobs.Answers("large output"))
        assert isinstance(result, Success)
        assert result.output is not None
        assert result.output["truncated"].startswith('{"text":"xxx')
        assert len(result.output["truncated"]) < 10_000


async def test_the_handler_sees_the_facts_of_its_run() -> None:
    facts = {
        "key": "bucket/ä",
        "worker_id": "w.3",
        "fence": 2**40,
        "created_at_ms": 1_767_323_045_123,
        "redrives": 1,
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "priority": JobPriority.CRITICAL,
    }
    job = jobs.Answers("facts")
    async with pool_of(jobs.Answers) as running:
        result = await running.run(job, Told(job, **facts))
    assert result == Success(
        {
            "facts": [JOB_ID, "bucket/ä", "w.3", "critical", facts["traceparent"]],
            "numbers": [2, 2**40, 1, 1_767_323_045_123],
            "created": "2026-01-02T03:04:05.123000+00:00",
            "cancelled": False,
            "is_priority": True,
            "type": "child_answers",
        }
    )


async def test_a_worker_class_handles_its_type() -> None:
    async with pool_of(jobs.Scales) as running:
        result = await running.run(jobs.Weighed(5))
        assert isinstance(result, Success)
        assert result.output is not None
        assert result.output["weight"] == "5 g"
        assert result.output["pid"] != os.getpid()


async def test_noise_on_stdout_passes_through(capfd: pytest.CaptureFixture[str]) -> None:
    async with pool_of(jobs.Answers) as running:
        assert await running.run(jobs.Answers("stdout")) == Success({"heard": True})
        assert await running.run(jobs.Answers("structlog")) == Success()
    out, err = capfd.readouterr()
    assert "printed\n\x00\x00\x00\x08written\n" in out
    assert "an event of the handler" not in out
    assert "an event of the handler" in err


# --- metrics, progress, child jobs -----------------------------------------------------------------


async def test_news_arrive_while_the_handler_runs(fifo: Path) -> None:
    async with pool_of(jobs.Meets) as running:
        task, context = running.begin(jobs.Meets(str(fifo)))
        await context.spoken.wait()
        assert context._progress == (context.pid, 7)
        assert not task.done()
        await asyncio.to_thread(open_fifo, fifo, "w")
        assert await task == Success({"pid": context.pid})


async def test_no_round_of_a_fast_loop_is_lost_and_few_are_sent() -> None:
    class Heard(Told):
        words = 0

        def progress(self, done: int, total: int | None = None) -> None:
            Heard.words += 1
            super().progress(done, total)

    job = jobs.Counts(20_000)
    context = Heard(job)
    async with pool_of(jobs.Counts) as running:
        assert await running.run(job, context) == Success()
    assert context.metrics == {"rounds": 20_000}
    assert context._progress == (20_000, 20_000)
    assert 1 < Heard.words < 2_000


async def test_what_is_said_after_the_run_counts_for_no_other_job(fifo: Path, tmp_path: Path) -> None:
    told, others = tmp_path / "told", tmp_path / "others"
    # Of its own: the thread that has spoken may not have closed the first one yet.
    os.mkfifo(others)
    other = jobs.Meets(str(others), waits=True)
    async with pool_of(jobs.Leaves, jobs.Meets) as running:
        assert await running.run(jobs.Leaves(str(fifo), str(told))) == Success()
        await asyncio.to_thread(open_fifo, fifo, "w")  # now it speaks …
        await asyncio.to_thread(open_fifo, fifo, "r")  # … and has spoken
        task, context = running.begin(other)
        await context.spoken.wait()
        await asyncio.to_thread(open_fifo, others, "w")
        await task
        assert context.metrics == {}
    assert "is over" in told.read_text("utf-8")


class Planner:
    """Stands for the worker's planner; refuses with ``error``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.planned: list[tuple[Job, JobPriority, dict[str, Any]]] = []
        self._error = error

    def __call__(self, job: Job, priority: JobPriority, **options: Any) -> tuple[str, OutRecord]:
        if self._error is not None:
            raise self._error
        self.planned.append((job, priority, options))
        number = len(self.planned)
        return f"id-{number}", OutRecord("topic", number, None, None, [])

    async def prepare(self, job: Job) -> None:
        """There is nothing to wait for."""


async def test_child_jobs_are_planned_by_the_worker() -> None:
    planner = Planner()
    job = jobs.Plants("plain")
    context = Told(job, planner=planner)
    async with pool_of(jobs.Plants) as running:
        assert await running.run(job, context) == Success({"id": "id-1"})
    leaf, priority, options = planner.planned[0]
    assert leaf == jobs.Leaf(7, date(2026, 2, 3), timedelta(milliseconds=1500), ["a", "b"])
    assert priority is JobPriority.HIGH
    assert options == {"delay": None, "parent_id": JOB_ID}
    assert context._children == [OutRecord("topic", 1, None, None, [])]


async def test_a_coroutine_schedules_child_jobs_too() -> None:
    job = jobs.PlantsLater()
    async with pool_of(jobs.PlantsLater) as running:
        result = await running.run(job, Told(job, planner=Planner()))
    assert result == Success({"ids": ["id-1", "id-2", "id-3"]})


async def test_options_of_child_jobs_keep_their_types() -> None:
    planner = Planner()
    job = jobs.Plants("options")
    async with pool_of(jobs.Plants) as running:
        assert await running.run(job, Told(job, planner=planner)) == Success({"id": "id-1"})
    _, priority, options = planner.planned[0]
    assert priority is JobPriority.CRITICAL
    assert options == {
        "at": jobs.AT,
        "delay": timedelta(microseconds=1),
        "key": "k",
        "max_retries": 2,
        "parent_id": JOB_ID,
        "timeout": timedelta(minutes=1),
    }


def test_a_metric_that_cannot_be_written_is_a_failure_and_not_the_end_of_its_process() -> None:
    """Where only suspects run, a process that ends is a job that kills."""
    frame = process_wire.result_frame(Success({"done": 1}), {"metrics": {"n": 10**5_000}})
    text, _ = frames.lengths(frame[: frames.HEADER_BYTES])
    failed = process_wire.result_of(json.loads(frame[frames.HEADER_BYTES :][:text]))
    assert isinstance(failed, Failed)
    assert (failed.error_type, failed.retryable) == ("BadResult", False)


async def test_a_refused_child_job_raises_in_the_handler() -> None:
    """The same errors as in the worker itself, with their facts; a broken planner is an error, too."""
    too_large, unknown = PayloadTooLarge(5, 4), UnknownJobType("x", ["a"])
    expected: list[tuple[Exception, dict[str, Any]]] = [
        (InvalidJob("the key is bad"), {"error": "InvalidJob", "text": "the key is bad", "size": None}),
        (too_large, {"error": "PayloadTooLarge", "text": str(too_large), "size": 5}),
        (unknown, {"error": "UnknownJobType", "text": str(unknown), "size": None}),
        (TypeError("no such option"), {"error": "TypeError", "text": "no such option", "size": None}),
        (OSError("no registry"), {"error": "RuntimeError", "text": "OSError: no registry", "size": None}),
    ]
    job = jobs.Plants("refuse")
    async with pool_of(jobs.Plants) as running:
        for error, output in expected:
            context = Told(job, planner=Planner(error))
            assert await running.run(job, context) == Success(output)
            assert context._children is None


async def test_what_cannot_travel_is_refused_where_it_is_scheduled() -> None:
    planner = Planner()
    async with pool_of(jobs.Plants) as running:
        for how, words in (
            ("not a job", "'leaf' is not a Job"),
            ("strange option", "key is <object object"),
            ("wrong field", "child_leaf.number: 'seven'"),
        ):
            job = jobs.Plants(how)
            failed = await running.run(job, Told(job, planner=planner))
            assert isinstance(failed, Failed)
            assert failed.error_type == "InvalidJob"
            assert words in failed.reason
        job = jobs.Plants("plain")
        assert await running.run(job, Told(job, planner=planner)) == Success({"id": "id-1"})


async def test_a_child_job_of_a_type_that_the_worker_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = jobs.Plants("refuse")
    planner = Planner()
    async with pool_of(jobs.Plants) as running:
        monkeypatch.delitem(_declared, "child_leaf")
        result = await running.run(job, Told(job, planner=planner))
    assert isinstance(result, Success)
    assert result.output is not None
    assert result.output["error"] == "UnknownJobType"
    assert planner.planned == []


# --- several at once -------------------------------------------------------------------------------


async def test_two_children_run_in_parallel(fifo: Path) -> None:
    """Each opens its side of a FIFO, which blocks until the other does."""
    async with pool_of(jobs.Meets, size=2) as running:
        results = await asyncio.gather(
            running.run(jobs.Meets(str(fifo), waits=True)), running.run(jobs.Meets(str(fifo), waits=False))
        )
        outputs = [result.output for result in results if isinstance(result, Success)]
        assert len({output["pid"] for output in outputs if output}) == 2


async def test_more_jobs_than_processes_wait_their_turn(fifo: Path) -> None:
    async with pool_of(jobs.Meets, jobs.Answers) as running:
        first = jobs.Meets(str(fifo))
        second = jobs.Answers("success")
        task, context = running.begin(first)
        await context.spoken.wait()
        following, _ = running.begin(second)
        for _ in range(10):  # it gets as far as it can without waiting for another process
            await asyncio.sleep(0)
        assert running.started == [first]
        await asyncio.to_thread(open_fifo, fifo, "w")
        await asyncio.gather(task, following)
        assert running.started == [first, second]
        assert len(running.pool._all) == 1


async def test_a_job_that_gave_up_waiting_takes_nobodys_place(fifo: Path) -> None:
    async with pool_of(jobs.Meets, jobs.Answers) as running:
        task, context = running.begin(jobs.Meets(str(fifo)))
        await context.spoken.wait()
        following, _ = running.begin(jobs.Answers())
        await asyncio.sleep(0)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        assert not task.done()
        await asyncio.to_thread(open_fifo, fifo, "w")
        assert isinstance(await task, Success)
        assert await running.run(jobs.Answers()) == Success()


async def test_a_process_that_cannot_be_ended_keeps_nobody_waiting(
    fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a file server that is gone, or has become another user's: its job never ended, nor did its worker."""
    monkeypatch.setattr(processes, "_GRACE_S", 0.05)
    monkeypatch.setattr(processes, "_KILLED_WITHIN_S", 0.1)
    monkeypatch.setattr(os, "killpg", deaf := Deaf())
    async with pool_of(jobs.Meets, jobs.Answers) as running:
        task, context = running.begin(jobs.Meets(str(fifo)))
        await context.spoken.wait()
        task.cancel()
        with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
        assert [line["event"] for line in logs] == ["handler process cannot be ended: it is left behind"]
        assert await running.run(jobs.Answers("none")) == Success(), "another one has its place"
        assert deaf.pids
        monkeypatch.undo()
        os.killpg(deaf.pids[0], signal.SIGKILL)


class Deaf:
    """``os.killpg`` for a process that takes no signal."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def __call__(self, pid: int, _number: int) -> None:
        self.pids.append(pid)
        raise PermissionError


# --- the child's context alone ---------------------------------------------------------------------


def test_metrics_of_other_libraries_become_numbers() -> None:
    class Number:
        def __float__(self) -> float:
            return 2.5

        def __int__(self) -> int:
            return 2

    ours, theirs = socket.socketpair()
    with ours, theirs:
        context = ChannelContext(
            theirs, job_id=JOB_ID, job_type=job_type(jobs.Leaf).name, priority=JobPriority.LOW
        )
        number: Any = Number()
        context.update_metrics("bytes", number)
        context.progress(number, number)
        context.finish(Success())
        said = [frames.receive(ours)[0] for _ in range(3)]
    assert said == [
        {"say": "news", "metrics": {"bytes": 2.5}},
        {"say": "news", "progress": [2, 2]},
        {"say": "result", "kind": "success", "output": None},
    ]
    assert json.loads(json.dumps(context.metrics)) == {"bytes": 2.5}
