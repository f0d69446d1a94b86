"""The executor and handlers that are told to end: too late, released with their partition, or left behind at the end."""

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

from schemas.errors import UnknownSchema
from schemas.job import Execution
from schemas.lifecycle import JobStatus
from schemas.topics import JobPriority
from tests.support.executor_bench import HOUR_MS, Bench, Call, FakeDecoded, Gate, error_of, state_of
from tests.support.messages import partition
from workers.context import WorkerContext
from workers.execution.active import RELEASED
from workers.execution.sweep import ABANDON_AFTER_MS
from workers.message import Message
from workers.results import Failed, Skipped, Success

pytestmark = pytest.mark.job_processing


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench() as bench:
        yield bench


# --- time-outs ----------------------------------------------------------------------------------------------


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


async def stubborn(job: Any, context: WorkerContext) -> Success:
    """Ends well where others would end."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return Success({"cleaned": True})
    return Success()


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


# --- cancellation -------------------------------------------------------------------------------------------


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
