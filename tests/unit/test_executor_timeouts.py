"""Time limits of runs: when they end, what happens to handlers that do not listen, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import update_wrapper
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.lifecycle import JobStatus
from tests.support.executor_bench import HOUR_MS, Bench, Call, Gate, error_of, state_of, stubborn
from workers.context import WorkerContext
from workers.execution.active import RELEASED, Active
from workers.execution.sweep import ABANDON_AFTER_MS
from workers.results import Skipped

pytestmark = pytest.mark.job_processing


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench() as bench:
        yield bench


async def test_a_handler_that_takes_too_long_is_cancelled_and_its_slot_goes_on(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate, timeout_ms=500, key=b"k")
    bench.executor.wake()
    await gate.started.wait()
    bench.now_ms += 501
    (outcome,) = await bench.ended()
    assert state_of(outcome) is JobStatus.RETRYING
    assert error_of(outcome) == ("Timeout", "the run took longer than 500 ms")
    after = Gate()
    after.opened.set()
    bench.add(after, key=b"k")
    assert state_of((await bench.ended(2))[-1]) is JobStatus.SUCCEEDED
    assert all(slot.cancelling() == 0 for slot in bench.executor._slots.tasks), (
        "nothing of the cancellation is left"
    )


async def test_a_handler_within_its_limit_is_left_alone(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate, timeout_ms=500)
    bench.executor.wake()
    await gate.started.wait()
    bench.now_ms += 499
    await bench.until(lambda: not bench.executor._sweep._fresh and not bench.executor._sweep._aging)
    assert gate.context is not None
    assert not gate.context.cancelled
    gate.opened.set()
    assert state_of((await bench.ended())[0]) is JobStatus.SUCCEEDED


@pytest.mark.parametrize("by_ms", [HOUR_MS, -HOUR_MS])
async def test_a_broker_whose_clock_is_set_neither_ends_a_run_nor_prolongs_it(
    bench: Bench, by_ms: int
) -> None:
    gate = Gate()
    bench.add(gate, timeout_ms=500)
    bench.executor.wake()
    await gate.started.wait()
    bench.set_clock(by_ms)
    bench.now_ms += 499
    await bench.until(lambda: not bench.executor._sweep._fresh and not bench.executor._sweep._aging)
    bench.executor._sweep._run()
    assert gate.context is not None
    assert not gate.context.cancelled
    bench.now_ms += 2
    (outcome,) = await bench.ended()
    assert error_of(outcome)[0] == "Timeout"


def deaf_to(cancellations: int) -> Any:
    async def call(job: Any, context: WorkerContext) -> None:
        for _ in range(cancellations):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    return call


async def test_a_handler_that_swallows_its_cancellation_is_cancelled_again(bench: Bench) -> None:
    """An ``except`` around one step of many: the job ran on for ever, with its slot and its key."""
    bench.add(deaf_to(2), timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.now_ms += 501
    for _ in range(2):
        await bench.until(lambda: not bench.executor._sweep._fresh and not bench.executor._sweep._aging)
        bench.executor._sweep._run()
        await asyncio.sleep(0)
        assert bench.ends == []
        bench.now_ms += ABANDON_AFTER_MS
    (outcome,) = await bench.ended()
    assert error_of(outcome)[0] == "Timeout"


async def test_a_released_handler_that_has_swallowed_its_time_out_is_cancelled_again(bench: Bench) -> None:
    one = bench.add(deaf_to(1), timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    (active,) = bench.executor.active
    bench.now_ms += 501
    await bench.until(lambda: active.cancel_reason is not None)
    await asyncio.sleep(0)
    one.part.releasing = True
    await bench.executor.release({one.part}, 0)
    assert not bench.executor.active


async def test_the_limit_of_a_job_that_has_ended_is_not_that_of_the_next_one_in_its_slot() -> None:
    bench = Bench(concurrency=1)
    first, second = Gate(), Gate()
    bench.add(first, timeout_ms=500)
    bench.add(second, timeout_ms=5_000)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor._sweep._deadlines))
    first.opened.set()
    await second.started.wait()
    bench.now_ms += 501
    bench.executor._sweep._run()
    second.opened.set()
    assert [state_of(outcome) for outcome in await bench.ended(2)] == [JobStatus.SUCCEEDED] * 2
    await bench.executor.stop()


async def test_a_handler_that_ends_well_though_it_was_too_late_has_ended_well(bench: Bench) -> None:
    bench.add(stubborn, timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.now_ms += 501
    assert state_of((await bench.ended())[0]) is JobStatus.SUCCEEDED


class OneProcess:
    """A pool whose only process is busy until the test says so, and whose handlers end when they are cancelled."""

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def run(
        self, handler: Any, body: bytes, context: WorkerContext, *, on_start: Callable[[], None]
    ) -> None:
        await self.free.wait()
        on_start()
        await asyncio.Event().wait()


async def test_the_time_of_a_job_for_a_process_begins_when_one_is_free(bench: Bench) -> None:
    pool: Any = OneProcess()
    bench.executor._processes = pool
    one = bench.add(Gate(), execution="process", timeout_ms=500)
    decoded: Any = bench.decoder.by_offset[one.offset]
    decoded.handler.job_type = SimpleNamespace(
        to_record=lambda job, record: record, wire=SimpleNamespace(encode=lambda record: b"")
    )
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.now_ms += 10_000
    for _ in range(3):
        bench.executor._sweep._run()
    assert bench.outcomes == [], "it waits for its turn"
    pool.free.set()
    await bench.until(lambda: bool(bench.outcomes))
    assert bench.outcomes[0].state is JobStatus.RUNNING
    bench.now_ms += 499
    bench.executor._sweep._run()
    assert [active.cancel_reason for active in bench.executor.active] == [None]
    bench.now_ms += 2
    assert error_of((await bench.ended())[0])[0] == "Timeout"


async def test_a_handler_that_took_too_long_has_failed_even_if_it_is_released_before_it_ends(
    bench: Bench,
) -> None:
    bench.add(Gate(), timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor._sweep._deadlines))
    bench.now_ms += 501
    bench.executor._sweep._run()
    bench.executor.cancel_all(RELEASED)
    assert error_of((await bench.ended())[0])[0] == "Timeout"


async def test_without_a_limit_of_its_own_the_types_limit_counts(bench: Bench) -> None:
    one = bench.add(Gate(), timeout_ms=None)
    decoded: Any = bench.decoder.by_offset[one.offset]
    decoded.timeout_ms = 700
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.now_ms += 701
    assert error_of((await bench.ended())[0])[1] == "the run took longer than 700 ms"


async def test_a_thread_is_asked_to_end_and_its_own_word_counts(bench: Bench) -> None:
    def obedient(job: Any, context: WorkerContext) -> Skipped:
        while not context.cancelled:  # a thread can only look
            threading.Event().wait(0.005)
        return Skipped("asked to end")

    bench.add(obedient, execution="thread", timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.now_ms += 501
    assert state_of((await bench.ended())[0]) is JobStatus.SKIPPED


def decorated(function: Call) -> Call:
    """As a decorator does it that knows nothing of coroutines."""

    def call(job: Any, context: WorkerContext) -> Any:
        return function(job, context)

    return update_wrapper(call, function, assigned=())


async def test_a_coroutine_that_comes_back_from_a_thread_runs_in_the_event_loop(bench: Bench) -> None:
    loop = asyncio.get_running_loop()

    async def call(job: Any, context: WorkerContext) -> Skipped:
        await asyncio.sleep(0)
        return Skipped("here" if asyncio.get_running_loop() is loop else "elsewhere")

    async def fails(job: Any, context: WorkerContext) -> None:
        raise ValueError("bad")

    assert state_of(await bench.end_of(decorated(call), execution="thread")) is JobStatus.SKIPPED
    bench.add(decorated(fails), execution="thread")
    assert error_of((await bench.ended(2))[-1]) == ("ValueError", "bad")


async def test_a_coroutine_that_comes_back_from_a_thread_is_cancelled_as_any_other(bench: Bench) -> None:
    late, released = Gate(), Gate()
    bench.add(decorated(late), execution="thread", timeout_ms=500, key=b"k")
    bench.executor.wake()
    await late.started.wait()
    bench.now_ms += 501
    (outcome,) = await bench.ended()
    assert error_of(outcome) == ("Timeout", "the run took longer than 500 ms")
    bench.add(decorated(released), execution="thread", key=b"k")
    bench.executor.wake()
    await released.started.wait()
    bench.part.releasing = True
    await bench.executor.release({bench.part}, 0)
    assert bench.executor.active == {}
    assert len(bench.ends) == 1, "its next owner runs it"


async def test_a_coroutine_that_comes_back_too_late_does_not_begin(bench: Bench) -> None:
    begun = threading.Event()

    async def begins() -> None:
        begun.set()

    def obedient(job: Any, context: WorkerContext) -> Any:
        while not context.cancelled:
            threading.Event().wait(0.005)
        return begins()

    bench.add(obedient, execution="thread", timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.now_ms += 501
    assert error_of((await bench.ended())[0])[0] == "Timeout"
    assert not begun.is_set()


@asynccontextmanager
async def a_deaf_thread(bench: Bench) -> AsyncIterator[None]:
    """A job whose thread has been told that its time is up, and goes on; inside, it may be abandoned."""
    release, in_handler = threading.Event(), threading.Event()

    def deaf(job: Any, context: WorkerContext) -> None:
        in_handler.set()
        release.wait(60)
        raise ValueError("nobody hears it")

    bench.add(deaf, execution="thread", timeout_ms=500)
    bench.executor.wake()
    await asyncio.to_thread(in_handler.wait, 30)
    try:
        bench.now_ms += 501
        await bench.until(lambda: any(a.cancel_reason is not None for a in bench.executor.active))
        yield
    finally:
        release.set()


async def test_a_thread_that_does_not_listen_is_left_behind_with_its_pool(bench: Bench) -> None:
    async with a_deaf_thread(bench):
        assert bench.ends == [], "it may still listen"
        bench.now_ms += ABANDON_AFTER_MS
        (outcome,) = await bench.ended()
        assert error_of(outcome)[0] == "Timeout"
        together = threading.Barrier(4)
        for _ in range(4):
            bench.add(lambda job, context: {"place": together.wait(20)}, execution="thread")
        ends = await bench.ended(5)
        assert {state_of(end) for end in ends[1:]} == {JobStatus.SUCCEEDED}, "its place is not missing"


async def test_a_thread_that_was_left_behind_counts_as_a_stray_until_it_ends(bench: Bench) -> None:
    async with a_deaf_thread(bench):
        assert bench.scheduler.strays == 0
        bench.now_ms += ABANDON_AFTER_MS
        await bench.ended()
        assert bench.scheduler.strays == 1
    await bench.until(lambda: bench.scheduler.strays == 0)


async def test_a_thread_that_was_told_to_end_before_its_time_was_up_has_ten_seconds_as_well(
    bench: Bench,
) -> None:
    """Kafka was away for a moment; given back at once, the job would start beside its own clean-up."""
    release, starts = threading.Event(), []

    def listens(job: Any, context: WorkerContext) -> None:
        starts.append(context)
        release.wait(60)

    bench.add(listens, execution="thread", key=b"k", timeout_ms=500)
    bench.executor.wake()
    try:
        await bench.until(lambda: bool(starts))
        bench.executor.cancel_all(RELEASED)
        bench.now_ms += 501
        await bench.until(lambda: any(active.overdue for active in bench.executor.active))
        bench.now_ms += ABANDON_AFTER_MS - 1
        bench.executor.wake()
        assert [active.done for active in bench.executor.active] == [False]
        bench.now_ms += 1
        await bench.until(lambda: bench.scheduler.strays == 1)
    finally:
        release.set()


async def test_two_that_wait_for_ends_take_no_wake_up_from_each_other(bench: Bench) -> None:
    """A drain that began in the turn in which a revocation's last job ended let that wait until its deadline."""
    executor = bench.executor
    one, other = (Active.__new__(Active) for _ in range(2))
    executor.active.update({one: None, other: None})

    async def end() -> None:
        del executor.active[one]
        executor._finished.set()

    # In this order, in one turn of the loop.
    first = asyncio.create_task(executor._until_done({one}, 60))
    asyncio.create_task(end()).add_done_callback(lambda task: task.result())
    second = asyncio.create_task(executor._until_done({other}, 60))
    try:
        await asyncio.wait_for(asyncio.shield(first), 10)
    finally:
        executor.active.clear()
        executor._finished.set()
        await asyncio.gather(first, second)
