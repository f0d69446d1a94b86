"""The executor's slots: how many run at once, what passes from one job to the next, and what is told of a job that runs."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.errors import KafkaUnreachable, UnknownSchema
from schemas.job import Execution
from schemas.lifecycle import JobStatus
from schemas.offsetmap import OffsetMap, Suspect
from tests.support.executor_bench import Bench, Gate, returns_nothing, state_of
from tests.support.messages import commit, partition
from tests.support.schedule_bench import dangerous
from workers.context import WorkerContext
from workers.offsets import ALONE_AFTER
from workers.outcome import Outcome, PlainSuccess
from workers.scheduling.time_share import ALONE_MS

pytestmark = pytest.mark.job_processing


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench() as bench:
        yield bench


# --- slots --------------------------------------------------------------------------------------------------


COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@pytest.mark.parametrize("execution", ["async", "thread"])
async def test_nobody_inherits_what_a_handler_left_in_its_context(execution: Execution) -> None:
    bench = Bench(concurrency=1)
    seen: list[str] = []

    async def paints(job: Any, context: WorkerContext) -> None:
        seen.append(COLOUR.get())
        COLOUR.set("red")

    def paints_in_thread(job: Any, context: WorkerContext) -> None:
        seen.append(COLOUR.get())
        COLOUR.set("red")

    for _ in range(5):
        bench.add(paints if execution == "async" else paints_in_thread, execution=execution)
    await bench.ended(5)
    await bench.executor.stop()
    assert seen == ["none"] * 5


async def test_what_a_handler_leaves_in_its_context_may_compare_as_it_likes() -> None:
    """An array cannot say whether it equals another one. That is no reason for the worker to end, and its neighbours with it."""

    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value of an array is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    weights: contextvars.ContextVar[Array] = contextvars.ContextVar("weights")
    weights.set(Array())
    bench = Bench(concurrency=1)

    async def loads(job: Any, context: WorkerContext) -> None:
        weights.set(Array())

    for _ in range(3):
        bench.add(loads)
    ends = await bench.ended(3)
    await bench.executor.stop()
    assert [state_of(outcome) for outcome in ends] == [JobStatus.SUCCEEDED] * 3


async def test_no_more_run_at_once_than_allowed() -> None:
    bench = Bench(concurrency=3)
    gates = [Gate() for _ in range(5)]
    for gate in gates:
        bench.add(gate)
    bench.executor.wake()
    await asyncio.gather(*(gate.started.wait() for gate in gates[:3]))
    bench.executor.wake()
    for _ in range(9):  # more turns than a fourth job would need to begin
        await asyncio.sleep(0)
    assert len(bench.executor.active) == 3
    for gate in gates:
        gate.opened.set()
    await bench.ended(5)
    await bench.executor.stop()


async def test_what_must_wait_for_a_commit_asks_for_one(bench: Bench) -> None:
    closed = partition(number=2)
    bench.add(returns_nothing, part=closed)
    bench.executor.wake()
    await bench.until(lambda: bench.outcomes == [Outcome(None, None)])
    commit(closed)
    bench.scheduler.unpark()
    assert state_of((await bench.ended())[0]) is JobStatus.SUCCEEDED


async def test_many_short_jobs_leave_nothing_behind(bench: Bench) -> None:
    for number in range(500):
        bench.add(returns_nothing, key=b"%d" % (number % 7))
    await bench.ended(500)
    assert (bench.scheduler.running, len(bench.scheduler), bench.executor.active) == (0, 0, {})


async def cancels_its_task_later(job: Any, context: WorkerContext) -> None:
    """A time-out made at home that nobody takes back."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(0.01, task.cancel)


async def test_a_slot_that_is_cancelled_when_its_handler_has_ended_takes_no_place_of_the_worker() -> None:
    """Its parking place was woken ever after: an error, and then silence."""
    bench = Bench(concurrency=1)
    bench.add(cancels_its_task_later)
    await bench.ended(1)
    await bench.until(lambda: not bench.executor._slots.tasks)
    assert bench.executor._slots.idle == []
    bench.add(returns_nothing)
    assert len(await bench.ended(2)) == 2
    await bench.executor.stop()


@pytest.mark.parametrize("order", ["cancelled, woken", "woken, cancelled"])
async def test_a_slot_that_is_cancelled_as_it_is_woken_leaves_the_job_to_another(
    bench: Bench, order: str
) -> None:
    bench.add(returns_nothing)
    await bench.ended(1)
    await bench.until(lambda: bool(bench.executor._slots.idle))
    (slot,) = bench.executor._slots.tasks
    bench.add(returns_nothing)
    for step in order.split(", "):
        (slot.cancel if step == "cancelled" else bench.executor.wake)()
    async with asyncio.timeout(5):
        await bench.until(lambda: len(bench.ends) == 2)


async def test_a_job_whose_slot_is_cancelled_while_its_schema_is_looked_for_starts_in_another(
    bench: Bench,
) -> None:
    """It belonged to nobody: it did not run, and its key was locked for ever."""
    one = bench.add(returns_nothing, key=b"k")
    bench.decoder.learned[one.offset] = bench.decoder.by_offset[one.offset]
    bench.decoder.by_offset[one.offset] = UnknownSchema(b"12345678")
    bench.executor.wake()
    await asyncio.sleep(0)  # the slot's turn: it asks
    (slot,) = bench.executor._slots.tasks
    slot.cancel()
    (outcome,) = await bench.ended()
    assert state_of(outcome) is JobStatus.SUCCEEDED
    assert (bench.scheduler.running, len(bench.scheduler._keys)) == (0, 0)


async def test_a_long_job_keeps_those_that_ended_beside_it_out_of_memory(bench: Bench) -> None:
    long = Gate()
    bench.add(long, timeout_ms=500)
    bench.executor.wake()
    await long.started.wait()
    for ended in range(200):
        short = Gate()
        bench.add(short)
        bench.executor.wake()
        await short.started.wait()
        for _ in range(2):
            bench.executor._sweep.look_around()
        short.opened.set()
        await bench.ended(ended + 1)
    assert len(bench.executor._sweep._deadlines) < 80
    bench.now_ms += 501
    assert state_of((await bench.ended(201))[-1]) is JobStatus.RETRYING, "its own deadline is still there"


# --- what is told of a running job --------------------------------------------------------------------------


async def test_a_job_that_outlives_a_tick_is_announced_as_running(bench: Bench) -> None:
    gate = Gate()
    one = bench.add(gate)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.outcomes))
    (news,) = bench.outcomes
    assert (news.state, news.message, news.owner) == (JobStatus.RUNNING, None, one)
    gate.opened.set()
    await bench.ended()


async def test_progress_is_told_at_most_once_a_second(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate)
    bench.executor.wake()
    await bench.until(lambda: len(bench.outcomes) == 1)
    assert gate.context is not None
    gate.context.progress(1, 10)
    bench.now_ms += 999
    bench.executor._sweep._run()
    assert len(bench.outcomes) == 1
    bench.now_ms += 1
    bench.executor._sweep._run()
    assert len(bench.outcomes) == 2
    bench.now_ms += 1_000
    bench.executor._sweep._run()
    assert len(bench.outcomes) == 2, "nothing new to tell"
    assert bench.outcomes[-1].status is not None
    assert not isinstance(bench.outcomes[-1].status, PlainSuccess)
    assert bench.outcomes[-1].status.progress_done == 1
    gate.opened.set()
    await bench.ended()


def may_join(bench: Bench) -> bool:
    return bench.scheduler.isolated is None


@pytest.mark.parametrize(
    ("deaths_before", "alone_ms"), [(1, ALONE_MS), (2, 4 * ALONE_MS), (3, 16 * ALONE_MS), (9, 256 * ALONE_MS)]
)
async def test_who_survives_alone_for_long_enough_is_joined_by_others(
    bench: Bench, deaths_before: int, alone_ms: int
) -> None:
    """Longer after each death: one that kills after 31 s was never found."""
    losses = {str(number): number for number in range(deaths_before)}
    # At each of those but the first two it had survived alone before, and went on beside others.
    suspects = {0: Suspect(tuple(losses), joined=deaths_before >= ALONE_AFTER)}
    prior = OffsetMap(0, start_limit=1, clean=False, incarnation="dead", suspects=suspects, losses=losses)
    part = partition(number=1, prior=prior)
    gate = Gate()
    bench.add(gate, part=part)
    commit(part)
    bench.executor.wake()
    await bench.until(lambda: part.alone == 0)
    commit(part)
    bench.executor.wake()
    await gate.started.wait()
    bench.now_ms += alone_ms
    bench.executor._sweep._run()
    assert not may_join(bench)
    bench.now_ms += 1
    bench.executor._sweep._run()
    assert may_join(bench)
    assert bench.outcomes[-1] == Outcome(None, None), "a commit is asked for"
    assert commit(part).suspects[0].joined, "a successor must know that it may have been running"
    gate.opened.set()
    await bench.ended()


async def test_others_start_while_the_schema_of_one_that_must_run_alone_is_not_to_be_had(
    bench: Bench,
) -> None:
    part = dangerous()
    part.top, bench.part.top = 0, 5
    one = bench.add(returns_nothing, part=part)
    bench.decoder.learned[one.offset] = bench.decoder.by_offset[one.offset]
    bench.decoder.by_offset[one.offset] = UnknownSchema(b"12345678")
    bench.decoder.learned[one.offset] = KafkaUnreachable("registry", 1)
    commit(part)
    bench.executor.wake()
    await bench.until(lambda: part.alone == one.offset)
    commit(part)
    bench.executor.wake()
    await bench.until(lambda: part.alone is None)
    assert bench.outcomes[-1] == Outcome(None, None), "a commit is asked for"
    assert bench.scheduler.running == 1, "it is on its way, and tried again in a second"
    commit(part)
    other = bench.add(returns_nothing)
    (outcome,) = await bench.ended()
    assert outcome.message is other


async def test_who_was_held_back_long_enough_starts_though_nothing_has_ended(bench: Bench) -> None:
    """One runs on and on, another waits until it can run alone: all others must not wait with it."""
    endless, other = Gate(), Gate()
    bench.add(endless)
    bench.executor.wake()
    await endless.started.wait()
    prior = OffsetMap(
        5, start_limit=6, clean=False, incarnation="dead", suspects={5: Suspect(("a",))}, losses={"a": 1}
    )
    part = partition(number=1, prior=prior)
    bench.add(returns_nothing, part=part)
    bench.scheduler._share._patience_ms = 50
    bench.add(other)
    bench.executor.wake()
    async with asyncio.timeout(10):
        await other.started.wait()
    assert part.alone is None
    for one in (endless, other):
        one.opened.set()
    await bench.until(lambda: part.alone == 5)


async def test_an_error_of_our_own_while_looking_around_ends_the_worker() -> None:
    """A sweep that raised was never repeated: nothing timed out any more, and nobody knew."""
    bench = Bench()
    gate = Gate()
    bench.add(gate)
    bench.executor.wake()
    await gate.started.wait()

    def broken() -> int:
        raise ZeroDivisionError

    bench.executor._sweep._steady_ms = broken
    await bench.until(lambda: bool(bench.failures))
    assert isinstance(bench.failures[0], ZeroDivisionError)
    await bench.executor.stop()
