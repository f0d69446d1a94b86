"""How handler processes end: cancelled, killed, by themselves, with their worker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.support import process_jobs as jobs
from tests.support.process_pool import JOB_ID, Told, gone, open_fifo, pool_of
from tests.support.waiting import eventually
from tests.support.workers import ROOT
from workers.execution import processes
from workers.results import Failed, Success

pytestmark = pytest.mark.job_processing


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def test_cancelling_ends_a_busy_loop_that_may_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to, it ends long before it would be killed, and the next job runs in a new process."""
    monkeypatch.setattr(processes, "_GRACE_S", 100)
    async with pool_of(jobs.Spins, jobs.Answers) as running:
        task, context = running.begin(jobs.Spins(str(tmp_path)))
        await context.spoken.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not psutil.pid_exists(context.pid)
        assert (tmp_path / "cleaned").exists()
        assert await running.run(jobs.Answers()) == Success()


async def test_a_coroutine_that_waits_cleans_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE_S", 100)
    async with pool_of(jobs.SpinsLater) as running:
        task, context = running.begin(jobs.SpinsLater(str(tmp_path)))
        await context.spoken.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not psutil.pid_exists(context.pid)
        assert (tmp_path / "cleaned").exists()


async def test_one_that_does_not_listen_is_killed_and_not_before_half_a_second() -> None:
    async with pool_of(jobs.Spins) as running:
        task, context = running.begin(jobs.Spins(stubborn=True))
        await context.spoken.wait()
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began >= 0.5
        assert not psutil.pid_exists(context.pid)


async def test_what_the_handler_has_started_ends_with_it() -> None:
    async with pool_of(jobs.Spins) as running:
        task, context = running.begin(jobs.Spins(program=True))
        await context.spoken.wait()
        program = int(context.metrics["program"])
        assert not gone(program)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        eventually(lambda: gone(program), 5, "the handler's own child ends")


async def test_an_impatient_second_cancel_leaves_no_process() -> None:
    async with pool_of(jobs.Spins, jobs.Answers) as running:
        task, context = running.begin(jobs.Spins(stubborn=True))
        await context.spoken.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await running.pool.close()
        assert not psutil.pid_exists(context.pid)


async def test_cancelling_while_the_process_starts_leaves_none() -> None:
    async with pool_of(jobs.Answers) as running:
        before = set(psutil.Process().children())
        task, _ = running.begin(jobs.Answers())
        while not running.pool._all:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert set(psutil.Process().children()) == before
        assert await running.run(jobs.Answers()) == Success()


async def test_closing_while_a_process_is_being_made_leaves_none() -> None:
    async with pool_of(jobs.Answers) as running:
        before = set(psutil.Process().children())
        task, _ = running.begin(jobs.Answers())
        await asyncio.sleep(0)
        assert not running.pool._all
        await running.pool.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert set(psutil.Process().children()) == before


async def test_a_process_that_dies_fails_its_job_and_is_replaced() -> None:
    async with pool_of(jobs.Dies, jobs.Answers) as running:
        for how, words in (
            ("exit", "exit code 3"),
            ("SIGSEGV", "signal SIGSEGV"),
            ("SIGKILL", "signal SIGKILL; the system may be"),
        ):
            failed = await running.run(jobs.Dies(how))
            assert isinstance(failed, Failed)
            assert (failed.retryable, failed.error_type) == (True, "ProcessDied")
            assert words in failed.reason
        assert await running.run(jobs.Answers()) == Success()


async def test_a_death_is_noticed_while_a_forked_process_holds_the_channel() -> None:
    async with pool_of(jobs.Dies) as running:
        job = jobs.Dies("forked")
        context = Told(job)
        failed = await running.run(job, context)
        assert isinstance(failed, Failed)
        assert "exit code 5" in failed.reason


async def test_a_process_that_died_while_idle_fails_no_job() -> None:
    async with pool_of(jobs.Answers) as running:
        assert await running.run(jobs.Answers()) == Success()
        (child,) = running.pool._all
        os.kill(child.pid, signal.SIGKILL)
        await child._exit
        assert await running.run(jobs.Answers()) == Success()
        await child.end()
        assert child not in running.pool._all


async def test_the_number_of_a_process_that_ended_long_ago_is_sent_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system may have given it to a group of somebody else's."""
    async with pool_of(jobs.Answers) as running:
        assert await running.run(jobs.Answers()) == Success()
        (child,) = running.pool._all
        os.kill(child.pid, signal.SIGKILL)
        await child._exit
        told: list[int] = []
        monkeypatch.setattr("workers.execution.processes.os.killpg", lambda group, _: told.append(group))
        assert await child.end() == -signal.SIGKILL
        assert told == []


async def test_a_sigterm_to_all_processes_of_the_service_lets_the_handler_finish(fifo: Path) -> None:
    """Only the worker decides what ends: it may be draining."""
    async with pool_of(jobs.Meets) as running:
        task, context = running.begin(jobs.Meets(str(fifo)))
        await context.spoken.wait()
        os.kill(context.pid, signal.SIGTERM)
        await asyncio.to_thread(open_fifo, fifo, "w")
        assert await task == Success({"pid": context.pid})


async def test_ctrl_c_on_the_terminal_does_not_reach_it() -> None:
    async with pool_of(jobs.Answers) as running:
        result = await running.run(jobs.Answers("success"))
        assert isinstance(result, Success)
        assert result.output is not None
        assert result.output["group"] == result.output["pid"] != os.getpgrp()


async def test_closing_cuts_off_what_runs_without_calling_it_a_failure() -> None:
    async with pool_of(jobs.Spins, jobs.Answers) as running:
        task, context = running.begin(jobs.Spins())
        await context.spoken.wait()
        waiting, _ = running.begin(jobs.Answers())
        await running.pool.close()
        for one in (task, waiting):
            with pytest.raises(asyncio.CancelledError, match="closed"):
                await one
        assert not psutil.pid_exists(context.pid)


@pytest.mark.parametrize("busy", [True, False])
def test_a_dead_worker_leaves_no_process(tmp_path: Path, busy: bool) -> None:  # noqa: FBT001
    """kill -9 of the worker, while a child is busy and while it is idle."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
            import asyncio, os
            from schemas.jobtype import job_type
            from schemas.topics import JobPriority
            from tests.support import process_jobs as jobs
            from workers.context import WorkerContext
            from workers.execution.processes import ProcessPool
            from workers.worker import Handlers

            class Context(WorkerContext):
                def progress(self, done, total=None):
                    print("child", done, flush=True)

            async def main():
                handlers = Handlers()
                handlers.register(jobs.Spins)
                pool = ProcessPool(1, handlers)
                await pool.start()
                if not {busy}:
                    print("child", next(iter(pool._all)).pid, flush=True)
                    await asyncio.Event().wait()
                kind = job_type(jobs.Spins)
                facts = {{"id": "{JOB_ID}", "type": kind.name, "priority": "low", "created_at": 0, "source": ""}}
                body = kind.wire.encode(kind.to_record(jobs.Spins(), facts))
                context = Context(job_id="{JOB_ID}", job_type=kind.name, priority=JobPriority.LOW)
                await pool.run(handlers.get(kind.name), body, context)

            asyncio.run(main())
        """),
        "utf-8",
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    with parent:
        try:
            assert parent.stdout is not None
            said = next(line.split() for line in parent.stdout if line.startswith(b"child "))
            child = int(said[1])
            assert not gone(child)
        finally:
            parent.kill()
    eventually(lambda: gone(child), 5, "the handler process ends")


def test_elsewhere_a_thread_sees_that_the_worker_is_gone() -> None:
    """The way of systems that send no signal when a parent dies."""
    ours, theirs = socket.socketpair()
    code = textwrap.dedent("""
        import socket, sys, threading
        from workers.execution.process_child import exit_at_hangup
        channel = socket.socket(fileno=int(sys.argv[1]))
        threading.Thread(target=exit_at_hangup, args=(channel,), daemon=True).start()
        assert channel.recv(1) == b"x"
        for line in sys.stdin:
            print(line, end="", flush=True)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        try:
            theirs.close()
            ours.sendall(b"xy")  # "y" stays unread: bytes are not a hang-up
            assert process.stdin is not None
            assert process.stdout is not None
            for question in (b"there?\n", b"still there?\n"):
                process.stdin.write(question)
                process.stdin.flush()
                assert process.stdout.readline() == question
            ours.close()
            assert process.wait(10) == 1
        finally:
            process.kill()


def test_told_to_end_when_it_is_about_to_it_ends_without_a_trace() -> None:
    """The worker closes its side and sends the signal in one go: that one may arrive when the interpreter is ending already."""
    ours, theirs = socket.socketpair()
    program = """
        import sys, threading
        from workers.execution.process_child import main
        main(int(sys.argv[1]), int(sys.argv[2]))
        print("over", flush=True)
        threading.Event().wait()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(theirs.fileno()), str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        pass_fds=[theirs.fileno()],
    ) as child:
        theirs.close()
        ours.close()
        assert child.stdout is not None
        assert child.stdout.readline() == "over\n"
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (-signal.SIGTERM, "")
