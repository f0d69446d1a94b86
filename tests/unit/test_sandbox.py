"""Jobs that may kill, each in a process in which nothing else runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest

from schemas.errors import JobTypeError, PipelineError
from schemas.job import Job
from tests.support.executor_bench import Bench, error_of, returns_nothing
from tests.support.process_pool import Told
from tests.support.sandbox_jobs import (
    Counts,
    Ends,
    LeavesAThread,
    Reports,
    Says,
    Weighed,
    Weighs,
    weighs_in_grams,
)
from workers.execution.processes import NotStarted, ProcessDied
from workers.execution.sandbox import Sandbox
from workers.message import Message
from workers.results import JobResult, Success
from workers.worker import Handlers

pytestmark = pytest.mark.job_processing


class Running:
    """A sandbox and its handlers."""

    def __init__(self, *what: Any, size: int = 1) -> None:
        self.handlers = Handlers()
        for one in what:
            self.handlers.register(one)
        self.sandbox = Sandbox(size, self.handlers)

    async def run(self, job: Job, *, fresh: bool = False) -> tuple[JobResult, Told]:
        handler = self.handlers.get(job.job_type)
        assert handler is not None
        envelope = {"id": "j", "type": job.job_type, "priority": "normal", "created_at": 0, "source": ""}
        body = handler.job_type.wire.encode(handler.job_type.to_record(job, envelope))
        told = Told(job)
        return await self.sandbox.run(handler, body, told, on_start=lambda: None, fresh=fresh), told


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running(Says, Ends, weighs_in_grams)
    yield running
    await running.sandbox.close()


async def test_coroutines_and_plain_functions_run_in_another_process(running: Running) -> None:
    result, told = await running.run(Says())
    assert isinstance(result, Success)
    assert result.output is not None
    assert result.output["pid"] != os.getpid()
    assert told._metrics == {"said": 1}
    weighed, _ = await running.run(Weighed())
    assert weighed == Success({"unit": "g"})


async def test_one_that_ends_its_process_is_known_by_that_and_the_next_one_runs(running: Running) -> None:
    with pytest.raises(ProcessDied, match="exit code 7"):
        await running.run(Ends())
    result, _ = await running.run(Says())
    assert isinstance(result, Success)


def test_only_what_another_process_can_make_is_run_there() -> None:
    assert Running(Says, Ends, weighs_in_grams, Counts).sandbox.types == {
        "sandbox_says",
        "sandbox_ends",
        "sandbox_weighed",
    }
    assert Running(Weighs).sandbox.types == {"sandbox_weighed"}
    assert Running(Weighs("kg")).sandbox.types == frozenset()
    assert Running(partial(Weighs, "kg")).sandbox.types == {"sandbox_weighed"}
    no_json: Any = object()
    assert Running(partial(Weighs, no_json)).sandbox.types == frozenset()
    assert Running(Says, size=0).sandbox.types == frozenset()


def test_an_instance_that_holds_something_is_not_made_again_without_it() -> None:
    """Its jobs would fail there though they harm nobody."""
    has_nothing, has_a_client = Reports(), Reports()
    has_a_client.client = object()
    assert Running(has_nothing).sandbox.types == {"sandbox_reported"}
    assert Running(has_a_client).sandbox.types == frozenset()


async def test_what_is_made_with_arguments_by_a_partial_is_made_with_them_there() -> None:
    running = Running(partial(Weighs, unit="kg"))
    weighed, _ = await running.run(Weighed())
    await running.sandbox.close()
    assert weighed == Success({"unit": "kg"})


@pytest.mark.parametrize("error", [PipelineError("no memory"), JobTypeError("no such module")])
async def test_where_no_process_can_be_started_only_what_cannot_be_imported_is_never_tried_again(
    running: Running, error: PipelineError
) -> None:
    async def refuse() -> Any:
        raise error

    running.sandbox._pool._start = refuse  # type: ignore[method-assign]
    with pytest.raises(NotStarted, match=str(error)):
        await running.run(Says())
    assert bool(running.sandbox.types) is not isinstance(error, JobTypeError)


async def test_its_processes_end_when_nothing_has_run_in_them_for_a_while() -> None:
    running = Running(Says, size=2)
    running.sandbox._idle_s = 0.05
    results = await asyncio.gather(running.run(Says()), running.run(Says()))
    children = [child.pid for child in running.sandbox._pool._all]
    assert len(children) == 2
    async with asyncio.timeout(10):
        while any(psutil.pid_exists(pid) for pid in children):
            await asyncio.sleep(0.01)
    again, _ = await running.run(Says())
    assert isinstance(again, Success)
    assert all(isinstance(result, Success) for result, _ in results)
    await running.sandbox.close()


async def test_a_process_that_dies_of_what_another_job_has_left_behind_proves_nothing() -> None:
    running = Running(Says, LeavesAThread)
    try:
        await running.run(LeavesAThread())
        with pytest.raises(ProcessDied, match="exit code 9") as died:
            await running.run(Says(seconds=20.0))
        assert died.value.after_others
        result, _ = await running.run(Says(), fresh=True)
        assert isinstance(result, Success)
    finally:
        await running.sandbox.close()


async def test_a_job_that_wants_a_process_of_its_own_takes_the_place_of_an_idle_one() -> None:
    running = Running(Says)
    try:
        first, _ = await running.run(Says())
        again, _ = await running.run(Says())
        fresh, _ = await running.run(Says(), fresh=True)
        assert isinstance(first, Success)
        assert isinstance(again, Success)
        assert isinstance(fresh, Success)
        assert first.output == again.output != fresh.output
        assert first.output is not None
        async with asyncio.timeout(10):
            while psutil.pid_exists(first.output["pid"]):
                await asyncio.sleep(0.01)
    finally:
        await running.sandbox.close()


def ending_with(bench: Bench, error: Exception) -> None:
    async def end(active: object) -> Any:
        raise error

    def place(message: Message) -> bool:
        message.sandboxed = not message.kept_out
        return False

    bench.executor._in_process = end  # type: ignore[method-assign]
    bench.scheduler._queue_for_process = place  # type: ignore[method-assign]


async def test_one_whose_own_process_dies_is_dead_lettered_as_the_one_that_kills() -> None:
    async with Bench() as bench:
        ending_with(bench, ProcessDied(7))
        bench.add(returns_nothing)
        (outcome,) = await bench.ended()
        name, reason = error_of(outcome)
        assert name == "worker_lost"
        assert str(reason).endswith("the last time its own: the handler's process died with exit code 7")
        assert bench.scheduler.running == 0


@pytest.mark.parametrize(
    ("died", "next_in"),
    [
        pytest.param(ProcessDied(7, after_others=True), "a fresh process", id="others had run there"),
        pytest.param(ProcessDied(-9), "the worker", id="the system may be short of memory"),
    ],
)
async def test_a_death_that_is_no_proof_gives_the_job_back(died: ProcessDied, next_in: str) -> None:
    async with Bench() as bench:
        deaths = [died]

        async def ends(active: Any) -> Any:
            if deaths:
                raise deaths.pop()
            return Success()

        ending_with(bench, died)
        bench.executor._in_process = ends  # type: ignore[method-assign]
        one = bench.add(returns_nothing)
        (outcome,) = await bench.ended()
        assert outcome.message is one
        assert outcome.event != "worker_lost"
        assert one.kept_out is (next_in == "the worker")
        assert one.needs_fresh_process is (next_in == "a fresh process")
        assert bench.scheduler.running == 0


async def test_one_for_which_there_is_no_process_is_kept_out_and_given_back() -> None:
    async with Bench() as bench:
        ending_with(bench, NotStarted("no more processes"))
        one = bench.add(returns_nothing)
        (outcome,) = await bench.ended()
        assert outcome.message is one
        assert one.kept_out
        assert not one.sandboxed
        assert bench.scheduler.running == 0


@pytest.mark.parametrize("is_crowded", [False, True])
@pytest.mark.parametrize("has_met_others", [False, True])
async def test_where_suspects_are_few_each_has_a_new_process(
    *, is_crowded: bool, has_met_others: bool
) -> None:
    asked: list[bool] = []

    class Noting:
        async def run(self, *_: Any, fresh: bool, **__: Any) -> Success:
            asked.append(fresh)
            return Success()

    async with Bench() as bench:
        noting, active = Noting(), MagicMock()
        bench.executor._sandbox = noting  # type: ignore[assignment]
        bench.executor._is_crowded = lambda: is_crowded
        active.handler.execution = "async"
        active.message.needs_fresh_process = has_met_others
        assert isinstance(await bench.executor._in_process(active), Success)
    assert asked == [has_met_others or not is_crowded]
