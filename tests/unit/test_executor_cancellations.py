"""The executor and handlers that are told to end: too late, released with their partition, or left behind at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.errors import UnknownSchema
from schemas.job import Execution
from schemas.lifecycle import JobStatus
from schemas.topics import JobPriority
from tests.support.executor_bench import Bench, FakeDecoded, Gate, state_of, stubborn
from tests.support.messages import partition
from workers.context import WorkerContext
from workers.execution.active import RELEASED
from workers.message import Message
from workers.results import Failed

pytestmark = pytest.mark.job_processing


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench() as bench:
        yield bench


async def test_a_released_job_is_nobodys_here(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate, key=b"k")
    bench.executor.wake()
    await gate.started.wait()
    bench.part.releasing = True
    await bench.executor.release({bench.part}, 0.01)
    assert bench.ends == []
    assert (bench.scheduler.running, len(bench.scheduler)) == (0, 0)
    assert bench.executor.active == {}


@pytest.mark.parametrize("execution", ["async", "thread"])
async def test_a_released_job_that_ends_with_an_error_of_its_own_has_not_failed(
    bench: Bench, execution: Execution
) -> None:
    """A drain uses up no attempt, however the handler says that it was told to end."""
    running = threading.Event()

    async def translates(job: Any, context: WorkerContext) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise ConnectionError("the request was aborted") from error

    def listens(job: Any, context: WorkerContext) -> Failed:
        running.set()
        while not context.cancelled:  # a thread can only look
            threading.Event().wait(0.005)
        return Failed("told to end", retryable=False)

    bench.add(translates if execution == "async" else listens, execution=execution, key=b"k")
    bench.executor.wake()
    await asyncio.to_thread(running.wait, 30)
    bench.part.releasing = True
    await bench.executor.release({bench.part}, 0.01)
    assert not bench.executor.active, "a thread that listens has ended before the partition goes as well"
    assert bench.ends == []
    assert (bench.scheduler.running, len(bench.scheduler._keys)) == (0, 0)


async def test_a_handler_that_ends_well_when_it_is_released_need_not_run_again(bench: Bench) -> None:
    bench.add(stubborn)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.part.releasing = True
    await bench.executor.release({bench.part}, 0)
    assert [state_of(outcome) for outcome in bench.ends] == [JobStatus.SUCCEEDED]


async def test_a_release_waits_for_those_that_end_in_time(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate)
    bench.executor.wake()
    await gate.started.wait()
    bench.part.releasing = True
    releasing = asyncio.create_task(bench.executor.release({bench.part}, 1_000))
    await asyncio.sleep(0)  # its turn: it gets as far as it can
    assert not releasing.done()
    gate.opened.set()
    await releasing
    assert [state_of(outcome) for outcome in bench.ends] == [JobStatus.SUCCEEDED]


async def test_a_partition_that_moves_does_not_wait_for_those_who_will_hardly_end_in_time(
    bench: Bench,
) -> None:
    old, young = Gate(), Gate()
    bench.add(old)
    bench.executor.wake()
    await old.started.wait()
    bench.now_ms += 3_001
    bench.add(young)
    bench.executor.wake()
    await young.started.wait()
    bench.part.releasing = True
    releasing = asyncio.create_task(bench.executor.release({bench.part}, 3, only_who_may_end=True))
    await asyncio.sleep(0)
    assert not releasing.done(), "the young one may end"
    young.opened.set()
    await asyncio.wait_for(releasing, 2.5)
    assert [state_of(outcome) for outcome in bench.ends] == [JobStatus.SUCCEEDED]


async def test_a_drain_waits_for_all_of_them(bench: Bench) -> None:
    old = Gate()
    bench.add(old)
    bench.executor.wake()
    await old.started.wait()
    bench.now_ms += 3_001
    bench.part.releasing = True
    releasing = asyncio.create_task(bench.executor.release({bench.part}, 3))
    await asyncio.sleep(0)
    old.opened.set()
    await releasing
    assert [state_of(outcome) for outcome in bench.ends] == [JobStatus.SUCCEEDED]


async def test_only_runs_that_ended_by_themselves_tell_how_long_they_take(bench: Bench) -> None:
    one, other = Gate(), Gate()
    bench.add(one)
    bench.executor.wake()
    await one.started.wait()
    bench.now_ms += 30_000
    one.opened.set()
    await bench.ended()
    bench.add(other)
    bench.executor.wake()
    await other.started.wait()
    bench.part.releasing = True
    await asyncio.wait_for(bench.executor.release({bench.part}, 3, only_who_may_end=True), 2.5)
    (kind,) = bench.executor._run_times._last.values()
    assert list(kind) == [30_000]


async def test_a_release_leaves_other_partitions_alone(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate)
    bench.executor.wake()
    await gate.started.wait()
    await bench.executor.release({partition(number=9)}, 5)
    assert gate.context is not None
    assert not gate.context.cancelled
    gate.opened.set()
    await bench.ended()


async def test_after_a_lost_connection_what_is_still_ours_starts_again_with_its_key(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate, key=b"k")
    bench.executor.wake()
    await gate.started.wait()
    bench.may_start = False
    bench.executor.cancel_all(RELEASED)
    await bench.until(lambda: not bench.executor.active)
    assert (gate.runs, bench.scheduler.running, len(bench.scheduler)) == (1, 0, 1)
    bench.executor.wake()
    await asyncio.sleep(0)  # the slot's turn
    assert gate.runs == 1, "nothing starts while Kafka does not answer"
    gate.opened.set()
    bench.may_start = True
    (outcome,) = await bench.ended()
    assert (gate.runs, state_of(outcome)) == (2, JobStatus.SUCCEEDED)
    assert not bench.scheduler._keys


class Learning:
    """A job whose schema is still looked for; its handler has not started."""

    def __init__(self, bench: Bench, gate: Gate) -> None:
        self.asked, self.answered = asyncio.Event(), asyncio.Event()
        self.message = bench.add(gate, key=b"k")
        self._known = bench.decoder.by_offset[self.message.offset]
        bench.decoder.by_offset[self.message.offset] = UnknownSchema(b"12345678")
        bench.decoder.learn_and_decode = self._learn  # type: ignore[method-assign,assignment]

    async def _learn(self, one: Message) -> FakeDecoded | Exception:
        self.asked.set()
        await self.answered.wait()
        return self._known


async def test_a_job_that_is_released_while_its_schema_is_looked_for_does_not_start(bench: Bench) -> None:
    """Its partition's next owner runs it by then."""
    gate = Gate()
    learning = Learning(bench, gate)
    bench.executor.wake()
    await learning.asked.wait()
    bench.part.releasing = True
    bench.scheduler.purge({bench.part})
    await bench.executor.release({bench.part}, 3)
    bench.part.owned = False
    learning.answered.set()
    await bench.until(lambda: bench.scheduler.running == 0 or gate.started.is_set())
    assert (gate.runs, bench.ends, len(bench.scheduler._keys)) == (0, [], 0)


async def test_a_job_whose_schema_is_found_while_kafka_does_not_answer_starts_when_it_does(
    bench: Bench,
) -> None:
    gate = Gate()
    learning = Learning(bench, gate)
    bench.executor.wake()
    await learning.asked.wait()
    bench.may_start = False
    bench.executor.cancel_all(RELEASED)
    learning.answered.set()
    await bench.until(lambda: bench.scheduler.running == 0 or gate.started.is_set())
    assert (gate.runs, bench.scheduler.waiting(JobPriority.NORMAL)) == (0, 1)
    gate.opened.set()
    bench.may_start = True
    (outcome,) = await bench.ended()
    assert (gate.runs, state_of(outcome)) == (1, JobStatus.SUCCEEDED)


async def test_at_the_end_slots_end_and_report_nothing() -> None:
    bench = Bench()
    gate = Gate()
    bench.add(gate)
    bench.executor.wake()
    await gate.started.wait()
    await bench.executor.stop()
    assert (bench.ends, bench.failures) == ([], [])


async def test_at_the_end_handlers_that_nobody_can_end_are_counted_and_left_behind() -> None:
    bench = Bench()
    release, running, tasks = asyncio.Event(), threading.Event(), []
    go_on = threading.Event()

    async def deaf(job: Any, context: WorkerContext) -> None:
        tasks.append(asyncio.current_task())
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    def in_thread(job: Any, context: WorkerContext) -> None:
        running.set()
        go_on.wait(60)

    bench.add(deaf)
    bench.add(in_thread, execution="thread")
    bench.executor.wake()
    await asyncio.to_thread(running.wait, 30)
    await bench.until(lambda: bool(tasks))
    try:
        async with asyncio.timeout(30):
            await bench.executor.stop()
        assert bench.executor.left_behind == 2
    finally:
        release.set()
        go_on.set()
    await bench.until(lambda: not bench.executor.left_behind)
    assert bench.failures == []
