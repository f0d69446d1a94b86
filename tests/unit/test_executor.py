"""The executor: every way in which a handler can end, and what its slot, its key and its context look like after it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.errors import BadRecord, InvalidJob, PermanentError, UnknownSchema
from schemas.headers import Delivery, parse
from schemas.job import Execution
from schemas.lifecycle import JobStatus
from schemas.offsetmap import OffsetMap, Suspect
from schemas.topics import JobPriority
from tests.support.executor_bench import NOW_MS, Bench, Call
from tests.support.messages import TOPICS, commit, partition
from workers import executor as module
from workers.context import MAX_CHILD_BYTES, MAX_CHILDREN, WorkerContext
from workers.executor import ALONE_MS, RELEASED, UNKNOWN_TYPE_LIMIT_MS
from workers.outcome import Outcome, OutRecord, PlainSuccess
from workers.results import Failed, Skipped, Snooze, Success

pytestmark = pytest.mark.job_processing


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.executor.stop()
    assert bench.failures == []


def state_of(outcome: Outcome) -> JobStatus | None:
    return outcome.state


def error_of(outcome: Outcome) -> tuple[str | None, str | None]:
    assert outcome.status is not None
    assert not isinstance(outcome.status, PlainSuccess)
    return outcome.status.error_type, outcome.status.error_message


class Gate:
    """A handler that waits until the test opens it, and notes what happens to it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.opened = asyncio.Event()
        self.runs = 0
        self.context: WorkerContext | None = None

    async def __call__(self, job: Any, context: WorkerContext) -> None:
        self.runs += 1
        self.context = context
        self.started.set()
        await self.opened.wait()


# --- how a handler ends --------------------------------------------------------------------------------------


async def returns_nothing(job: Any, context: WorkerContext) -> None:
    return None


def returning(value: Any) -> Call:
    async def call(job: Any, context: WorkerContext) -> Any:
        return value

    return call


def raising(error: BaseException) -> Call:
    async def call(job: Any, context: WorkerContext) -> Any:
        raise error

    return call


def raising_in_thread(error: BaseException) -> Call:
    def call(job: Any, context: WorkerContext) -> Any:
        raise error

    return call


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (None, JobStatus.SUCCEEDED),
        ({"n": 1}, JobStatus.SUCCEEDED),
        (Success({"n": 1}), JobStatus.SUCCEEDED),
        (Skipped("nothing to do"), JobStatus.SKIPPED),
        (Snooze(timedelta(seconds=5)), JobStatus.SCHEDULED),
        (Failed("no"), JobStatus.RETRYING),
        (Failed("no", retryable=False), JobStatus.FAILED),
        (42, JobStatus.FAILED),
    ],
)
async def test_what_a_handler_returns_decides(bench: Bench, value: Any, state: JobStatus) -> None:
    assert state_of(await bench.end_of(returning(value))) is state


class Panic(BaseException):
    """As native code raises it."""


class Speechless(Exception):
    """Its author forgot something."""

    def __str__(self) -> str:
        return self.reason  # type: ignore[attr-defined, no-any-return]


def nested(depth: int) -> Exception:
    error: Exception = ValueError("at the bottom")
    for _ in range(depth):
        error = ExceptionGroup("more", [error])
    return error


@pytest.mark.parametrize("execution", ["async", "thread"])
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("bad"), JobStatus.RETRYING),
        (PermanentError("never"), JobStatus.FAILED),
        (SystemExit(3), JobStatus.RETRYING),
        (Panic("from below"), JobStatus.RETRYING),
        (asyncio.CancelledError(), JobStatus.RETRYING),
        (StopIteration(), JobStatus.RETRYING),
        (Speechless(), JobStatus.RETRYING),
        (nested(2_000), JobStatus.RETRYING),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
async def test_whatever_a_handler_raises_fails_its_own_job(
    bench: Bench, execution: Execution, error: BaseException, state: JobStatus
) -> None:
    call = raising(error) if execution == "async" else raising_in_thread(error)
    outcome = await bench.end_of(call, execution=execution)
    assert state_of(outcome) is state
    name = type(error).__name__
    # Neither a coroutine nor a future can hand it on.
    assert error_of(outcome)[0] == ("RuntimeError" if name == "StopIteration" else name)
    again = bench.add(returns_nothing)
    assert (await bench.ended(2))[-1].message is again, "the worker goes on"


async def test_a_handler_that_waited_for_something_cancelled_fails_its_job(bench: Bench) -> None:
    """An inner task that somebody cancelled is no request to end the slot."""

    async def call(job: Any, context: WorkerContext) -> None:
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner

    outcome = await bench.end_of(call, key=b"k")
    assert state_of(outcome) is JobStatus.RETRYING
    assert error_of(outcome)[0] == "CancelledError"


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_handler_that_cancels_its_own_task_ends_its_own_job_alone(*, swallows: bool) -> None:
    """Taken for the end of the slot, it would leave the job without an end and its key locked."""
    bench = Bench(concurrency=1)

    async def call(job: Any, context: WorkerContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not swallows:
                raise

    async def waits_for_something_cancelled(job: Any, context: WorkerContext) -> None:
        await asyncio.gather(asyncio.create_task(call(job, context)))

    bench.add(call, key=b"k")
    bench.add(waits_for_something_cancelled, key=b"k")
    bench.add(returns_nothing, key=b"k")
    ends = await bench.ended(3)
    end = JobStatus.SUCCEEDED if swallows else JobStatus.RETRYING
    assert [state_of(one) for one in ends] == [end, end, JobStatus.SUCCEEDED]
    await bench.executor.stop()


def test_a_loop_that_ends_without_a_shutdown_fails_nobody() -> None:
    """Every task is cancelled then. What was running is run again elsewhere, as after a crash."""
    benches = []

    async def main() -> None:
        bench = Bench()
        benches.append(bench)
        gate = Gate()
        bench.add(gate)
        bench.executor.wake()
        await gate.started.wait()

    asyncio.run(main())
    assert (benches[0].ends, benches[0].failures) == ([], [])


class Changing:
    """Can be written once: as an output that a thread of the handler goes on changing."""

    def __init__(self) -> None:
        self._looks = 0

    def __str__(self) -> str:
        self._looks += 1
        if self._looks > 1:
            raise RuntimeError("changed while it was written")
        return "once"


async def test_an_output_that_changes_after_the_end_fails_its_own_job(bench: Bench) -> None:
    outcome = await bench.end_of(returning({"value": Changing()}), key=b"k")
    assert state_of(outcome) is JobStatus.FAILED
    assert error_of(outcome) == ("BadResult", "changed while it was written")


@pytest.mark.parametrize(("size", "most"), [(10, MAX_CHILDREN), (200_000, MAX_CHILD_BYTES // 200_000)])
async def test_a_run_schedules_no_more_children_than_a_transaction_can_carry(
    bench: Bench, size: int, most: int
) -> None:
    record = OutRecord(TOPICS.jobs[JobPriority.NORMAL], 0, None, bytes(size), [])
    bench.executor._planner = lambda job, priority, **options: ("child", record)

    async def fans_out(job: Any, context: WorkerContext) -> None:
        for _ in range(most):
            context.schedule_nowait(job)
        with pytest.raises(InvalidJob, match="let a child schedule the rest"):
            context.schedule_nowait(job)

    outcome = await bench.end_of(fans_out)
    assert len(outcome.records) == most


@pytest.mark.parametrize("execution", ["async", "thread"])
async def test_what_goes_on_after_its_run_gets_no_id_for_a_child_that_nobody_writes(
    bench: Bench, execution: Execution
) -> None:
    contexts: list[WorkerContext] = []
    record = OutRecord(TOPICS.jobs[JobPriority.NORMAL], 0, None, b"child", [])
    bench.executor._planner = lambda job, priority, **options: ("child", record)

    async def in_task(job: Any, context: WorkerContext) -> None:
        contexts.append(context)
        await context.schedule(job)

    def in_thread(job: Any, context: WorkerContext) -> None:
        contexts.append(context)
        context.schedule_nowait(job)

    outcome = await bench.end_of(in_task if execution == "async" else in_thread, execution=execution)
    assert outcome.records == (record,)
    with pytest.raises(RuntimeError, match="is over"):
        await contexts[0].schedule(contexts[0])  # type: ignore[arg-type]


async def test_a_key_is_free_after_every_end(bench: Bench) -> None:
    for call in (
        raising(ValueError()),
        raising(SystemExit()),
        raising(asyncio.CancelledError()),
        returns_nothing,
    ):
        bench.add(call, key=b"k")
    assert len(await bench.ended(4)) == 4


async def test_a_handler_for_processes_without_a_pool_fails_for_good(bench: Bench) -> None:
    bench.add(returns_nothing, execution="process")
    (outcome,) = await bench.ended()
    assert state_of(outcome) is JobStatus.FAILED


# --- what cannot be run ---------------------------------------------------------------------------------------


async def test_bytes_that_cannot_be_understood_go_to_the_dead_letters(bench: Bench) -> None:
    one = bench.add(returns_nothing, key=b"k")
    bench.decoder.by_offset[one.offset] = BadRecord("nonsense")
    (outcome,) = await bench.ended()
    assert [record.topic for record in outcome.records] == [TOPICS.dlq]
    assert outcome.event == "undecodable"
    assert (bench.scheduler.running, bench.scheduler._keys) == (0, {})


async def test_an_unknown_schema_is_read_up_first(bench: Bench) -> None:
    one = bench.add(returns_nothing)
    bench.decoder.learned[one.offset] = bench.decoder.by_offset[one.offset]
    bench.decoder.by_offset[one.offset] = UnknownSchema(b"12345678")
    (outcome,) = await bench.ended()
    assert state_of(outcome) is JobStatus.SUCCEEDED


async def test_a_schema_that_nobody_knows_is_a_dead_letter(bench: Bench) -> None:
    one = bench.add(returns_nothing)
    bench.decoder.by_offset[one.offset] = UnknownSchema(b"12345678")
    bench.decoder.learned[one.offset] = UnknownSchema(b"12345678")
    (outcome,) = await bench.ended()
    assert outcome.event == "undecodable"


async def test_a_schema_that_cannot_be_had_now_is_asked_for_again(bench: Bench) -> None:
    one = bench.add(returns_nothing, key=b"k")
    decoded = bench.decoder.by_offset[one.offset]
    bench.decoder.by_offset[one.offset] = UnknownSchema(b"12345678")
    bench.decoder.learned[one.offset] = ConnectionError("no registry")
    bench.executor.wake()
    await bench.until(lambda: bench.scheduler.running == 1)
    bench.decoder.learned[one.offset] = decoded
    (outcome,) = await bench.ended()
    assert state_of(outcome) is JobStatus.SUCCEEDED


async def test_an_unknown_type_waits_for_a_release_to_be_rolled_out(bench: Bench) -> None:
    """However long ago the job was scheduled: its time begins when a worker first does not know its type."""
    first = NOW_MS - UNKNOWN_TYPE_LIMIT_MS
    bench.add(None, delivery=Delivery(job_type="test", first_seen_ms=1, attempt=2))
    bench.add(None, delivery=Delivery(job_type="test", unknown_since_ms=first + 1))
    bench.add(None, delivery=Delivery(job_type="test", unknown_since_ms=first))
    fresh, waiting, late = await bench.ended(3)
    assert [state_of(o) for o in (fresh, waiting)] == [JobStatus.SCHEDULED] * 2
    assert [parse(o.records[0].headers).unknown_since_ms for o in (fresh, waiting)] == [NOW_MS, first + 1]
    assert (state_of(late), error_of(late)[0]) == (JobStatus.FAILED, "HandlerNotFound")


async def test_a_type_that_is_known_again_has_all_its_time_before_it(bench: Bench) -> None:
    bench.add(raising(ValueError("no")), delivery=Delivery(job_type="test", unknown_since_ms=1))
    (outcome,) = await bench.ended()
    assert parse(outcome.records[0].headers).unknown_since_ms == 0


async def test_child_jobs_of_a_run_that_ended_well_go_with_its_outcome(bench: Bench) -> None:
    child = OutRecord(TOPICS.jobs[JobPriority.LOW], 0, None, b"", [])
    planner: Any = lambda *_, **__: ("id", child)  # noqa: E731
    bench.executor._planner = planner

    async def schedules(job: Any, context: WorkerContext) -> None:
        await context.schedule(job)

    assert (await bench.end_of(schedules)).records == (child,)


# --- time-outs ----------------------------------------------------------------------------------------------------


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
    assert all(slot.cancelling() == 0 for slot in bench.executor._slots), (
        "nothing of the cancellation is left"
    )


async def test_a_handler_within_its_limit_is_left_alone(bench: Bench) -> None:
    gate = Gate()
    bench.add(gate, timeout_ms=500)
    bench.executor.wake()
    await gate.started.wait()
    bench.now_ms += 499
    await bench.until(lambda: not bench.executor._fresh and not bench.executor._aging)
    assert gate.context is not None
    assert not gate.context.cancelled
    gate.opened.set()
    assert state_of((await bench.ended())[0]) is JobStatus.SUCCEEDED


async def stubborn(job: Any, context: WorkerContext) -> Success:
    """Ends well where others would end."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return Success({"cleaned": True})
    return Success()


async def test_the_limit_of_a_job_that_has_ended_is_not_that_of_the_next_one_in_its_slot() -> None:
    bench = Bench(concurrency=1)
    first, second = Gate(), Gate()
    bench.add(first, timeout_ms=500)
    bench.add(second, timeout_ms=5_000)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor._deadlines))
    first.opened.set()
    await second.started.wait()
    bench.now_ms += 501
    bench.executor._sweep()
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
        bench.executor._sweep()
    assert bench.outcomes == [], "it waits for its turn"
    pool.free.set()
    await bench.until(lambda: bool(bench.outcomes))
    assert bench.outcomes[0].state is JobStatus.RUNNING
    bench.now_ms += 499
    bench.executor._sweep()
    assert [active.cancel_reason for active in bench.executor.active] == [None]
    bench.now_ms += 2
    assert error_of((await bench.ended())[0])[0] == "Timeout"


async def test_a_handler_that_took_too_long_has_failed_even_if_it_is_released_before_it_ends(
    bench: Bench,
) -> None:
    bench.add(Gate(), timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor._deadlines))
    bench.now_ms += 501
    bench.executor._sweep()
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
        while not context.cancelled:
            threading.Event().wait(0.005)
        return Skipped("asked to end")

    bench.add(obedient, execution="thread", timeout_ms=500)
    bench.executor.wake()
    await bench.until(lambda: bool(bench.executor.active))
    bench.now_ms += 501
    assert state_of((await bench.ended())[0]) is JobStatus.SKIPPED


async def test_a_thread_that_does_not_listen_is_left_behind_with_its_pool(bench: Bench) -> None:
    release, in_handler = threading.Event(), threading.Event()

    def deaf(job: Any, context: WorkerContext) -> None:
        in_handler.set()
        release.wait(60)

    bench.add(deaf, execution="thread", timeout_ms=500)
    bench.executor.wake()
    await asyncio.to_thread(in_handler.wait, 30)
    try:
        bench.now_ms += 501
        await bench.until(lambda: any(a.cancel_reason is not None for a in bench.executor.active))
        assert bench.ends == [], "it may still listen"
        bench.now_ms += module.ABANDON_AFTER_MS
        (outcome,) = await bench.ended()
        assert error_of(outcome)[0] == "Timeout"
        together = threading.Barrier(4)
        for _ in range(4):
            bench.add(lambda job, context: {"place": together.wait(20)}, execution="thread")
        ends = await bench.ended(5)
        assert {state_of(end) for end in ends[1:]} == {JobStatus.SUCCEEDED}, "its place is not missing"
    finally:
        release.set()


# --- cancellation ---------------------------------------------------------------------------------------------------


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
        while not context.cancelled:
            threading.Event().wait(0.005)
        return Failed("told to end", retryable=False)

    bench.add(translates if execution == "async" else listens, execution=execution, key=b"k")
    bench.executor.wake()
    await asyncio.to_thread(running.wait, 30)
    bench.part.releasing = True
    await bench.executor.release({bench.part}, 0.01)
    await bench.until(lambda: not bench.executor.active)
    assert bench.ends == []
    assert (bench.scheduler.running, bench.scheduler._keys) == (0, {})


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
    await asyncio.sleep(0)
    gate.opened.set()
    await releasing
    assert [state_of(outcome) for outcome in bench.ends] == [JobStatus.SUCCEEDED]


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
    bench.executor.cut_off = True
    bench.executor.cancel_all(RELEASED)
    await bench.until(lambda: not bench.executor.active)
    await asyncio.sleep(0)
    assert (gate.runs, bench.scheduler.running, len(bench.scheduler)) == (1, 0, 1)
    bench.executor.wake()
    await asyncio.sleep(0)
    assert gate.runs == 1, "nothing starts while Kafka does not answer"
    gate.opened.set()
    bench.executor.cut_off = False
    (outcome,) = await bench.ended()
    assert (gate.runs, state_of(outcome)) == (2, JobStatus.SUCCEEDED)
    assert not bench.scheduler._keys


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


# --- slots -----------------------------------------------------------------------------------------------------------

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


async def test_no_more_run_at_once_than_allowed() -> None:
    bench = Bench(concurrency=3)
    gates = [Gate() for _ in range(5)]
    for gate in gates:
        bench.add(gate)
    bench.executor.wake()
    await asyncio.gather(*(gate.started.wait() for gate in gates[:3]))
    bench.executor.wake()
    for _ in range(9):
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


# --- what is told of a running job -------------------------------------------------------------------------------------


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
    bench.executor._sweep()
    assert len(bench.outcomes) == 1
    bench.now_ms += 1
    bench.executor._sweep()
    assert len(bench.outcomes) == 2
    bench.now_ms += 1_000
    bench.executor._sweep()
    assert len(bench.outcomes) == 2, "nothing new to tell"
    assert bench.outcomes[-1].status is not None
    assert not isinstance(bench.outcomes[-1].status, PlainSuccess)
    assert bench.outcomes[-1].status.progress_done == 1
    gate.opened.set()
    await bench.ended()


def may_join(bench: Bench) -> bool:
    return bench.scheduler.isolated is None


async def test_who_survives_alone_for_long_enough_is_joined_by_others(bench: Bench) -> None:
    suspects = {0: Suspect(("first",))}
    prior = OffsetMap(
        0, start_limit=1, clean=False, incarnation="dead", suspects=suspects, losses={"first": 1}
    )
    part = partition(number=1, prior=prior)
    gate = Gate()
    bench.add(gate, part=part)
    commit(part)
    bench.executor.wake()
    await bench.until(lambda: part.alone == 0)
    commit(part)
    bench.executor.wake()
    await gate.started.wait()
    bench.now_ms += ALONE_MS
    bench.executor._sweep()
    assert not may_join(bench)
    bench.now_ms += 1
    bench.executor._sweep()
    assert may_join(bench)
    assert bench.outcomes[-1] == Outcome(None, None), "a commit is asked for"
    gate.opened.set()
    await bench.ended()


async def test_an_error_of_our_own_while_looking_around_ends_the_worker() -> None:
    """A sweep that raised was never repeated: nothing timed out any more, and nobody knew."""
    bench = Bench()
    gate = Gate()
    bench.add(gate)
    bench.executor.wake()
    await gate.started.wait()

    def broken() -> int:
        raise ZeroDivisionError

    bench.executor._now_ms = broken
    await bench.until(lambda: bool(bench.failures))
    assert isinstance(bench.failures[0], ZeroDivisionError)
    await bench.executor.stop()
