"""The executor: every way in which a handler can end, and what its slot, its key and its context look like after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas.errors import BadRecord, InvalidJob, PermanentError, UnknownSchema
from schemas.headers import LATEST_MS, Delivery, parse
from schemas.job import Execution, Job
from schemas.lifecycle import JobStatus
from schemas.topics import JobPriority
from tests.support.executor_bench import (
    NOW_MS,
    Bench,
    Call,
    Gate,
    error_of,
    raising,
    returns_nothing,
    state_of,
)
from tests.support.messages import TOPICS
from workers.context import MAX_CHILD_BYTES, MAX_CHILDREN, WorkerContext
from workers.execution.executor import UNKNOWN_TYPE_LIMIT_MS
from workers.outcome import OutRecord
from workers.results import Failed, Skipped, Snooze, Success

pytestmark = pytest.mark.job_processing


class AlwaysTheSame:
    """Plans this record, whatever is asked for."""

    def __init__(self, record: OutRecord) -> None:
        self._record = record

    def __call__(self, job: Job, priority: JobPriority, **options: Any) -> tuple[str, OutRecord]:
        return "child", self._record

    async def prepare(self, job: Job) -> None:
        """There is nothing to wait for."""


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench() as bench:
        yield bench


# --- how a handler ends -------------------------------------------------------------------------------------


def returning(value: Any) -> Call:
    async def call(job: Any, context: WorkerContext) -> Any:
        return value

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
        (KeyboardInterrupt(), JobStatus.RETRYING),
        (GeneratorExit(), JobStatus.RETRYING),
        (Panic("from below"), JobStatus.RETRYING),
        (asyncio.CancelledError(), JobStatus.RETRYING),
        (StopIteration(), JobStatus.RETRYING),
        (Speechless(), JobStatus.RETRYING),
        (nested(2_000), JobStatus.RETRYING),
        (ExceptionGroup("a task group's", [ValueError("bad"), PermanentError("never")]), JobStatus.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
async def test_whatever_a_handler_raises_fails_its_own_job(
    bench: Bench, execution: Execution, error: BaseException, state: JobStatus
) -> None:
    call = raising(error) if execution == "async" else raising_in_thread(error)
    outcome = await bench.end_of(call, execution=execution)
    assert state_of(outcome) is state
    alone_in_groups = isinstance(error, ExceptionGroup) and len(error.exceptions) == 1
    name = "ValueError" if alone_in_groups else type(error).__name__
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
            await asyncio.sleep(0)  # here the cancellation arrives
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
    waits_for_a_slot = Gate()

    async def main() -> None:
        bench = Bench(concurrency=1)
        benches.append(bench)
        gate = Gate()
        bench.add(gate)
        bench.add(waits_for_a_slot)
        bench.executor.wake()
        await gate.started.wait()

    asyncio.run(main())
    assert (benches[0].ends, benches[0].failures, waits_for_a_slot.runs) == ([], [], 0)


async def test_a_slot_that_is_closed_by_force_fails_nobody(bench: Bench) -> None:
    """As a loop that is thrown away with its tasks does it; GeneratorExit is not the handler's then."""
    bench.add(Gate())
    one = bench.scheduler.take(NOW_MS)
    assert one is not None
    elsewhere = asyncio.create_task(asyncio.sleep(0))
    run = bench.executor._run(one, elsewhere)
    run.send(None)
    assert bench.executor.active
    run.close()
    assert (bench.ends, bench.executor.active) == ([], {})


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
    bench.executor._planner = AlwaysTheSame(record)

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
    bench.executor._planner = AlwaysTheSame(record)

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


# --- what cannot be run -------------------------------------------------------------------------------------


async def test_bytes_that_cannot_be_understood_go_to_the_dead_letters(bench: Bench) -> None:
    one = bench.add(returns_nothing, key=b"k")
    bench.decoder.by_offset[one.offset] = BadRecord("nonsense")
    (outcome,) = await bench.ended()
    assert [record.topic for record in outcome.records] == [TOPICS.dlq]
    assert outcome.event == "undecodable"
    assert (bench.scheduler.running, len(bench.scheduler._keys)) == (0, 0)


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


async def test_an_unknown_type_is_said_once(bench: Bench) -> None:
    """Two programs may share a group by mistake, each with types of its own: then the jobs of one are held up by the other."""
    for _ in range(3):
        bench.add(None, delivery=Delivery(job_type="test"))
    with capture_logs() as logs:
        await bench.ended(3)
    assert [line["job_type"] for line in logs if line["log_level"] == "warning"] == ["test"]


async def test_the_time_of_an_unknown_type_does_not_begin_in_the_future(bench: Bench) -> None:
    """A header of the year 9999 would let it come back every ten seconds for ever."""
    bench.add(None, delivery=Delivery(job_type="test", unknown_since_ms=LATEST_MS))
    (outcome,) = await bench.ended()
    assert parse(outcome.records[0].headers).unknown_since_ms == NOW_MS


async def test_a_type_that_is_known_again_has_all_its_time_before_it(bench: Bench) -> None:
    bench.add(raising(ValueError("no")), delivery=Delivery(job_type="test", unknown_since_ms=1))
    (outcome,) = await bench.ended()
    assert parse(outcome.records[0].headers).unknown_since_ms == 0


async def test_child_jobs_of_a_run_that_ended_well_go_with_its_outcome(bench: Bench) -> None:
    child = OutRecord(TOPICS.jobs[JobPriority.LOW], 0, None, b"", [])
    bench.executor._planner = AlwaysTheSame(child)

    async def schedules(job: Any, context: WorkerContext) -> None:
        await context.schedule(job)

    assert (await bench.end_of(schedules)).records == (child,)
